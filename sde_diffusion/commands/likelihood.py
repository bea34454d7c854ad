"""--mode likelihood: bits/dim of held-out data."""

from __future__ import annotations

from pathlib import Path

from sde_diffusion.pipelines.likelihood import bits_of_run
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def likelihood(settings: Settings, folder: Path, engine: Engine) -> None:
    """Bits/dim of the held-out (or training) split, or of a folder of images."""
    bits_of_run(settings, folder, engine)
