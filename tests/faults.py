"""Death at any change of the disk: a process that ends, as by kill -9, at its n-th write, flush or rename.

A kill between two changes of the disk leaves what the kill at the next change leaves, so that every n once is every
kill that there is. At a write half of the data has reached the file; at a flush half of what came after the last one is
left of the file, as a loss of power leaves it; what is renamed, removed or made is as before. A board of TensorBoard is
left out, which a thread writes at moments that are never the same.
"""

from __future__ import annotations

import builtins
import fcntl
import gc
import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

import pytest


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process that was killed goes on")


class Written:
    """A file whose writes are counted; all else is the file's own."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        if self._disk.due(torn=True):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Disk:
    """Counts the changes of a folder by this process's main thread, which dies at the one of that number, from 0."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.left = str(folder), number
        self.flushed: dict[int, int] = {}

    def due(self, torn: bool = False) -> bool:
        """Whether this change is the last one. torn: more is done to a file before the death."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self.left -= 1
        return self.left < 0

    def holds(self, path: Any) -> bool:
        """Whether a path is one of the folder; the relative ones are, with which a tree is removed."""
        if isinstance(path, int):
            return False
        text = os.fsdecode(path)
        return (text.startswith(self.folder) or not os.path.isabs(text)) and "tensorboard" not in text

    def install(self) -> None:
        """From now on, and for good: this is for processes that were forked to die."""
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            setattr(os, name, self.guarded(getattr(os, name)))
        os.fsync = self.flushing(os.fsync)  # type: ignore[assignment]
        builtins.open = io.open = self.opening(builtins.open)  # type: ignore[assignment]
        log = sys.modules.get("sde_diffusion.runtime.metrics_log")
        if log is not None:
            log.FileIO = self.opening(io.FileIO)  # type: ignore[attr-defined]

    def guarded(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if self.holds(path) and self.due():
                die()
            return change(path, *arguments, **options)

        return call

    def flushing(self, flush: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            found = os.fstat(descriptor)
            if self.due(torn=True):
                if S_ISREG(found.st_mode):
                    whole = self.flushed.get(found.st_ino, 0)
                    os.ftruncate(descriptor, whole + (found.st_size - whole) // 2)
                die()
            flush(descriptor)
            self.flushed[found.st_ino] = found.st_size

        return call

    def opening(self, open_file: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "r" in mode or not self.holds(path):
                return open_file(path, mode, *arguments, **options)
            if self.due():
                die()
            file = open_file(path, mode, *arguments, **options)
            found = os.fstat(file.fileno())
            self.flushed[found.st_ino] = found.st_size
            return Written(file, self)

        return call


class AtOnce(Executor):
    """In the place of a pool of threads: all is done by the main thread, whose changes are counted."""

    def __init__(self, threads: int) -> None:
        assert threads > 1

    def submit(self, action: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(action(*arguments, **options))
        return done


class Deaths(Disk):
    """At each change a copy of the folder as a death there leaves it, place/<number>/<its name>; the process goes on.

    Where more is done to a file first, a child does it, to the file of the copy, and dies.
    """

    def __init__(self, folder: Path, place: Path) -> None:
        super().__init__(folder, 0)
        self.place = place

    def due(self, torn: bool = False) -> bool:
        if not super().due():
            return False
        copy = self.place / f"{-self.left - 1:04d}" / Path(self.folder).name
        if os.path.exists(self.folder):
            shutil.copytree(self.folder, copy)
        else:
            os.makedirs(copy.parent)
        if not torn:
            return False
        child = os.fork()
        if not child:
            self.move_to(copy)
            return True
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return False

    def move_to(self, copy: Path) -> None:
        """Let the open files of the folder be those of the copy, at the same places; what Python holds back stays."""
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue  # that of the list itself
            if path.startswith(f"{self.folder}/") and os.path.isfile(path):
                theirs, access = int(name), os.O_ACCMODE | os.O_APPEND
                ours = os.open(copy / path[len(self.folder) + 1 :], fcntl.fcntl(theirs, fcntl.F_GETFL) & access)
                os.lseek(ours, os.lseek(theirs, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(ours, theirs)


class Reads:
    """The bytes of a folder's files that this process reads, as [name, first, stop]; of files that Python opens."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.ranges: list[tuple[str, int, int]] = []

    def install(self) -> None:
        """From now on, and for good: this is for processes that were forked to be counted."""
        ranges, open_file = self.ranges, builtins.open

        class Counted(io.FileIO):
            def read(self, size: int = -1, /) -> bytes:
                start = self.tell()
                data = super().read(size)
                ranges.append((Path(str(self.name)).name, start, start + len(data)))
                return data

            def readinto(self, *_: object) -> NoReturn:
                raise AssertionError("bytes that are not counted")

        def call(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode == "rb" and not isinstance(path, int) and os.fsdecode(path).startswith(self.folder):
                return Counted(path, "rb")
            return open_file(path, mode, *arguments, **options)

        builtins.open = io.open = call  # type: ignore[assignment]


def forked(action: Callable[[], object]) -> int:
    """Do it in a forked process; its exit code, the negative signal where one ended it."""
    child = os.fork()
    if not child:
        gc.disable()  # it would walk, and so copy, all that the parent holds
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def deaths(folder: Path, action: Callable[[], object], place: Path) -> list[Path]:
    """Do it once, in a forked process: the folder as a death at each change of it leaves it, in order, and in the end.

    They are copies in a place of their own; the first ones may not be there yet, as the folder itself was not.
    """
    place.mkdir()
    assert forked(lambda: (Deaths(folder, place).install(), action())) == 0
    return [*(copy / folder.name for copy in sorted(place.iterdir())), folder]


def killed(number: int, folder: Path, action: Callable[[], object]) -> bool:
    """Do it in a forked process that dies at its change of a folder of that number, from 0; whether it died."""
    code = forked(lambda: (Disk(folder, number).install(), action()))
    assert code in (0, -signal.SIGKILL)
    return code != 0


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The flushes and the renames of what is done in this context, in their order: "flush a", "a -> b"."""
    seen: list[str] = []
    with patch.context() as within:
        flush = os.fsync

        def flushed(descriptor: int) -> None:
            seen.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
            flush(descriptor)

        def renaming(rename: Callable[..., None]) -> Callable[..., None]:
            def renamed(old: Any, new: Any) -> None:
                seen.append(f"{Path(old).name} -> {Path(new).name}")
                rename(old, new)

            return renamed

        within.setattr(os, "fsync", flushed)
        within.setattr(os, "replace", renaming(os.replace))
        within.setattr(os, "rename", renaming(os.rename))
        yield seen
