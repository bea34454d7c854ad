"""Samples in one file: arrays of NumPy, the toolkit's own samples, and tables of numbers in CSV or parquet.

.npy      images uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]; or vectors of numbers [N, D]
.npz      these as "images" or "samples", beside them "labels" [N], "classes" [K], "attributes" and "targets" [N, R]
          with the names of their columns in "attributes_columns" and "targets_columns"
.csv      a line of names, and a vector of numbers a row; columns that are named for it tell the class and others
.parquet  the same
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.data.columns import Columns, Table, csv_table, labels_of, numbered_labels, numbers_of, told
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.data.mapped import Reading
from sde_diffusion.data.tables import LABEL_COLUMNS, first_line

SAMPLES = ("images", "samples", "x", "data", "arr_0")
VECTORS = ("attributes", "targets")
TELLING = ("labels", "classes", *VECTORS, *(f"{name}_columns" for name in VECTORS))
"""The arrays of an .npz that tell something of its samples."""
CHANNELS = (1, 3)


def load(root: str, reading: Reading, columns: Columns | None = None) -> Splits:
    """The samples of a file, of which a part is held out as of a folder.

    columns: of a table, which of them tell the class, attributes and targets; all others are the vector.
    Raises UserError for a file that is none of these, and for what cannot be a sample in it.
    """
    path = Path(root).expanduser()
    if not root or not path.is_file():
        raise UserError(
            f"there is no file {root!r}: data.root names one of {', '.join(READERS)} for data.dataset='array'"
        )
    read = choose("ending of a file of arrays", path.suffix.lower(), READERS)
    splits = Splits(*reading.parted(read(path, columns or Columns())), files={path.name: _crc(path)})
    return reading.only_memory(splits)


# --- arrays ---------------------------------------------------------------------------------------------------


def _npy(path: Path, columns: Columns) -> Dataset:
    return _of_arrays(path, {"samples": _loaded(path)}, columns)


def _npz(path: Path, columns: Columns) -> Dataset:
    return _of_arrays(path, _loaded(path), columns)


def _loaded(path: Path) -> Any:
    """An array, or arrays by name. Raises UserError for a damaged file, and for Python objects, which run code."""
    try:
        with np.errstate(all="ignore"):
            found = np.load(path, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        objects = "; arrays of Python objects are not read, since that runs code: store numbers" * (
            "allow_pickle" in str(error)
        )
        raise UserError(f"{path} cannot be read as arrays ({first_line(error)}){objects}") from error


def _of_arrays(path: Path, arrays: Mapping[str, np.ndarray], columns: Columns) -> Dataset:
    if columns.named:
        raise UserError(f"{path} has arrays and no columns: leave data.label_column and the like out")
    key = next((name for name in SAMPLES if name in arrays), None)
    if key and (unused := [name for name in arrays if name not in (key, *TELLING)]):
        warnings.warn(f"{path}: not read are {', '.join(unused)}, but {key} and {', '.join(TELLING)}", stacklevel=5)
    if key is None:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; samples are expected in one of {', '.join(SAMPLES)}"
        )
    samples = samples_of(arrays[key], f"{path}, {key!r}")
    conditions, names = dict[str, Tensor](), dict[str, tuple[str, ...]]()
    classes: tuple[str, ...] = ()
    if "labels" in arrays:
        conditions["labels"], classes = _labels(path, arrays)
    for vector in VECTORS:
        if vector in arrays:
            value = arrays[vector]
            if value.ndim != 2 or value.dtype.kind not in "buif":
                raise UserError(
                    f"{path}, {vector!r}: numbers [N, values] are expected, not {value.dtype} {value.shape}"
                )
            conditions[vector] = torch.from_numpy(value.astype(np.float32))
            if f"{vector}_columns" in arrays:
                names[vector] = tuple(map(str, arrays[f"{vector}_columns"].tolist()))
    for name, told_of in conditions.items():
        if len(told_of) != len(samples):
            raise UserError(f"{path}: {name!r} has {len(told_of)} rows, and there are {len(samples)} samples")
    return Dataset.from_tensors(samples, conditions, classes=classes, columns=names, title=path.stem)


def _labels(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, tuple[str, ...]]:
    labels, names = arrays["labels"], tuple(map(str, np.atleast_1d(arrays.get("classes", np.array([]))).tolist()))
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(f"{path}, 'labels': whole numbers or names [N] are expected, not {labels.dtype} {labels.shape}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}, 'classes': two of them have one name: {', '.join(names)}")
    if labels.dtype.kind == "U":
        return labels_of(labels.tolist(), f"{path}, 'labels'", [f"row {i}" for i in range(len(labels))])
    most = int(labels.max(initial=-1))
    if int(labels.min(initial=0)) < 0 or (names and most >= len(names)):
        raise UserError(f"{path}: 'labels' run from {labels.min()} to {most}, and there are {len(names)} 'classes'")
    numbers, numbered = numbered_labels(labels.tolist(), f"{path}, 'labels'")
    return numbers, names or numbered


def samples_of(array: np.ndarray, where: str) -> Tensor:
    """Samples as a set stores them: images uint8 [N, C, H, W], or vectors float32 [N, D].

    Of four axes the channels are the last where that has 1 or 3 entries, else the second. Raises UserError for anything
    that is neither.
    """
    if (array.dtype.kind in "f" and array.ndim == 2) or (array.dtype.kind in "iub" and array.ndim == 2):
        vectors = array.astype(np.float32)
        if not np.isfinite(vectors).all():
            row, column = np.argwhere(~np.isfinite(vectors))[0]
            raise UserError(f"{where}, row {row}, column {column}: {array[row, column]} is no finite number")
        return torch.from_numpy(vectors)
    images = array[..., None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or images.ndim != 4 or not {images.shape[3], images.shape[1]} & set(CHANNELS):
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}: expected are images uint8 [N, H, W, C], [N, C, H, W] or "
            "[N, H, W] of 1 or 3 channels (of numbers in 0..1, round 255 times them), or vectors [N, D]"
        )
    last = images.shape[3] in CHANNELS
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if last else images))


# --- tables ---------------------------------------------------------------------------------------------------


def _csv(path: Path, columns: Columns) -> Dataset:
    try:
        return _of_table(path, csv_table(path.read_bytes(), str(path)), columns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8 ({error})") from error


def _parquet(path: Path, columns: Columns) -> Dataset:
    with extra("data"):
        import pyarrow
        import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet ({first_line(error)})") from error
    return _of_table(path, {name: table.column(name).to_pylist() for name in table.column_names}, columns)


def _of_table(path: Path, table: Table, columns: Columns) -> Dataset:
    """A table as vectors, with what the named columns tell, and the class by a column that is called so."""
    size = len(next(iter(table.values()), ()))
    if not size:
        raise UserError(f"{path} has no rows")
    rows = [f"row {number}" for number in range(1, size + 1)]
    usual = next((name for name in LABEL_COLUMNS if name in table and name not in columns.named), "")
    own = columns if columns.label else replace(columns, label=usual)
    found = told({name: table[name] for name in table if name in own.named} if own.named else {}, own, str(path), rows)
    rest = [name for name in table if name not in own.named]
    if not rest:
        raise UserError(f"{path}: every column tells something of the samples, and none is left to be their vector")
    vectors = [numbers_of(table[name], f"{path}, column {name}", rows, remedy(name)) for name in rest]
    conditions = {**({} if found.labels is None else {"labels": found.labels}), **found.others}
    table64 = np.stack(vectors, axis=1)
    if (far := np.argwhere(np.abs(table64) > np.finfo(np.float32).max)).size:
        row, column = far[0]
        raise UserError(
            f"{path}, column {rest[column]}, {rows[row]}: {table64[row, column]:g} is beyond 32 bits; scale it"
        )
    samples = torch.from_numpy(table64.astype(np.float32))
    return Dataset.from_tensors(samples, conditions, classes=found.classes, columns=found.columns, title=path.stem)


def remedy(name: str) -> str:
    """What can be done where a column of a vector holds what is no number."""
    return f"fill or remove the row, or tell what the column is for: data.label_column={name}"


def _crc(path: Path) -> int:
    """The CRC-32 of a file, a mebibyte at a time."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


READERS: dict[str, Callable[[Path, Columns], Dataset]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Files of samples by their ending."""
