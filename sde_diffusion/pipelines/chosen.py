"""What samples are drawn for: the rows of conditions that they take in turn, and how a person chooses them by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, rows_of
from sde_diffusion.core.errors import UserError

LISTED = 12
"""Classes that a sentence names at most."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Rows of conditions [K, ...] by name, which samples take in turn.

    counts: how often each is taken, after which the others go on without it; () for as often as there are samples.
    """

    rows: Conditions
    counts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Of the samples that they are for; 0 for any number."""
        return sum(self.counts)

    @cached_property
    def _order(self) -> Tensor:
        """The row of each sample, [sum of counts]."""
        rounds = range(max(self.counts))
        return torch.tensor([row for turn in rounds for row, count in enumerate(self.counts) if turn < count])

    def of(self, indices: range) -> Conditions:
        """The conditions of samples, which depend on their indices only; {} where there are no rows."""
        if not self.rows:
            return {}
        if self.counts:
            return rows_of(self.rows, self._order[indices.start : indices.stop])
        count = len(next(iter(self.rows.values())))
        return rows_of(self.rows, torch.arange(indices.start, indices.stop) % count)

    def exactly(self, count: int) -> Conditions:
        """The conditions of that many samples. Raises UserError where the counts are those of another number."""
        if self.count not in (0, count):
            raise UserError(f"sampling.classes asks for {self.count} samples, and there are {count} to draw")
        return self.of(range(count))

    @property
    def protocol(self) -> dict[str, Any]:
        """As plain values, from which the conditions of every sample follow."""
        return {**{name: value.tolist() for name, value in self.rows.items()}, "counts": list(self.counts)}


def class_turns(entries: Sequence[Any], names: Sequence[str]) -> Turns:
    """The classes that a person asks for: each by number, or by name, with or without `:COUNT`.

    names: of all classes. A text is a name where there is a class of that name, and else a number. Raises UserError for
    a class that is not there or comes twice, and where only some have counts.
    """
    found = [_class_of(entry, names) for entry in entries]
    labels, counts = [label for label, _ in found], [count for _, count in found if count]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"sampling.classes asks twice for class {twice} ({names[twice]})")
    if counts and len(counts) < len(labels):
        raise UserError(
            f"sampling.classes {', '.join(map(str, entries))}: all classes have counts, as in 3:10,7:2, or none has one"
        )
    return Turns({"labels": torch.tensor(labels)}, tuple(counts))


def _class_of(entry: Any, names: Sequence[str]) -> tuple[int, int]:
    """The class of an entry, and its count; 0 for none."""
    text = str(entry)
    name, colon, count = text.rpartition(":")
    if text in names or not colon or isinstance(entry, int):
        return _label_of(entry, names), 0
    if not count.isdigit() or int(count) < 1:
        raise UserError(f"sampling.classes: {text!r} should be a class with its count, as in 3:10")
    return _label_of(name, names), int(count)


def _label_of(entry: Any, names: Sequence[str]) -> int:
    """The number of a class."""
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    number = int(entry) if str(entry).isdigit() else -1
    if not 0 <= number < len(names):
        close = difflib.get_close_matches(str(entry), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"sampling.classes: there is no class {entry!r}; {hint}The network knows {listed(range(len(names)), names)}"
        )
    return number


def listed(labels: Sequence[int], names: Sequence[str]) -> str:
    """Classes in words, number = name; of many the first ones."""
    shown = ", ".join(f"{label} = {names[label]}" for label in labels[:LISTED])
    return f"{shown}, ... ({len(labels):,} classes)" if len(labels) > LISTED else shown
