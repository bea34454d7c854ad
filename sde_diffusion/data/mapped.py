"""Pictures that stay encoded where they are, and are decoded as they are read; and what is kept of them in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, rows_of
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data import cache
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.dataset import (
    CROP_STREAM,
    Batch,
    Dataset,
    Made,
    Plan,
    Share,
    Source,
    Splits,
    T,
    check_labels,
    check_others,
    hold_out,
    in_turn,
    shortened,
)
from sde_diffusion.data.modes import Decoding
from sde_diffusion.data.pictures import FEW, Failure, Notes, Pictures, Tally, Unreadable, decoded, listed, pixels
from sde_diffusion.data.watching import Watch, unwatched

MEMORY_LIMIT = 2 << 30  # bytes of decoded pictures that are kept without being asked to
PATIENCE = 100  # broken pictures in a row
SPLITS = ("auto", "none")
TURN = 32  # pictures that a thread decodes at a time
FORMAT = 2  # to be raised when pictures are decoded in another way


@dataclass(frozen=True)
class Keeping:
    """How a part of a set is decoded once and for all: its name, whether the cache keeps it, and who is shown."""

    part: str = "train"
    cache: bool = True
    watch: Watch = unwatched


@dataclass(frozen=True)
class Reading:
    """How the pictures of a set are read.

    storage: "memory" (decoded once), "mapped" (decoded as they are read), "streaming" (read from one end to the
    other), or "auto": memory for up to 2 GiB of decoded pictures, but for random crops. cut: what is taken of each.
    held_out: how many of the samples that are held out are kept; 0 for all.
    split: "auto" holds out what the set has for it, or a part of it; "none" holds nothing out.
    corrupt_limit: the share of broken pictures that is borne. window: rows of a stream that change places.
    lanes: of a stream, at most. cache: whether what is decoded once is kept for the next time. watch: who is shown how
    far it is.
    decoding: how files become pixels.
    Raises UserError for another storage and for numbers that make none.
    """

    storage: str = "auto"
    cut: Cut = field(default_factory=Cut)
    held_out: int = 0
    corrupt_limit: float = 0.01
    window: int = 4096
    split: str = "auto"
    lanes: int = 32
    cache: bool = True
    watch: Watch = field(default=unwatched, repr=False, compare=False)
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        choose("storage", self.storage, dict.fromkeys(("auto", "memory", "mapped", "streaming")))
        choose("data.split", self.split, dict.fromkeys(SPLITS))
        for need, value, met in (
            ("held_out >= 0", self.held_out, self.held_out >= 0),
            ("shuffle_window >= 1", self.window, self.window >= 1),
            ("lanes >= 1", self.lanes, self.lanes >= 1),
            ("corrupt_limit in [0, 1)", self.corrupt_limit, 0.0 <= self.corrupt_limit < 1.0),
        ):
            if not met:
                raise UserError(f"reading needs data.{need}, not {value}.")
        if self.storage == "memory" and self.cut.random:
            raise UserError(
                "random crops are made as pictures are decoded: choose the storage 'mapped' or 'streaming'."
            )

    def keeping(self, part: str) -> Keeping:
        """How a part of the set, of this name, is decoded once and for all."""
        return Keeping(part, self.cache, self.watch)

    @property
    def streams(self) -> bool:
        return self.storage == "streaming"

    def in_memory(self, size: int, shape: Sequence[int]) -> bool:
        """Whether so many samples are decoded once and for all."""
        small = size * math.prod(shape) <= MEMORY_LIMIT and not self.cut.random
        return small if self.storage == "auto" else self.storage == "memory"

    def only_memory(self, splits: Splits) -> Splits:
        """Sets that have always been in memory. Raises UserError where they are to be read in another way."""
        here = f"{splits.train.title} lies in memory and cannot be"
        if self.cut.random:
            raise UserError(f"{here} cropped at random: leave the crop at 'centre'.")
        if self.cut.fit != "crop":
            raise UserError(f"{here} resized: leave the fit at 'crop', not {self.cut.fit!r}.")
        if self.storage not in ("auto", "memory"):
            raise UserError(f"{here} {self.storage}: leave the storage at 'auto'.")
        return replace(splits, test=self.kept_of(splits.test))

    def parted(self, whole: T, count: int = 0) -> tuple[T, T | None]:
        """What is trained on, and what is held out of a set without such a part, as `hold_out` does it."""
        return (whole, None) if self.split == "none" else hold_out(whole, count)

    def kept_of(self, test: T | None) -> T | None:
        """What is kept of the held-out part of a set."""
        return None if test is None or self.split == "none" else shortened(test, self.held_out)


@dataclass(frozen=True, eq=False)
class Mapped:
    """A part of a set of pictures, decoded as it is read.

    rows: int64 [N], which of the pictures belong to it. labels: int64 [N], or None without classes. shape: (C, H, W).
    left_out, columns: as in `Source`; others: conditions [N, ...] beside the labels, by name.
    decoding: how files become pixels. notes: where it is entered what was done to them.
    A picture that cannot be read is replaced by the next one of the part that can. Raises UserError as Dataset does.
    """

    pictures: Pictures
    rows: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    title: str
    shape: tuple[int, int, int]
    cut: Cut = field(default_factory=Cut)
    corrupt_limit: float = 0.01
    left_out: tuple[str, ...] = ()
    others: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    notes: Notes | None = None

    levels: ClassVar[int] = 256
    decodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise UserError(f"{self.title}: there are no samples.")
        if self.labels is not None:
            check_labels(self.labels, len(self.rows), self.classes, self.title)
        check_others(self.others, self.columns, len(self.rows), self.title)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def conditions(self) -> Conditions:
        """What a network may be told of the samples."""
        return {**({} if self.labels is None else {"labels": self.labels}), **self.others}

    def select(self, indices: Tensor) -> Mapped:
        """The samples at `indices` (int64 [M]), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels, others=rows_of(self.others, indices))

    def read(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64 [M]), as they are evaluated, and their conditions."""
        made = gathered([(self, index) for index in indices.tolist()], None, self)
        return made.samples, made.conditions

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        return in_turn(plan, readers)

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        for step, picked in plan.picks(len(self), first, stride):
            draws = plan.uniform(step, 3, stream=CROP_STREAM) if self.cut.random else None
            found = gathered([(self, index) for index in picked.tolist()], draws, self)
            yield found._replace(samples=plan.mirrored(found.samples, step))

    def in_memory(self, keeping: Keeping | None = None) -> tuple[Dataset, list[Failure]]:
        """All that can be read, decoded, and what cannot. Raises UserError where nothing can be read.

        keeping: where decoded pictures are kept for the next time, and who is shown how far it is.
        """
        keeping = keeping or Keeping(cache=False)
        where, what = self.pictures.fingerprint() if keeping.cache and len(self) >= cache.LEAST else ("", "")
        if where:
            # What Pillow makes of a file may change from version to version.
            made_of = cache.digest(what, self.rows.tolist(), version("pillow"), FORMAT)
            name = cache.digest(where, keeping.part, self.shape, self.cut, self.decoding)
            array, about = cache.recalled(self.title, name, made_of, lambda: self._whole(keeping))
        else:
            array, about = self._whole(keeping)
        if self.notes:
            self.notes.enter(self.rows.numpy(), about["notes"])
        samples, failed = torch.from_numpy(array), about["failed"]
        good = torch.ones(len(self), dtype=torch.bool)
        good[[index for index, _, _ in failed]] = False
        own = rows_of(self.conditions, good) if failed else self.conditions
        labels = own.pop("labels", None)
        failures = [(name, reason) for _, name, reason in failed]
        found = Dataset(samples, labels, self.levels, self.classes, self.title, others=own, columns=self.columns)
        return found, failures

    def _whole(self, keeping: Keeping) -> tuple[np.ndarray, dict[str, Any]]:
        """The pictures that can be read, uint8 [N, C, H, W], decoded by as many threads as there are CPUs; the others.

        Pillow leaves Python to the other threads while it unpacks and resizes.
        """
        samples, notes = np.empty((len(self), *self.shape), np.uint8), Notes(len(self.pictures))

        def turn(indices: range) -> list[tuple[int, str, str]]:
            failed = []
            for index in indices:
                try:
                    samples[index] = self._decoded(index, None, notes)
                except Unreadable as error:
                    failed.append((index, *error.failure))
            return failed

        parts = [range(first, min(first + TURN, len(self))) for first in range(0, len(self), TURN)]
        failed = list[tuple[int, str, str]]()
        with keeping.watch(len(self), self.title) as counter, ThreadPoolExecutor(usable_cpus()) as pool:
            for part, found in zip(parts, pool.map(turn, parts)):
                failed += found
                counter.update(len(part))
        if len(failed) == len(self):
            raise UserError(
                f"{self.title}: of its part {keeping.part!r}, {len(self):,} in all, no picture can be read: "
                f"{listed([(n, why) for _, n, why in failed])}; repair or remove them."
            )
        if failed:  # a copy of the samples, which is not made without need
            samples = np.delete(samples, [index for index, _, _ in failed], axis=0)
        return samples, {"failed": failed, "notes": notes.rows()}

    def readable(self, index: int, draw: Sequence[float] | None) -> tuple[np.ndarray, int, list[Failure]]:
        """Sample `index` or the next that can be read, uint8 [C, H, W]; which one it is; those that cannot.

        draw: of its random crop; None for how it is evaluated. Raises UserError after too many broken ones in a row.
        """
        failures: list[Failure] = []
        for later in range(min(PATIENCE, len(self))):
            candidate = (index + later) % len(self)
            try:
                return self._decoded(candidate, draw), candidate, failures
            except Unreadable as error:
                failures.append(error.failure)
        raise UserError(f"{self.title}: {len(failures)} pictures in a row cannot be read: {listed(failures)}.")

    def _decoded(self, index: int, draw: Sequence[float] | None, notes: Notes | None = None) -> np.ndarray:
        row = int(self.rows[index])
        image, done = decoded(self.pictures, row, self.cut.least, self.decoding)
        if notes:
            notes.mark(row, done)
        cut = self.cut.fitted(image) if draw is None else self.cut.at(image, draw)
        return pixels(cut, self.shape, self.pictures.name(row))


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gathered(picked: Sequence[tuple[Mapped, int]], draws: Tensor | None, source: Source) -> Made:
    """The samples of these numbers in these sets, which are parts of the source, with their conditions."""
    samples = torch.empty(len(picked), *source.shape, dtype=torch.uint8)
    array, rows, failures = samples.numpy(), list[Conditions](), list[Failure]()
    for place, (data, index) in enumerate(picked):
        array[place], used, failed = data.readable(index, None if draws is None else draws[place].tolist())
        failures += failed
        rows.append({name: value[used] for name, value in data.conditions.items()})
    conditions = {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    return Made(samples, conditions, {}, tuple(failures))


def kept(train: Mapped, test: Mapped | None, reading: Reading) -> Splits:
    """Both parts as they are to be read: what is held out, of the training part where there is no other, in memory.

    Warns of broken pictures. Raises UserError for too many of them, and for too much to be held out.
    """
    if test is None:  # what is trained on does not depend on how many of the others are kept
        train, test = reading.parted(train)
    test = reading.kept_of(test)
    count, most = 0 if test is None else len(test), MEMORY_LIMIT // math.prod(train.shape)
    if count > most and reading.storage != "memory":
        raise UserError(too_many(train.title, count, most))
    held, failures = (None, []) if test is None else test.in_memory(reading.keeping("held out"))
    tally = Tally(train.title, reading.corrupt_limit, min(FEW, len(train) + count))
    if not reading.in_memory(len(train), train.shape):
        tally.add(count, failures, "left out")
        return Splits(replace(train, left_out=tuple(tally.names)), held)
    whole, more = train.in_memory(reading.keeping("train"))
    tally.add(len(train) + count, more + failures, "left out")
    return Splits(replace(whole, left_out=tuple(tally.names)), held)


def too_many(title: str, count: int, most: int) -> str:
    """The sentence for more held-out samples than memory should be filled with."""
    limit = f"{MEMORY_LIMIT / 2**30:.3g} GiB"
    return f"{title}: the {count:,} samples held out do not fit into {limit}; set data.held_out to at most {most:,}."
