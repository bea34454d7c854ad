"""Pictures of any size in one size: cut, padded and stretched to known pixels, squares and rectangles alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, load_pictures, load_splits
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.inputs import load_inputs

WHITE = 255


def numbered(height: int, width: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] whose every pixel is another colour."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, 7 * rows + 11 * columns], axis=-1).astype(np.uint8)


def cut(picture: NDArray[np.uint8], size: int | tuple[int, int], fit: str, **others: str) -> NDArray[np.uint8]:
    return np.asarray(Cut(size, fit=fit, **others).fitted(Image.fromarray(picture)))


@pytest.mark.parametrize(("own", "size"), [((6, 11), (6, 6)), ((6, 11), (6, 8)), ((11, 6), (4, 6)), ((5, 7), (5, 7))])
def test_what_covers_the_size_is_cut_to_its_middle(own: tuple[int, int], size: tuple[int, int]) -> None:
    """Without resizing, so that pixels are what they were."""
    picture, (height, width) = numbered(*own), size
    top, left = (own[0] - height) // 2, (own[1] - width) // 2
    assert np.array_equal(cut(picture, size, "crop"), picture[top : top + height, left : left + width])


@pytest.mark.parametrize(("own", "size"), [((4, 6), (8, 6)), ((4, 6), (4, 13)), ((6, 4), (6, 6)), ((5, 7), (5, 7))])
def test_what_fits_is_set_into_the_middle_of_the_background(own: tuple[int, int], size: tuple[int, int]) -> None:
    picture, expected = numbered(*own), np.full((*size, 3), WHITE, np.uint8)
    top, left = (size[0] - own[0]) // 2, (size[1] - own[1]) // 2
    expected[top : top + own[0], left : left + own[1]] = picture
    assert np.array_equal(cut(picture, size, "pad"), expected)
    expected[expected == WHITE] = 0
    black = cut(picture, size, "pad", background="black")
    assert np.array_equal(black, expected)
    grey = cut(picture[..., 0], size, "pad", background="#0a0a0a")
    assert (
        grey.shape == size
        and (grey[0, 0] == 10 or own == size)
        and np.array_equal(grey[top : top + own[0], left : left + own[1]], picture[..., 0])
    )


def test_padding_resizes_what_is_too_large_or_too_small() -> None:
    """One colour stays one colour under any filter, so that only the place is to be known."""
    red = np.tile(np.array([200, 10, 30], np.uint8), (40, 80, 1))
    for size, rows, columns in (((8, 8), slice(2, 6), slice(0, 8)), ((100, 80), slice(30, 70), slice(0, 80))):
        expected = np.full((*size, 3), WHITE, np.uint8)
        expected[rows, columns] = (200, 10, 30)
        assert np.array_equal(cut(red, size, "pad"), expected)
    line = cut(red[:1].repeat(50, axis=1), (8, 8), "pad")  # 1 x 4000 would have no height left
    assert np.array_equal((line != WHITE).all(-1).sum(0), np.ones(8)) and (line[3] == (200, 10, 30)).all()


def test_stretching_keeps_the_whole_picture() -> None:
    """Rows of one colour each are what they were at any width, and columns at any height."""
    rows = np.repeat(numbered(6, 1), 9, axis=1)
    assert np.array_equal(cut(rows, (6, 4), "stretch"), rows[:, :4])
    columns = np.repeat(numbered(1, 9), 3, axis=0)
    assert np.array_equal(cut(columns, (12, 9), "stretch"), columns[:1].repeat(12, axis=0))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_square_is_the_pair_of_its_sides(fit: str) -> None:
    picture = numbered(23, 31)
    assert np.array_equal(cut(picture, 9, fit), cut(picture, (9, 9), fit))
    image, draw = Image.fromarray(picture), (0.3, 0.9, 0.2)
    assert np.array_equal(Cut(9, "random").at(image, draw), Cut((9, 9), "random").at(image, draw))


@pytest.mark.parametrize("draw", [(0.0, 0.0, 0.0), (0.5, 0.9, 0.2), (1.0, 0.5, 0.5), (0.3, 1.0, 1.0)])
@pytest.mark.parametrize(("size", "largest"), [((8, 16), (50, 100)), ((24, 16), (80, 80 * 2 / 3))])
def test_a_random_rectangle_is_where_its_numbers_say(
    draw: tuple[float, float, float], size: tuple[int, int], largest: tuple[float, float]
) -> None:
    """The colours of ramps tell its place and its scale, which is one for both sides."""
    across, down = np.meshgrid(2 * np.arange(100), 2 * np.arange(80))
    image = Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8))
    found = np.asarray(Cut(size, "random", 0.5).at(image, draw)).astype(float)
    assert found.shape == (*size, 3)
    high, wide = ((0.5 + 0.5 * draw[0]) * side for side in largest)
    for axis, start, side, count in (
        (1, draw[1] * (100 - wide), wide, size[1]),
        (0, draw[2] * (80 - high), high, size[0]),
    ):
        profile = found[..., 1 - axis].mean(axis=1 - axis)[3:-3]
        pixel = start + (np.arange(3, count - 3) + 0.5) * side / count - 0.5
        np.testing.assert_allclose(profile, 2 * pixel, atol=1.0)


def test_choices_that_do_not_go_together_are_refused() -> None:
    for wrong, says in (
        ({"fit": "fill"}, "unknown fit 'fill'.*Valid names: crop, pad, stretch"),
        ({"fit": "pad"}, "the fit 'pad' brings pictures to one size: set the image size"),
        ({"size": 8, "fit": "stretch", "crop": "random"}, "choose the fit 'crop', not 'stretch'"),
        ({"size": (8, 0)}, "the image size must be a whole number"),
    ):
        with pytest.raises(UserError, match=says):
            Cut(**wrong)
    with pytest.raises(UserError, match="digits lies in memory and cannot be resized: leave the fit at 'crop'"):
        load_splits("digits", DataOptions(fit="pad"))
    with pytest.raises(UserError, match=r"digits has samples of shape \[1, 8, 8\] .* not \(8, 12\)"):
        load_splits("digits", DataOptions(image_size=(8, 12)))


def test_every_way_in_takes_the_same_pixels(tmp_path: Path) -> None:
    """A training, a folder that is evaluated and what is to be edited."""
    for index in range(4):
        Image.fromarray(numbered(9 + index, 14)).save(tmp_path / f"{index}.png")
    for fit in ("crop", "pad", "stretch"):
        expected = np.stack([cut(numbered(9 + index, 14), (6, 10), fit) for index in range(4)])
        splits = load_splits("folder", DataOptions(root=str(tmp_path), image_size=(6, 10), fit=fit))
        both = torch.cat([splits.train.samples, splits.test.samples])  # type: ignore[attr-defined]
        assert splits.train.shape == (3, 6, 10)
        assert sorted(both.numpy().tobytes()[i * 180 : (i + 1) * 180] for i in range(4)) == sorted(
            picture.transpose(2, 0, 1).tobytes() for picture in expected
        )
        given, _ = load_pictures(str(tmp_path), (6, 10), DataOptions(fit=fit))
        assert np.array_equal(given.samples.numpy(), expected.transpose(0, 3, 1, 2))
        whole = load_inputs(str(tmp_path), (3, 6, 10), DataOptions(fit=fit))
        assert torch.equal(whole.samples, given.samples)
        one = load_inputs(str(tmp_path / "2.png"), (3, 6, 10), DataOptions(fit=fit))
        assert torch.equal(one.samples[0], given.samples[2])


def test_what_is_edited_or_evaluated_is_decoded_as_the_set_was(tmp_path: Path) -> None:
    """Its transparency is laid on the set's background, on which it is padded too; a size of its own is kept."""
    half = np.zeros((2, 4, 4), np.uint8)
    half[:, :2, 3] = 255  # black on the left, clear on the right
    Image.fromarray(half, "RGBA").save(tmp_path / "0.png")
    like, grey = DataOptions(fit="pad", background="#0000ff"), [[[0] * 2 + [29] * 2] * 2]  # 0.114 of 255
    inner = torch.tensor([[[0] * 2 + [level] * 2] * 2 for level in (0, 0, 255)], dtype=torch.uint8)
    edge = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, 1, 4)
    expected = torch.cat([edge, inner, edge], dim=1)
    assert torch.equal(load_inputs(str(tmp_path / "0.png"), (3, 4, 4), like).samples[0], expected)
    assert torch.equal(load_inputs(str(tmp_path), (3, 4, 4), like).samples[0], expected)
    assert torch.equal(load_pictures(str(tmp_path), 4, like)[0].samples[0], expected)
    assert load_pictures(str(tmp_path), 0, replace(like, channels=1))[0].samples.tolist() == [grey]
