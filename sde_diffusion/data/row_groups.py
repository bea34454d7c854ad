"""The row groups of parquet files as pieces of a set that streams by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra
from sde_diffusion.data.columns import numbered_labels
from sde_diffusion.data.lanes import Encoded, Span
from sde_diffusion.data.tables import declared_classes, first_line, image_column, label_column

CHUNK = 64  # rows that are taken from a row group at once
BUFFER = 1 << 20  # bytes of a column that are read at once


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Parquet files in the Hugging Face layout, of which each row group is a piece.

    Of a row group the columns of images and labels are read, from its first page on, whatever the row that is wanted.
    """

    files: tuple[Path, ...]
    footers: tuple[Any, ...]
    title: str
    image: str
    label: str | None
    classes: tuple[str, ...]

    @classmethod
    def of(cls, files: Sequence[Path], title: str, every: Sequence[Path] = ()) -> RowGroups:
        """every: the files of all parts, by whose labels the classes are known where these files do not name them.

        Raises UserError for a file that is no parquet file, and one without encoded images."""
        with extra("data"):
            import pyarrow.parquet

        footers = []
        for file in files:
            try:
                footers.append(pyarrow.parquet.read_metadata(file))
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{file} cannot be read ({first_line(error)}); fetch it again.") from error
        schema = footers[0].schema.to_arrow_schema()
        label = label_column(schema)
        classes = () if label is None else declared_classes(schema, label) or _found(every or files, label, title)
        return cls(tuple(files), tuple(footers), title, image_column(schema, title), label, classes)

    @cached_property
    def _groups(self) -> dict[tuple[int, int], int]:
        """The number of each row group by its shard and its first row."""
        found = {}
        for shard, footer in enumerate(self.footers):
            first = 0
            for group in range(footer.num_row_groups):
                found[shard, first] = group
                first += footer.row_group(group).num_rows
        return found

    def spans(self) -> list[Span]:
        sizes = ((place, self.footers[place[0]].row_group(group).num_rows) for place, group in self._groups.items())
        return [Span(shard, first, first + rows) for (shard, first), rows in sizes if rows]

    def signature(self) -> str:
        return repr([(file.name, footer.num_rows) for file, footer in zip(self.files, self.footers)])

    def read(self, span: Span) -> Iterator[Encoded]:
        with extra("data"):
            import pyarrow.parquet

        file = self.files[span.shard]
        start = max(first for shard, first in self._groups if shard == span.shard and first <= span.first)
        row, group = start, self._groups[span.shard, start]
        columns = [self.image, *([self.label] if self.label else [])]
        try:
            # Opened by Python and not mapped, so that no more than these columns is ever read.
            with open(file, "rb", buffering=0) as source:
                reader = pyarrow.parquet.ParquetFile(source, metadata=self.footers[span.shard], buffer_size=BUFFER)
                for batch in reader.iter_batches(CHUNK, row_groups=[group], columns=columns, use_threads=False):
                    for number, encoded in enumerate(self._encoded(batch, file, row), row):
                        if number >= span.stop:
                            return
                        if number >= span.first:
                            yield encoded
                    row += len(batch)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{file} cannot be read on from row {row} ({first_line(error)}); fetch it again."
            ) from error

    def _encoded(self, batch: Any, file: Path, row: int) -> Iterator[Encoded]:
        images = batch.column(self.image).to_pylist()
        labels = batch.column(self.label).to_pylist() if self.label else [None] * len(images)
        number_of = {name: index for index, name in enumerate(self.classes)}
        for number, (image, label) in enumerate(zip(images, labels), row):
            label = number_of.get(label, label) if isinstance(label, str) else label
            if self.label and not (isinstance(label, int) and 0 <= label < len(self.classes)):
                raise UserError(f"{file}: column {self.label} must hold the number of a class in every row.")
            image = image or {}
            content = image.get("bytes") or Path(image.get("path") or "")
            yield Encoded(f"{file.name}, row {number}", content, label)


def _found(files: Sequence[Path], column: str, title: str) -> tuple[str, ...]:
    """The classes by the labels of all rows, where the files do not name them. Raises UserError for a file without."""
    with extra("data"):
        import pyarrow.parquet

    found = set[Any]()
    for file in files:
        try:
            found |= set(pyarrow.parquet.read_table(file, columns=[column]).column(column).unique().to_pylist())
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            raise UserError(f"{file}: column {column} cannot be read ({first_line(error)}); fetch it again.") from error
    if all(isinstance(label, str) for label in found):
        return tuple(sorted(found))
    if not all(type(label) is int and label >= 0 for label in found):
        raise UserError(f"{title}: column {column} must hold the number of a class, or its name, in every row.")
    return numbered_labels(list(found), f"{title}, column {column}")[1]
