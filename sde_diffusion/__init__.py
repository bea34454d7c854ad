"""sde_diffusion: score-based diffusion through SDEs and ODEs, with every formula checked against closed-form truth.

The public names stand in __init__.pyi, for type checkers and for this file. The module of a name, and a room such as
`sde_diffusion.samplers`, is imported when it is first used: `import sde_diffusion` alone costs nothing.
"""

import ast
import importlib
import pkgutil


def _public() -> dict[str, str]:
    """The public names and their modules, from the lines `from MODULE import NAME as NAME` of the stub."""
    stub = pkgutil.get_data(__name__, "__init__.pyi")
    assert stub is not None  # it is installed with this file
    lines = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in lines for alias in node.names}


_MODULES = _public()
_ROOMS = {name for name, module in _MODULES.items() if module == __name__}
__all__ = sorted(_MODULES.keys() - _ROOMS)  # `import *` brings no rooms: `data` and `training` are people's own words


def __getattr__(name: str) -> object:
    """A public name or a room, imported (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
