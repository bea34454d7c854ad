"""What the tests of the command line share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import Warm

from tests.conftest import session_folder


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
