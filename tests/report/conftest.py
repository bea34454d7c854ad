"""What the tests of the comparison's report share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.synthetic import synthetic_report


@pytest.fixture
def report() -> dict[str, Any]:
    """A report of its own for each test, which may change it."""
    return synthetic_report()
