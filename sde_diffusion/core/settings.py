"""Settings declared once: name, type, default, meaning and check stand in one field of a frozen dataclass.

A section is such a dataclass, beside the code that reads it. Its fields check themselves when it is made, so that no
section holds a value that cannot be used. `--help`, the documentation and the configurations are made of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from sde_diffusion.core.errors import UserError, nearest
from sde_diffusion.core.sizes import Size, sides

S = TypeVar("S", bound="Section")
Check = Callable[[str, Any], object]
"""(key, value): raises UserError where the value cannot be used."""


def setting(default: Any, meaning: str, *checks: Check, also: type | None = None) -> Any:
    """A field of a section. A mapping of named options is the only default that is no plain value.

    also: another type that a value may have, beside that of the default.
    """
    metadata = {"meaning": meaning, "checks": checks, "also": also}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def part(section: type[Section]) -> Any:
    """A field that is a section of its own."""
    return field(default_factory=section, metadata={"meaning": (section.__doc__ or "").partition("\n")[0]})


@dataclass(frozen=True)
class Section:
    """The base of all sections. `key`: where it stands in a configuration; "" for the root."""

    key: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for own in fields(self):
            for check in own.metadata.get("checks", ()):
                check(self.key_of(own.name), getattr(self, own.name))

    @classmethod
    def key_of(cls, name: str) -> str:
        """A field's key in a configuration, such as training.steps."""
        return f"{cls.key}.{name}" if cls.key else name

    @classmethod
    def from_values(cls: type[S], values: Mapping[str, Any]) -> S:
        """The section with these values, plain or nested; the others are the defaults.

        Raises UserError for a key that the section does not have, and for a value of another type or out of bounds.
        """
        own = {f.name: f for f in fields(cls)}
        for name in values:
            if name not in own:
                raise UserError(f"unknown configuration key {cls.key_of(name)}; {nearest(name, own)}")
        return cls(**{name: _read(cls, own[name], value) for name, value in values.items()})

    def values(self) -> dict[str, Any]:
        """All values, nested, as `from_values` takes them."""
        return {
            f.name: value.values() if isinstance(value, Section) else value
            for f in fields(self)
            for value in [getattr(self, f.name)]
        }

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """(key, value, meaning) of every value in this section and those below it."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Section):
                yield from value.items()
            else:
                yield self.key_of(f.name), value, f.metadata["meaning"]


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values by their keys, such as training.steps."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value})
    return found


def _read(section: type[Section], own: Field[Any], value: Any) -> Any:
    """A value in the type of its field's default: whole numbers for numbers, and lists for tuples."""
    default = own.default_factory() if callable(own.default_factory) else own.default
    if isinstance(default, Section):
        return type(default).from_values(value)
    kinds = [kind for kind in (type(default), own.metadata.get("also")) if kind is not None]
    if dict in kinds and isinstance(value, Mapping):
        return dict(value)
    if tuple in kinds and isinstance(value, (tuple, list)):
        return tuple(value)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        wanted = ", or ".join(_KINDS[kind] for kind in kinds)
        raise UserError(f"{section.key_of(own.name)} must be {wanted}, got {value!r}")
    return value


_KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "values in brackets, such as (10, 20)",
    dict: "options by name",
}


# --- checks ---------------------------------------------------------------------------------------------------


def at_least(least: int) -> Check:
    """A value of at least `least`."""

    def check(key: str, value: Any) -> None:
        if value < least:
            raise UserError(f"{key} must be at least {least}, got {value}")

    return check


def optional(zero: str) -> Check:
    """A value of 0 or more; zero: what 0 means."""

    def check(key: str, value: Any) -> None:
        if value < 0:
            raise UserError(f"{key} must be 0 ({zero}) or more, got {value}")

    return check


def whole_or_size(zero: str) -> Check:
    """A size, or 0; zero: what 0 means."""

    def check(key: str, value: Size) -> None:
        if value != 0:
            sides(value, f"{key}, unless it is 0 ({zero}),")

    return check


def positive(key: str, value: Any) -> None:
    """A value above 0."""
    if not value > 0.0:
        raise UserError(f"{key} must be positive, got {value}")


def share(key: str, value: Any) -> None:
    """A value in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{key} is a share in [0, 1], got {value}")


def numbers(key: str, value: Any) -> None:
    """A tuple of numbers."""
    if not all(isinstance(number, (int, float)) for number in value):
        raise UserError(f"{key} must be numbers in brackets, such as (0.9, 0.99), got {value!r}")


def counts(key: str, value: Any) -> None:
    """A tuple of whole numbers of at least 1."""
    wrong = [n for n in value if isinstance(n, bool) or not isinstance(n, int) or n < 1]
    if wrong:
        raise UserError(f"{key} must be whole numbers of at least 1, got {wrong[0]!r}")


def one_of(kind: str, *tables: Mapping[str, Any]) -> Check:
    """A key of one of the tables, or each value of a tuple; kind: what it is called in words."""
    valid = {name: name for table in tables for name in table}

    def check(key: str, value: Any) -> None:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in valid:
                raise UserError(f"{key}: unknown {kind} {name!r}; {nearest(str(name), valid)}")

    return check
