"""Pictures that stream by in lanes, of which each process and each worker reads its own.

A batch of B rows has L lanes of B / L rows each, one after another. A set is cut into pieces (the row groups of a
parquet file, stretches of an archive), and in each epoch every piece is dealt to one lane, in an order of the seed:

    the next piece goes to the lane that was given the fewest rows since the training began

so that no lane is ever ahead of another by more than a piece. A lane reads its pieces from the first row to the last
and shuffles them within windows. Where a step begins in a lane follows from (seed, step) and the pieces' sizes alone:
any step is begun at the same cost, and a checkpoint needs no position. A process reads the lanes that its rows are in.

Own, where Grain and torchdata's StatefulDataLoader are made for this: both divide a set by the number of processes and
workers, so that another number would give other batches, and the second keeps a state for each worker.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import count, islice, tee
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
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
    without_numbers,
)
from sde_diffusion.data.mapped import MEMORY_LIMIT, Mapped, Reading, gathered, too_many
from sde_diffusion.data.pictures import FEW, Tally, common_shape

LEAST_WINDOW = 16  # rows of a lane that change places, at least


class Span(NamedTuple):
    """Rows first..stop - 1 of a shard, which are read one after another."""

    shard: int
    first: int
    stop: int


class Encoded(NamedTuple):
    """One picture of a shard: what a person knows it by, its bytes or its file, the number of its class."""

    name: str
    content: bytes | Path
    label: int | None


class Shards(Protocol):
    """The files of a set, each of which is read from one of its rows on. Workers have copies of it."""

    @property
    def title(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def spans(self) -> list[Span]:
        """All rows in pieces, each of which is best read as a whole."""

    def read(self, span: Span) -> Iterator[Encoded]:
        """The rows of a part of a piece. Raises UserError where they cannot be read."""

    def signature(self) -> str:
        """What tells these files from others: names and sizes."""


@dataclass(frozen=True, eq=False)
class Lanes:
    """A stream of encoded pictures, whose order depends on (seed, step), the lanes and the window only.

    spans: the pieces that are trained on. lanes: how many a batch has at most; there are no more of them than pieces,
    and they divide the batch. window: pictures that change places, in all lanes together. left_out: as in `Source`.
    A picture that cannot be read is replaced by the next one of its window that can.
    """

    shards: Shards
    spans: Sequence[Span]
    shape: tuple[int, int, int]
    reading: Reading
    left_out: tuple[str, ...] = ()

    levels: ClassVar[int] = 256
    decodes: ClassVar[bool] = True
    size: ClassVar[None] = None
    labels: ClassVar[None] = None
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def title(self) -> str:
        return self.shards.title

    @property
    def classes(self) -> tuple[str, ...]:
        return self.shards.classes

    @property
    def corrupt_limit(self) -> float:
        return self.reading.corrupt_limit

    @property
    def cut(self) -> Cut:
        return self.reading.cut

    def read(self, indices: Tensor) -> Batch:
        raise without_numbers(self.title)

    def lanes(self, batch_size: int) -> int:
        """How many lanes a batch has: the largest divisor of its size that is allowed."""
        most = min(self.reading.lanes, len(self.spans), batch_size)
        return next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)

    def window(self, lanes: int) -> int:
        """How many rows of a lane change places."""
        return max(LEAST_WINDOW, -(-self.reading.window // lanes))

    def order(self, batch_size: int) -> dict[str, Any]:
        """What the order of the pictures depends on beside the seed, as a checkpoint keeps it."""
        lanes = self.lanes(batch_size)
        pieces = repr((self.shards.signature(), list(map(tuple, self.spans))))
        digest = hashlib.sha256(pieces.encode()).hexdigest()[:16]
        return {"lanes": lanes, "lane_window": self.window(lanes), "pieces": digest}

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        """Each reader has lanes of its own, and of every batch their rows. Warns of another order than before."""
        rows, size = range(plan.batch_size)[plan.part], plan.batch_size // self.lanes(plan.batch_size)
        if rows.start % size or rows.stop % size:
            warnings.warn(
                f"{self.title}: a batch has {plan.batch_size // size} lanes of {size} rows, and two processes have "
                "rows of one lane, which both of them read; each byte is read once where the number of processes "
                f"divides that of lanes, which is at most data.lanes={self.reading.lanes}, at most that of pieces "
                f"({len(self.spans):,}), and divides the batch size",
                stacklevel=2,
            )
        order = self.order(plan.batch_size)
        if plan.state and {name: plan.state.get(name) for name in order} != order:
            warnings.warn(
                f"{self.title}: its files, data.lanes, data.shuffle_window or the batch size, or the version of the "
                f"program, are others than at step {plan.start_step:,}: from there on pictures come in another order, "
                "and in this epoch some come twice and some not at all",
                stacklevel=2,
            )
        own = range(rows.start // size, -(-rows.stop // size))
        readers = min(readers, len(own))
        parts = [own[len(own) * k // readers : len(own) * (k + 1) // readers] for k in range(readers)]
        bounds = [slice(max(rows.start, part.start * size), min(rows.stop, part.stop * size)) for part in parts]
        return [Share(replace(plan, part=part)) for part in bounds]

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        lanes, rows = self.lanes(plan.batch_size), range(plan.batch_size)[plan.part]
        size = plan.batch_size // lanes
        own = range(rows.start // size, -(-rows.stop // size))
        mine = slice(rows.start - own.start * size, rows.stop - own.start * size)
        epochs = tee(dealt([span.stop - span.first for span in self.spans], lanes, plan.seed), len(own))
        streams = [
            self._samples(plan.seed, lane, self.window(lanes), pieces, plan.start_step * size)
            for lane, pieces in zip(own, epochs)
        ]
        order = self.order(plan.batch_size)
        for step in count(plan.start_step):
            picked = [sample for stream in streams for sample in islice(stream, size)][mine]
            if (step - plan.start_step - first) % stride:
                continue
            draws = plan.uniform(step, 3, stream=CROP_STREAM) if self.cut.random else None
            found = gathered(picked, draws, self)
            yield found._replace(samples=plan.mirrored(found.samples, step), state={"step": step + 1, **order})

    def _samples(
        self, seed: int, lane: int, window: int, epochs: Iterator[list[list[int]]], passed: int
    ) -> Iterator[tuple[Mapped, int]]:
        """One sample after another of a lane, as (window, number in it), but for those that are passed over unread."""
        for epoch, pieces in enumerate(epochs):
            spans = [self.spans[piece] for piece in pieces[lane]]
            total = sum(span.stop - span.first for span in spans)
            if passed >= total:
                passed -= total
                continue
            first = passed // window
            rows = self._rows(spans, first * window)
            for number in range(first, -(-total // window)):
                data = self._window(list(islice(rows, window)), seeded(seed, lane, epoch, number, stream=WINDOW_STREAM))
                for index in range(passed - first * window if number == first else 0, len(data)):
                    yield data, index
            passed = 0

    def _rows(self, spans: Sequence[Span], passed: int) -> Iterator[Encoded]:
        for span in spans:
            here, passed = min(passed, span.stop - span.first), max(0, passed - (span.stop - span.first))
            if here < span.stop - span.first:
                yield from self.shards.read(span._replace(first=span.first + here))

    def _window(self, rows: Sequence[Encoded], generator: torch.Generator) -> Mapped:
        return mapped(rows, torch.randperm(len(rows), generator=generator), self.shards, self.shape, self.reading)


def dealt(sizes: Sequence[int], lanes: int, seed: int) -> Iterator[list[list[int]]]:
    """Epoch after epoch, the pieces (by number) that each lane reads, in their order; sizes: rows of each piece."""
    given = [(0, lane) for lane in range(lanes)]
    for epoch in count():
        found: list[list[int]] = [[] for _ in range(lanes)]
        for piece in torch.randperm(len(sizes), generator=seeded(seed, epoch, stream=SHARD_STREAM)).tolist():
            rows, lane = given[0]
            heapq.heapreplace(given, (rows + sizes[piece], lane))
            found[lane].append(piece)
        yield found


class Window:
    """Encoded pictures in memory."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.rows[index].name

    def fingerprint(self) -> tuple[str, str]:
        return "", ""

    def open(self, index: int) -> Path | BytesIO:
        content = self.rows[index].content
        return BytesIO(content) if isinstance(content, bytes) else content


def mapped(
    rows: Sequence[Encoded], order: Tensor, shards: Shards, shape: tuple[int, int, int], reading: Reading
) -> Mapped:
    """These pictures, in that order, as a set."""
    labels = torch.tensor([row.label for row in rows])[order] if shards.classes else None
    about = (shards.classes, shards.title, shape, reading.cut, reading.corrupt_limit)
    return Mapped(Window(rows), order, labels, *about, decoding=reading.decoding)


def in_lanes(train: Shards, test: Shards | None, reading: Reading) -> Splits:
    """A training part that streams by, and in memory what is held out.

    That is of a test part its first rows, at most 10,000, and without one a tenth of the training part, at most 2,000;
    both of every shard alike. Channels are 1 if all of these are grey, else 3; with the split "none" they are looked at
    only. Raises UserError where nothing is left to train on, and for too many broken pictures.
    """
    spans, limit = train.spans(), reading.corrupt_limit
    tenth = heads(spans, min(SKIPPED, max(1, sum(span.stop - span.first for span in spans) // 10)))
    if test is None or reading.split == "none":
        held = _first(train, tenth, reading.held_out)
    else:
        held = _first(test, heads(test.spans(), reading.held_out or MOST_HELD_OUT), 0)
    if test is None and reading.split != "none":
        spans = [span._replace(first=max(span.first, tenth.get(span.shard, 0))) for span in spans]
        spans = [span for span in spans if span.first < span.stop]
    if not spans or not held:
        raise UserError(
            f"{train.title} holds too few pictures to train on, one at least beside one that is held out: with "
            "data.split=none nothing is."
        )
    shape = common_shape([Window(held)], reading.cut, train.title, reading.decoding)
    if reading.split == "none":
        return Splits(Lanes(train, spans, shape, reading), None)
    most = MEMORY_LIMIT // math.prod(shape)
    if len(held) > most:
        raise UserError(too_many(train.title, len(held), most))
    kept, failures = mapped(held, torch.arange(len(held)), test or train, shape, reading).in_memory()
    tally = Tally(train.title, limit, FEW)
    tally.add(len(held), failures, "left out")
    return Splits(Lanes(train, spans, shape, reading, tuple(tally.names)), kept)


def heads(spans: Sequence[Span], most: int) -> dict[int, int]:
    """How many of the first rows of each shard make `most` rows, as evenly as may be; fewer where there are fewer."""
    stops = {span.shard: 0 for span in spans}
    for span in spans:
        stops[span.shard] = max(stops[span.shard], span.stop)
    left, found = most, dict[int, int]()
    # From the shortest shard on: what it lacks is taken from the longer ones.
    for turn, (shard, stop) in enumerate(sorted(stops.items(), key=lambda item: (item[1], item[0]))):
        found[shard] = min(stop, -(-left // (len(stops) - turn)))
        left -= found[shard]
    return found


def _first(shards: Shards, counts: dict[int, int], kept: int) -> list[Encoded]:
    """The first rows of each shard; of all of them, the first `kept` evenly spaced ones, or all for 0."""
    found = []
    for span in shards.spans():
        stop = min(span.stop, counts.get(span.shard, 0))
        if span.first < stop:
            found += list(shards.read(span._replace(stop=stop)))
    few = min(kept or len(found), len(found))
    return [found[(index * len(found) + len(found) // 2) // few] for index in range(few)]
