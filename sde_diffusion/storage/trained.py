"""Trained networks: those of a checkpoint, with its own weights or with an average that was made after the training.

Such an average lies in ema/<name>.safetensors of the run folder, with the step that it is of in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.nets.building import build_network, load_weights
from sde_diffusion.storage.checkpoint import Checkpoint, read_checkpoint
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.manifest import SUFFIX, first_line, packed

AVERAGES = "ema"
"""The folder of a run with the averages that were made after its training."""


def denoiser_of(
    checkpoint: Checkpoint, weights: str | None = None, device: torch.device | str = "cpu"
) -> NetworkDenoiser:
    """The checkpoint's network as a denoiser, in evaluation mode with its parameters frozen.

    weights: "ema", "raw", or another of the checkpoint's; by default "ema", or "raw" where there is no average. Raises
    UserError for a name that it does not have.
    """
    weights = weights or usual_weights(checkpoint)
    net = build_network(checkpoint.spec.network, checkpoint.spec.options)
    load_weights(net, choose("weights", weights, checkpoint.weights))
    return NetworkDenoiser(net.to(device).eval().requires_grad_(False), checkpoint.spec)


def usual_weights(checkpoint: Checkpoint) -> str:
    """The name of the weights that are taken where none is asked for: "ema" where there is that average, else "raw"."""
    return "ema" if "ema" in checkpoint.weights else "raw"


def save_average(folder: Path, name: str, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep an average of the weights at a step, made after a training, to be chosen by its name."""
    write_aside(folder / AVERAGES / f"{name}{SUFFIX}", to_safetensors(packed(weights), metadata={"step": str(step)}))


def with_average(checkpoint: Checkpoint, folder: Path, name: str) -> Checkpoint:
    """The checkpoint with the weights of that name, which may have been made after the training in a run folder.

    It is at their step then. Raises UserError where there are none of that name, or their file cannot be read.
    """
    made = {path.name.removesuffix(SUFFIX): path for path in (folder / AVERAGES).glob(f"*{SUFFIX}")}
    choose("weights", name, {**checkpoint.weights, **made})
    if name in checkpoint.weights:
        return checkpoint
    try:
        with safe_open(made[name], framework="pt") as file:
            found = {key: file.get_tensor(key) for key in sorted(file.keys())}
            step = int(file.metadata()["step"])
    except Exception as error:  # as of a checkpoint's files
        raise UserError(f"{made[name]} cannot be read ({first_line(error)}): --mode ema makes it again") from error
    return replace(checkpoint, step=step, weights={**checkpoint.weights, name: found})


def load(path: str | Path, *, weights: str | None = None, device: torch.device | str = "cpu") -> NetworkDenoiser:
    """The denoiser of a run folder (its newest whole checkpoint) or of a checkpoint.

    weights: "ema", "raw", or another average; by default "ema", or "raw" where there is no average. The result has
    `.net` and `.spec`. Raises UserError as `read_checkpoint` does, and for a name that the checkpoint does not have.
    """
    found = read_checkpoint(path)
    weights = weights or usual_weights(found)
    return denoiser_of(with_average(found, Path(path), weights), weights, device)
