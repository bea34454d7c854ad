"""--mode compare: samplers at budgets on the same noise, in one report."""

from __future__ import annotations

from pathlib import Path

from sde_diffusion.compare.comparing import compared
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def compare(settings: Settings, folder: Path, engine: Engine) -> None:
    """Draw and judge every run that is missing, and write the report."""
    compared(settings, folder, engine)
