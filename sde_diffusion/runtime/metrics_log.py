"""What a training measures, in files that outlive it: lines of JSON for scripts, TensorBoard for people.

Neither is worth a training: where the disk takes no more, one warning says so, and the work goes on.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra
from sde_diffusion.storage.files import write_aside, written

# --- lines of JSON ---------------------------------------------------------------------------------------------


class MetricsLog:
    """A JSON object a line, with its "step", for a training that goes on after `step` updates; a context.

    Lines of later steps, which an interrupted session wrote after its last checkpoint, are dropped, as is a last line
    that a kill has torn. What is damaged elsewhere is named in a warning and left out. Raises UserError where the file
    cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_bytes() if path.exists() else b""
            kept = b"".join(line + b"\n" for row, line in _rows(path, before) if row["step"] <= step)
            if kept != before:
                write_aside(path, kept)
            self._file = FileIO(path, "a")  # without a buffer, so that a line is the system's when `write` returns
        self._size = len(kept)
        self._warned = False

    def write(self, step: int, **values: Any) -> None:
        """Append a line of numbers, text, lists and mappings; null for numbers that are not finite."""
        line = (json.dumps({"step": step, **_strict(values)}, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) < len(line):  # the disk has taken a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(line)
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            if not self._warned:
                self._warned = True
                told = f"{self.path} cannot be written ({error.strerror}): lines are left out until it can"
                warnings.warn(told, stacklevel=2)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a torn last one is left out, and a damaged one with a warning.

    Raises UserError where there is no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source} does not exist: a training writes it into its run folder")
    return [row for row, _ in _rows(source, source.read_bytes())]


def _rows(path: Path, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """The whole lines of a file, read and as they stand."""
    found = []
    *lines, last = data.split(b"\n")  # what follows the last line's end is torn, or nothing
    for number, line in enumerate([*lines, last], 1):
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and isinstance(row.get("step"), int)
        except ValueError:
            whole = False
        if whole:
            found.append((row, line))
        elif number <= len(lines):
            warnings.warn(f"{path} is damaged in line {number}, which is left out", stacklevel=3)
    return found


def _strict(value: Any) -> Any:
    """A value as strict JSON has it: arrays and tensors as numbers and lists, null for those that are not finite."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _strict(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- TensorBoard -----------------------------------------------------------------------------------------------

_FAILED: WeakKeyDictionary[threading.Thread, OSError] = WeakKeyDictionary()
"""Threads that write for TensorBoard and could not."""


def _writers() -> set[threading.Thread]:
    """The threads that write for TensorBoard."""
    return {thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard.")}


@cache
def _note_failures_of_writers() -> None:
    """Have the errors of such threads noted instead of printed: the board says in one sentence what they are about."""
    former = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        thread, error = failure.thread, failure.exc_value
        if thread in _writers() and isinstance(error, OSError):
            _FAILED[thread] = error
        else:
            former(failure)

    threading.excepthook = hook


class Board:
    """TensorBoard's file in a folder; a context that a full disk switches off, with one warning.

    purge_step: what a former session wrote of this step and later ones is hidden. The methods are SummaryWriter's.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        with extra("train"):
            from torch.utils.tensorboard import SummaryWriter  # 1 s to import

        _note_failures_of_writers()
        self.folder = folder
        self._writer: SummaryWriter | None = None
        others = _writers()
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._switch_off(error)
        self._threads = _writers() - others

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """A number."""
        self._do("add_scalar", tag, value, step)

    def add_histogram(self, tag: str, values: Tensor | np.ndarray[Any, Any], step: int) -> None:
        """The distribution of values."""
        self._do("add_histogram", tag, values, step)

    def add_image(self, tag: str, image: np.ndarray[Any, Any], step: int, dataformats: str = "HWC") -> None:
        """A picture."""
        self._do("add_image", tag, image, step, dataformats=dataformats)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        self._do("add_text", tag, text, step)

    def add_hparams(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """A row of the table of hyper-parameters: plain values, and the figures they led to."""
        self._do("add_hparams", dict(settings), dict(figures), run_name=".")

    def flush(self) -> None:
        """Wait until the file has all that was added."""
        self._do("flush")

    def close(self) -> None:
        """Write what is left and end the writer's thread."""
        self._do("close")
        # What the thread could not write last, it had no later call to tell.
        for thread in self._threads:
            if self._writer is not None and thread in _FAILED:
                self._switch_off(_FAILED[thread])
        self._writer = None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, method: str, *values: Any, **options: Any) -> None:
        if self._writer is not None:
            try:
                getattr(self._writer, method)(*values, **options)
            except OSError as error:
                self._switch_off(error)

    def _switch_off(self, error: OSError) -> None:
        self._writer = None
        told = f"TensorBoard is switched off, and the work goes on: {self.folder} cannot be written ({error.strerror})"
        warnings.warn(told, stacklevel=4)
