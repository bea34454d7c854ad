"""Where a person's files lie: a folder, or an archive that is read in place. Both list their files in the same way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.pictures import Pictures

SYSTEM = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"})
"""What macOS, Windows and network disks add, in lower case."""


class Place(Protocol):
    """Files below one folder, and how they are read. A name is a path from that folder, with "/" between its parts."""

    @property
    def names(self) -> Sequence[str]:
        """Every file at any depth, in the order of `in_order`; none that is `passed_over`."""

    @property
    def folders(self) -> Sequence[str]:
        """Every folder that is not `passed_over`, those without files among them."""

    @property
    def hidden(self) -> Sequence[str]:
        """The files and folders that are `passed_over`; those of folders end in "/"."""

    @property
    def title(self) -> str: ...

    def said(self, name: str) -> str:
        """A name as a person knows it."""

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes, or the first `most` of them. May raise OSError and ValueError."""

    def size(self, name: str) -> int:
        """A file's size in bytes; 0 for one that is not there."""

    def pictures(self, names: Sequence[str]) -> Pictures: ...


def passed_over(name: str) -> bool:
    """Whether a file or folder of this last name is hidden, or is one of those that systems add."""
    return name.startswith(".") or name.lower() in SYSTEM


def _is_run(folder: Path) -> bool:
    """Whether a folder is one of this program's runs, whose pictures are not a person's own."""
    try:
        if not any((folder / name).exists() for name in (".lock", "config.json")):
            return False
        names = set(os.listdir(folder))
    except OSError:
        return False  # it is told as its content is read
    begun = ".lock" in names and names <= {".lock", "data.png"}
    return begun or ("config.json" in names and not names.isdisjoint({".lock", "checkpoints"}))


def in_order(names: Sequence[str]) -> list[str]:
    """Names in the order of their folders, so that what lies in one folder stays together."""
    return sorted(names, key=lambda name: name.split("/"))


def stamps(files: Sequence[Path]) -> str:
    """A digest of the names, sizes and times of files."""
    found = hashlib.sha256()
    for file in files:
        try:
            known = file.stat()
            found.update(repr((os.fspath(file), known.st_size, known.st_mtime_ns)).encode())
        except OSError as error:
            found.update(repr((os.fspath(file), error.errno)).encode())
    return found.hexdigest()


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

    def fingerprint(self) -> tuple[str, str]:
        return str(self.root.resolve()), stamps([self.open(index) for index in range(len(self))])


@dataclass(frozen=True)
class Folder:
    """A folder on disk. Links are followed; a link to a folder that it lies in is not."""

    root: Path
    names: Sequence[str]
    folders: Sequence[str]
    hidden: Sequence[str]

    @classmethod
    def at(cls, root: Path) -> Folder:
        """Everything below a folder. Raises UserError for a folder that cannot be looked into."""
        names, folders, hidden, runs = list[str](), list[str](), list[str](), list[str]()
        for name, entry in _walk(root):
            if entry.is_dir() and _is_run(root / name):
                runs.append(name)
            elif passed_over(entry.name):
                hidden.append(f"{name}/" if entry.is_dir() else name)
            elif entry.is_dir():
                folders.append(name)
            elif entry.is_file() or entry.is_symlink():  # of a link to nothing it is told as the picture is read
                names.append(name)
            else:  # pipes and devices, which would keep a reader waiting
                hidden.append(name)
        filled = {os.fspath(folder) for name in names for folder in PurePosixPath(name).parents}
        above = {os.fspath(folder) for run in runs for folder in PurePosixPath(run).parents} - filled
        hidden += [f"{run}/" for run in runs]
        return cls(root, in_order(names), in_order([each for each in folders if each not in above]), in_order(hidden))

    @property
    def title(self) -> str:
        return self.root.resolve().name

    def said(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str, most: int | None = None) -> bytes:
        with (self.root / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    def size(self, name: str) -> int:
        path = self.root / name
        return path.stat().st_size if path.exists() else 0

    def pictures(self, names: Sequence[str]) -> Pictures:
        return Files(self.root, names)


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry below a folder and its path from there; folders that are passed over are not entered."""
    top = root.stat()
    left = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while left:
        inside, above = left.pop()
        try:
            entries = list(os.scandir(root / inside))
        except OSError as error:
            raise UserError(
                f"the folder {root / inside} cannot be looked into ({error.strerror}); make it readable, or move it "
                "away."
            ) from error
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir() and not passed_over(entry.name) and not _is_run(root / name):
                found = entry.stat()
                own = (found.st_dev, found.st_ino)
                if own in above:
                    continue
                left.append((name, above | {own}))
            yield name, entry
