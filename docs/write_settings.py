"""Writes docs/settings.md: every key of a configuration with its default and meaning.

    python docs/write_settings.py

The meanings are the comments of configs/base.py. `described` is the one function that knows this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from configs import base

PAGE = Path(__file__).resolve().parent / "settings.md"
HEAD = """# Settings

Every key of a configuration, with its default. Set one on the command line by `--config.SECTION.KEY=VALUE`. A file of
`configs/` is a function that changes some of these; `--config` takes its name, or the path of a file of your own.
A key or a value that does not exist is an error, which names the nearest one that does.

*Written by `python docs/write_settings.py`.*"""


def described() -> Iterator[tuple[str, str, str]]:
    """(section, key, meaning) of every setting, in the order of configs/base.py; the first keys are of section ""."""
    line = re.compile(r"    (\w+)\.(\w+) = (?:(\w+) = )?[^#]*?(?:  # (.*))?")
    sections = {"config": ""}
    for text in Path(base.__file__).read_text().splitlines():
        if (found := line.fullmatch(text)) is None:
            continue
        parent, key, own, meaning = found.groups()
        if own:  # a section begins
            sections[own] = f"{sections[parent]}.{key}".lstrip(".")
        else:
            yield sections[parent], key, meaning or ""


def default(config: ConfigDict, section: str, key: str) -> str:
    """The default as it is written on the command line."""
    for part in filter(None, section.split(".")):
        config = config[part]
    value = config[key]
    return "(none)" if isinstance(value, ConfigDict) or value == "" else str(value).replace(" ", "")


def page() -> str:
    """The text of the page."""
    parts, last, config = [HEAD], None, base.get_config()
    for section, key, meaning in described():
        if section != last:
            parts.append(f"## {section or 'The run'}\n\n| key | default | meaning |\n|---|---|---|")
            last = section
        name = f"{section}.{key}".lstrip(".")
        parts.append(f"| `{name}` | `{default(config, section, key)}` | {meaning.replace('|', chr(92) + '|')} |")
    text = "\n".join(parts)
    return re.sub(r"\n(## )", r"\n\n\1", text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
