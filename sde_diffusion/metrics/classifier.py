"""A small classifier of the set itself, whose features judge pictures that a network trained on photographs does not.

It is trained once on the labelled training split, as `eight_bits` gives it, and kept in the cache folder. What it is
trained on, its architecture and its recipe make up the name of the file; seeds make the training repeatable. A held-out
tenth of the split says how well it knows the classes: features of a classifier that does not know them judge nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import rand, randn, seeded
from sde_diffusion.data.dataset import Dataset, Source, hold_out
from sde_diffusion.metrics.extraction import (
    Features,
    channels_first,
    check_shape,
    eight_bits,
    in_batches,
    sample_shape,
    scaled,
)
from sde_diffusion.metrics.packages import contained
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.records import digest, tensor_digest

RECIPE: dict[str, Any] = {
    "version": 3,  # to be raised with any change of the network or the training
    "hidden": 32,
    "widths": [16, 32, 64],
    "epochs": 10,
    "updates": [200, 1000],  # at least and at most
    "batch": 128,
    "rate": 3e-3,
    "weight_decay": 1e-2,
    "shift": 1 / 8,  # at most, as a share of the side
    "noise": 0.1,  # its largest std, in a range of 2
}
SEED, SMALLEST = 0, 1e-6


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU())


class Network(nn.Module):
    """Pictures to features and logits: stages of two convolutions, each at half the size of the one before.

    The logits are those of what is left of the plane after the last stage, averaged to 2 x 2. The features are the
    means over the plane of the first two stages' channels, in units of their standard deviation over the training
    split: further on a classifier forgets what tells samples of a class apart, and takes a smooth and typical digit for
    a better one than a real one (by the features before the logits, 5 steps of DDIM were ahead of the converged flow).
    Shapes: x [B, channels, H, W] -> features [B, 48] and logits [B, classes].
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = [channels, *RECIPE["widths"]]
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(before, width), convolution(width, width)) for before, width in pairwise(widths)
        )
        self.head = nn.Sequential(nn.Linear(4 * widths[-1], RECIPE["hidden"]), nn.SiLU())
        self.logits = nn.Linear(RECIPE["hidden"], classes)
        self.register_buffer("centre", torch.zeros(sum(widths[1:3])))
        self.register_buffer("scale", torch.ones(sum(widths[1:3])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means = []
        for level, stage in enumerate(self.stages):
            x = stage(F.avg_pool2d(x, 2, ceil_mode=True) if level else x)
            means.append(x.mean(dim=(2, 3)))
        features = (torch.cat(means[:2], dim=1) - self.centre) / self.scale
        return features, self.logits(self.head(F.adaptive_avg_pool2d(x, 2).flatten(1)))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier as a feature network. accuracy: on the tenth that was held out."""

    network: Network
    device: torch.device
    digest: str
    accuracy: float
    shape: tuple[int, ...]
    title: str

    name: ClassVar[str] = "classifier"
    preprocessing: ClassVar[str] = "8-bit values scaled to [-1, 1]"
    dims: ClassVar[int] = sum(RECIPE["widths"][:2])

    def __call__(self, samples: np.ndarray) -> Features:
        check_shape(samples, self.shape, f"the features of the classifier of {self.title}")
        return in_batches(lambda part: self.network(scaled(part.to(self.device))), channels_first(samples))


def classifier(source: Source, cache: Path, device: torch.device) -> Classifier:
    """The classifier of a set, from the cache folder or trained now.

    Raises UserError for a set without labels, without pictures, or that streams by.
    """
    if not source.classes or source.levels is None:
        lacks = "has no labels" if source.levels is not None else "has no pictures"
        raise UserError(f"{source.title} {lacks} to train a classifier on: choose the features 'inception' or 'values'")
    whole = eight_bits(source)
    assert whole.labels is not None  # a set with classes
    data = tensor_digest({"samples": whole.samples, "labels": whole.labels})
    path = cache / f"classifier-{digest({'data': data, 'classes': whole.classes, **RECIPE})}.safetensors"
    found = _read(path)
    if found is None:
        trained, accuracy = train(whole, device)
        # Another process may have been faster; then both go on with the same weights.
        found = _read(path) or _write(path, trained, {"accuracy": accuracy, "set": whole.title, **RECIPE})
    weights, told = found
    network = seeded_network(whole.shape[0], len(whole.classes)).to(device).eval()
    network.load_state_dict(weights)
    return Classifier(network, device, told["digest"], told["accuracy"], sample_shape(source), whole.title)


_Stored = tuple[dict[str, Tensor], dict[str, Any]]


def _write(path: Path, weights: dict[str, Tensor], told: dict[str, Any]) -> _Stored:
    """One file, so that weights and what is told of them, JSON in its header, always belong together."""
    told = {**told, "digest": tensor_digest(weights)}
    write_aside(path, save(weights, metadata={"about": json.dumps(told)}))
    return weights, told


def _read(path: Path) -> _Stored | None:
    """Weights and what is told of them; None where there are none, or, with a warning, none that are sound."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            told = json.loads((file.metadata() or {})["about"])
        if tensor_digest(weights) == told["digest"]:
            return weights, told
        wrong: object = "its weights are not those that were written"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        wrong = error
    warnings.warn(f"{path} is damaged and the classifier is trained again: {wrong}", stacklevel=3)
    return None


def train(whole: Dataset, device: torch.device) -> tuple[dict[str, Tensor], float]:
    """Weights trained on nine tenths of a set of 8-bit pictures with labels, and the accuracy on the other tenth.

    Cross-entropy by AdamW, whose rate rises for a tenth of the updates and falls to zero along a cosine.
    """
    known, held = hold_out(whole)
    if held is None:
        raise UserError(
            f"{whole.title} has too few pictures of a class to train a classifier on and to hold some out: choose the "
            "features 'inception' or 'values'"
        )
    least, most = RECIPE["updates"]
    updates = min(most, max(least, RECIPE["epochs"] * len(known) // RECIPE["batch"]))
    network = seeded_network(whole.shape[0], len(whole.classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), RECIPE["rate"], weight_decay=RECIPE["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE["rate"], total_steps=updates, pct_start=0.1, cycle_momentum=False
    )
    for x, labels in _batches(known, updates):
        optimizer.zero_grad()
        F.cross_entropy(network(x.to(device))[1], labels.to(device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()
    features = in_batches(lambda part: network(scaled(part.to(device))), known.samples).values
    network.centre.copy_(features.mean(0))
    network.scale.copy_(features.std(0).clamp_min(SMALLEST))  # of a channel that is silent on all of the split
    logits = in_batches(lambda part: network(scaled(part.to(device))), held.samples).logits
    assert logits is not None and held.labels is not None
    accuracy = (logits.argmax(1) == held.labels).double().mean().item()
    return {name: weight.cpu() for name, weight in network.state_dict().items()}, accuracy


def seeded_network(channels: int, classes: int) -> Network:
    """A network whose first weights are always the same; the global random state is left as it is."""
    with contained(SEED):
        return Network(channels, classes)


def _batches(known: Dataset, updates: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = seeded(SEED)
    assert known.labels is not None
    for _ in range(updates):
        picked = torch.randint(len(known), (RECIPE["batch"],), generator=generator)
        yield augmented(scaled(known.samples[picked]), generator), known.labels[picked]


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, C, H, W], each moved by a few pixels, its edge continued, under Gaussian noise of a random std."""
    count, _, height, width = x.shape
    reach = [int(RECIPE["shift"] * side) for side in (height, width)]
    rows, columns = (
        (torch.arange(side) + torch.randint(-most, most + 1, (count, 1), generator=generator)).clamp(0, side - 1)
        for side, most in zip((height, width), reach, strict=True)
    )
    moved = x[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    std = RECIPE["noise"] * rand((count, 1, 1, 1), generator)
    return moved + std * randn(moved.shape, generator)
