"""The parts of a run that are formulas."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs import base
from sde_diffusion.data import DataTransform
from sde_diffusion.pipelines.batch import stored
from sde_diffusion.report.pictures import BORDER, PAPER, TILE, by_class, density, tiles
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.settings.root import Settings

settings_of = Settings.from_config


def test_learning_rate() -> None:
    """Linear warm-up, a plateau, and a half cosine to 0."""

    def factor(step: int, warmup: int, cooldown: int) -> float:
        config = base.get_config()
        config.training.update(steps=1000, learning_rate=2e-4, warmup_steps=warmup, cooldown_steps=cooldown)
        return settings_of(config).training.rates()(step) / 2e-4

    assert factor(0, 10, 0) == pytest.approx(0.1)
    assert factor(9, 10, 0) == factor(999, 10, 0) == 1.0
    assert factor(750, 10, 500) == pytest.approx(0.5)
    assert factor(1000, 10, 500) == 0.0
    assert factor(499, 0, 500) == pytest.approx(0.5 - 0.5 * math.cos(math.pi))


def test_stored_images_are_the_grey_levels_they_came_from() -> None:
    """Sampling inverts the transform, the mean included: exact for every level."""
    levels = torch.arange(17, dtype=torch.uint8).reshape(17, 1, 1, 1).expand(17, 1, 2, 2)
    transform = DataTransform(17, mean=0.3 * torch.ones(1, 2, 2))
    arrays = stored(transform, transform.encode(levels), {})
    np.testing.assert_array_equal(arrays["images"][:, 0, 0, 0], np.round(np.arange(17) * 255 / 16))


def test_pictures_of_classes_have_a_row_for_each() -> None:
    """In the order of their numbers, behind their names; of one class or of very many they are a sheet."""
    shades = np.array([10, 20, 30, 40, 50], dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (5, 8, 8, 1))
    labels, step = np.array([2, 0, 2, 0, 2]), TILE + BORDER
    rows = by_class(images, labels, ("cat", "dog", "emu"))
    shown = np.array([20, 40, PAPER, 10, 30, 50], dtype=np.uint8)
    behind = tiles(np.broadcast_to(shown[:, None, None, None], (6, 8, 8, 1)), columns=3)
    assert np.array_equal(rows[:, -3 * step - BORDER :], behind)
    names = rows[:, : -3 * step - BORDER]
    assert all((names[top : top + step] < 100).any() for top in (0, step))
    assert np.array_equal(by_class(images, labels * 0, ("cat",)), tiles(images))
    many = np.repeat(images, 4, axis=0)
    assert np.array_equal(by_class(many, np.arange(20), list(map(str, range(20)))), tiles(many))


def test_tiles_have_borders_and_keep_their_order() -> None:
    shades = np.array([0, 50, 100, 150, 200], dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (5, 8, 8, 1))
    sheet = tiles(images, columns=3)
    assert sheet.shape == (2 * (TILE + BORDER) + BORDER, 3 * (TILE + BORDER) + BORDER, 3)
    for index, shade in enumerate(shades):
        top, left = (BORDER + (TILE + BORDER) * part for part in divmod(index, 3))
        assert (sheet[top : top + TILE, left : left + TILE] == shade).all()
    assert (sheet[:BORDER] == PAPER).all() and (sheet[-TILE:, -TILE:] == PAPER).all()


def test_small_images_are_enlarged_smoothly() -> None:
    """An edge between two pixels passes through grey levels between them."""
    image = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    image[:, :, 4:] = 200
    row = tiles(image)[BORDER + TILE // 2, BORDER : BORDER + TILE, 0]
    assert len(np.unique(row[24:40])) > 4 and row[2] == 0 and row[-3] == 200


def test_density_is_dark_where_points_are() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal((-1, -1), 0.05, (500, 2)), rng.normal((1, 1), 0.05, (500, 2))])
    sheet = density(points)
    half = len(sheet) // 2
    corners = [sheet[half:, :half], sheet[:half, half:], sheet[:half, :half], sheet[half:, half:]]
    assert [bool((corner < 128).any()) for corner in corners] == [True, True, False, False]


def test_table_is_aligned() -> None:
    text = table([{"name": "ddim", "nfe": 50}, {"name": "heun", "nfe": 1999}])
    assert text.splitlines() == ["name   nfe", "----  ----", "ddim    50", "heun  1999"]


def test_long_cells_go_on_below() -> None:
    rows = wrapped([{"name": "pc", "what": "one, two, three", "none": ""}], {"what": 9})
    assert rows == [
        {"name": "pc", "what": "one, two,", "none": ""},
        {"name": "", "what": "three", "none": ""},
    ]


def test_pictures_are_png(tmp_path: Path) -> None:
    from sde_diffusion.report.pictures import png

    (tmp_path / "a.png").write_bytes(png(np.zeros((4, 6, 3), dtype=np.uint8)))
    assert Image.open(tmp_path / "a.png").size == (6, 4)
