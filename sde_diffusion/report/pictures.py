"""Arrays of samples become pictures that a person can read."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.core.packages import extra

Picture = NDArray[np.uint8]

TILE = 64
"""Smallest side of a tile in pixels: smaller images are enlarged."""
BORDER = 4
"""Pixels between tiles; without them neighbouring images run into one another."""
PAPER = 255
"""Grey level of the borders."""
ROWS, COLUMNS = 16, 12
"""Of a picture with a row for each class: of more classes it is a plain sheet, and longer rows are cut."""
TEXT, LONGEST = 14, 18
"""Of the classes' names: the size in pixels, and the characters that are shown."""


def _enlarged(image: Picture) -> Picture:
    """An image [H, W, 3] enlarged smoothly, by a whole factor, until its smaller side has TILE pixels."""
    with extra("report"):
        from PIL import Image

    height, width = image.shape[:2]
    factor = math.ceil(TILE / min(height, width))
    if factor == 1:
        return image
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def tiles(images: Picture, columns: int = 0) -> Picture:
    """Images [N, H, W, C], C = 1 or 3, as one picture [h, w, 3] with borders; about square unless columns are given."""
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    shown = [_enlarged(image) for image in images]
    height, width = shown[0].shape[:2]
    columns = columns or min(len(shown), math.ceil(math.sqrt(len(shown) * height / width)))
    rows = math.ceil(len(shown) / columns)
    sheet = np.full((rows * (height + BORDER) + BORDER, columns * (width + BORDER) + BORDER, 3), PAPER, dtype=np.uint8)
    for index, image in enumerate(shown):
        top = BORDER + index // columns * (height + BORDER)
        left = BORDER + index % columns * (width + BORDER)
        sheet[top : top + height, left : left + width] = image
    return sheet


def strip(images: Picture, gap: int = 1) -> Picture:
    """Images [N, H, W, C], C = 1 or 3, in one row [H, w, 4], as they are, with a few clear pixels between them."""
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    opaque = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    spaced = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0)))
    return np.concatenate(list(spaced), axis=1)[:, : -gap or None]


Box = NDArray[np.float64]
"""A part of the plane: centre (x, y) and half of the side."""


def box(points: NDArray[np.floating]) -> Box:
    """The square that holds almost all of points [N, 2], and some room around them."""
    low, high = np.percentile(points[:, :2], [0.2, 99.8], axis=0)
    return np.array([*((low + high) / 2), 0.6 * float((high - low).max()) + 1e-6])


def density(points: NDArray[np.floating], side: int = 512, within: Box | None = None) -> Picture:
    """The density of points [N, 2] (the first two coordinates of longer vectors), dark on white, [side, side, 3].

    within: the part of the plane that is shown, that of `box` unless it is given.
    """
    cells = 96
    *centre, half = box(points) if within is None else within
    edges = [np.linspace(c - half, c + half, cells + 1) for c in centre]
    counts, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    shade = np.sqrt(counts / max(counts.max(), 1.0))
    image = (255 * (1.0 - shade.T[::-1])).round().astype(np.uint8)
    factor = math.ceil(side / cells)
    return np.repeat(np.kron(image, np.ones((factor, factor), dtype=np.uint8))[..., None], 3, axis=-1)


def picture(samples: NDArray[np.generic], columns: int = 0) -> Picture:
    """Samples as a picture: images uint8 [N, H, W, C] as tiles, vectors [N, D] as a density."""
    if samples.dtype == np.uint8:
        return tiles(samples.astype(np.uint8, copy=False), columns)
    points = samples.reshape(len(samples), -1).astype(np.float64)
    return density(points if points.shape[1] > 1 else np.repeat(points, 2, axis=1))


def by_class(samples: NDArray[np.generic], labels: NDArray[np.integer], names: Sequence[str]) -> Picture:
    """Samples as a picture; images of some classes, by number [N], have a row for each, with its name before it."""
    drawn = sorted(set(labels.tolist()))
    if samples.dtype != np.uint8 or not 1 < len(drawn) <= ROWS:
        return picture(samples)
    return class_rows(
        samples.astype(np.uint8, copy=False), labels, {label: _heading(label, names[label]) for label in drawn}
    )


def _heading(label: int, name: str) -> str:
    return name if name == str(label) else f"{label} = {name}"


def class_rows(images: Picture, labels: NDArray[np.integer], names: Mapping[int, str]) -> Picture:
    """Images [N, H, W, C], a row for each class with its first COLUMNS ones, and the name of the class before it."""
    rows = {label: images[labels == label][:COLUMNS] for label in names}
    columns = max(map(len, rows.values()))
    blank = np.full((1, *images.shape[1:]), PAPER, dtype=np.uint8)
    filled = [np.concatenate([row, np.repeat(blank, columns - len(row), axis=0)]) for row in rows.values()]
    sheet = tiles(np.concatenate(filled), columns)
    return np.concatenate([_names(list(names.values()), sheet.shape[0]), sheet], axis=1)


def _names(names: Sequence[str], height: int) -> Picture:
    """A column [height, w, 3] of names at the same distances from one another."""
    with extra("report"):
        from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=TEXT)
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    width = max(math.ceil(font.getlength(name)) for name in shown) + 2 * BORDER
    column = Image.new("RGB", (width, height), (PAPER,) * 3)
    for index, name in enumerate(shown):
        middle = BORDER + (index + 0.5) * (height - BORDER) / len(shown)
        ImageDraw.Draw(column).text((width - BORDER, middle), name, fill=(0, 0, 0), font=font, anchor="rm")
    return np.asarray(column)


def png(image: Picture) -> bytes:
    """A picture [h, w, 3] as a PNG file."""
    with extra("report"):
        from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
