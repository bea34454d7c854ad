"""What all tests share: runs that are made once in a session, for all files and both workers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def acknowledged(descriptor: int) -> None:
    """In the place of a flush to the disk: the descriptor must be one of an open file."""
    os.fstat(descriptor)


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """Flushes that do not wait for the disk, of which there are ten thousand: no test takes the power away.

    That all is flushed, and when, is seen by who records the calls (tests/faults.py).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", acknowledged)
        yield


def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this session, the same for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@cache
def sources() -> str:
    """A digest of the code that runs are made by."""
    found = sha256()
    for place in ("main.py", "run_lib.py", "sde_diffusion", "configs"):
        for path in sorted([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py")):
            found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


Made = Callable[[Any, Callable[[Path], object]], Path]
"""(what it is made of, plain values; how to make it in a folder that is not there yet) -> the folder, made once."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders by what they are made of and by which code; whoever asks first makes it, and others wait.

    They belong to all: a test that changes one takes a copy.
    """
    place = session_folder(tmp_path_factory) / "made"

    def of(what: Any, make: Callable[[Path], object]) -> Path:
        key = sha256(json.dumps([what, sources()], default=str).encode()).hexdigest()[:16]
        folder = place / key / "run"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(place / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder.parent / "whole").exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                (folder.parent / "whole").touch()
        return folder

    return of
