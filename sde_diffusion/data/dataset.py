"""A data set in memory, its split, and the endless, resumable stream of batches that training reads."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.noise import seeded

Batch = tuple[Tensor, Tensor | None]

# The held-out split belongs to the data set, not to a run: with a run's seed in it, weights trained
# under one seed would be evaluated on their own training data under another.
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples as they are stored, with what is needed to interpret them.

    samples: uint8 [N, C, H, W], grey levels 0..levels-1; or float32 [N, D] for continuous vectors.
    labels: int64 [N], indices into `classes`; None for a set without classes.
    levels: number of grey levels (2..256); None for continuous vectors.
    classes: the name of each class. title: how figures name the set.
    Raises UserError where these do not fit together.
    """

    samples: Tensor
    labels: Tensor | None
    levels: int | None
    classes: tuple[str, ...]
    title: str

    def __post_init__(self) -> None:
        samples, labels, levels = self.samples, self.labels, self.levels
        dtype, ndim = (torch.float32, 2) if levels is None else (torch.uint8, 4)
        if samples.dtype != dtype or samples.ndim != ndim:
            raise UserError(
                f"{self.title}: with levels={levels} samples must be {dtype} with {ndim} axes, "
                f"not {samples.dtype} {list(samples.shape)}."
            )
        if samples.numel() == 0:
            raise UserError(f"{self.title}: there are no samples (shape {list(samples.shape)}).")
        if levels is None and not samples.isfinite().all():
            raise UserError(f"{self.title}: samples hold values that are not finite.")
        if levels is not None and not 2 <= levels <= 256:
            raise UserError(f"{self.title}: levels must be 2 to 256, not {levels}.")
        if levels is not None and int(samples.max()) >= levels:
            raise UserError(f"{self.title}: grey level {samples.max()} found; {levels} levels were declared.")
        if labels is None:
            return
        if labels.dtype != torch.int64 or labels.shape != samples.shape[:1]:
            raise UserError(
                f"{self.title}: labels must be int64 [{len(samples)}], not {labels.dtype} {list(labels.shape)}."
            )
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise UserError(
                f"{self.title}: labels run from {labels.min()} to {labels.max()}; "
                f"{len(self.classes)} classes were declared."
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.samples.shape[1:])

    def select(self, indices: Tensor) -> "Dataset":
        """The samples at `indices` (int64 [M]), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return Dataset(self.samples[indices], labels, self.levels, self.classes, self.title)


@dataclass(frozen=True)
class Splits:
    """What is trained on, and what is held out."""

    train: Dataset
    test: Dataset


def split_at(whole: Dataset, border: int) -> Splits:
    """The first `border` samples are trained on, and the rest held out."""
    index = torch.arange(len(whole))
    return Splits(train=whole.select(index[:border]), test=whole.select(index[border:]))


def hold_out(whole: Dataset, count: int | None = None) -> Splits:
    """Hold out `count` samples (default a tenth), each class in proportion; always the same ones.

    Raises UserError unless both parts get at least one sample.
    """
    count = max(1, len(whole) // 10) if count is None else count
    if not 0 < count < len(whole):
        raise UserError(f"{whole.title}: cannot hold {count} of {len(whole)} samples out.")
    order = torch.randperm(len(whole), generator=seeded(SPLIT_SEED))
    if whole.labels is not None:
        order = order[whole.labels[order].argsort(stable=True)]
    # Evenly spaced picks from a list shuffled within each class: stratified, and exactly `count`.
    spaced = (torch.arange(count) * len(whole) + len(whole) // 2) // count
    held = torch.zeros(len(whole), dtype=torch.bool)
    held[order[spaced]] = True
    return Splits(train=whole.select((~held).nonzero()[:, 0]), test=whole.select(held.nonzero()[:, 0]))


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, start_step: int = 0, flip: bool = False
) -> Iterator[Batch]:
    """Endless batches (samples [B, *D] as stored, labels [B] or None) that depend on (seed, step) only.

    Every sample is used once an epoch; a batch may cross the end of an epoch, or hold several epochs.
    Starting at `start_step` costs the same for any step and gives the batches an unbroken run would give.
    flip: mirror each image left to right with probability 1/2.
    Raises UserError for a batch size below 1, a negative seed or step, and flipped vectors.
    """
    if batch_size < 1 or seed < 0 or start_step < 0:
        raise UserError(
            f"batches need batch_size >= 1, seed >= 0 and start_step >= 0, not {batch_size}, {seed} and {start_step}."
        )
    if flip and dataset.levels is None:
        raise UserError(f"{dataset.title}: vectors cannot be flipped left to right; only images can.")
    return _endless(dataset, batch_size, seed, start_step, flip)


def _endless(dataset: Dataset, batch_size: int, seed: int, start_step: int, flip: bool) -> Iterator[Batch]:
    size = len(dataset)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(size, generator=seeded(seed, epoch))

    for step in itertools.count(start_step):
        first = step * batch_size
        epochs = range(first // size, (first + batch_size - 1) // size + 1)
        picked = torch.cat([order(epoch) for epoch in epochs])[first % size :][:batch_size]
        samples = dataset.samples[picked]
        if flip:
            mirrored = torch.rand(batch_size, generator=seeded(seed, step, stream=1)) < 0.5
            samples = torch.where(mirrored[:, None, None, None], samples.flip(-1), samples)
        yield samples, None if dataset.labels is None else dataset.labels[picked]
