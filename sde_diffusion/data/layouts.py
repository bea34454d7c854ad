"""Which data set reads what lies at a place, for a person who has named another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from sde_diffusion.data.formats import ending, endings

CIFAR10_FILES = frozenset({"cifar-10-binary.tar.gz", "test_batch.bin"})

LAYOUTS: dict[str, Callable[[str], bool]] = {
    "cifar10": lambda name: PurePosixPath(name).name in CIFAR10_FILES or ending(name) == ".parquet",
    "array": lambda name: ending(name) in (".npy", ".npz", ".csv"),
    "webdataset": lambda name: ending(name) == ".tar",
    "folder": lambda name: ending(name) in endings(),
}
"""For each data set that is read from a place: whether a file of this name is one that it reads."""


def belonging(names: Iterable[str], asked: str) -> str:
    """A sentence that names the data set which reads some of these files, in place of the one `asked`; or ""."""
    others = {kind: reads for kind, reads in LAYOUTS.items() if kind != asked}
    for name in names:
        kind = next((kind for kind, reads in others.items() if reads(name)), None)
        if kind is not None:
            return f"It holds {name}, which is read by data.dataset={kind}."
    return ""


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, in words."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
