"""What each command does, for Python: `run_lib.train(settings, folder, engine)`, and the table MODES of all of them."""

from __future__ import annotations

from sde_diffusion.commands.compare import compare
from sde_diffusion.commands.edit import edit
from sde_diffusion.commands.evaluation import evaluate, post_hoc
from sde_diffusion.commands.everything import everything
from sde_diffusion.commands.exchange import export_network, import_network
from sde_diffusion.commands.latents import latents
from sde_diffusion.commands.likelihood import likelihood
from sde_diffusion.commands.modes import MODES
from sde_diffusion.commands.sampling import sample
from sde_diffusion.commands.training import train

__all__ = [
    "MODES",
    "compare",
    "edit",
    "evaluate",
    "everything",
    "export_network",
    "import_network",
    "latents",
    "likelihood",
    "post_hoc",
    "sample",
    "train",
]
