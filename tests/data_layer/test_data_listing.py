"""Which files of a folder or an archive are read, at any depth; the account of the others equals what is there."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Splits, load_pictures, load_splits
from sde_diffusion.data.folder import place_at
from sde_diffusion.data.formats import endings, formats


def encoded(value: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (6, 6), value if mode == "L" else (value,) * 3).save(file, kind)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(root: Path) -> Splits:
    return load_splits("folder", DataOptions(root=str(root)))


MIXED = {
    "cats/2.PNG": encoded(2),
    "cats/old/2021/1.jfif": encoded(1, "JPEG"),
    "cats/new/0": encoded(0, "WEBP"),  # no ending
    "cats/3.img": encoded(3, "GIF"),  # one that nothing is known of
    "dogs/deep/er/4.png": encoded(4, "JPEG"),  # a wrong one
    "dogs/5.jp2": encoded(5, "JPEG2000"),
    "dogs/clip.mp4": b"\0\0\0\x20ftypisom",
    "dogs/clip2.MP4": b"",
    "dogs/words.txt": encoded(0),  # that of something else
    "dogs/page.eps": b"%!PS",
    "cats/.hidden.png": b"",
    ".git/x/y.png": b"",
    "@eaDir/2.PNG/thumb.png": b"",
    "__MACOSX/cats/._2.PNG": b"",
    "cats/Thumbs.db": b"",
}


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_lie_at_any_depth_below_their_class(tmp_path: Path, packed: bool) -> None:
    root = write(tmp_path / "set", MIXED)
    where = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root)) if packed else root
    data, names = load_pictures(str(where))
    assert data.classes == ("cats", "dogs")
    kept = ["cats/2.PNG", "cats/3.img", "cats/new/0", "cats/old/2021/1.jfif", "dogs/5.jp2", "dogs/deep/er/4.png"]
    assert names == kept and data.labels is not None and data.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert np.allclose(data.samples[:, 0, 0, 0], [2, 3, 0, 1, 5, 4], atol=1)  # some of the formats are lossy
    found = load(where).inventory
    assert found is not None and found.pictures == 6
    assert found.types == {".png": 2, ".img": 1, ".jfif": 1, ".jp2": 1, "no ending": 1}
    assert found.classes == {"cats": 4, "dogs": 2} and found.parts == {"all": 6}
    unread, hidden = found.skipped
    assert unread.types == {".mp4": 2, ".eps": 1, ".txt": 1} and hidden.expected
    (line,) = found.told()
    assert line == "4 files were not read: .mp4 2, .eps 1, .txt 1 (dogs/clip.mp4, dogs/clip2.MP4, dogs/page.eps, ...)"
    assert hidden.count == 5


def test_parts_take_all_that_is_below_them_and_the_rest_is_named(tmp_path: Path) -> None:
    names = ("train/a/x/0.png", "train/b/1.png", "val/a/2.png", "test/b/y/3.png", "test/a/z/q/4.png", "cover.png")
    found = load(write(tmp_path, {name: encoded(index) for index, name in enumerate(names)}))
    assert found.train.classes == ("a", "b") and found.test.samples[:, 0, 0, 0].tolist() == [4, 3]
    assert found.inventory is not None and found.inventory.parts == {"train": 2, "test": 2}
    (line,) = found.inventory.told()
    assert line == "2 files were not read, beside the folders train and test: .png 2 (cover.png, val/a/2.png)"


def test_a_place_gives_all_files_and_the_bytes_of_any(tmp_path: Path) -> None:
    files = {"set/b/0.png": encoded(0), "set/a/1.png": encoded(1), "set/dataset.json": b'{"labels": null}' * 1000}
    write(tmp_path, files)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "set")
    for place in (place_at(str(tmp_path / "set")), place_at(archive)):
        assert list(place.names) == ["a/1.png", "b/0.png", "dataset.json"] and list(place.folders) == ["a", "b"]
        for name in place.names:
            assert place.read(name) == files[f"set/{name}"] and place.read(name, 10) == files[f"set/{name}"][:10]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"a/0.png": encoded(0), "b/1.png": encoded(1)})
    write(tmp_path / "far", {"deep/2.png": encoded(2)})
    (root / "a" / "link").symlink_to(tmp_path / "far")
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "far" / "round").symlink_to(tmp_path / "far" / "deep")
    os.mkfifo(root / "b" / "pipe.png")
    assert load_pictures(str(root))[1] == ["a/0.png", "a/link/deep/2.png", "a/link/round/2.png", "b/1.png"]


def test_what_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = write(tmp_path, {"a/0.png": encoded(0), "b/1.png": encoded(1)}), os.scandir

    def locked(path: str) -> object:  # root, who runs tests in containers, may look into any
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(
        UserError, match=r"the folder .*/b cannot be looked into \(Permission denied\); make it readable"
    ):
        load(root)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/0.png": encoded(0), "b/notes.txt": b""})
    with pytest.raises(UserError, match=r"/b holds no pictures: fill this class folder, or remove it"):
        load(root)


def test_an_archive_in_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"pictures.zip": b"", "notes.txt": b""})
    with pytest.raises(UserError, match=r"holds no pictures.* It holds pictures\.zip: .* data\.root=.*/pictures\.zip"):
        load(root)


def test_one_folder_that_holds_all_is_said_to_be_the_class(tmp_path: Path) -> None:
    root = write(tmp_path / "a", {"photos/cats/0.png": encoded(0), "photos/dogs/1.png": encoded(1)})
    found = load(root)
    assert found.train.classes == ("photos",)
    assert f"all pictures lie in {root}/photos, which is taken for their class" in found.inventory.told()[0]
    assert "(cats, dogs, ...)" in found.inventory.labels
    deeper = load(write(tmp_path / "b", {"cats/2021/0.png": encoded(0), "dogs/1.png": encoded(1)}))
    assert deeper.inventory.labels == ""


def test_a_part_of_which_no_picture_can_be_read_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/0.png": encoded(0), "test/1.png": b""})
    with pytest.raises(UserError, match=r"of its part 'held out', 1 in all, no picture can be read: .*/test/1\.png"):
        load(root)


def test_no_format_is_read_that_pillow_leaves_to_others() -> None:
    assert not {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "PDF"} & set(formats())
    assert {".jfif", ".jp2", ".tga", ".pcx", ".ico", ".qoi", ".png", ".tif", ".pgm", ".dds", ".psd"} <= endings()
    assert not {".eps", ".ps", ".wmf", ".emf", ".mpg", ".h5", ".pdf"} & endings()


def test_what_runs_write_among_the_pictures_is_not_read(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/0.png": encoded(0), "b/1.png": encoded(1)})
    write(root, {"runs/one/config.json": b"", "runs/one/checkpoints/0": b"", "runs/one/samples_ddim.png": encoded(2)})
    write(root, {"runs/begun/.lock": b"", "runs/begun/data.png": encoded(3)})
    found = load(root)
    assert found.train.classes == ("a", "b") and found.inventory.pictures == 2
    write(root, {"runs/cat.png": encoded(4)})  # a class of that name
    assert load(root).train.classes == ("a", "b", "runs")


def test_parts_are_known_in_capitals_and_the_held_out_one_may_lack_a_class(tmp_path: Path) -> None:
    root = write(tmp_path, {"Train/a/0.png": encoded(0), "Train/b/1.png": encoded(1), "Test/b/2.png": encoded(2)})
    found = load(root)
    assert found.train.labels.tolist() == [0, 1] and found.test.labels.tolist() == [1]
