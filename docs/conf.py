"""How the documentation is built: `python -m sphinx -W docs FOLDER`, where -W makes every warning an error.

Pages are Markdown, which GitHub shows as well. The pages of docs/api/ are made from the docstrings of all modules.
Formulas become MathML, which browsers draw by themselves: the pages need no script and no network.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import sde_diffusion as sd

project = "sde_diffusion"
html_title = "sde_diffusion"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

smartquotes = False  # x' is the next x
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "ignore-module-all": True}


# --- pages that are made --------------------------------------------------------------------------------------


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


FIGURES = "../benchmarks/README.md"


def api() -> dict[str, list[str]]:
    """The rooms of the package and its modules beside them, each with the full names of its modules."""
    found = {}
    for path in sorted(Path(sd.__file__).parent.iterdir()):
        if (path / "__init__.py").is_file():
            modules = sorted(f"{sd.__name__}.{path.name}.{part.stem}" for part in path.glob("*.py"))
            found[path.name] = [module.removesuffix(".__init__") for module in modules]  # the room itself comes first
        elif path.suffix == ".py" and path.stem != "__init__":
            found[path.stem] = [f"{sd.__name__}.{path.stem}"]
    return found


def write_pages(app: Sphinx) -> None:
    """A page for each room of the package with all its modules, one for the public names, and the figures."""
    place = Path(app.srcdir) / "api"
    place.mkdir(exist_ok=True)
    (place / "figures.md").write_text((Path(app.srcdir) / FIGURES).read_text().replace("](../docs/", "](../"))
    rooms = api()
    for room, modules in rooms.items():
        parts = [f"{title(name, '-')}\n.. automodule:: {name}\n" for name in modules]
        (place / f"{room}.rst").write_text("\n".join([title(room, "="), *parts]))
    front = [title("API", "="), f".. automodule:: {sd.__name__}\n   :no-members:\n"]
    pages = ["", ".. toctree::", "   :maxdepth: 1", "", *(f"   {room}" for room in rooms), ""]
    (place / "index.rst").write_text("\n".join([*front, *pages]))


def link_figures(app: Sphinx, name: str, text: list[str]) -> None:
    """The toolkit's figures lie outside of docs/, where Sphinx does not look: links lead to their copy."""
    text[0] = text[0].replace(f"]({FIGURES})", "](api/figures.md)")


# --- docstrings -----------------------------------------------------------------------------------------------


def laid_out(block: str) -> bool:
    """Whether a block of a docstring is a formula, a table or a list in columns, whose layout must stay."""
    return any(re.match(r"\s|\|", line) or "   " in line for line in block.splitlines())


def escaped(text: str) -> str:
    """Plain text in reStructuredText: `code` is code, and x_t, [B, *D] and |x| are no markup."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"`{part}`" if part[:1] == "`" else re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts)


def plain_docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """A docstring of ours, which is plain text, as reStructuredText."""
    blocks = re.split(r"\n[ \t]*\n", "\n".join(lines).strip("\n"))
    lines.clear()
    for layout, group in groupby(blocks, laid_out):
        text = "\n\n".join(group)
        if layout:
            lines += [".. code-block:: text", "", *(f"   {line}" for line in text.splitlines())]
        else:
            lines += escaped(text).splitlines()
        lines.append("")
    if name == sd.__name__:
        lines += public_names()


def public_names() -> list[str]:
    """What `import sde_diffusion as sd` offers: each name with the first line of its docstring."""
    found = ["Public names (``import sde_diffusion as sd``):", ""]
    for name in sd.__all__:
        value = getattr(sd, name)
        place, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if place and own == name:
            first = (value.__doc__ or "").strip().splitlines()[0]
            found.append(f"- :py:obj:`sd.{name} <{place}.{own}>`: {escaped(first)}")
        else:
            found.append(f"- ``sd.{name}``: the table of names, {len(value)} of them")
    return [*found, ""]


LONGEST_VALUE = 60


def without_long_values(app: Sphinx, tree: nodes.document) -> None:
    """Tables of functions and of published configurations are read in the source, not here."""
    for value in list(tree.findall(addnodes.desc_annotation)):
        if value.astext().lstrip().startswith("=") and len(value.astext()) > LONGEST_VALUE:
            value.parent.remove(value)


# --- formulas -------------------------------------------------------------------------------------------------


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f"<div>{convert(node.astext(), display='block')}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    app.connect("source-read", link_figures)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("doctree-read", without_long_values)
    app.add_html_math_renderer("mathml", (inline_formula, None), (display_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
