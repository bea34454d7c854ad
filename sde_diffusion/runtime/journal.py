"""The numbers and pictures that a training gives, and all the places where they are kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.runtime.metrics_log import Board, MetricsLog
from sde_diffusion.runtime.previews import Previews
from sde_diffusion.runtime.tracking import NONE, Tracker


class Journal:
    """A journal that keeps nothing: that of a process that does not write."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of a step, by name."""

    def image(self, name: str, image: np.ndarray[Any, Any], step: int) -> None:
        """A picture uint8 [H, W, C]."""


class WrittenJournal(Journal):
    """Numbers in JSON, with the seconds since 1970; pictures as files; both in TensorBoard, and in a tracker if any."""

    def __init__(self, log: MetricsLog, board: Board, previews: Previews, tracker: Tracker | None = None) -> None:
        self._log, self._board, self._previews, self._tracker = log, board, previews, tracker

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self._log.write(step, time=round(time.time(), 3), **values)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.scalars(step, values)

    def image(self, name: str, image: np.ndarray[Any, Any], step: int) -> None:
        self._board.add_image(name, image, step)
        self._previews.add(image, step)
        if self._tracker is not None:
            self._tracker.image(name, image, step)


@contextmanager
def journal(
    folder: Path | None,
    step: int,
    visible: bool = True,
    previews: int = 0,
    tracking: str = NONE,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Journal]:
    """The journal of a training that goes on after `step` updates; an empty one without a folder, or not visible.

    previews: pictures kept at most; tracking: a key of TRACKERS or "none"; config: the settings that it stores.
    """
    if folder is None or not visible:
        yield Journal()
        return
    with ExitStack() as held:
        log = held.enter_context(MetricsLog(folder / "metrics.jsonl", step))
        board = held.enter_context(Board(folder / "tensorboard", purge_step=step + 1))
        tracker = None if tracking == NONE else held.enter_context(Tracker(tracking, folder, config or {}))
        yield WrittenJournal(log, board, Previews(folder / "previews", step, previews), tracker)
