"""Keys of a configuration that have another name now: a sentence says which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sde_diffusion.core.errors import UserError

MOVED: dict[str, str] = {"training.compile": "compile"}
"""Former key -> key."""


def check_moved(keys: Iterable[str]) -> None:
    """Raises UserError for the first key that has another name now."""
    for key in keys:
        if key in MOVED:
            raise UserError(f"the configuration key {key} is {MOVED[key]} now; --mode settings has its meaning")


def refused(message: str) -> UserError:
    """What to say of a key that ml_collections refuses in these words, which name its last part alone."""
    try:
        check_moved(key for key in MOVED if f'Key "{key.rpartition(".")[2]}" does not exist' in message)
    except UserError as moved:
        return moved
    return UserError(f"unknown configuration key {message} --mode settings lists every key")


def keys_of(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The keys of nested values, such as training.steps."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{name}.")
