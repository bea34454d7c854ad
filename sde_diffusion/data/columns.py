"""What the columns of a table tell of each sample: its class, its attributes, its targets."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, nearest
from sde_diffusion.data.tables import LABEL_COLUMNS

Table = Mapping[str, Sequence[Any]]
"""Columns by name, of equal length: text, numbers, or None for a cell that is missing."""

FLAGS = {"0": 0.0, "1": 1.0, "-1": 0.0, "true": 1.0, "false": 0.0}
"""What a cell of an attribute may say, in lower case; -1 is how CelebA writes "no"."""

SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""What some programs write between the cells of a table, in place of commas."""

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)([.][0-9]*)?|nan", re.IGNORECASE)
"""Text that is the number of a class, as tables write it; some make 1.0 of 1 where a cell of the column is empty."""
MOST_CLASSES = 1_000_000  # where they are numbered: a network has a vector for each number


@dataclass(frozen=True)
class Columns:
    """Which columns of a table tell what, by name.

    label: of the class; "" for the first of label, labels, fine_label and class that is there.
    attributes, targets: of these vectors; where both are () every other column of 0 and 1 is an attribute, and every
    other one of numbers a target.
    """

    label: str = ""
    attributes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All that are named."""
        return (*((self.label,) if self.label else ()), *self.attributes, *self.targets)

    def chosen(self, table: Table, where: str) -> Columns:
        """Those of a table. Raises UserError for a column that it does not have, or that is named twice."""
        for name in self.named:
            if name not in table:
                raise UserError(f"{where} has no column {name!r}; {nearest(name, table)}")
            if self.named.count(name) > 1:
                raise UserError(f"{where}: the column {name!r} is named twice, and tells one thing only")
        label = self.label or next((name for name in LABEL_COLUMNS if name in table and name not in self.named), "")
        if self.attributes or self.targets:
            return Columns(label, self.attributes, self.targets)
        others = [name for name in table if name != label]
        attributes = tuple(name for name in others if all(_flag(cell) is not None for cell in table[name]))
        numbers = tuple(name for name in others if all(_number(cell) is not None for cell in table[name]))
        return Columns(label, attributes, tuple(name for name in numbers if name not in attributes))


@dataclass(frozen=True)
class Told:
    """What is told of each sample: labels int64 [N] of `classes`, and vectors float32 [N, values] with their columns.

    said: in words, which column tells what, and which are not used.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    others: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: str = ""


def told(table: Table, wanted: Columns, where: str, rows: Sequence[str]) -> Told:
    """What a table tells. where: its name, and rows: those of its rows, for people.

    Raises UserError for columns that it does not have, and for a cell that is missing or of another kind.
    """
    own = wanted.chosen(table, where)
    labels, classes = labels_of(table[own.label], f"{where}, column {own.label}", rows) if own.label else (None, ())
    vectors = {"attributes": (own.attributes, _flag), "targets": (own.targets, _number)}
    kinds = {"attributes": "0 or 1", "targets": "a number"}
    others, columns = dict[str, Tensor](), dict[str, tuple[str, ...]]()
    for vector, (names, read) in vectors.items():
        if names:
            cells = [[_cell(table[n][i], read, kinds[vector], f"{where}, column {n}, {row}") for n in names]
                     for i, row in enumerate(rows)]  # fmt: skip
            others[vector], columns[vector] = torch.tensor(cells, dtype=torch.float32), names
    unused = [name for name in table if name not in own.named]
    parts = [f"classes by the column {own.label!r}"] if own.label else []
    parts += [f"{vector} by {', '.join(names)}" for vector, names in columns.items()]
    said = f"{where} gives {'; '.join(parts) or 'nothing'}"
    return Told(labels, classes, others, columns, said + (f"; not used: {', '.join(unused)}" if unused else ""))


def csv_table(data: bytes, said: str) -> dict[str, list[str | None]]:
    """The columns of a CSV file with a first row of names, as text. Raises UserError for rows that do not fit it."""
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise UserError(f"{said} is no table in CSV ({error})") from error
    if len(lines) < 2:
        raise UserError(f"{said} has no rows below its line of names")
    names = [name.strip() for name in lines[0]]
    if len(names) == 1 and (other := next((sign for sign in SEPARATORS if sign in names[0]), "")):
        raise UserError(f"{said} has {SEPARATORS[other]} between its columns: store it with commas")
    if "" in names:
        raise UserError(
            f"{said}: column {names.index('') + 1} has no name, like the index that pandas adds: name it, or remove it"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{said}: two columns have one name: {', '.join(names)}")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(names):
            raise UserError(f"{said}, row {number}: {len(line)} cells where the line of names has {len(names)}")
    return {name: [line[index] for line in lines[1:]] for index, name in enumerate(names)}


def labels_of(cells: Sequence[Any], where: str, rows: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Classes by numbers or names: labels int64 [N], and the names of the classes.

    Numbers are in their order, and text in its own. A column of text is one of numbers where all of it is, but for the
    likes of "007", which is a name. The spaces around text are no part of it.
    Raises UserError for a cell that is missing, and for numbers with a fraction.
    """
    own = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
    if all(NUMBER.fullmatch(cell) for cell in own if isinstance(cell, str) and cell):
        own = [_parsed(cell) if isinstance(cell, str) and cell else cell for cell in own]
    for cell, row in zip(own, rows):
        if cell is None or cell == "" or (isinstance(cell, float) and not math.isfinite(cell)):
            raise UserError(f"{where}, {row}: there is no class; give every row one")
        if isinstance(cell, float) and not cell.is_integer():
            raise UserError(
                f"{where}, {row}: {cell!r} is no class, which is a whole number or a name; numbers are targets "
                "(data.target_columns)"
            )
    numbers = all(isinstance(cell, (int, float)) for cell in own)
    values: list[Any] = [int(cell) if numbers else str(cell) for cell in own]
    found = sorted(set(values))
    place = {value: index for index, value in enumerate(found)}
    return torch.tensor([place[value] for value in values], dtype=torch.int64), tuple(map(str, found))


def numbered_labels(numbers: Sequence[int], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of classes, of which some may have no sample: labels int64 [N], and the classes "0", "1", ...

    Raises UserError for a number that nobody can have meant, as every class up to the last is learned.
    """
    if max(numbers, default=0) >= MOST_CLASSES:
        raise UserError(
            f"{where}: the class {max(numbers)} is no number of one of at most {MOST_CLASSES:,} classes 0, 1, ...; "
            "number the classes anew"
        )
    return torch.tensor(list(numbers), dtype=torch.int64), tuple(map(str, range(max(numbers) + 1)))


def numbers_of(cells: Sequence[Any], where: str, rows: Sequence[str], remedy: str) -> np.ndarray:
    """A column of finite numbers, float64 [N]. Raises UserError for the first cell that is none, with its row."""
    try:
        values = np.array(cells, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(len(cells), np.nan)
    if values.ndim != 1 or not np.isfinite(values).all():
        for cell, row in zip(cells, rows):
            if _number(cell) is None:
                said = "nothing" if cell is None or cell == "" else repr(cell)
                raise UserError(f"{where}, {row}: {said} where a number is expected; {remedy}")
    return values


def _cell(cell: Any, read: Any, kind: str, where: str) -> float:
    value: float | None = read(cell)
    if value is None:
        said = "nothing" if cell is None or cell == "" else repr(cell)
        raise UserError(f"{where}: {said} where {kind} is expected; fill the cell, or leave the column out")
    return value


def _flag(cell: Any) -> float | None:
    """0.0 or 1.0; None for anything else."""
    number = int(cell) if isinstance(cell, float) and cell.is_integer() else cell
    return FLAGS.get(str(number).strip().lower())


def _number(cell: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _parsed(text: str) -> int | float:
    """The number that text of the form of `NUMBER` says."""
    try:
        return int(text)
    except ValueError:
        return float(text)
