"""What a set of samples is to training, a set in memory, and what is held out of a set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, rows_of
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data.inventory import Inventory
from sde_diffusion.data.pictures import Failure

Batch = tuple[Tensor, Conditions]
"""Samples as they are stored, and what the network may be told of them."""

# The held-out split belongs to the data set, not to a run: with a run's seed in it, weights trained
# under one seed would be evaluated on their own training data under another.
SPLIT_SEED = 0
MOST_HELD_OUT = 10_000
SKIPPED = 2000  # rows of a stream that are held out at most where there is no part for it

# Random numbers for each purpose: the other constants named *_STREAM are the numbers that are taken.
FLIP_STREAM, CROP_STREAM, SHARD_STREAM, WINDOW_STREAM = 1, 9, 10, 11


@dataclass(frozen=True)
class Plan:
    """Which batches are wanted. What is random in them depends on the seed, the step and the place in the batch only.

    batch_size: of the whole batch, of which only `part` is read. state: of a stream, where start_step begins.
    """

    batch_size: int
    seed: int
    start_step: int = 0
    flip: bool = False
    part: slice = field(default_factory=lambda: slice(None))
    state: Mapping[str, Any] = field(default_factory=dict)

    def picks(self, size: int, first: int, stride: int) -> Iterator[tuple[int, Tensor]]:
        """Every `stride`-th step, and which samples of a set its part has, int64 [rows].

        Every sample is used once an epoch; a batch may cross the end of an epoch, or hold several epochs.
        """

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Tensor:
            return torch.randperm(size, generator=seeded(self.seed, epoch))

        for step in itertools.count(self.start_step + first, stride):
            start = step * self.batch_size
            epochs = range(start // size, (start + self.batch_size - 1) // size + 1)
            yield step, torch.cat([order(epoch) for epoch in epochs])[start % size :][: self.batch_size][self.part]

    def uniform(self, step: int, *shape: int, stream: int) -> Tensor:
        """Uniform numbers for each place of the part, [rows, *shape]."""
        return torch.rand(self.batch_size, *shape, generator=seeded(self.seed, step, stream=stream))[self.part]

    def mirrored(self, samples: Tensor, step: int) -> Tensor:
        """The part's images, each turned left to right with probability 1/2, where this is wanted."""
        if not self.flip:
            return samples
        turned = self.uniform(step, stream=FLIP_STREAM) < 0.5
        return torch.where(turned[:, None, None, None], samples.flip(-1), samples)


class Share(NamedTuple):
    """What one of several readers makes of a plan: every `stride`-th batch, from start_step + first on."""

    plan: Plan
    first: int = 0
    stride: int = 1


def in_turn(plan: Plan, readers: int) -> list[Share]:
    """Readers that make whole batches, one after the other."""
    return [Share(plan, reader, readers) for reader in range(readers)]


class Made(NamedTuple):
    """The part of a batch; where a stream goes on after it; the pictures met on the way that cannot be read."""

    samples: Tensor
    conditions: Conditions
    state: dict[str, Any]
    failures: tuple[Failure, ...]

    @classmethod
    def joined(cls, parts: Sequence[Made]) -> Made:
        """Parts of a batch, in the order of its rows, as one."""
        if len(parts) == 1:
            return parts[0]
        conditions = {name: torch.cat([part.conditions[name] for part in parts]) for name in parts[0].conditions}
        failures = tuple(failure for part in parts for failure in part.failures)
        return cls(torch.cat([part.samples for part in parts]), conditions, parts[-1].state, failures)


class Source(Protocol):
    """What training needs to know of a set, whether it lies in memory, is decoded as it is read, or streams by."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) or (D,)."""

    @property
    def size(self) -> int | None:
        """Number of samples; None for a stream."""

    @property
    def levels(self) -> int | None: ...

    @property
    def labels(self) -> Tensor | None:
        """int64 [size]; None without classes, and of a stream."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the values of each vector that samples come with, such as {"attributes": ("smiling",)}."""

    @property
    def title(self) -> str: ...

    @property
    def corrupt_limit(self) -> float:
        """The share of the pictures that may be broken."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names of the pictures that were found to be broken as the set was loaded, held-out ones among them."""

    @property
    def decodes(self) -> bool:
        """Whether reading is work that other processes can take over."""

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        """What each of at most so many readers makes: whole batches in turn, or of every batch its part, in order."""

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        """Batches start_step + first, start_step + first + stride, ... without end."""

    def read(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64 [M]) and their conditions. Raises UserError of a stream, without numbers."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples as they are stored, with what is needed to interpret them.

    samples: uint8 [N, C, H, W], grey levels 0..levels-1; or float32 [N, *D], vectors or latents.
    labels: int64 [N], indices into `classes`; None for a set without classes.
    levels: number of grey levels (2..256); None for continuous numbers.
    classes: the name of each class. title: how figures name the set. left_out: as in `Source`.
    others: conditions [N, ...] beside the labels, by name; columns: the names of the values of those that are vectors.
    Raises UserError where these do not fit together.
    """

    samples: Tensor
    labels: Tensor | None
    levels: int | None
    classes: tuple[str, ...]
    title: str
    left_out: tuple[str, ...] = ()
    others: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    corrupt_limit: ClassVar[float] = 0.0
    decodes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        samples, labels, levels = self.samples, self.labels, self.levels
        dtype, axes = (torch.float32, "2 or more") if levels is None else (torch.uint8, "4")
        if samples.dtype != dtype or not (samples.ndim >= 2 if levels is None else samples.ndim == 4):
            raise UserError(
                f"{self.title}: with levels={levels} samples must be {dtype} with {axes} axes, "
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
        if labels is not None:
            check_labels(labels, len(samples), self.classes, self.title)
        check_others(self.others, self.columns, len(samples), self.title)

    @classmethod
    def from_tensors(
        cls,
        samples: Tensor,
        conditions: Mapping[str, Tensor] | None = None,
        *,
        classes: tuple[str, ...] = (),
        columns: Mapping[str, tuple[str, ...]] | None = None,
        title: str = "tensors",
    ) -> Dataset:
        """A set of tensors: images uint8 [N, C, H, W] of 256 levels, or floating-point numbers [N, *D].

        conditions: by name, [N, ...]; "labels" are classes. classes, columns: the names of the classes and of the
        values of each vector [N, values]; numbers unless given. Raises UserError where these do not fit together.
        """
        others = dict(conditions or {})
        labels = others.pop("labels", None)
        if labels is not None and not classes:
            classes = tuple(map(str, range(int(labels.max()) + 1)))
        vectors = {name: value for name, value in others.items() if value.ndim == 2 and value.is_floating_point()}
        named = {name: tuple(map(str, range(value.shape[1]))) for name, value in vectors.items()} | dict(columns or {})
        levels = 256 if samples.dtype == torch.uint8 else None
        samples = samples if levels else samples.to(torch.float32)
        return cls(samples, labels, levels, classes, title, others=others, columns=named)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def conditions(self) -> Conditions:
        """All that a network may be told of the samples, the labels among it."""
        return {**({} if self.labels is None else {"labels": self.labels}), **self.others}

    @property
    def size(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.samples.shape[1:])

    def select(self, indices: Tensor) -> Dataset:
        """The samples at `indices` (int64 [M]), in that order."""
        samples, conditions = self.read(indices)
        labels = conditions.pop("labels", None)
        return Dataset(samples, labels, self.levels, self.classes, self.title, others=conditions, columns=self.columns)

    def read(self, indices: Tensor) -> Batch:
        return self.samples[indices], rows_of(self.conditions, indices)

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        return in_turn(plan, readers)

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        for step, picked in plan.picks(len(self), first, stride):
            samples, conditions = self.read(picked)
            yield Made(plan.mirrored(samples, step), conditions, {}, ())


@dataclass(frozen=True)
class Splits:
    """What is trained on, and what is held out.

    test: None where nothing is held out; inventory: of the files, where the set is a person's own; files: of each
    file by its name a number that changes with it, the bytes it has or its CRC-32; {} of a set that is no person's own.
    """

    train: Source
    test: Dataset | None
    inventory: Inventory | None = None
    files: Mapping[str, int] = field(default_factory=dict)

    def tell(self, say: Callable[[str], object]) -> None:
        """Say what a person should know of the files before a training, a sentence each."""
        for line in self.inventory.told() if self.inventory else ():
            say(line)

    def held_out(self, wanted: str, remedy: str = "") -> Dataset:
        """What is held out. wanted: what needs it, in words; remedy: what else can be done.

        Raises UserError where nothing is held out.
        """
        if self.test is None:
            raise UserError(
                f"{wanted} needs samples that are held out, and of {self.train.title} none are: "
                f"{remedy}{', or ' if remedy else ''}train with data.split='auto' and more samples."
            )
        return self.test


def without_numbers(title: str) -> UserError:
    """What to say where a sample of a stream is asked for by its number."""
    return UserError(
        f"{title} streams by, and its samples have no numbers: choose the storage 'mapped' to read any of them"
    )


class Selectable(Protocol):
    """A set of which a part can be taken."""

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def title(self) -> str: ...

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self: ...


T = TypeVar("T", bound=Selectable)


def check_labels(labels: Tensor, size: int, classes: tuple[str, ...], title: str) -> None:
    """Raises UserError for labels that are not one of the classes for each sample."""
    if labels.dtype != torch.int64 or labels.shape != (size,):
        raise UserError(f"{title}: labels must be int64 [{size}], not {labels.dtype} {list(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{title}: labels run from {labels.min()} to {labels.max()}; {len(classes)} classes were declared."
        )


def check_others(others: Mapping[str, Tensor], columns: Mapping[str, tuple[str, ...]], size: int, title: str) -> None:
    """Raises UserError for conditions without a row for each sample, or with other columns than are named."""
    for name, value in others.items():
        if len(value) != size:
            raise UserError(f"{title}: {name!r} has {len(value)} rows, and there are {size} samples.")
    for name, names in columns.items():
        if name not in others or others[name].shape[1:] != (len(names),):
            found = list(others[name].shape) if name in others else "none"
            raise UserError(
                f"{title}: {name!r} must be [{size}, {len(names)}] by the names of its values, not {found}."
            )


def stratified(data: Selectable, count: int) -> Tensor:
    """`count` indices of a set, in order, int64 [count]: each class in proportion; always the same ones."""
    order = torch.randperm(len(data), generator=seeded(SPLIT_SEED))
    if data.labels is not None:
        order = order[data.labels[order].argsort(stable=True)]
    # Evenly spaced picks from a list shuffled within each class: stratified, and exactly `count`.
    spaced = (torch.arange(count) * len(data) + len(data) // 2) // count
    return order[spaced].sort().values


def hold_out(whole: T, count: int = 0) -> tuple[T, T | None]:
    """What is left, and the `count` samples held out (0: a tenth, at most 10,000), each class in proportion.

    No class loses its last sample: one stays, and others are held out in its place. None where nothing can be held out,
    as of a single sample. Raises UserError for as many samples as there are, or more.
    """
    if len(whole) == 1:
        return whole, None
    count = count or min(max(1, len(whole) // 10), MOST_HELD_OUT)
    if not 0 < count < len(whole):
        raise UserError(f"{whole.title}: cannot hold {count} of {len(whole)} samples out.")
    free = torch.ones(len(whole), dtype=torch.bool)
    held = stratified(whole, count)
    while len(lost := _last_ones(whole.labels, held)):
        free[lost] = False
        rest = free.nonzero()[:, 0]
        if not len(rest):
            return whole, None
        held = rest[stratified(whole.select(rest), min(count, len(rest)))]
    left = torch.ones(len(whole), dtype=torch.bool)
    left[held] = False
    return whole.select(left.nonzero()[:, 0]), whole.select(held)


def _last_ones(labels: Tensor | None, held: Tensor) -> Tensor:
    """Of each class that would be held out as a whole the first sample, int64 [classes]."""
    if labels is None:
        return held[:0]
    gone = labels[held].bincount(minlength=int(labels.max()) + 1) == labels.bincount()
    first = [held[labels[held] == label][0] for label in (gone & (labels.bincount() > 0)).nonzero()[:, 0]]
    return torch.stack(first) if first else held[:0]


def shortened(test: T, count: int) -> T:
    """At most `count` samples of a set, each class in proportion; all for 0."""
    return test.select(stratified(test, count)) if 0 < count < len(test) else test
