"""Sheets and rows of pictures: every pixel is where it belongs, of squares and of rectangles."""

from __future__ import annotations

import numpy as np
import pytest

from sde_diffusion.report.html import shape_of
from sde_diffusion.report.pictures import BORDER, PAPER, strip, tiles


@pytest.mark.parametrize(
    ("size", "count", "columns"),
    [((64, 64), 6, 3), ((64, 192), 6, 2), ((192, 64), 6, 5), ((64, 640), 3, 1), ((640, 64), 3, 3), ((70, 90), 1, 1)],
)
def test_a_sheet_keeps_every_pixel_and_is_about_square(size: tuple[int, int], count: int, columns: int) -> None:
    height, width = size
    images = np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)
    sheet, rows = tiles(images), -(-count // columns)
    assert sheet.shape == (rows * (height + BORDER) + BORDER, columns * (width + BORDER) + BORDER, 3)
    paper = np.ones(sheet.shape[:2], bool)
    for index, image in enumerate(images):
        top, left = BORDER + index // columns * (height + BORDER), BORDER + index % columns * (width + BORDER)
        assert np.array_equal(sheet[top : top + height, left : left + width], image)
        paper[top : top + height, left : left + width] = False
    assert (sheet[paper] == PAPER).all()


@pytest.mark.parametrize(("size", "count"), [((4, 6), 3), ((8, 8), 9), ((6, 4), 5)])
def test_the_page_draws_no_lines_over_a_row_that_has_gaps(size: tuple[int, int], count: int) -> None:
    """Not even where its width is a multiple of its height by chance."""
    images = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    row = strip(images)
    for index, image in enumerate(images):
        left = index * (size[1] + 1)
        assert np.array_equal(row[:, left : left + size[1], :3], image)
        assert (row[:, left : left + size[1], 3] == 255).all() and not row[:, left + size[1] : left + size[1] + 1].any()
    assert row.shape[1] == count * (size[1] + 1) - 1
    assert shape_of(row)["tiles"] == 1
    plain = images.transpose(1, 0, 2, 3).reshape(size[0], -1, 3)
    assert size[0] != size[1] or shape_of(plain)["tiles"] == count
