"""The rooms of the design, read from the imports; and no switch on the kind of a process anywhere.

A module imports only from lower layers or from its own, and no two rooms import each other, by whatever way. A new room
must be given its layer here.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sde_diffusion import PROCESSES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sde_diffusion"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core", "nets"),
    ("denoisers", "solvers"),
    ("samplers", "likelihood", "objectives"),
    ("data", "storage", "runtime"),
    ("training", "importers", "metrics"),
    ("settings", "report"),
    ("pipelines", "compare"),
    ("commands",),
    ("configs", "run_lib", "__main__", "main"),
)
"""The rooms of the package from the lowest layer up, and the modules at the top level (DESIGN.md, section 2)."""
ROOMS = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
SHOP_WINDOW = "sde_diffusion"
"""The package's __init__, which shows what all layers have, and is imported by those above them only."""
PURE: dict[str, tuple[str, ...]] = {
    "sde_diffusion.nets": ("sde_diffusion.core.errors", "sde_diffusion.core.sizes", "sde_diffusion.nets"),
    "sde_diffusion.report": ("sde_diffusion.core.errors", "sde_diffusion.core.packages", "sde_diffusion.report"),
    "sde_diffusion.core.errors": (),
    "sde_diffusion.core.sizes": ("sde_diffusion.core.errors",),
}
"""What may import nothing else of ours: networks know no process, and reports draw what they are given."""


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


def room(module: str) -> str:
    """The room of a module of the package; one at the top level is its own."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE else parts[0]


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
    assert "sde_diffusion.core.kernel" in {name for name, _ in imports("sde_diffusion.core.continuous")}
    assert "sde_diffusion.samplers.march" in {name for name, _ in imports("sde_diffusion.samplers.flow")}
    assert len(SOURCES) > 20


@pytest.mark.parametrize("module", [name for name in SOURCES if name != SHOP_WINDOW])
def test_a_module_imports_from_below(module: str) -> None:
    own = room(module)
    assert own in ROOMS, f"{module} is in a room without a layer: give it one in LAYERS and in the design"
    for name, line in imports(module):
        if name == SHOP_WINDOW:
            assert ROOMS[own] > ROOMS["commands"], f"{module}:{line} imports the package's front, which shows all rooms"
            continue
        assert ROOMS[room(name)] <= ROOMS[own], f"{module}:{line} ({own}) imports {name}, which lies above it"


def test_no_circle_of_rooms() -> None:
    """Within a layer too: a room that is imported by another one does not import it, nor by way of a third."""
    lower: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module in SOURCES:
        if module != SHOP_WINDOW:
            lower[room(module)] |= {room(name) for name, _ in imports(module) if name != SHOP_WINDOW} - {room(module)}
    order = graphlib.TopologicalSorter(lower)
    assert list(order.static_order())


def test_no_circle_of_modules() -> None:
    """But for the front of a room, which shows what its own modules have."""
    lower = {module: {name for name, _ in imports(module)} for module in SOURCES}
    fronts = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    order = graphlib.TopologicalSorter({name: found - fronts for name, found in lower.items() if name not in fronts})
    assert list(order.static_order())


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
