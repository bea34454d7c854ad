"""The endless, resumable stream of batches that training reads, made in this process or by workers."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.dataset import Batch, Made, Plan, Share, Source
from sde_diffusion.data.pictures import FEW, Tally

WATCH = 1.0  # seconds between a worker's looks for its trainer


def batches(
    dataset: Source,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    part: slice = slice(None),
    workers: int = 0,
    prefetch: int = 2,
    state: Mapping[str, Any] | None = None,
) -> Stream:
    """Endless batches (samples [rows, *D] as stored, their conditions) that depend on (seed, step) only.

    batch_size: of the batch that all processes share; `part` is what this one reads of it, and decodes.
    flip: mirror each image left to right with probability 1/2.
    workers: processes that decode (a set in memory needs none), each `prefetch` batches ahead; they change no batch.
    state: `Stream.state` after step start_step - 1, with which a stream goes on at once, and the count of broken
    pictures too. Without it a stream is read up to start_step; other sets start anywhere at the same cost.
    Raises UserError for a batch size below 1, negative numbers, flipped vectors, and the state of another step.
    """
    if batch_size < 1 or seed < 0 or start_step < 0:
        raise UserError(
            f"batches need batch_size >= 1, seed >= 0 and start_step >= 0, not {batch_size}, {seed} and {start_step}."
        )
    if workers < 0 or prefetch < 1:
        raise UserError(f"batches need workers >= 0 and prefetch >= 1, not {workers} and {prefetch}.")
    if flip and dataset.levels is None:
        raise UserError(f"{dataset.title}: vectors cannot be flipped left to right; only images can.")
    if state and state.get("step", start_step) != start_step:
        raise UserError(f"the state of {dataset.title} is that of step {state['step']}, not of {start_step}.")
    return Stream(dataset, Plan(batch_size, seed, start_step, flip, part, dict(state or {})), workers, prefetch)


class Stream(Iterator[Batch]):
    """Batches without end; `close` ends the workers, which end in any case when their trainer does."""

    def __init__(self, source: Source, plan: Plan, workers: int, prefetch: int) -> None:
        self._place = {name: value for name, value in plan.state.items() if name not in ("failed", "broken")}
        self._left_out = source.left_out
        least = FEW if source.size is None else min(FEW, source.size)
        good = plan.start_step * len(range(plan.batch_size)[plan.part])
        self._tally = Tally(source.title, source.corrupt_limit, least, good, plan.state)
        shares = source.divided(plan, workers if workers and source.decodes else 1)
        self._workers = len(shares) if source.decodes and workers else 0
        self._parts = len(shares) if shares[0].stride == 1 else 1
        work = _Work(source, shares)
        self._alive = [_by_workers(work, self._workers, prefetch) if self._workers else iter(work)]
        # At the interpreter's exit too, and before multiprocessing waits for workers that nobody has told to end.
        atexit.register(self._alive.clear)
        self.close = weakref.finalize(self, _end, self._alive)

    @property
    def state(self) -> dict[str, Any]:
        """With it `batches` goes on after the last batch given; {} for sets that need none."""
        return {**self._place, **self._tally.state()}

    @property
    def corrupt(self) -> list[str]:
        """Names of the pictures that cannot be read: those left out of the set, and those met so far."""
        return [*self._left_out, *self._tally.names]

    def __next__(self) -> Batch:
        if not self._alive:
            raise UserError(f"the stream of {self._tally.title} was closed.")
        try:
            parts = [next(self._alive[0]) for _ in range(self._parts)]
        # A lost worker is told of as a RuntimeError, or takes with it the memory of a batch that it had made.
        except (RuntimeError, OSError, EOFError) as error:
            if not self._workers or "in DataLoader worker process" in str(error):  # as the worker's own errors are
                raise
            raise UserError(
                f"a worker that reads {self._tally.title} ended ({str(error).partition(chr(10))[0]}); with "
                "data.workers=0 there are none"
            ) from error
        good = list[Made]()
        for part in parts:
            if isinstance(part, UserError):
                raise part
            good.append(part)
        made = Made.joined(good)
        self._tally.add(len(made.samples) + len(made.failures), made.failures, "replaced by the next")
        self._place = made.state
        return made.samples, made.conditions


@dataclass(eq=False)
class _Work(IterableDataset[Made | UserError]):
    """What this process makes, or each of its workers its own share."""

    source: Source
    shares: Sequence[Share]

    def __iter__(self) -> Iterator[Made | UserError]:
        worker = get_worker_info()
        try:
            yield from self.source.made(*self.shares[worker.id if worker else 0])
        except UserError as error:  # a worker's exceptions would arrive with their traceback as text
            yield error


def _by_workers(work: _Work, workers: int, prefetch: int) -> Iterator[Made | UserError]:
    loader = DataLoader(
        work,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_made,
        worker_init_fn=partial(_begin, os.getpid()),
        generator=torch.Generator(),  # or the loader would draw from the global state
    )
    with _signals_as_they_are():
        return iter(loader)


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Undo the loader's handler, which would raise a worker's loss anywhere, even amid the writing of a checkpoint.

    It is noticed all the same when the worker's next batch does not come.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _as_made(made: Any) -> Any:
    return made


def _end(alive: list[Iterator[Made | UserError]]) -> None:
    atexit.unregister(alive.clear)
    alive.clear()


def _begin(trainer: int, _worker: int) -> None:
    """A worker leaves signals to its trainer, ends with it, and computes in one thread, as torch in it does already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(1)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(WATCH)
    os._exit(1)
