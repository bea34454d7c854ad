"""Errors that are written for the person who made the request."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A request that cannot be carried out: one sentence that says what was wrong and what is valid."""


class NotFinite(UserError):
    """Values that are not finite where a solver needs numbers."""


class TooManyEvaluations(UserError):
    """A solver that would need more evaluations than it is allowed."""


def closest(name: str, valid: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The valid name that is most like `name`; None where none is as much like it as the cutoff in [0, 1] asks."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names, the one most like `name` first of all."""
    names = sorted(valid)
    close = closest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}Valid names: {', '.join(names)}."


def no_option(kind: str, owner: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for an option that a sampler or a grid does not have."""
    names = list(valid)
    return f"{kind} {owner!r} has no option {name!r}; {nearest(name, names) if names else 'it takes no options.'}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a UserError that names the nearest valid names."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; {nearest(str(name), table)}")
    return table[name]


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)
