"""What the tests of the command line share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing import NETWORK, SAMPLERS, compare
from warm import Warm

from tests.conftest import Made, session_folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept for the next time lies among the tests' files, for all their processes."""
    folder = session_folder(tmp_path_factory) / "cache"
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def warm(cache: Path) -> Iterator[Warm]:
    """One process that forks for each command line."""
    process = Warm(cache)
    yield process
    process.end()


@pytest.fixture(scope="session")
def trained(warm: Warm, made: Made) -> Path:
    """A run folder after the training of the comparisons, and nothing else."""
    return made(NETWORK, lambda folder: warm.run(*NETWORK, "--mode", "train", "--workdir", folder))


@pytest.fixture(scope="session")
def compared(warm: Warm, trained: Path, made: Made) -> Path:
    """The run folder after a comparison."""

    def make(folder: Path) -> None:
        shutil.copytree(trained, folder)
        text = warm.run(*compare(folder, *SAMPLERS))
        assert str(folder / "report.html") in text

    return made(compare(Path(), *SAMPLERS), make)
