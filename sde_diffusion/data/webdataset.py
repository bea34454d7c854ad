"""Archives in the WebDataset layout: .tar files with KEY.jpg, KEY.cls or KEY.json for each picture.

Members are listed once, by their headers, when a set is opened: which bytes hold which picture, and its label. From
there on pictures are read by their place in the file: any of them (memory, mapped), or stretches of them (streaming).
The layout: https://github.com/webdataset/webdataset. The package of that name reads forward only, so that going on
means reading what went before.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.columns import numbered_labels
from sde_diffusion.data.dataset import Splits
from sde_diffusion.data.formats import endings
from sde_diffusion.data.lanes import Encoded, Span, in_lanes
from sde_diffusion.data.listing import HELD_OUT
from sde_diffusion.data.mapped import Mapped, Reading, kept
from sde_diffusion.data.pictures import common_shape
from sde_diffusion.data.places import stamps
from sde_diffusion.data.tables import LABEL_COLUMNS

PIECE = 64  # pictures that are read one after another
BLOCK = 4 << 20  # bytes that are read at once
PICTURE = np.dtype([("shard", "i4"), ("start", "i8"), ("size", "i8"), ("label", "i8")])
NO_LABEL = -1

Label = int | str | None


@dataclass(frozen=True, eq=False)
class Archives:
    """The pictures of .tar files: `table` says where each is, `names` (bytes) what it is called, in their order."""

    files: tuple[Path, ...]
    table: np.ndarray[Any, Any]
    names: np.ndarray[Any, Any]
    title: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"{self.files[self.table['shard'][index]]}/{self.names[index].decode()}"

    def fingerprint(self) -> tuple[str, str]:
        return str(self.files[0].resolve()), stamps(self.files)

    def open(self, index: int) -> BytesIO:
        shard, start, size, _ = self.table[index].tolist()
        with open(self.files[shard], "rb", buffering=0) as file:
            return BytesIO(_exactly(file, start, start + size))

    @property
    def labels(self) -> Tensor | None:
        """int64 [pictures]; None without classes."""
        return torch.from_numpy(self.table["label"].copy()) if self.classes else None

    # --- as shards ----------------------------------------------------------------------------------------------

    def spans(self) -> list[Span]:
        counts = np.bincount(self.table["shard"], minlength=len(self.files)).tolist()
        return [
            Span(shard, count * piece // pieces, count * (piece + 1) // pieces)
            for shard, count in enumerate(counts)
            for pieces in [-(-count // PIECE)]
            for piece in range(pieces)
        ]

    def signature(self) -> str:
        counts = np.bincount(self.table["shard"], minlength=len(self.files)).tolist()
        return repr([(file.name, count) for file, count in zip(self.files, counts)])

    def read(self, span: Span) -> Iterator[Encoded]:
        file, first = self.files[span.shard], int(np.searchsorted(self.table["shard"], span.shard))
        places = self.table[first + span.first : first + span.stop]
        starts, stops = places["start"].tolist(), (places["start"] + places["size"]).tolist()
        try:
            with open(file, "rb", buffering=0) as source:
                index = 0
                while index < len(places):
                    end = index + 1
                    while end < len(places) and stops[end] - starts[index] <= BLOCK:
                        end += 1
                    block = memoryview(_exactly(source, starts[index], stops[end - 1]))
                    for row in range(index, end):
                        content = bytes(block[starts[row] - starts[index] : stops[row] - starts[index]])
                        label = int(places["label"][row]) if self.classes else None
                        yield Encoded(self.name(first + span.first + row), content, label)
                    index = end
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read on from picture {span.first + index} ({error}).") from error


def load(root: str, reading: Reading) -> Splits:
    """The pictures of .tar files, uint8 [N, C, H, W], with the classes of their .cls or .json members.

    root: a folder of .tar files, one file, or names such as train-{000..009}.tar or train-*.tar. In a folder where
    all names begin with train or one of test, val, valid, validation, the latter are held out; else a part of all.
    Raises UserError where there are no such files, for one that is damaged, and for members that make no sample.
    """
    parts = {part: _listed(files) for part, files in _parts(root).items()}
    classes, labels = _classes([label for found in parts.values() for label in found.labels], root)
    archives, at = [], 0
    for found in parts.values():
        found.table["label"] = labels[at : at + len(found.labels)] if classes else NO_LABEL
        at += len(found.labels)
        archives.append(Archives(found.files, found.table, found.names, found.title, classes))
    train, *tests = archives
    if reading.streams:
        return in_lanes(train, tests[0] if tests else None, reading)
    shape = common_shape(archives, reading.cut, train.title, reading.decoding)
    cut, limit = reading.cut, reading.corrupt_limit
    sets = [
        Mapped(
            *(each, torch.arange(len(each)), each.labels, classes, each.title, shape, cut, limit),
            decoding=reading.decoding,
        )
        for each in archives
    ]
    return kept(sets[0], sets[1] if tests else None, reading)


# --- files -----------------------------------------------------------------------------------------------------


def _parts(root: str) -> dict[str, list[Path]]:
    """The files of each part, the training part first. Raises UserError where there are none, or one is not there."""
    files = _files(root)
    starts = [re.match(r"(train|test|validation|valid|val)(?![a-z])", file.name.lower()) for file in files]
    parts: dict[str, list[Path]] = {}
    if all(starts) and any(start and start[1] == "train" for start in starts):
        for file, start in zip(files, starts):
            if start:
                parts.setdefault(start[1], []).append(file)
        return {part: parts[part] for part in ("train", *HELD_OUT) if part in parts}
    return {"train": files}


def _files(root: str) -> list[Path]:
    place = Path(root).expanduser()
    wanted = "a folder of .tar files, or names such as train-{000..009}.tar"
    if not root:
        raise UserError(f"data.root is empty; expected {wanted}.")
    if place.is_dir():
        packed = sorted(path.name for path in place.iterdir() if path.name.endswith((".tar.gz", ".tgz")))
        if packed:
            raise UserError(f"{place / packed[0]} is compressed and cannot be read from the middle: unpack it to .tar.")
        files = sorted(path for path in place.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
        if not files:
            raise UserError(f"{place} holds no .tar files; expected {wanted}.")
        return files
    files = []
    for name in _expanded(str(place)):
        found = sorted(Path(name).parent.glob(Path(name).name)) if "*" in name else [Path(name)]
        if not found or not found[0].is_file():
            raise UserError(f"there is no file {name}; expected {wanted}.")
        files += found
    return files


def _expanded(text: str) -> list[str]:
    """The names that braces stand for: {000..009} for numbers, {a,b} for alternatives."""
    head, brace, rest = text.partition("{")
    inner, closing, tail = rest.partition("}")
    if not brace or not closing:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        width = len(numbers[1])
        choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = inner.split(",")
    return [f"{head}{choice}{end}" for choice in choices for end in _expanded(tail)]


# --- members ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Listing:
    """What archives hold: a row of `table` for each picture, its name, and its label as it is written."""

    files: tuple[Path, ...]
    table: np.ndarray[Any, Any]
    names: np.ndarray[Any, Any]
    labels: list[Label]
    title: str


def _listed(files: Sequence[Path]) -> _Listing:
    """Warns of members that are not read. Raises UserError for archives that are damaged, and for odd members."""
    rows, names, labels = [], [], list[Label]()
    unread: Counter[str] = Counter()
    title = files[0].resolve().parent.name if len(files) > 1 else files[0].stem
    for shard, file in enumerate(files):
        for sample in _samples(file, unread):
            rows.append((shard, sample.start, sample.size, NO_LABEL))
            names.append(sample.picture.encode())
            labels.append(sample.label)
    if not rows:
        raise UserError(f"{files[0]} holds no pictures ({_known()}).")
    lacking = next((index for index, label in enumerate(labels) if label is None), None)
    if lacking is not None and any(label is not None for label in labels):
        file = files[rows[lacking][0]]
        name = names[lacking].decode()
        raise UserError(f"{file}: {name} has no label (.cls, or .json with 'label'), as others have.")
    if unread:
        told = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(unread.items()))
        warnings.warn(f"{title}: {sum(unread.values()):,} members are not read: {told}", stacklevel=4)
    return _Listing(tuple(files), np.array(rows, PICTURE), np.array(names), labels, title)


@dataclass(frozen=True)
class _Sample:
    """The members of one key: its picture and where that lies, and the label that goes with it."""

    key: str
    picture: str = ""
    start: int = 0
    size: int = 0
    label: Label = None
    other: str = ""


def _samples(file: Path, unread: Counter[str]) -> Iterator[_Sample]:
    """The samples of an archive: the members that lie side by side and have one key."""
    seen = set[str]()
    for key, members in itertools.groupby(_members(file), lambda member: _split(member[0].name)[0]):
        if key in seen:
            raise UserError(f"{file}: the key {key} comes twice, and not side by side; each picture needs its own.")
        seen.add(key)
        sample = _Sample(key)
        for member, content in members:
            suffix = _split(member.name)[1]
            if f".{suffix}" in endings():
                if sample.picture:
                    raise UserError(f"{file}: {sample.picture} and {member.name} are two pictures with one key.")
                sample = replace(sample, picture=member.name, start=member.offset_data, size=member.size)
            elif suffix in ("cls", "json"):
                found = _label(content, suffix, f"{file}: {member.name}")
                sample = replace(sample, other=member.name, label=found if found is not None else sample.label)
            else:
                unread[f".{suffix}"] += 1
                sample = replace(sample, other=member.name)
        if not sample.picture:
            raise UserError(f"{file}: {sample.other} has no picture beside it ({_known()}).")
        yield sample


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The files of an archive, and the content of labels. Raises UserError where it is damaged."""
    last = "its first member"
    try:
        with tarfile.open(file, "r:") as archive:
            while member := archive.next():
                last = member.name
                archive.members = []  # type: ignore[attr-defined]  # which it would keep for looking up names
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                small = _split(member.name)[1] in ("cls", "json")
                content = archive.extractfile(member) if small else None
                yield member, content.read() if content else b""
            with open(file, "rb") as end:
                end.seek(archive.offset)
                whole = end.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{file} is damaged after {last} ({error}); make or fetch it again.") from error
    if not whole:
        raise UserError(f"{file} is damaged after {last} (it does not end there as an archive does); fetch it again.")


def _known() -> str:
    return ", ".join(sorted(endings()))


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member's name, parted at the first dot of its last part, as WebDataset does."""
    folder, _, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return (f"{folder}/{key}" if folder else key), suffix.lower()


def _label(content: bytes, suffix: str, name: str) -> Label:
    """The label that a .cls or .json member holds; None for a .json without one."""
    try:
        text = content.decode()
        found = text.strip() if suffix == "cls" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} cannot be read ({error}).") from error
    if suffix == "json":
        columns = found if isinstance(found, dict) else {}
        found = next((columns[column] for column in LABEL_COLUMNS if column in columns), None)
    if isinstance(found, str) and found.isdecimal():
        return int(found)
    if isinstance(found, str):
        wrong = not found or re.fullmatch(r"-?[0-9]*[.][0-9]+|-[0-9]+", found) is not None
    else:
        wrong = found is not None and (type(found) is not int or found < 0)
    if wrong:
        raise UserError(f"{name} must hold the number or the name of a class, not {found!r}.")
    return found


def _classes(labels: Sequence[Label], root: str) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes and the number of each label; numbers are their own names."""
    if all(label is None for label in labels):
        return (), []
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return numbered_labels(numbers, root)[1], numbers
    names = sorted({str(label) for label in labels})
    place = {name: index for index, name in enumerate(names)}
    return tuple(names), [place[str(label)] for label in labels]


def _exactly(file: Any, start: int, stop: int) -> bytes:
    """The bytes start..stop of an open file. Raises ValueError where it ends before."""
    file.seek(start)
    content = bytearray()
    while len(content) < stop - start:
        piece = file.read(stop - start - len(content))
        if not piece:
            raise ValueError(f"it ends before byte {stop:,}")
        content += piece
    return bytes(content)
