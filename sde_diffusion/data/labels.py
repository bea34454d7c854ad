"""What pictures show, by a file beside them: EDM's dataset.json, the metadata of Hugging Face, the list of CelebA.

    dataset.json            {"labels": [["00000/img0.png", 3], ...]}, or null; a list of 0 and 1 in place of the number
                            gives attributes, and one of other numbers targets
    metadata.csv, .jsonl    a row a picture, by its column file_name
    list_attr_celeba.txt    the number of pictures; the names of the attributes; a row a picture, of 1 and -1

Names are paths from the file's own folder, which is that of all pictures or of a part of them. Where there is such a
file, folders are no classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.conditions import rows_of
from sde_diffusion.core.errors import UserError
from sde_diffusion.data.class_folders import Labels, class_folders
from sde_diffusion.data.columns import Columns, Told, csv_table, numbered_labels, told
from sde_diffusion.data.listing import Listing
from sde_diffusion.data.naming import few
from sde_diffusion.data.places import Place


@dataclass(frozen=True)
class Rows:
    """What a file says of pictures: their names, and what is told of them in the same order; no names for nothing."""

    names: Sequence[str]
    told: Told


Reader = Callable[[bytes, Columns, str], Rows | None]
"""(a file's bytes, which columns are wanted, its name for people) -> its rows; None for one that is of another kind."""


def labels_of(place: Place, listing: Listing, wanted: Columns | None = None) -> Labels:
    """What the pictures of a place show: by a file beside them, or by their folders.

    Raises UserError for a file that cannot be read, or that does not tell of exactly the pictures that there are, and
    for wanted columns without a table.
    """
    own = wanted or Columns()
    for name, reader in READERS.items():
        for base in dict.fromkeys(["", *(part.base for part in listing.parts)]):
            file = f"{base}/{name}" if base else name
            if file in place.names and (found := _read(place, file, reader, own)) is not None:
                return _of_pictures(place, listing, file, found, reader, own)
    if own.named:
        raise UserError(
            f"the column {own.named[0]!r} is wanted, and {place.said('')} has no table of its pictures: put a "
            "metadata.csv with a column file_name beside them"
        )
    return class_folders(place, listing.parts)


def _read(place: Place, file: str, reader: Reader, wanted: Columns) -> Rows | None:
    try:
        data = place.read(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{place.said(file)} cannot be read ({error}); repair or remove it") from error
    try:
        return reader(data, wanted, place.said(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{place.said(file)} is no text in UTF-8 ({error.reason}); store it as such") from error


def _of_pictures(place: Place, listing: Listing, file: str, rows: Rows, reader: Reader, wanted: Columns) -> Labels:
    """The rows of a file in the order of the pictures; those of each part may lie in a file of its own."""
    if not rows.names:
        return Labels((None,) * len(listing.parts), files=(file,), said=rows.told.said)
    base, name = file.rpartition("/")[0], file.rpartition("/")[2]
    files, tables = [file], {base: rows}
    if base:
        for part in listing.parts:
            other = f"{part.base}/{name}"
            if part.base == base:
                continue
            found = _read(place, other, reader, wanted) if other in place.names else None
            if found is None:
                raise UserError(f"{place.said(file)} tells of its pictures, and there is no {place.said(other)}")
            found = _as_first(found, rows, place.said(other), place.said(file))
            files, tables = [*files, other], {**tables, part.base: found}
    parts, others = list[Tensor | None](), list[Mapping[str, Tensor]]()
    for part in listing.parts:
        at = part.base if part.base in tables else base
        index = _index(place, files[list(tables).index(at)], at, tables[at].names, part.names)
        own = tables[at].told
        parts.append(None if own.labels is None else own.labels[index])
        others.append(rows_of(own.others, index))
    return Labels(tuple(parts), rows.told.classes, tuple(files), tuple(others), rows.told.columns, rows.told.said)


def _as_first(found: Rows, first: Rows, said: str, said_first: str) -> Rows:
    """The rows of a further part with the classes of the first one's, of which it may lack some.

    Raises UserError for classes or columns that the first does not have.
    """
    own, wanted = found.told, first.told
    strange = [name for name in own.classes if name not in wanted.classes]
    if strange or (own.labels is None) != (wanted.labels is None):
        raise UserError(
            f"{said} tells of the classes {few(own.classes)}, and {said_first} of {few(wanted.classes)}: both must "
            "tell of the same ones"
        )
    if own.columns != wanted.columns:
        names = [few([name for columns in each.columns.values() for name in columns]) for each in (own, wanted)]
        raise UserError(
            f"{said} gives {names[0]}, and {said_first} gives {names[1]}: both must have the same columns, of the same "
            "kinds (data.attribute_columns and data.target_columns say which)"
        )
    if own.labels is None or own.classes == wanted.classes:
        return found
    order = torch.tensor([wanted.classes.index(name) for name in own.classes])
    return replace(found, told=replace(own, labels=order[own.labels], classes=wanted.classes))


def _index(place: Place, file: str, base: str, names: Sequence[str], pictures: Sequence[str]) -> Tensor:
    """The row of each picture, int64 [pictures].

    Raises UserError unless each picture has one row, and every row is of a file that is there.
    """
    said, number, known = place.said(file), dict[str, int](), frozenset(place.names)
    last = {PurePosixPath(name).name: name for name in pictures}
    for row, name in enumerate(names):
        path = str(PurePosixPath(base, name))
        # CelebA's list is not beside its pictures.
        path = path if path in known else last.get(name, path)
        if path in number:
            raise UserError(f"{said} has two rows of {name!r}; remove one")
        number[path] = row
    strange = [name for name in number if name not in known]
    if strange:
        raise UserError(
            f"{said} tells of {len(strange):,} files that are not there, such as {strange[0]!r}: remove their rows, or "
            "bring the files back"
        )
    silent = [name for name in pictures if name not in number]
    if silent:
        raise UserError(
            f"{said} has no row of {len(silent):,} of the {len(pictures):,} pictures, such as {silent[0]!r}: add rows, "
            "or move these pictures away"
        )
    return torch.tensor([number[name] for name in pictures], dtype=torch.int64)


# --- the kinds of files ---------------------------------------------------------------------------------------


def _edm(data: bytes, wanted: Columns, said: str) -> Rows | None:
    """dataset.json of EDM, StyleGAN and others."""
    found = _json(data, said)
    if not isinstance(found, dict) or "labels" not in found:
        return None
    rows = found["labels"]
    if rows is None:
        return Rows((), Told(said=f"{said} says that the pictures have no classes"))
    if not isinstance(rows, list) or not rows or not all(_is_pair(row) for row in rows):
        raise UserError(f'{said}: "labels" must be a list of [name, label], or null for pictures without labels')
    names, labels = [row[0] for row in rows], [row[1] for row in rows]
    if all(type(label) is int and label >= 0 for label in labels):
        numbers, classes = numbered_labels(labels, said)
        return Rows(names, Told(numbers, classes, said=f"{said} gives the number of each picture's class"))
    width = len(labels[0]) if isinstance(labels[0], list) else 0
    if width and all(isinstance(label, list) and len(label) == width for label in labels):
        table = {str(index): [label[index] for label in labels] for index in range(width)}
        flags = all(cell in (0, 1) for label in labels for cell in label)
        every = tuple(table)
        columns = Columns("", every, ()) if flags else Columns("", (), every)
        return Rows(names, told(table, columns, said, [f"row {name!r}" for name in names]))
    wrong = next((row for row in rows if type(row[1]) is not int or row[1] < 0), rows[0])
    raise UserError(
        f"{said}: the label of {wrong[0]!r} is {wrong[1]!r}; labels are whole numbers from 0 on, or lists of "
        "numbers of one length"
    )


def _is_pair(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)


def _metadata_csv(data: bytes, wanted: Columns, said: str) -> Rows:
    """metadata.csv of Hugging Face's ImageFolder."""
    return _metadata(csv_table(data, said), wanted, said)


def _metadata_jsonl(data: bytes, wanted: Columns, said: str) -> Rows:
    """metadata.jsonl of Hugging Face's ImageFolder: an object a line."""
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    found = [_json(line.encode(), f"{said}, line {number}") for number, line in enumerate(lines, 1)]
    if not found or not all(isinstance(row, dict) for row in found):
        raise UserError(f'{said} must hold an object a line, such as {{"file_name": "0.png", "label": "cat"}}')
    names = dict.fromkeys(name for row in found for name in row)
    return _metadata({name: [row.get(name) for row in found] for name in names}, wanted, said)


def _metadata(table: Mapping[str, Sequence[Any]], wanted: Columns, said: str) -> Rows:
    if "file_name" not in table:
        raise UserError(f"{said} has no column file_name, which names each picture; it has {', '.join(table)}")
    names = list(table["file_name"])
    empty = next((number for number, name in enumerate(names, 1) if not isinstance(name, str) or not name), 0)
    if empty:
        raise UserError(f"{said}, row {empty}: there is no file_name")
    rest = {name: cells for name, cells in table.items() if name != "file_name"}
    return Rows(names, told(rest, wanted, said, [f"row {i} ({name})" for i, name in enumerate(names, 1)]))


def _celeba(data: bytes, wanted: Columns, said: str) -> Rows:
    """list_attr_celeba.txt."""
    lines = [line.split() for line in data.decode().splitlines() if line.strip()]
    if len(lines) < 3 or any(len(line) != len(lines[1]) + 1 for line in lines[2:]):
        raise UserError(
            f"{said} must hold a count, the names of the attributes, and a row of 1 and -1 for each picture"
        )
    table = {name: [line[index] for line in lines[2:]] for index, name in enumerate(lines[1], 1)}
    names = [line[0] for line in lines[2:]]
    return Rows(names, told(table, wanted, said, [f"row {name!r}" for name in names]))


def _json(data: bytes, said: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{said} is no JSON ({error}); repair or remove it") from error


READERS: dict[str, Reader] = {
    "dataset.json": _edm,
    "metadata.csv": _metadata_csv,
    "metadata.jsonl": _metadata_jsonl,
    "list_attr_celeba.txt": _celeba,
}
"""The files that tell what pictures show, by name; the first that is there counts."""
