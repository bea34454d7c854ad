"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from warm import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """One process that forks for each command line."""
    process = Warm()
    yield process
    process.process.kill()
    process.process.wait()
