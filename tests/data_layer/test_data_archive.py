"""Zip archives of pictures: read as folders are, and refused where they are made to do harm."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Splits, archive, batches, load_splits


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 100, 0)).save(file, "png")
    return file.getvalue()


PICTURES = {
    f"{name}/{index:02}.png": png(100 * label + index) for label, name in enumerate("ab") for index in range(20)
}


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def load(path: Path, storage: str = "mapped", **options: float) -> Splits:
    return load_splits("folder", DataOptions(root=str(path), storage=storage, **options))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inside", ["", "set/", "train/", "set/train/"])
def test_an_archive_is_read_as_the_folder_it_holds(tmp_path: Path, method: int, inside: str) -> None:
    names = {inside + name: content for name, content in PICTURES.items()}
    for name, content in names.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = load(tmp_path / inside.removesuffix("train/"))
    if "train" in inside:
        names |= {name.replace("train", "test"): content for name, content in names.items() if "/0" in name}
    names |= {"__MACOSX/a/._00.png": b"fork", f"{inside}a/notes.txt": b"text", f"{inside}a/.hidden.png": b""}
    path = packed(tmp_path / "archive.zip", names, method)
    before = sorted(tmp_path.rglob("*"))
    splits = load(path)
    assert sorted(tmp_path.rglob("*")) == before, "something was extracted"
    assert splits.train.classes == ("a", "b") and splits.train.title == "archive"
    if "train" in inside:
        assert splits.train.size == 40 and len(splits.test) == 20
        return
    for workers in (0, 2):
        one, other = (next(batches(data.train, 36, seed=0, workers=workers)) for data in (folder, splits))
        assert torch.equal(one[0], other[0]) and torch.equal(one[1]["labels"], other[1]["labels"])
    assert torch.equal(folder.test.samples, splits.test.samples)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..", "a/.."])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / "archive.zip", {**PICTURES, name: png(0)})
    with pytest.raises(UserError, match=r"archive\.zip is refused: its member .* leads out of the archive\.") as caught:
        load(path)
    assert name in str(caught.value)


def test_backslashes_and_null_characters_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "archive.zip", {"a\\..\\..\\evil.png": png(0)})
    with pytest.raises(UserError, match="backslash"):
        load(path)
    path = packed(tmp_path / "archive.zip", {"a/0.png_.txt": png(0)})
    path.write_bytes(path.read_bytes().replace(b"a/0.png_.txt", b"a/0.png\0.txt"))
    with pytest.raises(UserError, match="null character"):
        load(path)


def test_links_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"'a/link\.png' is a symbolic link"):
        load(tmp_path / "archive.zip")
    path = packed(tmp_path / "archive.zip", PICTURES)
    changed(path, 8, lambda flags: flags | 1)
    with pytest.raises(UserError, match="is encrypted"):
        load(path)
    path = packed(tmp_path / "archive.zip", PICTURES, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="another method than deflate"):
        load(path)


def changed(path: Path, offset: int, change: Callable[[int], int], form: str = "<H", member: int = 0) -> None:
    """Change a number of a member's entry in the directory at the end of an archive."""
    content = bytearray(path.read_bytes())
    entry = -1
    for _ in range(member + 1):
        entry = content.index(b"PK\x01\x02", entry + 1)
    (value,) = struct.unpack_from(form, content, entry + offset)
    struct.pack_into(form, content, entry + offset, change(value))
    path.write_bytes(bytes(content))


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million zeros in ten thousand bytes; and a picture that is larger than any should be."""
    path = packed(tmp_path / "archive.zip", {**PICTURES, "a/bomb.bmp": bytes(10_000_000)})
    with pytest.raises(UserError, match=r"'a/bomb\.bmp' declares 10,000,000 bytes in [0-9,]+, as decompression bombs"):
        load(path)
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    noise = np.random.default_rng(0).bytes(2**20 + 1)
    path = packed(tmp_path / "archive.zip", {**PICTURES, "a/large.bmp": noise}, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"declares 1,048,577 bytes, and a picture may have 1,048,576"):
        load(path)
    # What is never read may be of any size.
    packed(path, {**PICTURES, "a/large.txt": noise})
    assert load(path).train.size == 36


def test_an_archive_that_lies_about_a_size_unpacks_no_more(tmp_path: Path) -> None:
    """A hundred megabytes that are declared as 6,000 bytes: at most one byte more than that is ever unpacked."""
    members = {**PICTURES, "a/bomb.bmp": bytes(100_000_000)}
    path = packed(tmp_path / "archive.zip", members)
    changed(path, 20, lambda packed: packed // 20, "<I", len(PICTURES))
    changed(path, 24, lambda _: 6000, "<I", len(PICTURES))
    pictures = archive.Archive.at(path).pictures(["a/bomb.bmp"])
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks to more than the 6,000 bytes"):
        pictures.open(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    with pytest.warns(UserWarning, match=r"1 of 41 pictures .*bomb\.bmp \(it unpacks to more than the 6,000 bytes"):
        splits = load(path, "memory", corrupt_limit=0.1)
    assert splits.train.size + len(splits.test) == 40


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    """A file of a few kilobytes with 400 million pixels. Of 100 million, at which Pillow warns, it is read."""
    for side, read in ((20_000, 40), (10_000, 41)):
        file = io.BytesIO()
        Image.new("1", (side, side)).save(file, "png")
        path = packed(tmp_path / "archive.zip", {**PICTURES, "a/bomb.png": file.getvalue()}, zipfile.ZIP_STORED)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            splits = load(path, "memory", corrupt_limit=0.1, image_size=6)
        assert splits.train.size + len(splits.test) == read
        assert ["bomb.png (" in str(each.message) for each in told] == [True] * (41 - read)


def test_programs_that_pillow_would_start_are_not(tmp_path: Path) -> None:
    """PostScript under the name of a picture is no picture."""
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\nshowpage\n"
    path = packed(tmp_path / "archive.zip", {**PICTURES, "a/page.png": page})
    with pytest.warns(UserWarning, match=r"page\.png \(it is no picture of a known format"):
        load(path, "memory", corrupt_limit=0.1)


def test_damaged_members_are_counted_and_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "archive.zip", PICTURES, zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(content.replace(PICTURES["b/03.png"], PICTURES["b/03.png"][:-1] + b"?"))
    with pytest.warns(UserWarning, match=r"1 of 40 pictures .*archive\.zip/b/03\.png \(its checksum is not"):
        load(path, "memory", corrupt_limit=0.1)
    with pytest.raises(UserError, match=r"archive\.zip/b/03\.png \(its checksum"):
        load(path, "memory")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a readable zip archive"):
        load(path)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="not a readable zip archive"):
        load(tmp_path / "text.zip")


def test_an_archive_without_pictures_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"archive\.zip holds no pictures"):
        load(packed(tmp_path / "archive.zip", {"notes.txt": b""}))
    with pytest.raises(UserError, match=r"both pictures \(1\.png\) and folders \(a\)"):
        load(packed(tmp_path / "archive.zip", {**PICTURES, "1.png": png(0)}))
