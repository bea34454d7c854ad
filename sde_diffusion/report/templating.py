"""Templates of the reports."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from sde_diffusion.core.packages import extra
from sde_diffusion.report.runs import capital

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = "templates"


def source(name: str) -> str:
    """The text of a file beside the templates."""
    return files(__package__).joinpath(FOLDER, name).read_text(encoding="utf-8")


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, in a table or out of one; `a_b` and `[1, 2]` are plain text to it as well."""
    marked = re.sub(r"[\\`*<|]|(?<!\w)_|_(?!\w)|(?<=\])(?=\()", r"\\\g<0>", str(text))
    return " ".join(marked.split())


@cache
def environment() -> Environment:
    """Where templates are found: what is not defined is an error, and HTML is escaped, Markdown where it says so."""
    with extra("report"):
        from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(__package__, FOLDER),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"escaped": escaped, "capital": capital}
    return made
