"""What the command line says to a person: an error or a warning as one sentence, and its own name."""

from __future__ import annotations

import sys
from pathlib import Path

from sde_diffusion.runtime.ranks import EVERYONES, process_number


def explain(error: BaseException) -> int:
    """One sentence on the screen, by one of several processes if all of them have it to tell; the exit code."""
    number, shared = process_number(), EVERYONES in getattr(error, "__notes__", ())
    if not (number and shared):
        who = f" (process {number})" if number else ""
        print(f"error{who}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the place in the code."""
    return f"warning: {message}\n"


def program() -> str:
    """How a person called this program."""
    name = Path(sys.argv[0]).name
    return "python -m sde_diffusion" if name == "__main__.py" else f"python {name}" if name.endswith(".py") else name
