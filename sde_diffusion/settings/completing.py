"""Settings that a configuration leaves open, as None: those of the run so far, or those that suit the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.settings import flat
from sde_diffusion.data import folder


def completed(config: ConfigDict, run: Path) -> list[str]:
    """Give every open setting a value, and say each in a sentence.

    What is given explicitly is not open, and stays. Raises UserError where there are no pictures to decide by, and for
    an open setting that they do not decide.
    """
    wanted = [key for key, value in flat(config.to_dict()).items() if value is None]
    if not wanted:
        return []
    stored = run / "config.json"
    if stored.is_file():
        known = json.loads(stored.read_text())
        return [_set(config, key, _value(known, key), f"as in {stored}") for key in wanted]
    if config.data.dataset != "folder":
        raise UserError(f"{wanted[0]} is left open, which the pictures of data.dataset=folder decide; give it a value.")
    chosen = {each.key: each for each in folder.suggested(config.data.root)}
    for key in wanted:
        if key not in chosen:
            raise UserError(f"{key} is left open, and pictures do not decide it; give it a value.")
    return [_set(config, key, chosen[key].value, chosen[key].reason) for key in wanted]


def _value(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return tuple(values) if isinstance(values, list) else values


def _set(config: ConfigDict, key: str, value: Any, reason: str) -> str:
    section, _, name = key.rpartition(".")
    with config.unlocked():
        _value(config, section)[name] = value
    return f"chosen: {key}={str(value).replace(' ', '')} ({reason})"
