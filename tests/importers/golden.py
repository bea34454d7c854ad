"""The networks of other code bases as they are stored: weights under the source's names, inputs and what came out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sde_diffusion.importers.foreign import Settings

NETWORKS = Path(__file__).parents[1] / "data" / "reference" / "networks"
NAMES = sorted(path.name.removesuffix(".io.safetensors") for path in NETWORKS.glob("*.io.safetensors"))


@dataclass(frozen=True, eq=False)
class Reference:
    """One network of another code base.

    config      its constructor's arguments, or sections of a configuration, under the source's own keys
    weights     its state dict: parameters in float32, which holds them exactly, buffers as they are stored
    io          "in.*", "out" and, where the source runs in double precision, "out_float64"
    grad_norms  Euclidean norms of the gradients of mean(out^2), by parameter
    parameters  how many numbers the source counts as parameters
    """

    config: Settings
    weights: dict[str, Tensor]
    io: dict[str, Tensor]
    grad_norms: dict[str, float]
    parameters: int


def reference(name: str) -> Reference:
    """The network of this name, read anew, so that its tensors may be written to."""
    recipe = json.loads((NETWORKS / f"{name}.json").read_text())
    stored = load_file(NETWORKS / f"{name}.weights.safetensors")
    return Reference(
        config=recipe["config"],
        weights={key: value.float() if value.dtype == torch.float16 else value for key, value in stored.items()},
        io=load_file(NETWORKS / f"{name}.io.safetensors"),
        grad_norms=recipe["grad_norms"],
        parameters=recipe["n_parameters"],
    )
