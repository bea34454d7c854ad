"""What the end of a test run says loudly."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line where the report's page was not tested, for lack of a browser."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    lacking = [reason for reason in skipped if "no Chromium starts" in reason]
    if lacking:
        line = f"WARNING: {len(lacking)} tests of the report's page were SKIPPED: no Chromium starts here"
        terminalreporter.write_line(f"{line} (bash .ci/browser tells what can be done)", red=True, bold=True)
