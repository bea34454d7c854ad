"""The data of a run: in the order of the network's classes, with what changed since the training began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from sde_diffusion.core.conditions import Conditions, rows_of
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset, Source, Splits
from sde_diffusion.data.dataset import SPLIT_SEED
from sde_diffusion.data.mapped import Mapped
from sde_diffusion.data.naming import by_class_names, by_column_names, few, numbered, numbers_only
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.files import write_aside

FILES = "data_files.tsv"
"""Of a run folder: the bytes and the name of each file that the training reads, a line each."""
EXAMPLES = 256
"""Training samples whose conditions a checkpoint keeps."""


def in_names_of(trained: Checkpoint, data: Source, *, all_of_them: bool = True) -> Source:
    """Data whose labels and vectors are those of a network, matched by name; what had to be matched is printed.

    all_of_them: whether every class of the network must be one of the data. Raises UserError for other classes and
    columns than those that the network is told.
    """
    told = trained.spec.conditions
    if "labels" in told and data.classes and trained.classes:
        found = by_class_names(data, trained.classes, all_of_them=all_of_them)
        if numbers_only(trained.classes) and not numbers_only(data.classes):
            print(f"the network's classes have numbers and no names; they are taken for {numbered(data.classes)}")
        elif found.classes != data.classes:
            print(
                f"the classes of {data.title} come as {few(data.classes)}; they are matched by name to the network's "
                f"{numbered(trained.classes)}"
            )
        data = found
    matched = by_column_names(data, trained.columns, told)
    if matched is not data:
        print(f"the columns of {data.title} come in another order; they are matched by name to the network's")
    return matched


def splits_of(settings: Settings, trained: Checkpoint, splits: Splits | None = None) -> Splits:
    """The data of the configuration in the names of a network, as `in_names_of` has them.

    In a network's training every class is there; held-out samples may lack some.
    """
    found = splits or settings.splits()
    train = in_names_of(trained, found.train)
    same = train.classes == found.train.classes and train.columns == found.train.columns
    test = found.test
    if test is not None and not same:
        other = by_column_names(by_class_names(test, train.classes, all_of_them=False), train.columns, [*train.columns])
        assert isinstance(other, Dataset)  # which it was
        test = other
    return replace(found, train=train, test=test)


def examples_of(data: Source, spec: NetworkSpec) -> Conditions:
    """The conditions of some training samples in a random order, the same at each call, of a network that is told
    vectors: its samples are told these unless others are asked for. {} for another network, and of a stream."""
    if not spec.options.get("vectors") or not isinstance(data, Dataset | Mapped):
        return {}
    picked = torch.randperm(len(data), generator=seeded(SPLIT_SEED))[:EXAMPLES]
    return rows_of({name: data.conditions[name] for name in spec.conditions if name in data.conditions}, picked)


def size_of(dataset: Source) -> str:
    """How many samples a set has, in words."""
    return "a stream of" if dataset.size is None else f"{dataset.size:,}"


def announce(splits: Splits) -> None:
    """Print what samples come with: the classes with their numbers, and the columns of each vector; what is missing."""
    data = splits.train
    if data.classes:
        print(numbered(data.classes))
    for vector, names in data.columns.items():
        print(f"{len(names)} {vector}: {few(names)}")
    if splits.test is None:
        print(
            f"nothing is held out of {data.title}: there are no held-out losses, and no bits/dim of samples that the "
            "network has not seen"
        )


def note_files(folder: Path, files: Mapping[str, int], begun: bool) -> None:
    """Keep the names and sizes of the files that a training reads; begun: say how they differ from those before."""
    path, files = folder / FILES, {_line(name): size for name, size in files.items()}
    if begun and path.exists() and files:
        changed = changes(read_files(path), files)
        if changed:
            print(f"the data have changed since the last session: {changed}; the training goes on with what is there")
    if files:
        write_aside(path, "".join(f"{size}\t{name}\n" for name, size in files.items()).encode())


def changes(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """How files differ in words, such as "2 files came, 1 went"; "" for none."""
    came, went = now.keys() - before.keys(), before.keys() - now.keys()
    other = [name for name in now.keys() & before.keys() if now[name] != before[name]]
    said = [
        f"{len(found):,} file{'s' * (len(found) > 1)} {verb} ({few(sorted(found)[:2])}{', ...' * (len(found) > 2)})"
        for found, verb in ((came, "came"), (went, "went"), (other, "changed"))
        if found
    ]
    return ", ".join(said)


def read_files(path: Path) -> dict[str, int]:
    """The files that a run folder has noted. Raises UserError where its list is damaged."""
    try:
        rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        return {name: int(size) for size, name in rows}
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no list of files ({error}); remove it, and it is made again") from error


def _line(name: str) -> str:
    """A name on one line that any encoding holds."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return escaped.encode("utf-8", "backslashreplace").decode()
