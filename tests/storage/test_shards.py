"""Sampling in shards against sampling at once: real files, real processes, kill -9 at any change of the disk."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage import files
from sde_diffusion.storage import shards as module
from sde_diffusion.storage.shards import FORMATS, Shards
from tests.faults import AtOnce, deaths, recorded
from tests.runtime.test_metrics_log import fill, small_disk

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = {"sampler": "ddim", "seed": 3}
MANIFEST = {"sampler": "ddim", "samples": 23}
FORK = multiprocessing.get_context("fork")
COUNT = 23


@cache
def image(index: int, channels: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).integers(0, 256, (5, 4, channels), dtype=np.uint8)


def drawn(indices: range, channels: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Samples that depend on their index only."""
    return {"images": np.stack([image(i, channels) for i in indices]), "labels": np.array([i % 10 for i in indices])}


def vectors(indices: range) -> dict[str, np.ndarray[Any, Any]]:
    return {"samples": np.stack([np.random.default_rng(i).normal(size=2).astype(np.float32) for i in indices])}


def sample(folder: Path, fmt: str, size: int, count: int = COUNT) -> list[Path]:
    """All of it: what is missing is drawn, then finished."""
    shards = Shards(folder, "ddim", PROTOCOL, fmt)
    for indices in shards.missing(count, size):
        shards.write(indices, drawn(indices))
    return shards.finish(count, MANIFEST)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images_of(folder: Path, fmt: str) -> np.ndarray[Any, Any]:
    """The images of a finished sampling, read by the libraries that others would take."""
    result = folder / "samples_ddim"
    if fmt == "npz":
        with np.load(f"{result}.npz", allow_pickle=False) as arrays:
            return arrays["images"]
    if fmt == "png":
        return np.stack([np.asarray(Image.open(path)) for path in sorted(result.iterdir())])
    found = {}
    for path in result.iterdir():
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                assert entry.compress_type == zipfile.ZIP_STORED and entry.filename not in found
                found[entry.filename] = np.asarray(Image.open(io.BytesIO(archive.read(entry))))
    return np.stack([found[name] for name in sorted(found)])


@pytest.fixture
def whole(tmp_path: Path, fmt: str) -> dict[str, bytes]:
    """The files of a sampling in shards of 4 that nothing disturbed."""
    sample(tmp_path / "undisturbed", fmt, 4)
    return content(tmp_path / "undisturbed")


every_format = pytest.mark.parametrize("fmt", FORMATS)


# --- what is written -------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("size", [1, 4, 23, 1000])
def test_shards_are_all_samples_once(tmp_path: Path, fmt: str, size: int) -> None:
    """The images are those that were drawn, the manifest says which file has which, and nothing else is left."""
    result, manifest = sample(tmp_path, fmt, size)
    assert np.array_equal(images_of(tmp_path, fmt), drawn(range(COUNT))["images"])
    told = json.loads(manifest.read_text())
    assert {name: told[name] for name in MANIFEST} == MANIFEST
    place = tmp_path if fmt == "npz" else result
    for name, file in told["files"].items():
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == file["sha256"]
    assert [i for file in told["files"].values() for i in range(file["first"], file["last"] + 1)] == list(range(COUNT))
    if fmt != "npz":
        assert told["labels"] == [i % 10 for i in range(COUNT)]
        assert {path.name for path in result.iterdir()} == told["files"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([result.name, "samples_ddim.json"])


@pytest.mark.parametrize("fmt", ["npz", "png"])
def test_files_do_not_show_how_they_were_cut(tmp_path: Path, fmt: str, whole: dict[str, bytes]) -> None:
    for size in (1, 3, 7, 22, 23):
        sample(tmp_path / str(size), fmt, size)
        assert content(tmp_path / str(size)) == whole


def test_large_arrays_do_not_show_how_they_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many blocks of compression, with a block that ends within a shard."""
    monkeypatch.setattr(module, "BLOCK", 1000)
    found = set()
    for size in (2, 64, 333, 500):
        shards = Shards(tmp_path / str(size), "x", PROTOCOL)
        for indices in shards.missing(500, size):
            shards.write(indices, drawn(indices))
        found.add(shards.finish(500, {})[0].read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("draw", [drawn, vectors])
def test_an_npz_is_that_of_numpy(tmp_path: Path, draw: Any) -> None:
    """Each member is, byte for byte, what numpy stores of the whole array."""
    shards = Shards(tmp_path, "x", PROTOCOL)
    for indices in shards.missing(COUNT, 5):
        shards.write(indices, draw(indices))
    path, manifest = shards.finish(COUNT, {})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        assert archive.testzip() is None
    expected = {}
    for name, array in draw(range(COUNT)).items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        expected[f"{name}.npy"] = buffer.getvalue()
    assert members == expected
    assert json.loads(manifest.read_text())["files"][path.name]["last"] == COUNT - 1


@every_format
def test_fewer_than_are_stored_are_the_first(tmp_path: Path, fmt: str) -> None:
    """A shard that reaches over the end is cut, and the result is that of a sampling of so many."""
    shards = Shards(tmp_path / "more", "ddim", PROTOCOL, fmt)
    for indices in (range(0, 8), range(8, 16), range(16, 23)):
        shards.write(indices, drawn(indices))
    assert shards.missing(13, 8) == []
    shards.finish(13, MANIFEST)
    fewer = Shards(tmp_path / "fewer", "ddim", PROTOCOL, fmt)
    for indices in (range(0, 8), range(8, 13)):
        fewer.write(indices, drawn(indices))
    fewer.finish(13, MANIFEST)
    assert content(tmp_path / "more") == content(tmp_path / "fewer")
    assert np.array_equal(images_of(tmp_path / "more", fmt), drawn(range(13))["images"])


@every_format
def test_shards_that_overlap_are_counted_once(tmp_path: Path, fmt: str) -> None:
    """Sessions of other batch sizes, and a range drawn twice."""
    shards = Shards(tmp_path, "ddim", PROTOCOL, fmt)
    for indices in (range(6, 14), range(0, 8), range(3, 5), range(0, 8), range(13, 23), range(9, 12)):
        shards.write(indices, drawn(indices))
    assert shards.missing(COUNT, 4) == []
    shards.finish(COUNT, MANIFEST)
    assert np.array_equal(images_of(tmp_path, fmt), drawn(range(COUNT))["images"])
    told = json.loads((tmp_path / "samples_ddim.json").read_text())["files"].values()
    assert [i for file in told for i in range(file["first"], file["last"] + 1)] == list(range(COUNT))


def test_what_is_missing_comes_in_ranges_of_a_size(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "ddim", PROTOCOL)
    assert shards.missing(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    for indices in (range(2, 5), range(4, 6), range(11, 13)):
        shards.write(indices, drawn(indices))
    assert shards.missing(18, 4) == [range(0, 2), range(6, 10), range(10, 11), range(13, 17), range(17, 18)]
    assert shards.missing(12, 4) == [range(0, 2), range(6, 10), range(10, 11)]
    assert shards.missing(2, 1000) == [range(0, 2)] and shards.missing(0, 4) == []
    other = Shards(tmp_path, "ddim", {**PROTOCOL, "seed": 4})  # nothing of another protocol
    assert other.missing(7, 7) == [range(0, 7)] and other.work != shards.work
    assert Shards(tmp_path, "ddim", PROTOCOL, "png").missing(7, 7) == [range(0, 7)]
    assert Shards(tmp_path, "ddim", dict(reversed(PROTOCOL.items()))).missing(2, 9) == [range(0, 2)]


@every_format
def test_the_first_samples_are_there_before_the_end(tmp_path: Path, fmt: str) -> None:
    shards = Shards(tmp_path, "ddim", PROTOCOL, fmt)
    for indices in shards.missing(COUNT, 4):
        shards.write(indices, drawn(indices))
    for n in (1, 4, 10, COUNT):
        found, expected = shards.first(n), drawn(range(n))
        assert found.keys() == expected.keys() and found["labels"].dtype == np.int64
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_notes_come_back_and_follow_a_shard_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path, "ddim", PROTOCOL)
    shards.write(range(0, 4), drawn(range(0, 4)), {"nfe": 5})
    shards.write(range(4, 9), drawn(range(4, 9)), {"nfe": 7.5, "why": "é"})
    assert Shards(tmp_path, "ddim", PROTOCOL).notes(9) == [{"nfe": 5}, {"nfe": 7.5, "why": "é"}]
    assert shards.notes(4) == [{"nfe": 5}]
    monkeypatch.setattr(module, "_compress", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        shards.finish(6, {})
    # The part 4..5 is now a shard beside the whole 4..8.
    assert shards.notes(6) == [{"nfe": 5}, {"nfe": 7.5, "why": "é"}, {"nfe": 7.5, "why": "é"}]


@pytest.mark.parametrize("fmt", ["png", "zip"])
def test_grey_images(tmp_path: Path, fmt: str) -> None:
    shards = Shards(tmp_path, "ddim", PROTOCOL, fmt)
    images = drawn(range(5), channels=1)["images"]
    shards.write(range(5), {"images": images})
    assert np.array_equal(shards.first(5)["images"], images)
    shards.finish(5, {})
    assert np.array_equal(images_of(tmp_path, fmt), images[..., 0])
    assert "labels" not in json.loads((tmp_path / "samples_ddim.json").read_text())


@pytest.mark.parametrize("fmt", ["png", "zip"])
@pytest.mark.parametrize("arrays", [vectors(range(3)), {"images": drawn(range(3))["images"][..., :2]}])
def test_vectors_are_no_pictures(tmp_path: Path, fmt: str, arrays: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be written as PNG"):
        Shards(tmp_path, "x", PROTOCOL, fmt).write(range(3), arrays)


@pytest.mark.parametrize(
    ("indices", "arrays"),
    [
        (range(2), drawn(range(3))),
        (range(0), {"samples": np.zeros((0, 2))}),
        (range(0, 6, 2), drawn(range(3))),
        (range(3), {"labels": np.zeros(3, np.int64)}),
        (range(3), {**drawn(range(3)), **vectors(range(3))}),
        (range(3), {"images": drawn(range(3))["images"], "labels": np.zeros(2, np.int64)}),
        (range(3), {**vectors(range(3)), "nfe": np.zeros(3)}),
    ],
    ids=["too many", "none", "not consecutive", "labels only", "two kinds", "few labels", "another array"],
)
def test_arrays_that_are_no_shard_are_refused(tmp_path: Path, indices: range, arrays: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match="are to be stored as images or samples"):
        Shards(tmp_path, "x", PROTOCOL).write(indices, arrays)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_missing_samples_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown format of samples 'pngs'; did you mean 'png'\?"):
        Shards(tmp_path, "x", PROTOCOL, "pngs")
    shards = Shards(tmp_path, "x", PROTOCOL)
    shards.write(range(3), drawn(range(3)))
    with pytest.raises(UserError, match="sample 3 of 5 is not stored"):
        shards.finish(5, {})
    with pytest.raises(UserError, match="one sample at least"):
        shards.finish(0, {})
    shards.write(range(3, 5), vectors(range(3, 5)))
    with pytest.raises(UserError, match="not of one kind"):
        shards.finish(5, {})
    shards.write(range(3, 5), drawn(range(3, 5), channels=1))
    with pytest.raises(UserError, match=r"images of uint8 \(5, 4, 1\) follow those of uint8 \(5, 4, 3\)"):
        shards.finish(5, {})


# --- one after another -----------------------------------------------------------------------------------------


@every_format
def test_a_finished_sampling_is_replaced_by_the_next(tmp_path: Path, fmt: str, whole: dict[str, bytes]) -> None:
    """The former one stays until the new one is whole; drawing again starts anew."""
    sample(tmp_path / "run", fmt, 4, count=9)
    before = content(tmp_path / "run")
    shards = Shards(tmp_path / "run", "ddim", PROTOCOL, fmt)
    assert shards.missing(COUNT, 100) == [range(COUNT)]
    for indices in shards.missing(COUNT, 4):
        shards.write(indices, drawn(indices))
        assert before.items() <= content(tmp_path / "run").items()
    shards.finish(COUNT, MANIFEST)
    assert content(tmp_path / "run") == whole


# --- damage ----------------------------------------------------------------------------------------------------


def flip(path: Path, place: float) -> None:
    """One bit of a file, other than it was."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "first byte": lambda path: flip(path, 0.0),
    "middle": lambda path: flip(path, 0.5),
    "last byte": lambda path: flip(path, 1.0),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "lost": lambda path: path.unlink(),
}


@every_format
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("part", ["files", "marks"])
def test_a_damaged_shard_is_named_and_drawn_again(
    tmp_path: Path, fmt: str, how: str, part: str, whole: dict[str, bytes]
) -> None:
    shards = Shards(tmp_path / "run", "ddim", PROTOCOL, fmt)
    for indices in shards.missing(COUNT, 4):
        shards.write(indices, drawn(indices))
    path = sorted((shards.work / part).iterdir())[2]
    DAMAGE[how](path)
    if (how, part) != ("lost", "marks"):  # of which nobody knows
        with pytest.warns(UserWarning, match=rf"{path.name} in .* is damaged or lost") as told:
            missing = shards.missing(COUNT, 4)
        assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and it is gone
        missing = shards.missing(COUNT, 4)
        assert missing == [range(0, 4) if (fmt, part) == ("png", "files") else range(8, 12)]
        shards.write(missing[0], drawn(missing[0]))
        shards.finish(COUNT, MANIFEST)
    assert content(tmp_path / "run") == whole


def test_every_byte_of_a_mark_counts(tmp_path: Path) -> None:
    """Damage to a label, too, which is still a number."""
    shards = Shards(tmp_path, "ddim", PROTOCOL)
    shards.write(range(3), drawn(range(3)))
    (mark,) = (shards.work / "marks").iterdir()
    whole = mark.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (1, 4, 32)[place % 3]
        mark.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            assert shards.missing(3, 9) == [range(3)]
        assert not mark.exists()
        shards.write(range(3), drawn(range(3)))
        assert mark.read_bytes() == whole


# --- kills -----------------------------------------------------------------------------------------------------


@every_format
def test_a_kill_at_any_change_of_the_disk(tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards written and finished, killed at each change once: all samples once, the same bytes, none left behind."""
    monkeypatch.setattr(files, "ThreadPoolExecutor", AtOnce)
    count, size = 3, 2
    run = tmp_path / "run"
    *left, end = deaths(run, lambda: sample(run, fmt, size, count), tmp_path / "left")
    whole = content(end)
    for number, folder in enumerate(left):
        stored = Shards(folder, "ddim", PROTOCOL, fmt)
        if marks := len(list((stored.work / "marks").glob("[0-9]*"))):
            assert len(stored.missing(count, size)) == 2 - marks, "what has a mark is not drawn again"
        sample(folder, fmt, size, count)
        assert content(folder) == whole, number
    sample(tmp_path / "whole", fmt, size, count)
    assert content(tmp_path / "whole") == whole and len(left) > 40


@every_format
def test_samples_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard's files, then its mark; in the end the samples, then their manifest, then the end of the work.

    Each is flushed, named, and its new name flushed, before the next; without that a loss of power could leave a
    name with no samples, or a mark of samples that are not there.
    """

    def aside(place: str, *names: str) -> list[str]:
        hidden = [f".{name}.{os.getpid()}" for name in names]
        renamed = [f"{old} -> {new}" for old, new in zip(hidden, names)]
        return [*(f"flush {name}" for name in hidden), *renamed, f"flush {place}"]

    folder, span = tmp_path / "run", "00000000-00000001"
    shards = Shards(folder, "ddim", PROTOCOL, fmt)
    names = ["000000.png", "000001.png"] if fmt == "png" else [f"{span}.{fmt}"]
    with recorded(monkeypatch) as stored:
        shards.write(range(2), drawn(range(2)))
    stored[: len(names)] = sorted(stored[: len(names)])  # which are flushed at the same time
    assert stored == aside("files", *names) + aside("marks", f"{span}.json")
    with recorded(monkeypatch) as finished:
        shards.finish(2, MANIFEST)
    work, manifest = shards.work.name, "samples_ddim.json"
    npz = ["flush samples_ddim.npz", "samples_ddim.npz -> samples_ddim.npz", "flush run"]
    moved = ["files -> samples_ddim", "flush run"]
    assert finished == [
        *(npz if fmt == "npz" else moved),
        *aside(work, manifest),
        f"{manifest} -> {manifest}",
        f"{work} -> {work}.finished",
        "flush run",
    ]


def write_shares(folder: Path, fmt: str, ranges: list[range]) -> None:
    shards = Shards(folder, "ddim", PROTOCOL, fmt)
    for indices in ranges:
        shards.write(indices, drawn(indices))


@every_format
def test_two_processes_write_alternate_shards(tmp_path: Path, fmt: str) -> None:
    sample(tmp_path / "one", fmt, 2, count=60)
    shards = Shards(tmp_path / "two", "ddim", PROTOCOL, fmt)
    missing = shards.missing(60, 2)
    processes = [FORK.Process(target=write_shares, args=(tmp_path / "two", fmt, missing[rank::2])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert shards.missing(60, 2) == []
    shards.finish(60, MANIFEST)
    assert content(tmp_path / "two") == content(tmp_path / "one")


class Killed(BaseException):
    """In place of a kill."""


class Deadline:
    """os.replace and the like, which end the process in place of their nth call, or just after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int, after: bool) -> None:
        self.left, self.after = calls, after
        for owner, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            result = function(*arguments, **options)
            if self.left == 0:
                self.left = -1
                raise Killed
            return result

        return call


@every_format
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("former", [False, True], ids=["new", "former"])
def test_finish_can_end_at_any_step_and_be_called_again(tmp_path: Path, fmt: str, after: bool, former: bool) -> None:
    """Nothing is lost, what was there before stays until it is replaced, and the end is the same."""

    def stored(folder: Path) -> Shards:
        """A sampling to be finished, where one shard is to be cut and others overlap."""
        write_shares(folder, fmt, [range(0, 4), range(2, 8), range(8, 12), range(8, 16), range(16, COUNT + 2)])
        return Shards(folder, "ddim", PROTOCOL, fmt)

    start = tmp_path / "start"
    if former:
        sample(start, fmt, 4, count=9)
    old = content(start)
    stored(start)
    stored(tmp_path / "whole").finish(COUNT, MANIFEST)
    new = content(tmp_path / "whole")
    for calls in range(1, 100, 4 if fmt == "png" else 1):  # each of its files is a step
        folder = tmp_path / f"run{calls}"
        shutil.copytree(start, folder)
        shards = Shards(folder, "ddim", PROTOCOL, fmt)
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            deadline = Deadline(patch, calls, after)
            shards.finish(COUNT, MANIFEST)
        there = set(content(folder).values())
        if former:  # all samples of the one or of the other; the manifest can always be written again
            assert any({kept[name] for name in kept if name != "samples_ddim.json"} <= there for kept in (new, old))
        if list(folder.glob(".*")):
            shards.finish(COUNT, MANIFEST)
        assert content(folder) == new
        if deadline.left > 0:
            break
    assert 10 < calls < 99


@every_format
def test_a_kill_in_finish_draws_nothing_again(tmp_path: Path, fmt: str, whole: dict[str, bytes]) -> None:
    """Up to the last step, after which the sampling is finished and another would start anew."""
    seen, start = [], tmp_path / "start"
    write_shares(start, fmt, Shards(start, "ddim", PROTOCOL, fmt).missing(COUNT, 4))
    for calls in range(1, 100):
        folder = tmp_path / f"run{calls}"
        shutil.copytree(start, folder)
        shards = Shards(folder, "ddim", PROTOCOL, fmt)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("error")
            deadline = Deadline(patch, calls, after=False)
            try:
                shards.finish(COUNT, MANIFEST)
            except Killed:
                patch.undo()
                seen.append(len(Shards(folder, "ddim", PROTOCOL, fmt).missing(COUNT, 100)))
        sample(folder, fmt, 4)
        assert content(folder) == whole
        if deadline.left > 0:
            break
    assert seen == sorted(seen) and seen[:3] == [0, 0, 0] and set(seen) <= {0, 1}


# --- disks and memory ------------------------------------------------------------------------------------------


@every_format
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path, fmt: str, whole: dict[str, bytes]) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        shards = Shards(disk / "run", "ddim", PROTOCOL, fmt)
        for indices in shards.missing(COUNT, 4)[:3]:
            shards.write(indices, drawn(indices))
        filling = fill(disk)
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; 0\.0 MiB are free"):
            for indices in shards.missing(COUNT, 4):
                shards.write(indices, drawn(indices))
        filling.unlink()
        for indices in shards.missing(COUNT, 4):
            assert indices.start >= 12
            shards.write(indices, drawn(indices))
        filling = fill(disk)
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            shards.finish(COUNT, MANIFEST)
        assert {path.name for path in shards.work.iterdir()} <= {"files", "marks"}  # nothing half written
        filling.unlink()
        assert shards.missing(COUNT, 4) == []
        shards.finish(COUNT, MANIFEST)
        assert content(disk / "run") == whole


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from sde_diffusion.storage.shards import Shards

def peak():  # of this program alone; ru_maxrss would have that of the one which started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

def draw(indices):
    return np.random.default_rng(indices[0]).integers(0, 256, (len(indices), 32, 32, 3), dtype=np.uint8)

shards = Shards(Path(sys.argv[1]), "x", {}, "npz")
warm = Shards(Path(sys.argv[1]), "warm", {}, "npz")
warm.write(range(500), {"images": draw(range(500))})
warm.finish(500, {})
before = peak()
for indices in shards.missing(int(sys.argv[2]), 500):
    shards.write(indices, {"images": draw(indices), "labels": np.arange(len(indices))})
shards.first(100)
shards.finish(int(sys.argv[2]), {})
print(peak() - before)
"""


def test_memory_is_that_of_a_shard(tmp_path: Path) -> None:
    """25 MiB of images in shards of 1.5 MiB."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "9000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "samples_x.npz").stat().st_size > 25 * 2**20
    assert float(done.stdout) < 12
