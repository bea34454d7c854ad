"""Small JSON files of a run folder, which appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.storage.files import alone_in, write_aside


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_aside(path, (json.dumps(content, indent=2) + "\n").encode())


def set_result(folder: Path, section: str, row: Mapping[str, Any], entry: str | None = None) -> None:
    """Replace one section of results.json, or one entry of that section; what else it holds stays."""
    path = folder / "results.json"
    with alone_in(folder):
        results = json.loads(path.read_text()) if path.exists() else {}
        results[section] = dict(row) if entry is None else {**results.get(section, {}), entry: row}
        write_json(path, results)
