"""Image data sets in the Hugging Face layout: parquet files on disk, or a name on the hub.

Both are Arrow tables: a column of encoded images (struct of bytes and path) and one of labels. In memory, pyarrow reads
the files itself; mapped, the `datasets` library copies them once into its cache, from which the system maps what is
read; streaming, files on disk are read by row groups (row_groups.py), and those of the hub by that library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra
from sde_diffusion.data.columns import numbered_labels
from sde_diffusion.data.dataset import Splits
from sde_diffusion.data.lanes import in_lanes
from sde_diffusion.data.mapped import Mapped, Reading, kept
from sde_diffusion.data.pictures import common_shape
from sde_diffusion.data.places import stamps
from sde_diffusion.data.row_groups import RowGroups
from sde_diffusion.data.streamed import streamed
from sde_diffusion.data.tables import FILES, Rows, declared_classes, first_line, label_column, rows_of

HELD_OUT = ("test", "validation", "valid", "val")


def huggingface(name: str, reading: Reading) -> Splits:
    """The images of a Hugging Face data set such as "uoft-cs/cifar10", uint8 [N, C, H, W].

    Without a test or validation part, a part of it is held out (always the same images).
    Raises UserError where the set cannot be fetched or holds no column of images.
    """
    if not name:
        raise UserError("name the Hugging Face data set, such as uoft-cs/cifar10.")
    with extra("data"):
        import datasets

    try:
        parts = datasets.load_dataset(name, **_how(reading))
    # The libraries below raise OSError, ValueError and httpx's own tree, and their releases differ.
    except Exception as error:
        raise UserError(
            f"cannot load the Hugging Face data set {name!r} ({type(error).__name__}: {first_line(error)}). "
            "Check the name and the network; once fetched, it is read from its cache without a network."
        ) from error
    return _splits(dict(parts), name, reading)


def parquet(root: Path, title: str, reading: Reading) -> Splits:
    """root/train-*.parquet and root/test-*.parquet. Raises UserError where one is missing or damaged."""
    files = parquet_files(root)
    try:
        if reading.streams:
            every = [file for found in files.values() for file in found]
            train, test = (RowGroups.of(files[part], title, every) for part in ("train", "test"))
            return in_lanes(train, test, reading)
        if not _small(files, title, reading):
            with extra("data"):
                import datasets

            names = {part: [str(file) for file in paths] for part, paths in files.items()}
            return _splits(dict(datasets.load_dataset("parquet", data_files=names, **_how(reading))), title, reading)
        return splits_from_tables({part: _read(paths) for part, paths in files.items()}, title, reading)
    except UserError:
        raise
    except Exception as error:  # those of pyarrow, and of `datasets`, which wraps them in its own
        cause = first_line(error.__cause__ or error)
        raise UserError(f"{root}/*.parquet cannot be read ({cause}); fetch the files again.") from error


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The parquet files of each part, by its name. Raises UserError where a part has none."""
    files = {part: sorted(root.glob(f"{part}-*.parquet")) for part in ("train", "test")}
    for part, found in files.items():
        if not found:
            raise UserError(f"{root} holds no {part}-*.parquet.")
    return files


def first_row(file: Path, title: str) -> Rows:
    """A parquet file's first image alone. Raises UserError where the file is damaged or has none."""
    with extra("data"):
        import pyarrow
        import pyarrow.parquet

    try:
        batch = next(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1))
    except (OSError, StopIteration, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); fetch it again.") from error
    return rows_of(pyarrow.Table.from_batches([batch]), title)


def splits_from_tables(tables: Mapping[str, Any], title: str, reading: Reading) -> Splits:
    """Tables, by the name of the part, as a train and a held-out data set.

    Raises UserError where there is no "train" part or no column of images.
    """
    chosen = two_parts(tables, title)
    pictures = [rows_of(table, f"{title}, {part}") for part, table in chosen.items()]
    shape = common_shape(pictures, reading.cut, title, reading.decoding)
    labels, classes = _labels(list(chosen.values()), title)
    parts = [
        Mapped(
            *(rows, torch.arange(len(rows)), own, classes, title, shape, reading.cut, reading.corrupt_limit),
            decoding=reading.decoding,
        )
        for rows, own in zip(pictures, labels)
    ]
    return kept(parts[0], parts[1] if len(parts) > 1 else None, reading)


def two_parts(parts: Mapping[str, Any], title: str) -> dict[str, Any]:
    """The training part, and the first one that may be held out. Raises UserError where there is none to train on."""
    if "train" not in parts:
        raise UserError(f"{title} has no train part.")
    return dict([(part, parts[part]) for part in ("train", *HELD_OUT) if part in parts][:2])


def _labels(tables: Sequence[Any], title: str) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The labels of each table and the names of the classes: the declared ones, else the labels' own values."""
    column = label_column(tables[0].schema)
    if column is None:
        return [None] * len(tables), ()
    values = [table.column(column).to_pylist() for table in tables]
    together = [value for part in values for value in part]
    text = all(isinstance(value, str) for value in together)
    if not text and not all(isinstance(value, int) for value in together):
        raise UserError(f"{title}: column {column} must hold whole numbers or names in every row.")
    own = tuple(sorted(set(together))) if text else numbered_labels(together, f"{title}, column {column}")[1]
    classes = declared_classes(tables[0].schema, column) or own
    number = {name: index for index, name in enumerate(classes)}
    return [torch.tensor([number[v] if text else v for v in part], dtype=torch.int64) for part in values], classes


def _how(reading: Reading) -> dict[str, bool]:
    """The arguments of `load_dataset`; none that it has not always had."""
    return {"streaming": True} if reading.streams else {}


def _splits(parts: Mapping[str, Any], title: str, reading: Reading) -> Splits:
    """What `load_dataset` gives, streaming or mapped."""
    if reading.streams:
        return streamed(two_parts(parts, title), title, reading)
    return splits_from_tables({name: part.data for name, part in parts.items()}, title, reading)


def _small(files: Mapping[str, Sequence[Path]], title: str, reading: Reading) -> bool:
    """Whether the training part is to be decoded in memory, by its number of rows and its first image."""
    with extra("data"):
        import pyarrow.parquet

    first = [first_row(found[0], title) for found in files.values()]
    count = sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files["train"])
    return reading.in_memory(count, common_shape(first, reading.cut, title, reading.decoding))


def _read(files: Sequence[Path]) -> Any:
    with extra("data"):
        import pyarrow
        import pyarrow.parquet

    table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
    known = f"{files[0].resolve()}|{stamps(files)}".encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), FILES: known})
