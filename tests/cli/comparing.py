"""A comparison on the command line that several files of tests look at, or go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NETWORK = (
    *("--config", "vpsde_digits", "--config.model.network=mlp", "--config.model.mlp.width=32"),
    *("--config.model.mlp.blocks=1", "--config.training.batch_size=32", "--config.training.warmup_steps=5"),
    *("--config.training.cooldown_steps=0", "--config.training.evaluate_every=60", "--config.training.sample_every=0"),
    *("--config.training.steps=60", "--config.training.checkpoint_every=30", "--config.training.held_out_batches=1"),
)
"""A network that trains in seconds; it is told classes, and knows samples without them."""
SMALL = (
    *("--config.sampling.num_samples=64", "--config.compare.flow_samples=16", "--config.compare.bootstraps=10"),
    *("--config.likelihood.num_samples=10", "--config.likelihood.terms=5", "--config.likelihood.rtol=1e-2"),
)
SAMPLERS = ("--samplers", "ddim,heun,ddpm,pc,ode", "--steps", "2,4,8")


def compare(folder: Path, *flags: object) -> tuple[object, ...]:
    return (*NETWORK, *SMALL, "--mode", "compare", "--workdir", folder, *flags)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def timeless(folder: Path) -> dict[str, Any]:
    """The report without what depends on the clock."""
    found = report(folder)
    for cell in found["runs"]:
        del cell["timing"]
    del found["recommendation"]  # which names the fastest
    return found
