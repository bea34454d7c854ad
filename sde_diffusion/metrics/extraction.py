"""What a feature network is, and the simplest of them: the samples themselves.

Samples are judged as a run writes them: pictures of 8 bits, uint8 [N, H, W, C], or vectors in their own units, float
[N, D]. The real ones go through the same conversion, as a distance sees a difference in rounding as well as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data.dataset import SPLIT_SEED, Dataset, Source
from sde_diffusion.data.transform import DataTransform

BATCH = 256
MOST = 50_000  # samples of a set that are looked at, the number that Frechet distances are usually given for


@dataclass(frozen=True, eq=False)
class Features:
    """values: float64 [N, d]. logits: of K classes, float64 [N, K]; None from a network that knows no classes."""

    values: Tensor
    logits: Tensor | None = None


class Extractor(Protocol):
    """A feature network."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the weights; "-" where there are none."""

    @property
    def preprocessing(self) -> str:
        """What is done to samples first, in words."""

    @property
    def dims(self) -> int:
        """Number of features."""

    def __call__(self, samples: np.ndarray) -> Features:
        """The features of uint8 [N, H, W, C] or float [N, D]. Raises UserError for samples of another shape."""


def eight_bits(source: Source, most: int = MOST) -> Dataset:
    """A set as a run would write it: its grey levels as 256 levels (vectors stay as they are), `most` samples of it.

    Those are drawn without regard to their order, always the same ones. Raises UserError for a stream.
    """
    if source.size is None:
        raise UserError(
            f"{source.title} streams by, so that samples cannot be compared with it: choose the storage 'mapped'"
        )
    transform = DataTransform(source.levels)
    picked = torch.randperm(source.size, generator=seeded(SPLIT_SEED))[:most].sort().values
    parts = [source.read(part) for part in torch.split(picked, BATCH)]
    samples = torch.cat([s if source.levels is None else transform.to_uint8(transform.encode(s)) for s, _ in parts])
    labels = [own["labels"] for _, own in parts if "labels" in own]
    levels = None if source.levels is None else 256
    return Dataset(samples, torch.cat(labels) if labels else None, levels, source.classes, source.title)


def as_samples(source: Source, most: int = MOST) -> np.ndarray:
    """A set as the samples of a run are stored: uint8 [N, H, W, C], or float32 [N, D]. Raises as `eight_bits` does."""
    found = eight_bits(source, most)
    return (found.samples if found.levels is None else found.samples.permute(0, 2, 3, 1)).contiguous().numpy()


def channels_first(samples: np.ndarray) -> Tensor:
    """Pictures uint8 [N, H, W, C] -> uint8 [N, C, H, W]. Raises UserError for anything else."""
    if samples.dtype != np.uint8 or samples.ndim != 4:
        raise UserError(f"pictures to judge must be uint8 [N, H, W, C], not {samples.dtype} {list(samples.shape)}")
    return torch.tensor(samples).permute(0, 3, 1, 2)


def scaled(pictures: Tensor) -> Tensor:
    """8-bit values to [-1, 1], float32."""
    return pictures.to(torch.float32) / 127.5 - 1.0


def in_batches(network: Callable[[Tensor], tuple[Tensor, Tensor]], inputs: Tensor, batch: int = BATCH) -> Features:
    """The features and logits that a network gives, a batch at a time."""
    with torch.inference_mode():
        found = [network(part) for part in torch.split(inputs, batch)]
    values, logits = (torch.cat([part.double().cpu() for part in parts]) for parts in zip(*found, strict=True))
    return Features(values, logits)


@dataclass(frozen=True, eq=False)
class Values:
    """The samples themselves, as vectors. shape: of one sample, (H, W, C) or (D,)."""

    shape: tuple[int, ...]

    name: ClassVar[str] = "values"
    digest: ClassVar[str] = "-"

    @property
    def preprocessing(self) -> str:
        return "8-bit values scaled to [-1, 1]" if len(self.shape) == 3 else "none"

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    def __call__(self, samples: np.ndarray) -> Features:
        check_shape(samples, self.shape, "the features 'values'")
        vectors = torch.tensor(samples).double().flatten(1)
        return Features(vectors / 127.5 - 1.0 if samples.dtype == np.uint8 else vectors)


def check_shape(samples: np.ndarray, shape: tuple[int, ...], owner: str) -> None:
    """Raises UserError for samples whose shape is not [N, *shape]."""
    if samples.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise UserError(f"{owner} take samples of shape [N, {wanted}], not {list(samples.shape)}")


def sample_shape(source: Source) -> tuple[int, ...]:
    """The shape of one sample as a run stores it: (H, W, C) or (D,)."""
    return source.shape if source.levels is None else (*source.shape[1:], source.shape[0])
