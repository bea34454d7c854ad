"""Every form of a picture as 8-bit grey or colour: exact values, by the rules that are stated, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Dataset, load_pictures, load_splits
from sde_diffusion.data.inventory import Inventory
from sde_diffusion.data.pictures import spread

RAMP = np.tile(np.arange(16, dtype=np.uint8) * 17, (16, 1))


def read(root: Path, **options: object) -> tuple[Dataset, Inventory]:
    """The pictures of a folder that has the same ones in train/ and in test/."""
    splits = load_splits("folder", DataOptions(root=str(root), **options))  # type: ignore[arg-type]
    assert isinstance(splits.train, Dataset) and splits.inventory is not None
    return splits.train, splits.inventory


def write(root: Path, *images: Image.Image, ending: str = "png", **options: object) -> Path:
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(root / part / f"{number}.{ending}", **options)
    return root


def layers(grey: np.ndarray, alpha: np.ndarray, mode: str) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(grey)] * (len(mode) - 1) + [Image.fromarray(alpha)])


# --- transparency -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(("background", "levels"), [("white", (255,)), ("#204060", (32, 64, 96))])
def test_transparent_pictures_are_laid_on_the_background(
    tmp_path: Path, mode: str, background: str, levels: tuple[int, ...]
) -> None:
    """c = alpha c + (1 - alpha) b, to within a level; opaque pixels stay as they are; and it is said."""
    alpha = RAMP.T.copy()
    data, found = read(write(tmp_path, layers(RAMP, alpha, mode)), background=background, channels=len(levels))
    share = alpha / 255
    for channel, level in enumerate(levels):
        exact = share * RAMP + (1 - share) * level
        np.testing.assert_allclose(data.samples[0, channel], exact, atol=0.51)
        assert (data.samples[0, channel, 15].numpy() == RAMP[15]).all()
    assert found.told() == [f"2 pictures are transparent, and laid on {background} (data.background)"]


def test_transparency_of_palettes_and_of_one_colour(tmp_path: Path) -> None:
    """Black on a transparent index is black on white; a colour that a PNG calls transparent is white as well."""
    palette = Image.fromarray((RAMP > 100).astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 0, 0, 0] + [0] * 762)
    expected = np.where(RAMP > 100, 0, 255)
    for number, image in enumerate((palette, palette.convert("RGB"), Image.fromarray(RAMP))):
        keyed = (0, (9, 9, 9), 34)[number]
        root = tmp_path / str(number)
        data, found = read(write(root, image, transparency=keyed))
        assert data.shape == (1, 16, 16) and "transparent" in found.told()[0]
        wanted = expected if number < 2 else np.where(RAMP == 34, 255, RAMP)
        assert (data.samples[0, 0].numpy() == wanted).all()


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path: Path) -> None:
    data, found = read(write(tmp_path, layers(RAMP, np.full_like(RAMP, 255), "RGBA")), background="red")
    assert (data.samples[0, 0].numpy() == RAMP).all() and found.told() == [] and found.decoded == 2


@pytest.mark.parametrize("colour", ["whit", "#12345", ""])
def test_what_is_no_colour(colour: str) -> None:
    with pytest.raises(UserError, match=r"data\.background must be a colour by its name or as #rrggbb"):
        DataOptions(background=colour)


# --- depth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_divided_by_257_to_the_nearest(tmp_path: Path, ending: str) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    levels[0, :6] = (0, 128, 129, 385, 386, 65535)
    data, found = read(write(tmp_path, Image.fromarray(levels), ending=ending))
    assert (data.samples[0, 0].numpy() == np.floor(levels / 257 + 0.5)).all()
    assert data.samples[0, 0, 0, :6].tolist() == [0, 0, 1, 1, 2, 255]
    assert found.told() == ["2 pictures are of 16 bits, and divided by 257"]


def test_floating_point_in_0_to_1_is_multiplied_by_255_and_other_numbers_are_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    data, found = read(write(tmp_path / "a", Image.fromarray(values), ending="tif"))
    assert data.samples[0, 0].flatten().tolist() == list(range(256))
    assert found.told() == ["2 pictures are of floating-point numbers in [0, 1], and multiplied by 255"]
    for name, wrong in (("b", values * 300), ("c", values - 1), ("d", np.full((4, 4), np.nan, np.float32))):
        write(tmp_path / name, Image.fromarray(wrong), ending="tif")
        with pytest.raises(UserError, match=r"0\.tif \(its numbers run from .* floating-point ones of 0 to 1"):
            read(tmp_path / name)
    write(tmp_path / "e", Image.fromarray(np.full((4, 4), 70_000, np.int32)), ending="tif")
    with pytest.raises(UserError, match=r"0\.tif \(its integers run from 70000 to 70000"):
        read(tmp_path / "e")


# --- grey -------------------------------------------------------------------------------------------------------


def test_grey_is_grey_in_every_form_of_a_file(tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP)
    made = {
        **{"l.png": grey, "rgb.png": grey.convert("RGB"), "palette.png": grey.convert("P"), "gif.gif": grey},
        **{"la.png": layers(RAMP, np.full_like(RAMP, 255), "LA"), "rgba.png": layers(RAMP, 0 * RAMP, "RGBA")},
        **{"bit.png": Image.fromarray(RAMP > 120), "i16.png": Image.fromarray(RAMP.astype(np.uint16) * 257)},
        **{"cmyk.tif": grey.convert("RGB").convert("CMYK"), "webp.webp": grey, "jpeg.jpg": grey.convert("RGB")},
    }
    for name, image in made.items():
        image.save(tmp_path / name)
    data, names = load_pictures(str(tmp_path))
    assert data.shape == (1, 16, 16)
    for name in ("l.png", "rgb.png", "palette.png", "gif.gif", "la.png", "i16.png", "cmyk.tif"):
        assert (data.samples[names.index(name), 0].numpy() == RAMP).all(), name
    red = RAMP.copy()
    red[0, 0] += 1
    Image.merge("RGB", [Image.fromarray(red), grey, grey]).save(tmp_path / "z.png")
    assert load_pictures(str(tmp_path))[0].shape == (3, 16, 16)


def test_channels_are_as_asked_for(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert read(write(tmp_path / "a", red), channels=1)[0].samples.unique().tolist() == [76]  # 0.299 * 255
    assert read(write(tmp_path / "b", red.convert("L")), channels=3)[0].shape == (3, 4, 4)
    with pytest.raises(UserError, match=r"data\.channels is 1 \(grey\), 3 \(colour\) or 0"):
        DataOptions(channels=4)


def test_looking_for_colour_stops_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a hundred grey pictures in colour files, and then those in colour: some are looked at, not all."""
    from sde_diffusion.data import pictures

    for number in range(100):
        Image.new("RGB", (4, 4), (9, 9, 9 if number < 50 else 10)).save(tmp_path / f"{number:03}.png")
    looked: list[int] = []
    real = pictures.is_grey
    monkeypatch.setattr(pictures, "is_grey", lambda image: looked.append(1) or real(image))
    assert load_pictures(str(tmp_path))[0].shape[0] == 3 and len(looked) <= 3
    for count in (1, 2, 7, 100, 101):
        assert sorted(spread(count)) == list(range(count))


# --- what is left in a file ---------------------------------------------------------------------------------------


def test_the_first_of_several_frames_is_read_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 200)]
    data, found = read(write(tmp_path, frames[0], ending="gif", save_all=True, append_images=frames[1:]))
    assert data.samples.unique().tolist() == [10]
    assert found.told() == ["2 pictures are one of several frames in a file, the first of which is read"]


def test_pictures_of_too_many_pixels_are_named(tmp_path: Path) -> None:
    write(tmp_path, Image.new("L", (10, 10)), Image.new("L", (4, 4)))
    message = r"0\.png \(it has 100 pixels, and data\.max_pixels lets 99 be read\)"
    with pytest.raises(UserError, match=message):
        read(tmp_path, max_pixels=99, image_size=4)
    assert read(tmp_path, max_pixels=100, image_size=4)[0].size == 2
    Image.new("1", (20000, 9000)).save(tmp_path / "test" / "0.png")  # Pillow itself stops at it
    with pytest.raises(UserError, match=r"0\.png \(it has more than the 178,956,970 pixels of data\.max_pixels; raise"):
        read(tmp_path, image_size=4)
