"""Named options of samplers, grids and networks: text and values in the types of their defaults."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import NoneType
from typing import Any

from sde_diffusion.core.errors import UserError, no_option

_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    str: ((str,), "text"),
    NoneType: ((int, NoneType), "a whole number or None"),
    tuple: ((tuple, list), "numbers with commas between them, such as 80,20,5"),
}
"""The type of an option's default -> the types that the option takes, and their name."""


def option(text: str) -> tuple[str, str]:
    """NAME=VALUE as a pair. Raises UserError for another form."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"option {text!r} should be NAME=VALUE, such as eta=0.5")
    return name, value


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, float):  # float knows "inf"
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text


def checked_options(kind: str, owner: str, schema: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in the types of their defaults; text, as the command line gives it, is read.

    kind: "sampler", "grid" or "network", and owner: which one. Raises UserError for an option that is not in the schema
    (name -> default) and for a value of another type.
    """
    checked = {}
    for name, given in options.items():
        if name not in schema:
            raise UserError(no_option(kind, owner, name, schema))
        types, what = _TYPES[type(schema[name])]
        value = _literal(given) if isinstance(given, str) and str not in types else given
        if type(value) not in types:
            raise UserError(f"option {name} of {owner} must be {what}, got {given!r}")
        checked[name] = float(value) if float in types else value
    return checked
