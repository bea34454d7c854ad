"""Writes docs/settings.md: every key of a configuration with its default and meaning.

python docs/write_settings.py
"""

from __future__ import annotations

import re
from pathlib import Path

from sde_diffusion.settings.root import Settings

PAGE = Path(__file__).resolve().parent / "settings.md"
HEAD = """# Settings

Every key of a configuration, with its default. Set one on the command line by `--config.SECTION.KEY=VALUE`. A file of
`configs/` is a function that changes some of these; `--config` takes its name, or the path of a file of your own.
A key or a value that does not exist is an error, which names the nearest one that does. `--mode settings [SECTION]`
prints the same.

*Written by `python docs/write_settings.py`.*"""


def default(value: object) -> str:
    """The default as it is written on the command line."""
    return "(none)" if value in ("", {}) else str(value).replace(" ", "")


def page() -> str:
    """The text of the page."""
    parts, last = [HEAD], None
    for key, value, meaning in Settings().items():
        section = key.rpartition(".")[0]
        if section != last:
            parts.append(f"## {section or 'The run'}\n\n| key | default | meaning |\n|---|---|---|")
            last = section
        parts.append(f"| `{key}` | `{default(value)}` | {meaning.replace('|', chr(92) + '|')} |")
    return re.sub(r"\n(## )", r"\n\n\1", "\n".join(parts)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
