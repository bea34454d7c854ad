"""A person's own pictures: layouts, channels, sizes, and what can be wrong with them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, load_pictures, load_splits


def load(root: Path, image_size: int = 0):
    return load_splits("folder", DataOptions(root=str(root), image_size=image_size))


def paint(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (6, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 1, 2)).save(path)
    return path


def test_train_and_test_folders_keep_their_parts(tmp_path):
    for part, start in (("train", 0), ("test", 100)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(3):
                paint(tmp_path / part / name / f"{index}.png", start + 10 * label + index)
    splits = load(tmp_path)
    assert splits.train.classes == ("cat", "dog") and splits.train.shape == (3, 6, 6)
    assert splits.train.samples[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert splits.test.samples[:, 0, 0, 0].tolist() == [100, 101, 102, 110, 111, 112]
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    paint(tmp_path / "test" / "bird" / "0.png", 0)
    with pytest.raises(UserError, match="same class folders"):
        load(tmp_path)


def test_of_several_held_out_folders_test_comes_first(tmp_path):
    """test, val, valid, validation: the first that is there, whatever the order of their names."""
    for part, value in (("train", 0), ("validation", 40), ("valid", 30), ("val", 20), ("test", 10)):
        paint(tmp_path / part / "cat" / "0.png", value)
    for name, value in (("test", 10), ("val", 20), ("valid", 30), ("validation", 40)):
        assert load(tmp_path).test.samples[:, 0].unique().tolist() == [value]
        assert load(tmp_path).train.samples[:, 0].unique().tolist() == [0]
        shutil.rmtree(tmp_path / name)


def test_class_folders_hold_a_tenth_of_each_class_out(tmp_path):
    for label, name in enumerate(("bus", "train")):
        for index in range(20):
            paint(tmp_path / name / f"{index:02}.png", 100 * label + index, mode="L")
    (tmp_path / "bus" / "notes.txt").write_text("not a picture")
    splits = load(tmp_path)
    assert splits.train.shape == (1, 6, 6) and splits.test.labels.tolist() == [0, 0, 1, 1]
    pixels = torch.cat([splits.train.samples, splits.test.samples])[:, 0, 0, 0]
    assert sorted(pixels.tolist()) == [*range(20), *range(100, 120)]


def test_a_flat_folder_has_no_labels(tmp_path):
    for index in range(10):
        paint(tmp_path / f"{index}.png", index)
    splits = load(tmp_path)
    assert splits.train.labels is None and (len(splits.train), len(splits.test)) == (9, 1)


def test_one_coloured_picture_makes_all_coloured(tmp_path):
    paint(tmp_path / "train" / "a" / "0.png", 9, mode="L")
    paint(tmp_path / "test" / "a" / "0.png", 7)
    splits = load(tmp_path)
    assert splits.train.shape == splits.test.shape == (3, 6, 6)


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path):
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255
    for index in range(2):
        Image.fromarray(stripes).save(tmp_path / f"{index}.png")
    small = load(tmp_path, 10).train.samples
    assert small.shape == (1, 1, 10, 10) and (small > 220).all()


def test_shrinking_is_antialiased(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for index in range(2):
        Image.fromarray(board).save(tmp_path / f"{index}.png")
    small = load(tmp_path, 8).train.samples.float()
    assert (small - 127.5).abs().max() < 8


def test_pictures_of_different_sizes_need_an_image_size(tmp_path):
    paint(tmp_path / "0.png", 0)
    paint(tmp_path / "1.png", 0, size=(9, 7))
    with pytest.raises(UserError, match="6x6 to 9x7"):
        load(tmp_path)
    assert load(tmp_path, 4).train.shape == (3, 4, 4)


@pytest.mark.parametrize("keep", [0, 20, -30])
def test_a_broken_picture_is_named(tmp_path, keep):
    """A training leaves it out with a warning where it is one of many; what has a row for each picture refuses it."""
    noise = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    for index in range(10):
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "0.png").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"1 of 11 pictures cannot be read, .*broken\.png \("):
        load(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 11 pictures cannot be read and are left out: .*broken\.png \("):
        splits = load_splits("folder", DataOptions(root=str(tmp_path), corrupt_limit=0.1))
    assert len(splits.train) + len(splits.test) == 10
    with pytest.raises(UserError, match=r"broken\.png is not a readable picture \(.*\); repair or remove it\."):
        load_pictures(str(tmp_path))


def test_missing_empty_and_mixed_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*expected"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder ''"):
        load_splits("folder", DataOptions())
    with pytest.raises(UserError, match="no pictures"):
        load(tmp_path)
    paint(tmp_path / "a" / "0.png", 0)
    paint(tmp_path / "1.png", 0)
    with pytest.raises(UserError, match="both pictures"):
        load(tmp_path)
