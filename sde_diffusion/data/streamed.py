"""Pictures that stream by from the hub, in an order that any number of processes can resume.

Each of them reads all: what is on the disk is divided among them (lanes.py)."""

from __future__ import annotations

import math
import warnings
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count, islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.core.packages import extra
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.dataset import (
    CROP_STREAM,
    MOST_HELD_OUT,
    SHARD_STREAM,
    SKIPPED,
    WINDOW_STREAM,
    Batch,
    Made,
    Plan,
    Share,
    Splits,
    in_turn,
    without_numbers,
)
from sde_diffusion.data.mapped import MEMORY_LIMIT, Mapped, Reading, gathered, too_many
from sde_diffusion.data.modes import Decoding
from sde_diffusion.data.pictures import FEW, Tally, common_shape
from sde_diffusion.data.tables import Rows, declared_classes, first_line, image_column, label_column

CHUNK = 256  # rows that are taken from a shard at once


class Place(NamedTuple):
    """Where a stream is: `used` samples into the epoch's window that begins at `row` of its `shard`-th shard."""

    epoch: int = 0
    window: int = 0
    shard: int = 0
    row: int = 0
    used: int = 0


@dataclass(frozen=True, eq=False)
class Streamed:
    """A stream of encoded pictures in shards, whose order depends on (seed, step) only.

    An epoch takes the shards in a random order, and of their rows windows of `window`, in which they change places.
    Every process reads every shard, and holds a window, encoded, while it reads the next; it decodes its own samples
    only. A picture that cannot be read is replaced by the next one of the window that can.

    data: an IterableDataset of Hugging Face. held: of each shard's first rows, how many are held out.
    column: of the labels; None without classes. left_out: as in `Source`.
    """

    data: Any
    held: Mapping[int, int]
    column: str | None
    classes: tuple[str, ...]
    title: str
    shape: tuple[int, int, int]
    window: int
    cut: Cut
    corrupt_limit: float
    left_out: tuple[str, ...]
    decoding: Decoding = field(default_factory=Decoding)

    levels: ClassVar[int] = 256
    decodes: ClassVar[bool] = True
    size: ClassVar[None] = None
    labels: ClassVar[None] = None
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def read(self, indices: Tensor) -> Batch:
        raise without_numbers(self.title)

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        return in_turn(plan, readers)

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        known = {name: plan.state[name] for name in Place._fields if name in plan.state}
        begin = plan.start_step if known else 0
        samples = self._samples(plan.seed, Place(**known))
        for step in count(begin):
            # Those that others decode are passed over, and so are those of steps before the first.
            picked = list(islice(samples, plan.batch_size))
            mine = step - plan.start_step - first
            if mine < 0 or mine % stride:
                continue
            place = picked[-1][2]
            draws = plan.uniform(step, 3, stream=CROP_STREAM) if self.cut.random else None
            found = gathered([(data, index) for data, index, _ in picked[plan.part]], draws, self)
            state = {"step": step + 1, **place._asdict()}
            yield found._replace(samples=plan.mirrored(found.samples, step), state=state)

    def _samples(self, seed: int, place: Place) -> Iterator[tuple[Mapped, int, Place]]:
        """(window, number in it, the place after it) of one sample after another, from a place on."""
        for start, data in self._windows(seed, place):
            for index in range(place.used, len(data)):
                yield data, index, start._replace(used=index + 1)
            place = place._replace(used=0)

    def _windows(self, seed: int, place: Place) -> Iterator[tuple[Place, Mapped]]:
        """Windows from that of a place on, and where each begins."""
        while True:
            chunks: list[Chunk] = []
            for chunk in self._chunks(seed, place):
                chunks.append(chunk)
                if sum(len(each.table) for each in chunks) >= self.window:
                    yield self._window(seed, place, chunks)
                    chunks, place = [], place._replace(window=place.window + 1)
            if chunks:
                yield self._window(seed, place, chunks)
            elif place == Place(place.epoch):
                raise UserError(f"{self.title} holds no pictures to train on.")
            place = Place(place.epoch + 1)

    def _chunks(self, seed: int, place: Place) -> Iterator[Chunk]:
        """What is left of an epoch."""
        order = torch.randperm(self.data.num_shards, generator=seeded(seed, place.epoch, stream=SHARD_STREAM)).tolist()
        for turn in range(place.shard, len(order)):
            skipped = max(self.held.get(order[turn], 0), place.row if turn == place.shard else 0)
            yield from chunks_of(self.data, order[turn], turn, min(CHUNK, self.window), skipped, self.title)

    def _window(self, seed: int, place: Place, chunks: list[Chunk]) -> tuple[Place, Mapped]:
        rows = WindowRows.of(chunks, self.title)
        begin = Place(place.epoch, place.window, chunks[0].turn, chunks[0].row)
        order = torch.randperm(len(rows), generator=seeded(seed, place.epoch, place.window, stream=WINDOW_STREAM))
        labels = None if self.column is None else labels_of(rows.table, self.column, self.title)[order]
        about = (self.classes, self.title, self.shape, self.cut, self.corrupt_limit)
        return begin, Mapped(rows, order, labels, *about, decoding=self.decoding)


class Chunk(NamedTuple):
    """Rows of a shard from `row` on; the shard is the epoch's `turn`-th."""

    turn: int
    shard: int
    row: int
    table: Any


@dataclass(frozen=True, eq=False)
class WindowRows(Rows):
    """The encoded images of a window, and where they came from: the first number, shard and row of each chunk."""

    origins: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of(cls, chunks: Sequence[Chunk], title: str) -> WindowRows:
        with extra("data"):
            import pyarrow

        table = pyarrow.concat_tables([chunk.table for chunk in chunks])
        firsts = accumulate((len(chunk.table) for chunk in chunks), initial=0)
        origins = tuple((first, chunk.shard, chunk.row) for first, chunk in zip(firsts, chunks))
        return cls(table, image_column(table.schema, title), title, origins)

    def name(self, index: int) -> str:
        first, shard, row = self.origins[bisect(self.origins, index, key=lambda origin: origin[0]) - 1]
        return f"{self.title}, row {row + index - first} of shard {shard}"


def streamed(parts: Mapping[str, Any], title: str, reading: Reading) -> Splits:
    """A stream's training part, and in memory the first rows of the other part, or of itself, of which it skips 2,000.

    Labels are read where the set declares the names of its classes: they cannot be gathered from what streams by.
    Channels are 1 if all that is held out is grey, else 3.
    Raises UserError where nothing is left to train on, and for too many broken pictures.
    """
    train, *others = parts.values()
    chunks = _first(others[0], reading.held_out or MOST_HELD_OUT, title) if others else _first(train, SKIPPED, title)
    rows = WindowRows.of(chunks, title)
    column = label_column(rows.table.schema)
    classes = _declared(train, rows.table.schema, column)
    shape = common_shape([rows], reading.cut, title, reading.decoding)
    every = torch.arange(len(rows))[: reading.held_out or None]
    most = MEMORY_LIMIT // math.prod(shape)
    if len(every) > most:
        raise UserError(too_many(title, len(every), most))
    if column and not classes:
        warnings.warn(
            f"{title}: the column {column} is not read, since the set does not name its classes, which cannot be "
            "gathered from what streams by: data.storage=mapped reads it",
            stacklevel=2,
        )
    column = column if classes else None
    labels = labels_of(rows.table, column, title)[: len(every)] if column else None
    first = Mapped(rows, every, labels, classes, title, shape, reading.cut, 0.0, decoding=reading.decoding)
    held, failures = first.in_memory()
    tally = Tally(title, reading.corrupt_limit, FEW)
    tally.add(len(every), failures, "left out")
    own = () if others or reading.split == "none" else chunks
    skipped = {chunk.shard: chunk.row + len(chunk.table) for chunk in own}
    limit, broken = reading.corrupt_limit, tuple(tally.names)
    how = (reading.window, reading.cut, limit, broken, reading.decoding)
    stream = Streamed(train, skipped, column, classes, title, shape, *how)
    if next(stream._chunks(0, Place()), None) is None:
        raise UserError(f"{title} has no more than {len(rows):,} pictures, which are held out: choose 'mapped'.")
    return Splits(stream, held if reading.split == "auto" else None)


def chunks_of(data: Any, shard: int, turn: int, size: int, skipped: int, title: str) -> Iterator[Chunk]:
    """The rows of one shard from `skipped` on, `size` at a time. Raises UserError where they cannot be read."""
    row = 0
    try:
        for table in data.shard(num_shards=data.num_shards, index=shard).with_format("arrow").iter(batch_size=size):
            begin, end = max(row, skipped), row + len(table)
            if begin < end:
                yield Chunk(turn, shard, begin, table.slice(begin - row))
            row = end
    # Files and networks fail with the errors of pyarrow, fsspec and httpx.
    except Exception as error:
        raise UserError(f"{title}: shard {shard} cannot be read on from row {row} ({first_line(error)}).") from error


def labels_of(table: Any, column: str, title: str) -> Tensor:
    """The labels of a table, int64 [N]. Raises UserError where they are not numbers."""
    values = table.column(column).to_pylist()
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"{title}: column {column} must hold the number of a class in every row.")
    return torch.tensor(values, dtype=torch.int64)


def _first(data: Any, most: int, title: str) -> list[Chunk]:
    """The first rows of a stream, in the order of its shards. Raises UserError where there are none."""
    chunks: list[Chunk] = []
    for shard in range(data.num_shards):
        for chunk in chunks_of(data, shard, shard, CHUNK, 0, title):
            left = most - sum(len(each.table) for each in chunks)
            if left <= 0:
                return chunks
            chunks.append(chunk._replace(table=chunk.table.slice(0, left)))
    if not chunks:
        raise UserError(f"{title} holds no pictures.")
    return chunks


def _declared(data: Any, schema: Any, column: str | None) -> tuple[str, ...]:
    """The names of the classes, which a stream knows by its features or by the metadata of its tables."""
    if column is None:
        return ()
    return tuple(getattr((data.features or {}).get(column), "names", None) or declared_classes(schema, column))
