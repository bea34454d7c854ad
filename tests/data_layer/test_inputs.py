"""What a person hands in to be changed: pictures of any size and channels, folders with classes, arrays; refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion import UserError
from sde_diffusion.data.inputs import load_inputs


def colours(place: Path, *grey: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    """Pictures of one grey level each."""
    place.mkdir(parents=True, exist_ok=True)
    for index, level in enumerate(grey):
        Image.new(mode, size, level if mode == "L" else (level, level, level)).save(place / f"{index}.png")


def test_pictures_come_in_the_networks_size_and_channels(tmp_path: Path) -> None:
    colours(tmp_path, 10, 200, size=(12, 20))
    one = load_inputs(str(tmp_path / "1.png"), (3, 8, 8))
    assert one.names == ("1.png",) and one.samples.shape == (1, 3, 8, 8) and one.samples.unique().tolist() == [200]
    both = load_inputs(str(tmp_path), (1, 4, 4))
    assert both.samples.shape == (2, 1, 4, 4) and both.samples[:, 0, 0, 0].tolist() == [10, 200] and both.classes == ()


def test_class_folders_name_the_classes(tmp_path: Path) -> None:
    colours(tmp_path / "cats", 1, 2)
    colours(tmp_path / "dogs", 3, mode="RGB")
    found = load_inputs(str(tmp_path), (3, 8, 8))
    assert found.classes == ("cats", "cats", "dogs") and found.samples[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert found.names == ("cats/0.png", "cats/1.png", "dogs/0.png")
    zipped = load_inputs(shutil.make_archive(str(tmp_path.with_suffix(".all")), "zip", tmp_path), (3, 8, 8))
    assert zipped.classes == found.classes and torch.equal(zipped.samples, found.samples)


def test_arrays_as_sampling_writes_them(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(2))
    found = load_inputs(str(tmp_path / "a.npz"), (3, 4, 4))
    assert torch.equal(found.samples, torch.from_numpy(images).permute(0, 3, 1, 2))
    np.savez(tmp_path / "b.npz", samples=np.array([[0.5, -1.0]]))
    assert load_inputs(str(tmp_path / "b.npz"), (2,)).samples.tolist() == [[0.5, -1.0]]


def test_what_is_no_input(tmp_path: Path) -> None:
    def refused(sentence: str, path: str, shape: tuple[int, ...] = (1, 8, 8)) -> None:
        with pytest.raises(UserError, match=sentence):
            load_inputs(path, shape)

    colours(tmp_path, 3)
    refused("there is no picture, folder or .npz file ''", "")
    refused("there is no picture", str(tmp_path / "no.png"))
    (tmp_path / "a.txt").write_text("hello")
    refused("is no picture", str(tmp_path / "a.txt"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused("broken.png is not a readable picture", str(tmp_path / "broken.png"))
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    refused("cannot be read as an .npz file", str(tmp_path / "broken.npz"))
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    refused("neither 'images' nor 'samples'.*other", str(tmp_path / "c.npz"))
    np.savez(tmp_path / "d.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
    refused(r"the network takes samples of shape \[1, 8, 8\]", str(tmp_path / "d.npz"))
    refused("network is one of vectors", str(tmp_path / "0.png"), (2,))
