"""What ends a training early: a signal, or a loss that has come apart.

A loss or a gradient that is not finite, or a loss beyond `explosion` times its running geometric mean, makes the update
be skipped. The running mean,

    log m <- log m + (log loss - log m)/n,    n = min(updates, 100),

is one of logarithms: a loss that doubles at every update leaves it behind, as it would not leave an arithmetic one.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

MEMORY = 100
"""Updates that the running mean looks back on, and before which no loss counts as exploded."""


class LossGuard:
    """Judges each update before it is made. explosion: a factor of the mean; 0 for none."""

    def __init__(self, explosion: float) -> None:
        self.explosion = explosion
        self.log_mean, self.seen, self.in_a_row, self.skipped = 0.0, 0, 0, 0

    def objection(self, loss: float, norm: float) -> str:
        """Why an update with this loss and gradient norm must not be made; empty where it may."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss:g} and the gradient's norm {norm:g}"
        if loss > 0.0 and 0.0 < self.explosion < loss / math.exp(self.log_mean) and self.seen >= MEMORY:
            return f"the loss is {loss:g}, more than {self.explosion:g} times its mean of {math.exp(self.log_mean):g}"
        return ""

    def skipping(self) -> None:
        """Take note of an update that is skipped."""
        self.in_a_row += 1
        self.skipped += 1

    def passed(self, loss: float) -> None:
        """Take note of the loss of an update that was made."""
        self.in_a_row = 0
        if loss > 0.0:
            self.seen += 1
            self.log_mean += (math.log(loss) - self.log_mean) / min(self.seen, MEMORY)

    def state(self) -> dict[str, Any]:
        """What it has seen, plain values for a checkpoint."""
        return {name: getattr(self, name) for name in ("log_mean", "seen", "in_a_row", "skipped")}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state; an empty one is that of a training that has seen nothing."""
        for name, value in state.items():
            setattr(self, name, value)


class Preempted(Exception):
    """A training that a signal ended; it is saved, and goes on when it is asked for again."""


class Signals:
    """The first SIGTERM or SIGINT that came, by name; empty while none has."""

    def __init__(self) -> None:
        self.name = ""

    def take(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second SIGINT interrupts at once."""
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name


@contextmanager
def listening() -> Iterator[Signals]:
    """SIGTERM and SIGINT are remembered inside, instead of ending the process; not outside the main thread."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
