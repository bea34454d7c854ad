"""Files that are whole or absent, and folders with one writer: real files, real processes, kill -9."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage.files import FolderLock, flush_folder, free_bytes, sha256_of, write_aside, written

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from sde_diffusion.storage.files import FolderLock

with FolderLock(Path(sys.argv[1]), "sampled"):
    if "worker" in sys.argv and not os.fork():
        os.write(1, b"%d\\n" % os.getpid())  # a forked worker, which outlives its parent
        time.sleep(60)
    os.write(1, b"%d\\n" % os.getpid())  # in one piece, as two processes write
    time.sleep(60)
"""
"""Holds the lock of a folder until it is killed."""


def failing(number: int) -> object:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


# --- files ----------------------------------------------------------------------------------------------------


def test_a_file_is_flushed_then_named_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order without which a loss of power could leave the new name with no content, or neither of the two."""
    seen: list[tuple[str, str, object]] = []
    flush, rename = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append(("flush", place.name, place.is_dir() or place.read_bytes()))
        flush(descriptor)

    def renamed(old: Path, new: Path) -> None:
        seen.append(("rename", old.name, new.name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write_aside(tmp_path / "new" / "file", b"content")
    aside = f".file.{os.getpid()}"
    assert seen == [("flush", aside, b"content"), ("rename", aside, "file"), ("flush", "new", True)]
    assert (tmp_path / "new" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_aside(target, b"old")
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(UserError, match=rf"{target} cannot be written: No space left on device; [\d,.]+ MiB are free"):
        write_aside(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device; "),
        (errno.EDQUOT, "Disk quota exceeded; "),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_a_disk_refuses_is_a_sentence(number: int, says: str, tmp_path: Path) -> None:
    """It names what was being written, even where nothing of it is there yet; the error itself is its cause."""
    path = tmp_path / "no" / "such" / "file"
    with pytest.raises(UserError, match=f"^{path} cannot be written: {says}") as found, written(path):
        raise OSError(number, os.strerror(number))
    assert isinstance(found.value.__cause__, OSError) and found.value.__cause__.errno == number


def test_what_is_no_fault_of_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written(tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(KeyError), written(tmp_path):
        raise KeyError


def test_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/sub/x cannot be written: Not a directory"):
        write_aside(tmp_path / "file" / "sub" / "x", b"")


def test_what_is_free_is_known_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "no" / "such") - free_bytes(tmp_path)) < 2**30 and free_bytes(Path("none")) > 0


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_whose_folders_need_no_flush(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    if passes:
        flush_folder(tmp_path)
    else:
        with pytest.raises(OSError):
            flush_folder(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    """The example of FIPS 180-4, and what is read in many pieces."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(bytes(range(256)) * 8192)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- locks ----------------------------------------------------------------------------------------------------


@contextmanager
def holder(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Another process that holds a folder's lock, and the process numbers that it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(1 + len(options))]
    try:
        yield process, said
    finally:
        for number in {process.pid, *said}:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("options", [(), ("worker",)])
def test_a_second_process_is_refused_until_the_first_is_killed(options: tuple[str, ...], tmp_path: Path) -> None:
    """It is told who has the folder; kill -9 frees it at once, even with a worker left behind."""
    folder = tmp_path / "run"
    with holder(folder, *options) as (process, _):
        says = rf"{folder} is being sampled by process {process.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d$"
        with pytest.raises(UserError, match=says), FolderLock(folder):
            pass
        process.kill()
        process.wait()
        with FolderLock(folder):
            assert (folder / ".lock").read_text().startswith(f"trained by process {os.getpid()} on ")


def test_a_folder_is_free_after_its_context(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path):
            says = f"is being trained by process {os.getpid()} on"
            with pytest.raises(UserError, match=says), FolderLock(tmp_path):
                pass
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        _ = 1 / 0
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/\.lock cannot be written: File exists"), FolderLock(tmp_path / "file"):
        pass
    monkeypatch.setattr("fcntl.flock", failing(errno.ENOLCK))
    with pytest.warns(UserWarning, match=f"the file system of {tmp_path} has no locks"), FolderLock(tmp_path):
        pass
