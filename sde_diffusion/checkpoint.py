"""Checkpoints: all that is needed to resume a training, or to use its network, in one file.

A file is written aside, flushed to the disk and renamed, so that it is whole or absent. It holds tensors and plain
containers only, and is loaded without running code.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.data import DataTransform
from sde_diffusion.denoiser import NetworkDenoiser, NetworkSpec
from sde_diffusion.errors import UserError, choose
from sde_diffusion.nets import NETWORKS

FORMAT = 2
FOLDER = "checkpoints"
_WEIGHTS = {"ema": "ema", "raw": "network"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after `step` updates.

    network, ema   raw and averaged weights
    optimizer      the optimiser's state
    random         the seed and the state of torch's generator; noise, times and data order depend on (seed, step)
    classes        the data set's class names; title: how figures name it
    times          what the time sampler has learned
    """

    step: int
    spec: NetworkSpec
    transform: DataTransform
    network: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    title: str = ""
    classes: tuple[str, ...] = ()
    times: dict[str, Tensor] = field(default_factory=dict)


def write_aside(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: aside, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((folder / FOLDER).glob("step_*.pt"))


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint into a run folder, then remove all but the newest `keep`."""
    state = {
        **vars(checkpoint),
        "format": FORMAT,
        "spec": checkpoint.spec.state(),
        "transform": checkpoint.transform.to_state(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / FOLDER / f"step_{checkpoint.step:09d}.pt"
    write_aside(path, buffer.getvalue())
    for old in checkpoint_files(folder)[: -max(keep, 1)]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or the newest one of a run folder, on the CPU.

    Raises UserError where there is none, or it cannot be read, or has another format version.
    """
    source = Path(path)
    if source.is_dir():
        files = checkpoint_files(source)
        if not files:
            raise UserError(f"there is no checkpoint in {source / FOLDER}: train first, or name another --workdir")
        source = files[-1]
    elif not source.exists():
        raise UserError(f"{source} does not exist: train first, or name another run folder or a checkpoint file")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{source} cannot be read ({str(error).splitlines()[0][:120]}); remove it to use the checkpoint before it"
        ) from error
    stored = state.pop("format", None) if isinstance(state, dict) else None
    if stored not in (1, FORMAT):
        raise UserError(f"{source} is not a checkpoint of format {FORMAT}, nor of format 1 before it")
    state["spec"] = NetworkSpec.from_state(state["spec"])
    if stored == 1 and state["spec"].network == "unet":
        for weights in ("network", "ema"):
            state[weights] = from_format_1(state[weights], state["spec"].options)
    state["transform"] = DataTransform.from_state(state["transform"])
    return Checkpoint(**state)


def from_format_1(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a `unet` under today's names; in format 1 its stages were numbered one after another."""
    levels, blocks = len(options.get("multipliers", (1, 2, 2, 2))), options.get("blocks", 2)
    places = {"head.0": "head.norm", "head.2": "head.conv"}
    down = up = 0
    for level in range(levels):
        if level:
            places[f"down.{down}.0"] = f"encoder.{level}.down.0.conv"
            down += 1
        for block in range(blocks):
            places[f"down.{down}"] = f"encoder.{level}.stages.{block}"
            down += 1
        for block in range(blocks + 1):
            places[f"up.{up}"] = f"decoder.{level}.stages.{block}"
            up += 1
        # The last stage of a level ended with the doubling: a layer without weights, then its convolution.
        last = [int(key.split(".")[2]) for key in weights if key.startswith(f"up.{up - 1}.")]
        if level < levels - 1:
            places[f"up.{up - 1}.{max(last)}"] = f"decoder.{level}.up.0.conv"

    def renamed(key: str) -> str:
        former = max((place for place in places if key.startswith(place + ".")), key=len, default="")
        return places[former] + key[len(former) :] if former else key

    return {renamed(key): value for key, value in weights.items()}


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network that a spec describes, with fresh weights.

    Raises UserError for an unknown network or for arguments that it does not take.
    """
    network = choose("network", spec.network, NETWORKS)
    try:
        return network(**spec.options)
    except TypeError as error:
        raise UserError(f"network {spec.network!r}: {error}") from error


def refuse_misfits(what: str, missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> None:
    """Raises UserError that names the first three keys of each kind and how many there are, unless there are none."""
    kinds = {"missing": missing, "not expected": extra, "of another shape": shapes}
    found = [
        f"{kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({len(keys)})"
        for kind, keys in kinds.items()
        if keys
    ]
    if found:
        raise UserError(f"{what}; {'; '.join(found)}")


def load_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights strictly. Raises UserError that names the first keys and shapes that differ."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{key}: {tuple(weights[key].shape)} where {tuple(own[key].shape)} is expected"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    refuse_misfits("the weights do not fit the network", missing, extra, shapes)
    net.load_state_dict(weights)


def denoiser_of(checkpoint: Checkpoint, weights: str = "ema", device: torch.device | str = "cpu") -> NetworkDenoiser:
    """The checkpoint's network as a denoiser, in evaluation mode with its parameters frozen.

    weights: "ema" or "raw".
    """
    net = build_network(checkpoint.spec)
    load_weights(net, getattr(checkpoint, choose("weights", weights, _WEIGHTS)))
    return NetworkDenoiser(net.to(device).eval().requires_grad_(False), checkpoint.spec)


def load(path: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu") -> NetworkDenoiser:
    """The denoiser of a run folder (its newest checkpoint) or of a checkpoint file.

    weights: "ema" or "raw". The result has `.net` and `.spec`. Raises UserError as `read_checkpoint` does.
    """
    return denoiser_of(read_checkpoint(path), weights, device)
