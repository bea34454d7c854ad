"""The layers of the design, read from the imports; and no switch on the kind of a process anywhere.

A module imports only from lower layers or from its own. A new module must be given its layer here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sde_diffusion import PROCESSES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sde_diffusion"
LAYERS: dict[str, int] = {
    "sde_diffusion.errors": 0,
    "sde_diffusion.kernel": 0,
    "sde_diffusion.prediction": 0,
    "sde_diffusion.sde": 0,
    "sde_diffusion.grids": 0,
    "sde_diffusion.noise": 0,
    "sde_diffusion.noise_sources": 0,
    "sde_diffusion.nets": 0,
    "sde_diffusion.denoiser": 1,
    "sde_diffusion.oracles": 1,
    "sde_diffusion.priors": 1,
    "sde_diffusion.ode": 1,
    "sde_diffusion.flow": 1,
    "sde_diffusion.samplers": 2,
    "sde_diffusion.likelihood": 2,
    "sde_diffusion.elbo": 2,
    "sde_diffusion.latents": 2,
    "sde_diffusion.times": 2,
    "sde_diffusion.losses": 2,
    "sde_diffusion.data": 3,
    "sde_diffusion.figures": 3,
    "sde_diffusion.files": 3,
    "sde_diffusion.records": 3,
    "sde_diffusion.ema": 3,
    "sde_diffusion.checkpoint": 3,
    "sde_diffusion.engine": 3,
    "sde_diffusion.guard": 3,
    "sde_diffusion.shards": 3,
    "sde_diffusion.metrics_log": 3,
    "sde_diffusion.progress": 3,
    "sde_diffusion.trainer": 3,
    "sde_diffusion.importers": 3,
    "sde_diffusion.metrics": 3,
    "sde_diffusion.build": 4,
    "sde_diffusion.report": 4,
    "sde_diffusion.modes": 5,
    "configs": 5,
    "run_lib": 5,
    "main": 5,
}
"""Module or package -> its layer (DESIGN.md, section 2)."""
SHOP_WINDOW = "sde_diffusion"
"""The package's __init__, which shows what all layers have, and is imported by those above them only."""
PURE: dict[str, tuple[str, ...]] = {
    "sde_diffusion.nets": ("sde_diffusion.errors", "sde_diffusion.nets"),
    "sde_diffusion.report": ("sde_diffusion.errors", "sde_diffusion.report"),
    "sde_diffusion.errors": (),
}
"""Packages that may import nothing else of ours: networks know no process, reports draw what they are
given."""


def sources() -> dict[str, Path]:
    """Every module's dotted name and file."""
    files = [
        *(ROOT / PACKAGE).rglob("*.py"),
        *(ROOT / "configs").rglob("*.py"),
        ROOT / "run_lib.py",
        ROOT / "main.py",
    ]
    found = {}
    for file in files:
        if file.exists():
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def layer(module: str) -> int | None:
    """The layer of a module, by its longest prefix in the table."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in LAYERS:
            return LAYERS[name]
    return None


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Our own modules that a module imports, at its top or inside a function, and the line."""
    is_package = SOURCES[module].name == "__init__.py"
    for node in ast.walk(TREES[module]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                keep = len(here) - node.level + (1 if is_package else 0)
                base = ".".join([*here[:keep], *([base] if base else [])])
            # `from package import module` imports the module, `from module import name` the module itself.
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base for a in node.names]
        for name in names:
            if name.split(".")[0] in {PACKAGE, "configs", "run_lib", "main"}:
                yield name, getattr(node, "lineno", 0)


def test_the_reader_sees_imports() -> None:
    """The test of the test: a known import of each kind is found."""
    assert "sde_diffusion.kernel" in {name for name, _ in imports("sde_diffusion.sde")}
    assert "sde_diffusion.samplers.march" in {name for name, _ in imports("sde_diffusion.samplers.flow")}
    assert len(SOURCES) > 20


@pytest.mark.parametrize("module", [name for name in SOURCES if name != SHOP_WINDOW])
def test_a_module_imports_from_below(module: str) -> None:
    own = layer(module)
    assert own is not None, f"{module} has no layer: give it one in LAYERS and in the design"
    for name, line in imports(module):
        if name == SHOP_WINDOW:
            assert own >= 4, f"{module}:{line} imports the package's front, which stands above its layer {own}"
            continue
        target = layer(name)
        assert target is not None, f"{module}:{line} imports {name}, which has no layer"
        assert target <= own, f"{module}:{line} (layer {own}) imports {name} (layer {target})"


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_import_nothing_else_of_ours(package: str) -> None:
    for module in SOURCES:
        if within(module, package):
            for name, line in imports(module):
                assert any(within(name, allowed) for allowed in PURE[package]), f"{module}:{line} imports {name}"


def test_nets_import_only_torch() -> None:
    """Besides the standard library and our errors."""
    import sys

    for module in SOURCES:
        if not within(module, "sde_diffusion.nets"):
            continue
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = [(node.module or "").split(".")[0]]
            else:
                continue
            for root in roots:
                assert root in {"torch", PACKAGE} or root in sys.stdlib_module_names, f"{module}:{node.lineno}: {root}"


KINDS = {*PROCESSES, "SDE"}


def names_in(node: ast.AST) -> set[str]:
    """Every identifier below a node."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def switches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Places that ask what kind of process they have: isinstance, type comparisons, names as strings,
    match."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"isinstance", "issubclass"} and len(node.args) == 2 and names_in(node.args[1]) & KINDS:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            strings = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
            classes = {side.id for side in sides if isinstance(side, ast.Name)}
            if strings & KINDS or classes & KINDS:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in KINDS:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.MatchClass) and names_in(node.cls) & KINDS:
            yield node.cls.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(sde, VPSDE)",
        "isinstance(sde, (int, sd.VESDE))",
        "x if name == 'SubVPSDE' else y",
        "type(sde) is EDM",
        "name in ('VPSDE', 'VESDE')",
        "match sde:\n    case VPSDE():\n        pass",
        "match name:\n    case 'VPSDE':\n        pass",
    ],
)
def test_the_reader_sees_switches(code: str) -> None:
    assert list(switches(ast.parse(code)))


@pytest.mark.parametrize("module", SOURCES)
def test_no_switch_on_a_process(module: str) -> None:
    assert not list(switches(TREES[module])), [f"{module}:{line}: {code}" for line, code in switches(TREES[module])]
