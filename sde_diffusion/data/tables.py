"""Encoded images in the rows of an Arrow table: the column that holds them, that of the labels, and the classes."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra

IMAGE_COLUMNS = ("img", "image", "images", "pixel_values")
FILES = b"sde_diffusion.files"  # in the metadata of a table: where its files lie, "|", and their digest
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


@dataclass(frozen=True, eq=False)
class Rows:
    """The encoded images of a table, or of another that has its columns (a pyarrow table, or one of `datasets`)."""

    table: Any
    column: str
    title: str

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def name(self, index: int) -> str:
        return f"{self.title}, image {index}"

    def fingerprint(self) -> tuple[str, str]:
        where, _, what = (self.table.schema.metadata or {}).get(FILES, b"").decode().rpartition("|")
        return where, what

    def open(self, index: int) -> Path | io.BytesIO:
        row = self.table.column(self.column)[index].as_py()
        if row.get("bytes"):
            return io.BytesIO(row["bytes"])
        if row.get("path"):
            return Path(row["path"])
        raise ValueError("it has neither bytes nor a path")


def rows_of(table: Any, title: str) -> Rows:
    """The images of a table. Raises UserError where it has no column of encoded images."""
    return Rows(table, image_column(table.schema, title), title)


def image_column(schema: Any, title: str) -> str:
    """The name of the column of images. Raises UserError where there is none, or none of encoded images."""
    with extra("data"):
        import pyarrow

    column = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if column is None:
        raise UserError(
            f"{title} has the columns {', '.join(schema.names)}; expected images in one of {', '.join(IMAGE_COLUMNS)}."
        )
    kind = schema.field(column).type
    if not (pyarrow.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}):
        raise UserError(f"{title}: column {column} does not hold encoded images (bytes and a path).")
    return column


def label_column(schema: Any) -> str | None:
    """The name of the column of labels, if there is one."""
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)


def declared_classes(schema: Any, column: str) -> tuple[str, ...]:
    """The names that the Hugging Face metadata gives the labels; () without them."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get(column, {}).get("names") or ())


def first_line(error: BaseException) -> str:
    """What an error of a library says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
