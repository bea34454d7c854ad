"""Image data sets in the Hugging Face layout: parquet files on disk, or a name on the hub.

Both arrive as Arrow tables: a column of encoded images (struct of bytes and path) and one of labels.
pyarrow reads the files themselves, since the `datasets` library would first copy them into a cache.
"""

import io
import json
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.data.dataset import Dataset, Splits, hold_out, split_at
from sde_diffusion.data.pictures import open_picture, stack_pictures
from sde_diffusion.errors import UserError

IMAGE_COLUMNS = ("img", "image", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
HELD_OUT = ("test", "validation", "valid", "val")


def huggingface(name: str, image_size: int = 0) -> Splits:
    """The images of a Hugging Face data set such as "uoft-cs/cifar10", uint8 [N, C, H, W].

    Without a test or validation part, a tenth is held out (always the same images).
    image_size: side of the square cut from each image, in pixels; 0 if all are of one size already.
    Raises UserError where the set cannot be fetched or holds no column of images.
    """
    if not name:
        raise UserError("name the Hugging Face data set, such as uoft-cs/cifar10.")
    import datasets

    try:
        parts = datasets.load_dataset(name)
    # The libraries below raise OSError, ValueError and httpx's own tree, and their releases differ.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"cannot load the Hugging Face data set {name!r} ({type(error).__name__}: {reason}). "
            "Check the name and the network; once fetched, it is read from its cache without a network."
        ) from error
    return splits_from_tables(
        {part: parts[part].with_format("arrow")[:] for part in parts if part in ("train", *HELD_OUT)},
        name,
        image_size,
    )


def read_parquet(root: Path) -> dict[str, Any]:
    """The pyarrow tables of root/train-*.parquet and root/test-*.parquet, by the name of the part.

    Raises UserError where a part is missing or a file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    tables = {}
    for part in ("train", "test"):
        files = sorted(root.glob(f"{part}-*.parquet"))
        if not files:
            raise UserError(f"{root} holds no {part}-*.parquet.")
        try:
            tables[part] = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{root}/{part}-*.parquet cannot be read ({error}); fetch the files again.") from error
    return tables


def splits_from_tables(tables: dict[str, Any], title: str, image_size: int = 0) -> Splits:
    """Decode pyarrow tables, by the name of the part, into a train and a held-out data set.

    Raises UserError where there is no "train" part or no column of images, or an image is broken.
    """
    if "train" not in tables:
        raise UserError(f"{title} has no train part.")
    chosen = {part: tables[part] for part in ("train", *HELD_OUT) if part in tables}
    parts = list(chosen)[:2]
    encoded = {part: encoded_images(chosen[part], title) for part in parts}
    images = [
        open_picture(io.BytesIO(data), f"{title}, image {row} of {part}", image_size)
        for part in parts
        for row, data in enumerate(encoded[part])
    ]
    column = next((name for name in LABEL_COLUMNS if name in chosen["train"].column_names), None)
    values = [] if column is None else [v for part in parts for v in chosen[part][column].to_pylist()]
    classes = () if column is None else _class_names(chosen["train"].schema, column, values)
    if classes and isinstance(values[0], str):
        values = [classes.index(value) for value in values]
    labels = torch.tensor(values) if classes else None
    whole = Dataset(stack_pictures(images, title), labels, 256, classes, title)
    return split_at(whole, len(encoded["train"])) if len(parts) > 1 else hold_out(whole)


def encoded_images(table: Any, title: str) -> list[bytes]:
    """The encoded image of each row of a pyarrow table. Raises UserError where it has none."""
    column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if column is None:
        raise UserError(
            f"{title} has the columns {', '.join(table.column_names)}; expected images in one of "
            f"{', '.join(IMAGE_COLUMNS)}."
        )
    rows = table[column].to_pylist()
    if not all(isinstance(row, dict) and (row.get("bytes") or row.get("path")) for row in rows):
        raise UserError(f"{title}: column {column} does not hold encoded images (bytes or a path) in every row.")
    try:
        return [row["bytes"] or Path(row["path"]).read_bytes() for row in rows]
    except OSError as error:
        raise UserError(f"{title}: column {column} points to a file that is not there ({error}).") from error


def _class_names(schema: Any, column: str, values: list[Any]) -> tuple[str, ...]:
    """The names that the Hugging Face metadata gives the labels, else the labels' own values."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(column, {}).get("names")
    if names:
        return tuple(names)
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(set(values)))
    if all(isinstance(value, int) for value in values):
        return tuple(str(index) for index in range(max(values) + 1))
    raise UserError(f"column {column} must hold whole numbers or names in every row.")
