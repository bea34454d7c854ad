"""Files that are whole or absent, folders with one writer, and what a disk refuses as a sentence.

A file is written aside, flushed to the disk and renamed; then its folder is flushed, so that the new name survives a
loss of power as the content does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sde_diffusion.core.errors import UserError, closest

LOCK = ".lock"
FLUSHES = 8  # files that wait for the disk at the same time
TOGETHER = 8  # files that a thread is given at once
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def mebibytes(count: int) -> str:
    """A number of bytes, for a person."""
    return f"{count / 2**20:,.1f} MiB"


def free_bytes(path: Path) -> int:
    """What is free on the disk of a path, which need not be there yet."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def similar_folder(path: Path) -> str:
    """The end of a sentence about a folder that is not there: the one that it may have meant, or nothing."""
    missing = next((place for place in (*reversed(path.parents), path) if not place.exists()), None)
    if missing is None or not missing.parent.is_dir():
        return ""
    beside = [place.name for place in missing.parent.iterdir() if place.is_dir() and not place.name.startswith(".")]
    close = closest(missing.name, beside, cutoff=0.4)
    found = missing.parent / close / path.relative_to(missing) if close else path
    return f"; did you mean {found}?" if found.is_dir() else ""


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A context that writes `path`: where the disk or its permissions refuse, a UserError from the OSError says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        free = f"; {mebibytes(free_bytes(path))} are free on its disk" if error.errno in _FULL else ""
        raise UserError(f"{path} cannot be written: {error.strerror}{free}") from error


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it. Only a file that nobody reads yet: a kill leaves it torn."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # with which some network file systems say that they need no such call
            raise
    finally:
        os.close(descriptor)


def write_aside(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError for a full disk, or a folder that may not be written."""
    aside = _aside(path)
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_flushed(aside, data, path)
        with written(path):
            os.replace(aside, path)
            flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_together(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files (name, content) of one folder, each whole or not at all, and flush them as one batch.

    Those that are flushed at the same time wait for the disk together, while the next ones are made: a thousand small
    files take a twentieth of the time that they take one after another. Raises UserError as `write_aside` does.
    """
    asides: dict[Path, Path] = {}
    try:
        with ThreadPoolExecutor(FLUSHES) as pool:
            begun, batch = [], list[tuple[Path, bytes, Path]]()
            for name, data in files:
                path = folder / name
                if not asides:
                    with written(path):
                        folder.mkdir(parents=True, exist_ok=True)
                batch.append((aside := _aside(path), data, path))
                asides[aside] = path
                if len(batch) == TOGETHER:
                    begun.append(pool.submit(_write_all, batch))
                    batch = []
            begun.append(pool.submit(_write_all, batch))
            for job in begun:
                job.result()
        for aside, path in asides.items():
            with written(path):
                os.replace(aside, path)
        with written(folder):
            flush_folder(folder)
        asides.clear()
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write_all(batch: Sequence[tuple[Path, bytes, Path]]) -> None:
    for aside, data, path in batch:
        _write_flushed(aside, data, path)


def _write_flushed(aside: Path, data: bytes, path: Path) -> None:
    with written(path):
        write_flushed(aside, data)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locked(file: IO[Any], place: Path) -> bool:
    """Whether the kernel's lock (flock) of an open file is ours now, until the file is closed or the process ends.

    A file system without locks is told of in a warning.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {place} has no locks: a second process there would not be noticed", stacklevel=4
        )
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A context that one process at a time is in, of those that ask for the same folder; the others wait."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class HoldsFile:
    """A context that has a file open, and with it the file's lock."""

    _file: IO[Any]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class InUse(UserError):
    """A folder that another process has."""


class FolderLock(HoldsFile):
    """A folder for one process at a time; to be used as a context.

    The lock is the kernel's (flock) and ends with the process, however that ends; the file `.lock` says who has it.
    The library filelock does not, nor does it go on with a warning where a file system has no locks.
    what: "trained", "sampled", ...; name: of its file, where a folder may be used for several things at once.
    Raises InUse where another process has it, and UserError where the folder cannot be written.
    """

    def __init__(self, folder: Path, what: str = "trained", name: str = LOCK) -> None:
        self.folder = folder
        self.what = what
        self.name = name

    def __enter__(self) -> FolderLock:
        path = self.folder / self.name
        with written(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+")
            # A forked worker shares the lock, and would keep it after a kill of this process.
            os.register_at_fork(after_in_child=self._file.close)
            try:
                if not locked(self._file, self.folder):
                    self._file.seek(0)
                    holder = self._file.read().strip() or "used by another process"
                    raise InUse(f"{self.folder} is being {holder}")
                self._file.truncate(0)
                since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
                self._file.write(f"{self.what} by process {os.getpid()} on {socket.gethostname()} since {since}\n")
                self._file.flush()
            except BaseException:
                self._file.close()
                raise
        return self
