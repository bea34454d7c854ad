"""What the tests of the command line share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from warm import Warm


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for the next time lies among the tests' files, for all their processes."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp().parent / "cache")


@pytest.fixture(scope="session")
def warm(cache: None) -> Iterator[Warm]:
    """One process that forks for each command line."""
    process = Warm()
    yield process
    process.process.kill()
    process.process.wait()
