"""Sets that are decoded at once: by threads, kept for the next time, and JPEG pictures unpacked at a smaller size."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Dataset, cache, load_splits, mapped
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.watching import Uncounted

COUNT = 70


def content(index: int, form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(0, 256, (6, 5, 3), np.uint8)).save(file, form)
    return file.getvalue()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where decoded sets are kept in these tests, small ones among them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST", 10)
    return tmp_path / "cache" / "sde_diffusion" / "decoded"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """70 pictures in three classes, one of which is broken."""
    for index in range(COUNT):
        path = tmp_path / "set" / "abc"[index % 3] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(index) if index != 11 else b"\x89PNG\r\n\x1a\n")
    return tmp_path / "set"


def load(root: Path, **options: Any) -> Dataset:
    with pytest.warns(UserWarning, match="1 of 70 pictures cannot be read"):
        train = load_splits("folder", DataOptions(root=str(root), image_size=4, corrupt_limit=0.1, **options)).train
    assert isinstance(train, Dataset)
    return train


def same(one: Dataset, other: Dataset) -> bool:
    assert one.labels is not None and other.labels is not None
    return (
        torch.equal(one.samples, other.samples)
        and torch.equal(one.labels, other.labels)
        and one.left_out == (other.left_out)
    )


class Decodings:
    """Counts the pictures that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, decode = 0, mapped.decoded

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return decode(*arguments)

        monkeypatch.setattr(mapped, "decoded", counted)

    def made(self) -> int:
        """Since it was asked last."""
        count, self.count = self.count, 0
        return count


def test_threads_decode_as_one_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, labels, failures and their order, and the sentence for a picture of another size."""
    monkeypatch.setattr(mapped, "TURN", 3)
    found = []
    for threads in (1, 5):
        monkeypatch.setattr(mapped, "usable_cpus", lambda threads=threads: threads)
        found.append(load(root, cache=False))
    assert same(*found) and len(found[0]) == 62
    (root / "b" / "001.png").write_bytes(content(1)[:50])
    Image.new("RGB", (3, 3)).save(root / "c" / "002.png")
    with pytest.raises(UserError, match=r"pictures differ in size .* of .*c/002\.png"):
        load_splits("folder", DataOptions(root=str(root), cache=False))


def test_filters_of_warnings_are_as_they_were(root: Path) -> None:
    import warnings

    before = list(warnings.filters)
    load(root, cache=False)
    assert warnings.filters == before


def test_it_is_shown_how_far_it_is(root: Path) -> None:
    told: list[tuple[int, str]] = []
    counts: list[int] = []

    class Counter(Uncounted):
        def update(self, n: int = 1) -> None:
            counts.append(n)

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            counts.append(0)

    def watch(total: int, title: str) -> Counter:
        told.append((total, title))
        return Counter()

    load(root, cache=False, watch=watch)
    assert told == [(7, "set"), (63, "set")] and counts == [7, 0, 32, 31, 0]


# --- the cache ------------------------------------------------------------------------------------------------


def test_a_kept_set_is_not_decoded_again(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the same pictures, labels and broken files, in a tensor that may be written to."""
    plain = load(root, cache=False)
    assert not place.exists()
    first, decodings = load(root), Decodings(monkeypatch)
    again = load(root)
    assert decodings.made() == 7  # of the held-out part, which is too small to be kept
    assert same(plain, first) and same(plain, again)
    again.samples[0] = 255 - again.samples[0]
    assert same(plain, load(root)), "what is kept was written to"
    assert len(list(place.glob("*"))) == 2


@pytest.mark.parametrize("how", ["torn", "flipped", "no json", "other json", "another array"])
def test_a_damaged_file_is_told_of_and_made_again(root: Path, place: Path, how: str) -> None:
    whole = load(root)
    (array,), (told,) = place.glob("*.npy"), place.glob("*.json")
    data = bytearray(array.read_bytes())
    if how == "torn":
        array.write_bytes(data[:-100])
    elif how == "flipped":
        data[-100] ^= 4
        array.write_bytes(data)
    elif how == "another array":
        np.save(array, np.zeros((63, 3, 4, 4), np.uint8))
    else:
        told.write_text("{" if how == "no json" else json.dumps({**json.loads(told.read_text()), "sha256": "0"}))
    with pytest.warns(UserWarning, match=r"\.npy is damaged: the pictures of set are decoded again"):
        assert same(whole, load(root))
    with pytest.MonkeyPatch.context() as patch:
        decodings = Decodings(patch)
        assert same(whole, load(root)) and decodings.made() == 7


@pytest.mark.parametrize("how", ["content", "time", "added"])
def test_changed_files_are_decoded_again(root: Path, place: Path, how: str) -> None:
    former = load(root)
    path = root / "a" / "000.png"
    if how == "content":
        path.write_bytes(content(999))
    elif how == "time":
        os.utime(path, ns=(0, 0))
    else:
        path.rename(root / "a" / "0000.png")
    with pytest.warns(UserWarning, match="set: its files have changed since they were decoded: they are decoded again"):
        now = load(root)
    assert same(now, load(root, cache=False)) and same(now, former) == (how != "content")
    assert len(list(place.glob("*.npy"))) == 1, "what is stale stays behind"


def test_other_cuts_are_kept_beside_it(root: Path, place: Path) -> None:
    sizes = [load(root).shape, load(root, fit="stretch").shape]
    assert sizes == [(3, 4, 4)] * 2 and len(list(place.glob("*.npy"))) == 2


def test_what_was_not_used_for_longest_is_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 2500)

    def made(name: str, size: int = 1000) -> None:
        array = np.full(size, ord(name), np.uint8)
        found, about = cache.recalled("set", name, "x", lambda: (array, {"of": name}))
        assert np.array_equal(found, array) and about == {"of": name}

    for at, name in enumerate("ab"):
        made(name)
        os.utime(place / f"{name}.npy", (at, at))
    made("a")  # is used
    made("c")
    assert sorted(path.name for path in place.iterdir()) == ["a.json", "a.npy", "c.json", "c.npy"]
    made("d", 3000)
    assert not (place / "d.npy").exists()


def test_a_cache_that_cannot_be_written_costs_a_warning(root: Path, place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_text("a file")
    with pytest.warns(UserWarning, match=r"set: the decoded pictures cannot be kept in .*decoded .*data\.cache=False"):
        assert len(load(root)) == 62


def test_parquet_and_zip_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 30), ("test", 12)):
        rows = [{"img": {"bytes": content(index), "path": None}} for index in range(count)]
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{part}-0.parquet")
    options = DataOptions(root=str(tmp_path / "set"), source="parquet")
    first, decodings = load_splits("cifar10", options), Decodings(monkeypatch)
    again = load_splits("cifar10", options)
    assert decodings.made() == 0
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert isinstance(one, Dataset) and isinstance(other, Dataset) and torch.equal(one.samples, other.samples)
    assert first.test is not None and len(first.test) == 12


# --- draft ----------------------------------------------------------------------------------------------------


def test_large_jpeg_pictures_are_unpacked_smaller_where_that_is_asked_for(tmp_path: Path) -> None:
    """At three times the target or more; a smooth picture stays within three grey levels, and no other is touched."""
    across, down = np.meshgrid(np.arange(256), np.arange(320))
    smooth = np.stack([across, down * 0.8, 128 + 100 * np.sin(across / 20)], axis=-1).astype(np.uint8)
    for form in ("jpeg", "png"):
        (tmp_path / form).mkdir()
        for index in range(2):
            Image.fromarray(smooth).save(
                tmp_path / form / f"{index}.{form}", **({"quality": 95} if form == "jpeg" else {})
            )
    seen: dict[str, list[tuple[int, int]]] = {}
    found: dict[str, torch.Tensor] = {}
    fitted = Cut.fitted
    for form, draft in (("jpeg", False), ("jpeg", True), ("png", True)):
        with pytest.MonkeyPatch.context() as patch:
            name = f"{form} {draft}"

            def noted(self: Cut, image: Image.Image, name: str = name) -> Image.Image:
                seen.setdefault(name, []).append(image.size)
                return fitted(self, image)

            patch.setattr(Cut, "fitted", noted)
            splits = load_splits("folder", DataOptions(root=str(tmp_path / form), image_size=32, draft=draft))
        assert isinstance(splits.train, Dataset)
        found[name] = splits.train.samples.int()
    assert set(seen["jpeg False"]) == {(256, 320)} == set(seen["png True"])
    assert seen["jpeg True"][-1] == (128, 160)
    assert 0 < (found["jpeg True"] - found["jpeg False"]).abs().max() <= 3
    assert Cut(32, "random", 0.5, draft=True).least == 192 and Cut(32).least == 0 and Cut(0, draft=True).least == 0
