"""A person's own pictures, in folders or in a zip archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.archive import Archive
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.data.mapped import Mapped, Reading, kept
from sde_diffusion.data.pictures import Pictures, common_shape

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
HELD_OUT = ("test", "val", "valid", "validation")
DEPTH = 3  # of train/CLASS/picture

Listing = Mapping[str, Sequence[str]]
"""The names of the files in each folder, by its path from the root, which is ""."""


def load(root: str, reading: Reading) -> Splits:
    """Pictures in class folders, or in one folder without classes, uint8 [N, C, H, W].

    Layouts: root/train/CLASS/* with root/test/CLASS/*, or root/CLASS/* of which a part is held out (always the same
    pictures); CLASS may be left out. root: a folder, or a zip archive of one, which is read in place.
    Channels: 1 if every picture is grey, else 3.
    Raises UserError for a missing or empty folder, for too many broken pictures, for pictures of different sizes that
    are not cut, for an unsafe archive, and for streaming.
    """
    if reading.streams:
        raise UserError("folders and archives are not streamed: choose the storage 'mapped', which reads any picture.")
    place = _place(root, "CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png")
    names = {_last(path) for path in _folders(place.listing, place.base)}
    # A folder "train" among other names is a class of trains.
    if "train" not in names or not names <= {"train", *HELD_OUT}:
        return kept(_mapped(place, [place.base], reading.cut, reading.corrupt_limit)[0], None, reading)

    fitted, *tests = [_joined(place.base, name) for name in ("train", *HELD_OUT) if name in names][:2]
    classes = _classes(place.listing, fitted)
    for test in tests:
        if _classes(place.listing, test) != classes:
            raise UserError(
                f"{place.said(test)} and {place.said(fitted)} must hold the same class folders: "
                f"{', '.join(classes) or 'none'}."
            )
    # Both are looked at for the channels, so that one grey picture decides those of neither part alone.
    train, *held = _mapped(place, [fitted, *tests], reading.cut, reading.corrupt_limit)
    return kept(train, held[0] if held else None, reading)


def load_whole(root: str, cut: Cut, shape: tuple[int, int, int] | None = None) -> tuple[Dataset, list[str]]:
    """All pictures of root/CLASS/* or root/*, as they are cut, without a split, and their names.

    shape: (C, H, W) that they are brought to; by default the pictures' own. Raises UserError for a broken one.
    """
    place = _place(root, "*.png or CLASS/*.png")
    dataset, failures = _mapped(place, [""], cut, 0.0, shape)[0].in_memory()
    if failures:  # each has a name, by which it would be missed
        name, reason = failures[0]
        raise UserError(f"{name} is not a readable picture ({reason}); repair or remove it.")
    return dataset, _find(place, "")


class Files:
    """Pictures in files below a root. Their names are bytes in one block, which workers share without copying."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.open(index))

    def open(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])


@dataclass(frozen=True)
class Folder:
    """A folder on disk."""

    root: Path
    listing: Listing
    base: str = ""

    @classmethod
    def at(cls, root: Path) -> Folder:
        listing: dict[str, list[str]] = {}
        for path, folders, files in os.walk(root, followlinks=True):
            place = PurePosixPath(Path(path).relative_to(root).as_posix())
            listing["" if place == PurePosixPath() else str(place)] = files
            if len(place.parts) + 1 >= DEPTH:
                folders.clear()
        return cls(root, listing)

    @property
    def title(self) -> str:
        return self.root.resolve().name

    def said(self, path: str) -> str:
        """A path below the root as a person knows it."""
        return str(self.root / path)

    def pictures(self, names: Sequence[str]) -> Pictures:
        return Files(self.root, names)


def _place(root: str, layout: str) -> Folder | Archive:
    path = Path(root).expanduser()
    if root and path.is_file():
        return Archive.at(path, SUFFIXES)
    if not root or not path.is_dir():
        raise UserError(f"no folder {root!r}: expected one that holds {layout}, or a zip archive of it.")
    return Folder.at(path)


def _last(path: str) -> str:
    return PurePosixPath(path).name


def _joined(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _folders(listing: Listing, base: str) -> list[str]:
    """The folders in `base`, without hidden ones and those that macOS adds to archives."""
    above = PurePosixPath(base)
    inside = [path for path in listing if path and PurePosixPath(path).parent == above]
    return sorted(path for path in inside if not _last(path).startswith((".", "__MACOSX")))


def _classes(listing: Listing, base: str) -> tuple[str, ...]:
    return tuple(_last(path) for path in _folders(listing, base))


def _pictures(listing: Listing, base: str) -> list[str]:
    names = [n for n in listing[base] if PurePosixPath(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    return [_joined(base, name) for name in sorted(names)]


def _find(place: Folder | Archive, base: str) -> list[str]:
    """The pictures of each class folder of `base`, or of `base` itself where it has no folders."""
    loose, folders = _pictures(place.listing, base), _folders(place.listing, base)
    if loose and folders:
        raise UserError(
            f"{place.said(base)} holds both pictures ({_last(loose[0])}) and folders ({_last(folders[0])}): "
            "put every picture into a class folder, or none."
        )
    found = {path: _pictures(place.listing, path) for path in folders or [base]}
    for path, names in found.items():
        if not names:
            raise UserError(f"{place.said(path)} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    return [name for names in found.values() for name in names]


def _mapped(
    place: Folder | Archive, bases: Sequence[str], cut: Cut, limit: float, shape: tuple[int, int, int] | None = None
) -> list[Mapped]:
    """The pictures of each of these folders, which have the same classes, as one set."""
    parts = [_find(place, base) for base in bases]
    pictures = place.pictures([name for names in parts for name in names])
    classes = _classes(place.listing, bases[0])
    shape = shape or common_shape([pictures], cut, place.said(""))
    number = {name: index for index, name in enumerate(classes)}
    found, start = [], 0
    for names in parts:
        rows = torch.arange(start, start + len(names))
        labels = torch.tensor([number[PurePosixPath(name).parent.name] for name in names]) if classes else None
        found.append(Mapped(pictures, rows, labels, classes, place.title, shape, cut, limit))
        start += len(names)
    return found
