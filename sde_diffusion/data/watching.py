"""Long readings made visible: what is counted as pictures are decoded, by whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Counter(Protocol):
    """What is told how much is done."""

    def update(self, n: int = 1) -> None:
        """Count n more as done."""


class Uncounted:
    """Nobody is told."""

    def update(self, n: int = 1) -> None:
        """Nothing."""


Watch = Callable[[int, str], AbstractContextManager[Counter]]
"""(how many pictures there are, the set's title) -> a context with the counter."""


def unwatched(total: int, title: str) -> AbstractContextManager[Counter]:
    """A reading that nobody is shown."""
    return nullcontext(Uncounted())
