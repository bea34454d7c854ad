"""The declared, invertible map between samples as stored and the model's space.

A grey level k of L is x = 2 k / (L - 1) - 1 - mean; a vector s is x = s - mean. Neighbouring levels are
bin_width = 2 / (L - 1) apart in x, so for an image of D numbers log |dx/dk| = D log(bin_width), and the
probability of an image is the model's density, averaged over its bin, times bin_width^D. A dequantiser
(see dequantize.py) draws from the bin around k, so that rounding gives k back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data.dataset import Source
from sde_diffusion.data.dequantize import Dequantized, Dequantizer, Drawing, Uniform

UNIFORM = Uniform()


@dataclass(frozen=True, eq=False)
class DataTransform:
    """The map x = scaled(samples) - mean, and its inverse.

    levels: number of grey levels, or None for continuous vectors.
    mean: what is subtracted, in model units: None, [*D] for the whole set, or [classes, *D] if per_class.
    Raises UserError for fewer than two levels, and for per_class without a mean.
    """

    levels: int | None
    mean: Tensor | None = None
    per_class: bool = False

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 2:
            raise UserError(f"a data transform needs at least 2 grey levels, not {self.levels}.")
        if self.per_class and self.mean is None:
            raise UserError("a data transform with per_class=True needs the mean of each class.")

    @classmethod
    def fit(cls, dataset: Source, subtract_mean: str = "none") -> "DataTransform":
        """The transform of `dataset`, subtracting the mean of "all" its samples, of each "class", or "none".

        A mean takes one pass over the data. Raises UserError for another choice, for "class" where a class has no
        samples, and for a mean of a stream.
        """
        return choose("mean to subtract", subtract_mean, MEANS)(dataset)

    @property
    def bin_width(self) -> float | None:
        """Spacing of neighbouring grey levels in model units, 2 / (levels - 1); None for continuous data."""
        return None if self.levels is None else 2.0 / (self.levels - 1)

    def encode(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        """Samples as stored [B, *D] to model space, float32 [B, *D].

        Raises UserError for grey levels that are not integers 0..levels-1, and for missing labels.
        """
        scaled = self._scaled(samples)
        return scaled - self.offset(scaled, labels)

    def prepared(self, samples: Tensor, labels: Tensor | None, *, dequantize: bool, generator: Drawing) -> Tensor:
        """Stored samples in model space [B, *D], dequantised or at their grey levels, where nothing is drawn."""
        return self.dequantize(samples, labels, generator=generator) if dequantize else self.encode(samples, labels)

    def dequantize(
        self,
        samples: Tensor,
        labels: Tensor | None = None,
        *,
        generator: Drawing,
        dequantizer: Dequantizer = UNIFORM,
    ) -> Tensor:
        """Grey levels [B, *D] to noise on their bins in model space, float32 [B, *D].

        generator: one for the batch, or one a sample. Continuous samples are encoded and draw nothing.
        Raises UserError as `encode` does, and for a number of generators that is not B.
        """
        return self.dequantized(samples, labels, generator=generator, dequantizer=dequantizer).x

    def dequantized(
        self,
        samples: Tensor,
        labels: Tensor | None = None,
        *,
        generator: Drawing,
        dequantizer: Dequantizer = UNIFORM,
    ) -> Dequantized:
        """The same with the nats that turn log p(x) into log P of the stored samples: D log(bin_width) - log q."""
        encoded = self.encode(samples, labels)
        volume = torch.full((len(encoded),), self.log_volume(encoded[0].numel()), dtype=torch.float64)
        if self.bin_width is None:
            return Dequantized(encoded, volume.to(encoded.device))
        u, log_q = dequantizer.noise(encoded, generator)
        return Dequantized(encoded + self.bin_width * u, volume.to(log_q) - log_q)

    def log_volume(self, dims: int) -> float:
        """log |dx/dk| of a sample of `dims` numbers, in nats: dims log(bin_width), and 0 for continuous data."""
        return 0.0 if self.bin_width is None else dims * math.log(self.bin_width)

    def space(self, dequantizer: Dequantizer | None = UNIFORM) -> str:
        """What the bits/dim of this data are about, in words; None for the grey levels themselves."""
        if self.levels is None:
            return "a density of continuous vectors"
        return f"{self.levels} grey levels, {dequantizer.title if dequantizer else 'discrete'}"

    def decode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Model space [B, *D] to images of nominal range -1..1, or to vectors in their own units.

        Raises UserError for missing labels.
        """
        return x + self.offset(x, labels)

    def to_uint8(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Model space [B, C, H, W] to 8-bit pictures, uint8 [B, C, H, W]: to the nearest of 0..255.

        Grey level k of L becomes round(255 k / (L - 1)). Raises UserError for continuous vectors.
        """
        if self.levels is None:
            raise UserError("continuous vectors have no 8-bit picture; use decode.")
        return ((self.decode(x, labels) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def to_state(self) -> dict[str, Any]:
        """Plain values and tensors to store in a checkpoint; `from_state` is the inverse."""
        return {"levels": self.levels, "mean": self.mean, "per_class": self.per_class}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "DataTransform":
        """The transform that `to_state` described."""
        return cls(levels=state["levels"], mean=state["mean"], per_class=state["per_class"])

    def _scaled(self, samples: Tensor) -> Tensor:
        if self.levels is None:
            return samples.to(torch.float32)
        if samples.is_floating_point() or samples.dtype == torch.bool:
            raise UserError(
                f"grey levels must be integers 0..{self.levels - 1}, not {samples.dtype}: "
                "are these samples already encoded or dequantised?"
            )
        # 8-bit samples cannot be out of range; looking would make a GPU wait at every training step.
        fits = samples.dtype == torch.uint8 and self.levels == 256
        if not fits and samples.numel() and (samples.min() < 0 or int(samples.max()) >= self.levels):
            raise UserError(f"grey levels must be 0..{self.levels - 1}, not {samples.min()} to {samples.max()}.")
        return 2.0 * samples.to(torch.float32) / (self.levels - 1) - 1.0

    def offset(self, like: Tensor, labels: Tensor | None) -> Tensor | float:
        """What is subtracted from scaled samples, on the device of `like`: 0, [*D], or [B, *D] for class means.

        Raises UserError for missing labels.
        """
        if self.mean is None:
            return 0.0
        mean = self.mean.to(like.device)
        if not self.per_class:
            return mean
        if labels is None:
            raise UserError("this data transform subtracts the mean of each class: labels are needed.")
        return mean[labels.to(like.device)]


def _mean(dataset: Source, indices: Tensor) -> Tensor:
    """Mean [*D] in model units, summed in float64 a chunk at a time to bound the memory."""
    transform, total = DataTransform(dataset.levels), torch.zeros(dataset.shape, dtype=torch.float64)
    for chunk in torch.split(indices, 4096):
        total += transform.encode(dataset.read(chunk)[0]).sum(0, dtype=torch.float64)
    return (total / len(indices)).to(torch.float32)


def _fit_none(dataset: Source) -> DataTransform:
    return DataTransform(dataset.levels)


def _fit_all(dataset: Source) -> DataTransform:
    return DataTransform(dataset.levels, _mean(dataset, torch.arange(_size(dataset))))


def _fit_class(dataset: Source) -> DataTransform:
    size = _size(dataset)
    if dataset.labels is None:
        raise UserError(f"{dataset.title} has no labels, so no mean of each class to subtract.")
    counts = dataset.labels.bincount(minlength=len(dataset.classes))
    if (counts == 0).any():
        raise UserError(f"{dataset.title}: class {dataset.classes[int(counts.argmin())]} has no samples.")
    every = torch.arange(size)
    means = [_mean(dataset, every[dataset.labels == label]) for label in range(len(counts))]
    return DataTransform(dataset.levels, torch.stack(means), per_class=True)


def _size(dataset: Source) -> int:
    if dataset.size is None:
        raise UserError(
            f"{dataset.title} streams by, so that there is no mean of all of it: leave data.subtract_mean at 'none', "
            "or choose the storage 'mapped'."
        )
    return dataset.size


MEANS: dict[str, Callable[[Source], DataTransform]] = {
    "none": _fit_none,
    "all": _fit_all,
    "class": _fit_class,
}
