"""Makes the pictures of the README and of docs/ from the run folder of the default job.

    python main.py --config vpsde_digits
    python benchmarks/pictures.py [--run runs/vpsde_digits]

docs/digits.png is the run's samples_ddim.png, and docs/report.png the head of its report.html as a browser shows it.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.report.browser import MISSING, launched

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1180, 1750


def photograph(page: Path, picture: Path) -> None:
    """The head of a page, in its light colours."""
    with sync_playwright() as playwright:
        found = launched(playwright)
        if found is None:
            sys.exit(MISSING)
        window = found[0].new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        window.goto(page.resolve().as_uri())
        window.wait_for_timeout(2000)  # until its plots are drawn
        window.screenshot(path=picture)
        found[0].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/vpsde_digits"))
    run = parser.parse_args().run
    shutil.copyfile(run / "samples_ddim.png", ROOT / "docs" / "digits.png")
    photograph(run / "report.html", ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
