"""What samples are drawn for: the rows of conditions that they take in turn, and how a person chooses them by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, rows_of
from sde_diffusion.core.errors import UserError, closest, nearest
from sde_diffusion.data import Source
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.records import tensor_digest

LISTED = 12
"""Classes that a sentence names at most."""
NO_CLASS = -1
WRITTEN = 64
"""Numbers of conditions that a manifest writes out."""


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

    @property
    def labels(self) -> list[int]:
        """The class of each row; [] where there are none."""
        return self.rows["labels"].tolist() if "labels" in self.rows else []

    def exactly(self, count: int) -> Conditions:
        """The conditions of that many samples. Raises UserError where the counts are those of another number."""
        if self.count not in (0, count):
            raise UserError(f"sampling.classes asks for {self.count} samples, and there are {count} to draw")
        return self.of(range(count))

    @property
    def protocol(self) -> dict[str, Any]:
        """As plain values, from which the conditions of every sample follow; of many rows their digest."""
        many = sum(value.numel() for value in self.rows.values()) > WRITTEN
        rows = {"digest": tensor_digest(self.rows)} if many else {n: value.tolist() for n, value in self.rows.items()}
        return {**rows, "counts": list(self.counts)}


def wanted_turns(
    classes: Sequence[Any], attributes: Sequence[str], trained: Checkpoint, names: Sequence[str]
) -> Turns | None:
    """What samples are told: the classes and the attributes that a person asks for; None for all classes in turn.

    Vectors that are not asked for are those of training samples in turn, and beside chosen classes or attributes those
    of the first training sample (of the class). names: of all classes. Raises UserError for what the network is not
    told, and as `class_turns` and `multi_hot` do.
    """
    told = trained.spec.conditions
    for what, chosen, condition, key in (
        ("classes", classes, "labels", "model.class_conditional=True"),
        ("attributes", attributes, "attributes", "model.conditions=('attributes',)"),
    ):
        if chosen and condition not in told:
            raise UserError(
                f"sampling.{what} chooses {what}, and the network is told none: it was trained on {trained.title} "
                f"without {key}"
            )
    vectors = [name for name in told if name != "labels"]
    if not classes and not attributes:
        return Turns(trained.examples) if vectors and trained.examples else None
    turns = class_turns(classes, names) if classes else all_classes(told, names)
    if not vectors:
        return turns
    given = {"attributes": multi_hot(attributes, trained.columns.get("attributes", ()))} if attributes else {}
    rows = [{**_first_of(trained.examples, label), **given} for label in turns.labels or [NO_CLASS]]
    beside = {name: torch.stack([row[name] for row in rows]) for name in vectors if name in rows[0]}
    return Turns({**turns.rows, **beside}, turns.counts)


def check_wanted(classes: Sequence[Any], attributes: Sequence[str], data: Source) -> None:
    """Raises UserError for classes and attributes that are not those of the data, before a network is trained."""
    if classes:
        class_turns(classes, data.classes)
    if attributes:
        multi_hot(attributes, data.columns.get("attributes", ()))


def all_classes(conditions: Sequence[str], names: Sequence[str]) -> Turns:
    """The classes of a network, one after another; nothing for one that is told none."""
    return Turns({"labels": torch.arange(len(names))} if "labels" in conditions and names else {})


def multi_hot(on: Sequence[str], names: Sequence[str]) -> Tensor:
    """1 for each attribute that is on and 0 for the others, float32 [names]. Raises UserError for an unknown one."""
    for name in on:
        if name not in names:
            raise UserError(f"sampling.attributes: there is no attribute {name!r}; {nearest(name, names)}")
    return torch.tensor([float(name in on) for name in names])


def attributes_of(on: Sequence[str], trained: Checkpoint, count: int) -> Conditions:
    """The attributes of pictures that are given, [count, attributes]; {} for a network that is told none.

    Raises UserError where they are not said.
    """
    if "attributes" not in trained.spec.conditions:
        return {}
    names = trained.columns.get("attributes", ())
    if not on:
        raise UserError(
            f"the network is told attributes: say by --attributes which of {', '.join(names[:LISTED])} these have"
        )
    return {"attributes": multi_hot(on, names).repeat(count, 1)}


def _first_of(examples: Conditions, label: int) -> Conditions:
    """The vectors of the first training sample of a class, or of any where there is none of it."""
    labels = examples.get("labels")
    found = [] if labels is None else (labels == label).nonzero().flatten().tolist()
    at = found[0] if found else 0
    return {name: value[at] for name, value in examples.items() if name != "labels"}


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
        close = closest(str(entry), names)
        hint = f"; did you mean {close!r}?" if close else "."
        hint += " A name with a comma is given by its number." if any("," in name for name in names) else ""
        raise UserError(
            f"sampling.classes: there is no class {entry!r}{hint} The network knows {listed(range(len(names)), names)}"
        )
    return number


def listed(labels: Sequence[int], names: Sequence[str]) -> str:
    """Classes in words, number = name; of many the first ones."""
    shown = ", ".join(f"{label} = {names[label]}" for label in labels[:LISTED])
    return f"{shown}, ... ({len(labels):,} classes)" if len(labels) > LISTED else shown
