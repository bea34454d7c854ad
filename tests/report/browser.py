"""A browser for the tests of the report's page: one of the system, or playwright's own download.

SDE_DIFFUSION_BROWSER=required makes it a failure that there is none; without it these tests are skipped, which the end
of the run says. `python -m tests.report.browser` says which browser there is; its exit code is 1 where there is none.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
REQUIRED = "SDE_DIFFUSION_BROWSER"
MISSING = "no Chromium starts here: apt-get install chromium, or python -m playwright install --with-deps chromium"


def candidates(playwright: Playwright) -> Iterator[str]:
    """The files that may be a browser: those on the path, and what playwright has downloaded."""
    yield from dict.fromkeys(filter(None, map(shutil.which, NAMES)))
    if Path(playwright.chromium.executable_path).is_file():
        yield playwright.chromium.executable_path


def launched(playwright: Playwright) -> tuple[Browser, str] | None:
    """The first browser that starts, and its file: some lack libraries, or only say where one is to be had."""
    for path in candidates(playwright):
        try:
            return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=60_000), path
        except Error:
            continue
    return None


def or_skip(found: tuple[Browser, str] | None) -> Browser:
    """The browser. Where there is none the test is skipped, or fails if one is required."""
    if found is not None:
        return found[0]
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, and {MISSING}")
    pytest.skip(MISSING)


def main() -> int:
    """Say which browser there is; the exit code."""
    with sync_playwright() as playwright:
        found = launched(playwright)
        print(f"browser: {found[1]}" if found else MISSING)
        if found:
            found[0].close()
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
