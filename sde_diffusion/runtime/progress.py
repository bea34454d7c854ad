"""Long work made visible: how far it is and what is left, where the time goes, how much memory it takes."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from contextlib import suppress
from types import TracebackType

import torch

from sde_diffusion.core.packages import extra

REDRAW = 0.5
"""Seconds between two states of a bar."""
LINE_EVERY = 30.0
"""Seconds between two lines of a log."""
MEMORY = 300.0
"""Seconds after which a log's rate has forgotten all but 1/e of what was."""
MIB = 2**20


class Progress:
    """Progress that nobody is shown, and what the kinds that are shown have in common: a context, to be updated."""

    def update(self, n: int = 1) -> None:
        """Count n more as done."""

    def note(self, **values: str) -> None:
        """What is told beside the progress, in place of what was; `note(loss="0.12")`."""

    def close(self) -> None:
        """End the display."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bar(Progress):
    """A bar on a terminal, redrawn in its place."""

    def __init__(self, total: int, unit: str, what: str, done: int, leave: bool) -> None:
        with extra("train"):
            from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            initial=done,
            unit=f" {unit}",
            desc=what,
            leave=leave,
            mininterval=REDRAW,
            dynamic_ncols=True,
        )
        self._noted = time.monotonic()

    def update(self, n: int = 1) -> None:
        self._bar.update(n)

    def note(self, **values: str) -> None:
        self._bar.set_postfix(values, refresh=False)
        # One update may take minutes, and its notes are all that moves meanwhile.
        if time.monotonic() - self._noted >= REDRAW:
            self._noted = time.monotonic()
            self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class Lines(Progress):
    """Whole lines for a log file, at most one in LINE_EVERY seconds, and one at the end if it is to be left.

    The rate is steps / seconds with both sums forgotten as exp(-seconds passed / MEMORY), so that what is done before
    this session, and a slow start, do not count in the time that is left.
    """

    def __init__(self, total: int, unit: str, what: str, done: int, leave: bool) -> None:
        self._total, self._unit, self._what, self._leave = total, unit, what, leave
        self._done = self._told = done
        self._started = self._at = time.monotonic()
        self._steps = self._seconds = 0.0
        self._notes: dict[str, str] = {}

    def update(self, n: int = 1) -> None:
        self._done += n
        self._tell_if_due()

    def note(self, **values: str) -> None:
        self._notes = values
        self._tell_if_due()

    def close(self) -> None:
        if self._leave:
            self._tell(f"in {clock(time.monotonic() - self._started)}")

    def _tell_if_due(self) -> None:
        if time.monotonic() - self._at >= LINE_EVERY:
            self._tell()

    def _tell(self, end: str = "") -> None:
        now = time.monotonic()
        kept = math.exp((self._at - now) / MEMORY)
        self._steps = kept * self._steps + self._done - self._told
        self._seconds = kept * self._seconds + now - self._at
        self._at, self._told = now, self._done
        parts = [
            f"{self._what} {self._done:,}/{self._total:,} {self._unit}s",
            f"{100 * self._done // self._total if self._total else 100} %",
        ]
        if self._steps and self._seconds:
            rate = self._steps / self._seconds
            parts.append(f"{rate:,.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self._unit}")
            end = end or f"{clock((self._total - self._done) / rate)} left"
        parts += [end] * bool(end) + [f"{name} {value}" for name, value in self._notes.items()]
        with suppress(OSError):  # a log that cannot be written is no reason to stop the work
            print(", ".join(parts), file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02d}:{rest:02d}"


def _on_terminal() -> bool:
    """Whether standard error is a terminal that says how wide it is; without a width a bar would be empty."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


def progress(total: int, unit: str, what: str, done: int = 0, *, leave: bool = False, visible: bool = True) -> Progress:
    """The progress of `total` units of work: a bar on a terminal, whole lines elsewhere, nothing unless visible.

    done: what an earlier session has done; leave: the last state stays. Of several processes only one should show it.
    """
    if not visible:
        return Progress()
    return (Bar if _on_terminal() else Lines)(total, unit, what, done, leave)


class Phases:
    """Seconds by phase: `with phases("data"): ...`, of the clock alone, which waits for no device.

    A phase inside another takes its seconds from the outer one, so that the seconds of all phases add up to the time
    in any. `seconds` has the phases that were left, in the order of their first end.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def __call__(self, name: str) -> _Phase:
        return _Phase(self, name)

    def share(self) -> dict[str, float]:
        """The seconds of each phase as a share of those of all."""
        whole = sum(self.seconds.values())
        return {name: seconds / whole if whole else 0.0 for name, seconds in self.seconds.items()}

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class _Phase:
    """One stay in a phase. A generator's context would take three times as long."""

    __slots__ = ("_name", "_phases")

    def __init__(self, phases: Phases, name: str) -> None:
        self._phases, self._name = phases, name

    def __enter__(self) -> None:
        self._phases._count()
        self._phases._open.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phases._count()
        self._phases._open.pop()


def memory() -> dict[str, float]:
    """MiB of this process: resident now and at its peak, and at its peak on the CUDA device where there is one.

    Source: getrusage(2), whose peak is in KiB on Linux and in bytes on macOS.
    """
    with extra("train"):
        import psutil  # type: ignore[import-untyped]

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"resident": psutil.Process().memory_info().rss / MIB, "resident_peak": peak / MIB}
    if torch.cuda.is_available():
        found["cuda_peak"] = torch.cuda.max_memory_allocated() / MIB
    return found
