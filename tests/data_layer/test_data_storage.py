"""Sets in memory, mapped and streaming: the same batches whoever decodes them, resumed anywhere; broken pictures."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import taking
import torch
from PIL import Image
from scipy.stats import kstest
from taking import same
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import (
    DataOptions,
    Dataset,
    DataTransform,
    Source,
    Splits,
    batches,
    load_splits,
    mapped,
    streamed,
)
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.dataset import Batch
from sde_diffusion.data.pictures import Tally

COUNT, CLASSES = 47, ("a", "b", "c")
STORAGES = ("memory", "mapped", "hub")
BROKEN = b"\x89PNG\r\n\x1a\n and no more"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the datasets library keeps its copies in these tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def png(index: int) -> bytes:
    """A picture whose left column says which one it is; the rest is black."""
    array = np.zeros((4, 4, 3), np.uint8)
    array[:, 0] = (index % 256, 100, index // 256)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write_shards(root: Path, contents: list[bytes], part: str = "train", shards: int = 3) -> None:
    features = {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    rows = [{"img": {"bytes": data, "path": None}, "label": i % 3} for i, data in enumerate(contents)]
    size = math.ceil(len(rows) / shards)
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard * size : (shard + 1) * size])
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / f"{part}-{shard:05}-of-{shards:05}.parquet", row_group_size=5)


def write_folder(root: Path, contents: list[bytes]) -> None:
    for index, data in enumerate(contents):
        path = root / CLASSES[index % 3] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """47 pictures in three shards to train on, and 20 held out."""
    place = tmp_path / "set"
    place.mkdir()
    write_shards(place, [png(index) for index in range(COUNT)])
    write_shards(place, [png(1000 + index) for index in range(20)], "test", 1)
    return place


def load(root: Path, storage: str, **options: Any) -> Splits:
    """A set in one of its storages; "hub": as what streams from the hub (what does from the disk: test_lanes.py)."""
    # Windows that begin amid the shards, which have 16, 16 and 15 rows.
    options = {"shuffle_window": 11} | options
    if storage == "hub":
        import datasets

        files = {part: sorted(map(str, root.glob(f"{part}-*.parquet"))) for part in ("train", "test")}
        parts = dict(datasets.load_dataset("parquet", data_files=files, streaming=True))
        reading = DataOptions(storage="streaming", **options).reading(32 if options.get("crop") == "random" else 0)
        return streamed.streamed(parts, "CIFAR-10", reading)
    return load_splits("cifar10", DataOptions(root=str(root), source="parquet", storage=storage, **options))


def numbers(samples: Tensor) -> list[int]:
    """Which pictures these are, mirrored or not."""
    red, green, blue = samples.long().amax(3)[:, :, 0].T
    assert (green == 100).all()
    return (red + 256 * blue).tolist()


def take(data: Source, count: int, batch_size: int = 10, **options: Any) -> list[Batch]:
    return taking.take(data, count, batch_size, **options)


# --- one order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_mapped_batches_are_those_in_memory(root: Path, workers: int) -> None:
    memory, other = load(root, "memory"), load(root, "mapped")
    assert isinstance(memory.train, Dataset) and not isinstance(other.train, Dataset)
    assert same(take(memory.train, 12), take(other.train, 12, workers=workers))
    assert torch.equal(memory.test.samples, other.test.samples) and torch.equal(memory.test.labels, other.test.labels)
    for name in ("shape", "levels", "classes", "title", "size"):
        assert getattr(memory.train, name) == getattr(other.train, name)


def test_mapped_folders_are_split_as_those_in_memory(tmp_path: Path) -> None:
    """What is trained on depends neither on the storage nor on how much is kept of what is held out."""
    write_folder(tmp_path / "set", [png(index) for index in range(COUNT)])
    memory, other = (
        load_splits("folder", DataOptions(root=str(tmp_path / "set"), storage=storage)) for storage in STORAGES[:2]
    )
    assert torch.equal(memory.test.samples, other.test.samples)
    few = load_splits("folder", DataOptions(root=str(tmp_path / "set"), held_out=2))
    assert len(few.test) == 2 and set(numbers(few.test.samples)) < set(numbers(memory.test.samples))
    assert same(take(memory.train, 9), take(other.train, 9)) and same(take(memory.train, 9), take(few.train, 9))
    with pytest.raises(UserError, match="not streamed"):
        load_splits("folder", DataOptions(root=str(tmp_path / "set"), storage="streaming"))


@pytest.mark.parametrize("storage", STORAGES)
def test_every_sample_is_used_once_an_epoch_with_its_own_label(root: Path, storage: str) -> None:
    found = take(load(root, storage).train, 47, 9)
    order = [number for samples, _ in found for number in numbers(samples)]
    epochs = [order[start : start + COUNT] for start in range(0, 9 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 9, "epochs repeat one order"
    assert [int(label) for _, told in found for label in told["labels"]] == [number % 3 for number in order]


def test_a_stream_changes_the_order_of_shards_and_of_rows(root: Path) -> None:
    """A window of a shard's size holds a whole one, in an order of its own; any shard may come first in an epoch."""
    train = load(root, "hub", shuffle_window=16).train
    order = numbers(torch.cat([samples for samples, _ in take(train, 47)]))
    epochs = np.array(order[: 9 * COUNT]).reshape(9, COUNT)
    assert len(set(epochs[:, 0] // 16)) == 3
    windows = [epoch[start : start + 16] for epoch in epochs for start in (0, 16)]
    windows = [window for window in windows if len(set(window // 16)) == 1]  # the others begin in the short shard
    assert len(windows) > 5
    assert len({tuple(window % 16) for window in windows}) == len(windows)


def test_seeds_and_the_global_random_state(root: Path) -> None:
    before = torch.get_rng_state()
    for storage in STORAGES:
        train = load(root, storage).train
        one, other = (next(batches(train, 20, seed=seed))[0] for seed in (0, 1))
        assert not torch.equal(one, other)
        take(train, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


# --- parts, workers and resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_the_parts_of_two_processes_are_the_whole_batch(root: Path, storage: str) -> None:
    train = load(root, storage, crop="random" if storage != "memory" else "centre").train
    whole = take(train, 8)
    first, second = (take(train, 8, part=part, workers=1) for part in (slice(0, 4), slice(4, None)))
    joined = [
        (torch.cat([a, b]), {"labels": torch.cat([told["labels"], rest["labels"]])})
        for (a, told), (b, rest) in zip(first, second)
    ]
    assert same(whole, joined)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_gives_the_batches_of_an_unbroken_run(root: Path, storage: str, workers: int) -> None:
    """From steps of the first three epochs, with the state as a checkpoint would keep it, and without.

    One worker makes what this process would make, only elsewhere, and is asked for fewer.
    """
    train = load(root, storage).train
    unbroken = take(train, 20)
    stream = batches(train, 10, seed=3, flip=True, workers=2 - workers)
    for step in range(15):
        if step in ((1, 9) if workers == 1 else (0, 1, 4, 5, 9, 14)):
            state = json.loads(json.dumps(stream.state))
            assert bool(state) == (storage == "hub" and step > 0)
            for kept in (state, None):
                assert same(unbroken[step : step + 4], take(train, 4, start_step=step, state=kept, workers=workers))
        assert same([next(stream)], [unbroken[step]])


def test_a_stream_resumes_without_reading_what_went_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one shard's rows are passed over; without the state, all rows before are."""
    train = load(root, "hub").train
    stream = batches(train, 10, seed=3)
    for _ in range(23):
        next(stream)
    read: list[int] = []
    original = streamed.chunks_of

    def counted(*args: Any) -> Iterator[Any]:
        for chunk in original(*args):
            read.append(len(chunk.table))
            yield chunk

    monkeypatch.setattr(streamed, "chunks_of", counted)
    next(batches(train, 10, seed=3, start_step=23, state=stream.state))
    assert sum(read) <= 2 * 16 + 10
    read.clear()
    next(batches(train, 10, seed=3, start_step=23))
    assert sum(read) >= 230


def test_a_state_of_another_step_is_refused(root: Path) -> None:
    train = load(root, "hub").train
    stream = batches(train, 10, seed=3)
    next(stream)
    with pytest.raises(UserError, match=r"state of CIFAR-10 is that of step 1, not of 2\."):
        batches(train, 10, seed=3, start_step=2, state=stream.state)
    stream.close()
    with pytest.raises(UserError, match="closed"):
        next(stream)


# --- workers end ----------------------------------------------------------------------------------------------

TRAINER = """
import os, signal, sys, time
from sde_diffusion.data import DataOptions, batches, load_splits
root, how = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: None)
train = load_splits("folder", DataOptions(root=root, storage="mapped")).train
stream = batches(train, 8, seed=0, workers=2)
for _ in range(2):  # one of each worker, so that both are up
    next(stream)
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(children, flush=True)
if how == "signalled":
    os.killpg(0, signal.SIGTERM)
    for _ in range(20):
        next(stream)
    print("goes on", flush=True)
elif how == "killed":
    time.sleep(60)
"""


def interpreted(root: Path, how: str) -> tuple[int, IO[str]]:
    """The trainer in an interpreter of its own, whose end is a whole one: its number, and what it says."""
    # The first to be told of the interpreter's end is the last to be asked.
    first = "import tempfile; place = tempfile.TemporaryDirectory()"
    reading, writing = os.pipe()
    trainer = subprocess.Popen([sys.executable, "-c", f"{first}\n{TRAINER}", str(root), how], stdout=writing)
    os.close(writing)
    trainer.returncode = 0  # the caller waits for it
    return trainer.pid, os.fdopen(reading)


def forked(root: Path, how: str) -> tuple[int, IO[str]]:
    """The trainer in a process forked from this one, in a session of its own: its number, and what it says."""
    reading, writing = os.pipe()
    trainer = os.fork()
    if not trainer:
        code = 1
        try:
            gc.disable()  # it would walk, and so copy, all that the parent holds
            os.setsid()
            os.close(reading)
            sys.argv[1:], sys.stdout = [str(root), how], os.fdopen(writing, "w")
            exec(TRAINER, {})
            sys.stdout.flush()
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return trainer, os.fdopen(reading)


@pytest.mark.parametrize("how", ["killed", "signalled", "left"])
def test_workers_end_with_their_trainer_and_not_before(tmp_path: Path, how: str) -> None:
    """After kill -9; after an end without `close`; and a signal to all processes leaves the trainer its workers."""
    write_folder(tmp_path / "set", [png(index) for index in range(COUNT)])
    trainer, says = (interpreted if how == "left" else forked)(tmp_path / "set", how)
    with says:
        workers = [int(number) for number in says.readline().split()]
        assert len(workers) == 2
        if how == "killed":
            os.kill(trainer, signal.SIGKILL)
        said = says.read()
    code = os.waitstatus_to_exitcode(os.waitpid(trainer, 0)[1])
    assert code == (-signal.SIGKILL if how == "killed" else 0)
    assert ("goes on" in said) == (how == "signalled")
    deadline = time.monotonic() + 10
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, workers))


def _runs(process: int) -> bool:
    """Whether it is there and not merely waiting for its parent to ask how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_is_lost_is_explained(root: Path) -> None:
    stream = batches(load(root, "mapped").train, 4, seed=0, workers=1)
    before = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    next(stream)
    for process in before:
        os.kill(int(process), signal.SIGKILL)
    with pytest.raises(UserError, match=r"a worker that reads CIFAR-10 ended .*data\.workers=0"):
        for _ in range(10):
            next(stream)


# --- broken pictures ------------------------------------------------------------------------------------------


def contents(broken: set[int], count: int = 200) -> list[bytes]:
    return [BROKEN if index in broken else png(index) for index in range(count)]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """200 pictures of which numbers 40 and 41, in succession, are broken, and one of 20 held out."""
    place = tmp_path / "damaged"
    place.mkdir()
    write_shards(place, contents({40, 41}))
    write_shards(place, contents({5}, 20), "test", 1)
    return place


def test_in_memory_broken_pictures_are_left_out(damaged: Path) -> None:
    with pytest.warns(UserWarning, match=r"3 of 220 pictures cannot be read and are left out: .*train, image 40 \("):
        splits = load(damaged, "memory", corrupt_limit=0.02)
    assert numbers(splits.train.samples) == [index for index in range(200) if index not in (40, 41)]
    assert [number % 3 for number in numbers(splits.train.samples)] == splits.train.labels.tolist()
    assert len(splits.test) == 19
    with pytest.raises(
        UserError, match=r"3 of 220 pictures .* no more than a share of 0\.01 .*data\.corrupt_limit.*image 41"
    ):
        load(damaged, "memory")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("storage", ["mapped", "hub"])
def test_broken_pictures_are_replaced_by_the_next_and_named_once(damaged: Path, storage: str, workers: int) -> None:
    with pytest.warns(UserWarning, match="1 of 20 pictures cannot be read and are left out"):
        train = load(damaged, storage, corrupt_limit=0.2).train
    stream = batches(train, 20, seed=0, workers=workers)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = (list(itertools.islice(stream, 10)) for _ in range(2))
    for epoch in (first, second):
        found = numbers(torch.cat([samples for samples, _ in epoch]))
        assert not {40, 41} & set(found) and set(found) == set(range(200)) - {40, 41}
        assert [int(label) for _, told in epoch for label in told["labels"]] == [number % 3 for number in found]
    places = ["row 5", "row 40", "row 41"] if storage == "hub" else ["image 40", "image 41", "image 5"]
    assert sorted(name.split(", ")[-1].removesuffix(" of shard 0") for name in stream.corrupt) == sorted(places)
    assert all("replaced by the next" in str(warning.message) for warning in told)
    assert sum(str(warning.message).count("(it is no picture") for warning in told) == 2


def test_a_mapped_replacement_is_the_next_picture(damaged: Path) -> None:
    with pytest.warns(UserWarning):
        train = load(damaged, "mapped", corrupt_limit=0.2).train
    samples, told = train.read(torch.tensor([39, 40, 41]))
    assert numbers(samples) == [39, 42, 42] and told["labels"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("storage", ["mapped", "hub"])
def test_too_many_broken_pictures_end_the_training(damaged: Path, storage: str) -> None:
    write_shards(damaged, contents({5} | set(range(50, 60))))
    with pytest.warns(UserWarning):
        train = load(damaged, storage, corrupt_limit=0.005 if storage == "hub" else 0.03).train
    stream = batches(train, 20, seed=0, workers=1)
    message = r"[0-9]+ of [0-9]+ pictures cannot be read, and no more than .* \(data\.corrupt_limit\)"
    with warnings.catch_warnings(), pytest.raises(UserError, match=message) as caught:
        warnings.simplefilter("ignore")
        for _ in range(11):
            next(stream)
    assert "\n" not in str(caught.value)


def test_pictures_that_are_all_broken_are_refused_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", contents(set(range(6)), 6))
    for storage in ("memory", "mapped"):
        with pytest.raises(UserError, match=r"no picture can be read: .*a/000\.png .* and 1 more"):
            load_splits("folder", DataOptions(root=str(tmp_path / "set"), storage=storage))


def test_the_share_is_of_a_thousand_until_so_many_are_read() -> None:
    tally = Tally("set", 0.01, 1000)
    with pytest.warns(UserWarning, match=r"set: 1 of 64 pictures cannot be read and are replaced: a \(b\)\."):
        tally.add(64, [("a", "b")], "replaced")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add(936, [("a", "b")] * 9, "replaced")
    with pytest.raises(UserError, match="11 of 1,000 pictures"):
        tally.add(0, [("a", "b")], "replaced")


# --- crops ----------------------------------------------------------------------------------------------------


def ramps(width: int, height: int) -> Image.Image:
    """Red grows by 2 a pixel to the right, green by 2 a pixel downwards: linear, so that resizing is exact."""
    across, down = np.meshgrid(2 * np.arange(width), 2 * np.arange(height))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("draw", [(0.0, 0.0, 0.0), (0.5, 0.9, 0.2), (1.0, 0.5, 0.5), (0.3, 1.0, 1.0)])
def test_a_random_square_is_where_its_numbers_say(draw: tuple[float, float, float]) -> None:
    """The colours in its middle are those of its centre; their slope is that of its side."""
    cut = Cut(16, "random", 0.5)
    square = np.asarray(cut.at(ramps(100, 80), draw)).astype(float)
    side = (0.5 + 0.5 * draw[0]) * 80
    left, top = draw[1] * (100 - side), draw[2] * (80 - side)
    inner = slice(4, 12)  # away from the filter's border
    for channel, start in ((0, left), (1, top)):
        profile = square[inner, inner, channel].mean(axis=channel)
        pixel = start + (np.arange(4, 12) + 0.5) * side / 16 - 0.5
        np.testing.assert_allclose(profile, 2 * pixel, atol=1.0)


def test_random_crops_follow_their_distribution(tmp_path: Path) -> None:
    """u is uniform in [min_crop, 1], and so are the places (Kolmogorov's distance below its 0.1% quantile)."""
    for index in range(20):
        path = tmp_path / "set" / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        ramps(120, 100).save(path)
    options = DataOptions(root=str(tmp_path / "set"), image_size=16, crop="random", min_crop=0.6)
    splits = load_splits("folder", options)
    assert splits.test.shape == (3, 16, 16) and not isinstance(splits.train, Dataset)
    stream = batches(splits.train, 100, seed=0)
    x = torch.cat([next(stream)[0] for _ in range(5)]).double()
    slope = (x[:, 0, :, 12] - x[:, 0, :, 3]).mean(1) / 9 / 2  # source pixels a pixel
    side = slope * 16
    left = x[:, 0, :, 7:9].mean((1, 2)) / 2 + 0.5 - side / 2
    top = x[:, 1, 7:9].mean((1, 2)) / 2 + 0.5 - side / 2
    limit = 1.95 / math.sqrt(len(x))
    for values in ((side / 100 - 0.6) / 0.4, left / (120 - side), top / (100 - side).clamp(min=2.0)):
        assert kstest(values.clamp(0, 1).numpy(), "uniform").statistic < limit + 0.02  # 8 bits make steps


def test_crops_that_cannot_be_made_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="set the image size"):
        load_splits("folder", DataOptions(root=str(root), crop="random"))
    with pytest.raises(UserError, match="choose the storage 'mapped'"):
        load(root, "memory", crop="random")
    with pytest.raises(UserError, match="digits lies in memory and cannot be cropped at random"):
        load_splits("digits", DataOptions(crop="random"))
    with pytest.raises(UserError, match="centre"):
        load(root, "mapped", crop="center")
    with pytest.raises(UserError, match="min_crop"):
        load(root, "mapped", crop="random", min_crop=0.0)


# --- storage and what is held out -----------------------------------------------------------------------------


def test_automatic_storage_is_memory_up_to_its_limit(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(root, "auto").train, Dataset) and not cache.exists()
    monkeypatch.setattr(mapped, "MEMORY_LIMIT", COUNT * 48 - 1)
    assert not isinstance(load(root, "auto").train, Dataset)
    monkeypatch.setattr(mapped, "MEMORY_LIMIT", 19 * 48)
    with pytest.raises(UserError, match=r"20 samples held out .* at most 19\."):
        load(root, "auto")


@pytest.mark.parametrize("storage", ["mapped", "streaming"])
def test_sets_in_memory_are_not_read_in_another_way(storage: str) -> None:
    for name in ("digits", "toy2d"):
        with pytest.raises(UserError, match=f"cannot be {storage}: leave the storage at 'auto'"):
            load_splits(name, DataOptions(storage=storage))
    with pytest.raises(UserError, match="streaming"):
        load_splits("digits", DataOptions(storage="stream"))


def test_held_out_samples_are_shortened_with_every_class(root: Path) -> None:
    for storage in ("memory", "mapped"):
        assert load(root, storage, held_out=6).test.labels.bincount().tolist() == [2, 2, 2]
    assert numbers(load(root, "hub", held_out=6).test.samples) == [1000, 1001, 1002, 1003, 1004, 1005]
    assert len(load_splits("digits", DataOptions(held_out=50)).test) == 50
    with pytest.raises(UserError, match="held_out >= 0"):
        load(root, "mapped", held_out=-1)


def test_a_stream_without_a_test_part_skips_what_is_held_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first 20 rows are those of shard 0 and the first four of shard 1; how many are kept of them is no matter."""
    import datasets

    monkeypatch.setattr(streamed, "SKIPPED", 20)

    files = sorted(map(str, root.glob("train-*.parquet")))
    parts = dict(datasets.load_dataset("parquet", data_files={"train": files}, streaming=True))
    reading = DataOptions(shuffle_window=8).reading(0)
    splits = streamed.streamed(parts, "set", reading)
    assert numbers(splits.test.samples) == list(range(20)) and splits.train.classes == CLASSES
    splits = streamed.streamed(parts, "set", replace(reading, held_out=7))
    assert numbers(splits.test.samples) == list(range(7)) and splits.test.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for seed in range(4):
        epoch = next(batches(splits.train, COUNT - 20, seed=seed))[0]
        assert sorted(numbers(epoch)) == list(range(20, COUNT))
    monkeypatch.setattr(streamed, "SKIPPED", COUNT)
    with pytest.raises(UserError, match="no more than 47 pictures"):
        streamed.streamed(parts, "set", reading)


def test_means_of_mapped_sets_are_those_in_memory(root: Path) -> None:
    for mean in ("all", "class"):
        fitted = [DataTransform.fit(load(root, storage).train, mean).mean for storage in ("memory", "mapped")]
        assert torch.equal(*fitted)
    with pytest.raises(UserError, match="streams by"):
        DataTransform.fit(load(root, "hub").train, "all")
    with pytest.raises(UserError, match="no numbers"):
        load(root, "hub").train.read(torch.arange(2))


def test_a_damaged_shard_is_explained(root: Path) -> None:
    train = load(root, "hub").train
    shard = root / "train-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:300] + bytes(200))
    with pytest.raises(UserError, match=r"CIFAR-10: shard 1 cannot be read on from row 0"):
        take(train, 5, workers=1)
