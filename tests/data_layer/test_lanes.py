"""Streams by lanes: the same batches for any number of processes, each byte read once, any step begun at once."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import taking
import torch
from PIL import Image
from taking import same

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Source, batches, load_splits
from sde_diffusion.data.dataset import Batch
from sde_diffusion.data.lanes import Lanes, Span, dealt, heads
from tests.faults import Reads, forked

COUNT, SHARDS, CLASSES = 96, 6, ("a", "b", "c")


def png(index: int) -> bytes:
    """A picture whose left column says which one it is; the rest is black."""
    array = np.zeros((4, 4, 3), np.uint8)
    array[:, 0] = (index % 256, 100, index // 256)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def number_of(samples: torch.Tensor) -> list[int]:
    red, green, blue = samples.long().amax(3)[:, :, 0].T
    assert (green == 100).all()
    return (red + 256 * blue).tolist()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(index: int) -> dict[str, bytes]:
    return {f"{index:04}.png": png(index), f"{index:04}.cls": str(index % 3).encode()}


def write_tars(root: Path) -> None:
    """Archives of 16 pictures each, and one of 12 that are held out."""
    for shard in range(SHARDS):
        found = [sample(index) for index in range(shard * 16, shard * 16 + 16)]
        write_tar(root / f"train-{shard:03}.tar", dict(item for each in found for item in each.items()))
    held = [sample(1000 + index) for index in range(12)]
    write_tar(root / "test-000.tar", dict(item for each in held for item in each.items()))


def write_parquet(root: Path, named: bool = True, label: Callable[[int], Any] = lambda index: index % 3) -> None:
    """The same as two files of three row groups, with a column that nobody reads. named: whether classes have names."""
    features = {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    for part, first, count, files in (("train", 0, COUNT, 2), ("test", 1000, 12, 1)):
        for file in range(files):
            size = count // files
            indices = range(first + file * size, first + (file + 1) * size)
            rows = [{"img": {"bytes": png(i), "path": None}, "label": label(i), "text": f"{i}" * 40} for i in indices]
            table = pa.Table.from_pylist(rows)
            if named:
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pq.write_table(table, root / f"{part}-{file:05}-of-{files:05}.parquet", row_group_size=16)


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "tar": ("webdataset", write_tars),
    "parquet": ("cifar10", write_parquet),
}
both = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture
def root(tmp_path: Path, form: str) -> Path:
    (tmp_path / "set").mkdir()
    FORMATS[form][1](tmp_path / "set")
    return tmp_path / "set"


def load(root: Path | str, form: str = "tar", storage: str = "streaming", **options: Any) -> Any:
    return load_splits(FORMATS[form][0], DataOptions(root=str(root), storage=storage, **options))


def take(data: Source, count: int, batch_size: int = 12, **options: Any) -> list[Batch]:
    return taking.take(data, count, batch_size, **options)


# --- one order ------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (3, 1), (6, 0)])
def test_any_number_of_processes_and_workers_reads_the_same(
    root: Path, form: str, processes: int, workers: int
) -> None:
    train = load(root, form, **({"crop": "random", "image_size": 4} if form == "tar" else {})).train
    size = 12 // processes
    parts = [
        take(train, 10, part=slice(size * k, size * (k + 1)), workers=workers if k == 0 else 0)
        for k in range(processes)
    ]
    joined = [
        (torch.cat([x for x, _ in rows]), {"labels": torch.cat([told["labels"] for _, told in rows])})
        for rows in zip(*parts)
    ]
    assert same(take(train, 10), joined)


@both
@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_is_begun_as_an_unbroken_run_comes_to_it(root: Path, form: str, workers: int) -> None:
    """Amid windows, pieces and epochs, by another number of processes, with the checkpoint's state and without."""
    train = load(root, form, lanes=3).train
    unbroken, stream = take(train, 22), batches(train, 12, seed=3, flip=True)
    for step in range(19):
        if step in ((5, 18) if workers else range(19)):
            for state in (json.loads(json.dumps(stream.state)), None):
                halves = [
                    take(train, 3, start_step=step, state=state, part=part, workers=workers)
                    for part in (slice(0, 4), slice(4, 12))
                ]
                joined = [
                    (torch.cat([x, y]), {"labels": torch.cat([told["labels"], again["labels"]])})
                    for (x, told), (y, again) in zip(*halves)
                ]
                assert same(unbroken[step : step + 3], joined), step
        next(stream)


@both
def test_every_picture_comes_once_an_epoch_with_its_own_label(root: Path, form: str) -> None:
    """Exactly so in one lane; in six of one piece each too. Orders differ from epoch to epoch and from seed to seed."""
    for lanes in (1, 6):
        found = take(load(root, form, lanes=lanes).train, 32)
        order = [number for samples, _ in found for number in number_of(samples)]
        epochs = [order[start : start + COUNT] for start in range(0, 4 * COUNT, COUNT)]
        assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == 4
        assert [int(label) for _, told in found for label in told["labels"]] == [number % 3 for number in order]
    assert len({tuple(row // 16 for row in order[step * 12 : step * 12 + 12]) for step in range(32)}) == 4
    assert next(batches(load(root, form).train, 12, seed=0))[0].ne(found[0][0]).any()


def test_no_lane_is_ahead_of_another_by_more_than_a_piece() -> None:
    sizes = [64, 64, 7, 64, 31, 1, 64, 50, 64, 64, 12]
    given = np.zeros(4, int)
    for epoch in itertools.islice(dealt(sizes, 4, seed=1), 200):
        assert sorted(piece for lane in epoch for piece in lane) == list(range(len(sizes)))
        given += [sum(sizes[piece] for piece in lane) for lane in epoch]
        assert given.max() - given.min() <= 64


def test_lanes_divide_the_batch_and_are_no_more_than_pieces(tmp_path: Path) -> None:
    write_tars(tmp_path)
    train = load(tmp_path).train
    assert isinstance(train, Lanes) and len(train.spans) == 6
    assert [train.lanes(size) for size in (1, 4, 5, 12, 14, 64)] == [1, 4, 5, 6, 2, 4]
    assert load(tmp_path, lanes=3).train.lanes(12) == 3


def test_held_out_rows_come_from_every_shard_alike() -> None:
    spans = [Span(0, 0, 64), Span(0, 64, 100), Span(1, 0, 3), Span(2, 0, 50)]
    assert heads(spans, 30) == {1: 3, 2: 14, 0: 13}
    assert heads(spans, 1000) == {0: 100, 1: 3, 2: 50}
    assert heads(spans, 1) == {1: 1, 2: 0, 0: 0}


# --- each byte once -------------------------------------------------------------------------------------------


@both
def test_two_processes_read_each_byte_once_between_them(root: Path, form: str, tmp_path: Path) -> None:
    """An epoch of pictures, by two processes: together all bytes of the pictures, none of them twice.

    Of parquet files these are the columns of images and labels; the third column is read by nobody.
    """
    train = load(root, form).train

    def reading(rank: int) -> None:
        reads = Reads(root)
        reads.install()
        for _ in take(train, 8, part=slice(6 * rank, 6 * rank + 6)):
            pass
        (tmp_path / f"{rank}.json").write_text(json.dumps(reads.ranges))

    for rank in range(2):
        assert forked(partial(reading, rank)) == 0
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert all(len(share) >= 3 for share in shares)
    read = Counter((name, byte) for share in shares for name, start, stop in share for byte in range(start, stop))
    assert set(read.values()) == {1}
    assert set(read) == set(wanted(root, form))


def wanted(root: Path, form: str) -> list[tuple[str, int]]:
    """The bytes of the training part's pictures; of archives, from the first picture to the last."""
    found: list[tuple[str, int]] = []
    for path in sorted(root.glob("train-*")):
        if form == "tar":
            with tarfile.open(path) as archive:
                pictures = [member for member in archive if member.name.endswith(".png")]
            ranges = [(pictures[0].offset_data, pictures[-1].offset_data + pictures[-1].size)]
        else:
            footer = pq.read_metadata(path)
            groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
            columns = [group.column(index) for group in groups for index in range(group.num_columns)]
            ranges = [
                (start, start + column.total_compressed_size)
                for column in columns
                if column.path_in_schema != "text"
                for start in [column.dictionary_page_offset or column.data_page_offset]
            ]
        found += [(path.name, byte) for start, stop in ranges for byte in range(start, stop)]
    return found


def test_a_lane_of_two_processes_is_told_of(tmp_path: Path) -> None:
    write_tars(tmp_path)
    train = load(tmp_path, lanes=2).train
    with pytest.warns(UserWarning, match=r"a batch has 2 lanes of 6 rows, and two processes have rows of one lane"):
        third = take(train, 4, part=slice(4, 8))
    assert same(third, [(x[4:8], {"labels": told["labels"][4:8]}) for x, told in take(train, 4)])


@pytest.mark.parametrize("how", ["lanes", "window", "files", "old"])
def test_another_order_on_resuming_is_told_of(tmp_path: Path, how: str) -> None:
    """A checkpoint of the former order of streams, by its place in a window, among them."""
    write_tars(tmp_path)
    stream = batches(load(tmp_path).train, 12, seed=3)
    next(stream)
    state = stream.state
    options: dict[str, Any] = {"lanes": {"lanes": 2}, "window": {"shuffle_window": 200}}.get(how, {})
    if how == "files":
        (tmp_path / "train-003.tar").rename(tmp_path / "train-008.tar")
    if how == "old":
        state = {"step": 1, "epoch": 0, "window": 0, "shard": 1, "row": 3, "used": 12}
    train = load(tmp_path, **options).train
    with pytest.warns(UserWarning, match=r"others than at step 1: from there on pictures come in another order"):
        take(train, 1, start_step=1, state=state)


# --- archives -------------------------------------------------------------------------------------------------


def test_an_archive_is_read_in_every_way(tmp_path: Path) -> None:
    """In memory, mapped and streaming, by folder, pattern and braces: the same pictures and labels."""
    write_tars(tmp_path)
    memory, mapped = (load(tmp_path, storage=storage) for storage in ("memory", "mapped"))
    assert number_of(memory.train.samples) == list(range(COUNT)) and memory.train.classes == ("0", "1", "2")
    assert memory.train.labels.tolist() == [index % 3 for index in range(COUNT)]
    assert same(take(memory.train, 9), take(mapped.train, 9))
    for splits in (memory, mapped, load(tmp_path)):
        assert number_of(splits.test.samples) == list(range(1000, 1012))
    assert number_of(load(tmp_path, held_out=4).test.samples) == [1000, 1001, 1002, 1003]
    for names in ("train-{000..002}.tar", "train-00[012].tar", "train-{000,001,002}.tar"):
        few = load(str(tmp_path / names) if "[" not in names else str(tmp_path / "train-00*.tar"))
        assert len(few.test) == (4 if "{" in names else 9)  # a tenth of 48, and of 96
        assert {row // 16 for row in number_of(few.test.samples)} == set(range(3 if "{" in names else 6))
    trained = {n for x, _ in take(few.train, 8) for n in number_of(x)}
    assert not trained & set(number_of(few.test.samples))


def test_labels_are_numbers_or_names_in_cls_or_json(tmp_path: Path) -> None:
    members = {
        "x/1.png": png(1),
        "x/1.json": b'{"label": "wolf", "width": 4}',
        "x/2.png": png(2),
        "x/2.cls": b"bear\n",
        "x/2.txt": b"a bear",
        "x/3.json": b'{"class": "wolf"}',
        "x/3.png": png(3),
    }
    with pytest.warns(UserWarning, match=r"animals: 1 members are not read: \.txt 1$"):
        splits = load(write_tar(tmp_path / "animals.tar", members), storage="memory")
    assert splits.train.classes == ("bear", "wolf") and splits.train.title == "animals"
    both = {**dict(zip(number_of(splits.train.samples), splits.train.labels.tolist()))}
    both |= dict(zip(number_of(splits.test.samples), splits.test.labels.tolist()))
    assert both == {1: 1, 2: 0, 3: 1}


def test_broken_pictures_of_an_archive_are_replaced_and_named(tmp_path: Path) -> None:
    members = dict(item for index in range(60) for item in sample(index).items())
    members["0040.png"] = b"\x89PNG\r\n\x1a\n and no more"
    path = write_tar(tmp_path / "set.tar", members)
    train = load(path, corrupt_limit=0.2).train
    stream = batches(train, 9, seed=0, workers=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = {n for x, _ in itertools.islice(stream, 6) for n in number_of(x)}
    assert found == set(range(6, 60)) - {40}
    assert [f"{path}/0040.png (" in str(warning.message) for warning in told] == [True]


ONE = sample(1)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({**ONE, "0002.cls": b"1"}, r"set\.tar: 0002\.cls has no picture beside it"),
        ({**ONE, "0001.jpg": png(2)}, r"set\.tar: 0001\.png and 0001\.jpg are two pictures with one key"),
        ({**ONE, **sample(2), "0001.jpg": png(3)}, r"set\.tar: the key 0001 comes twice, and not side by side"),
        ({**ONE, "0002.png": png(2)}, r"set\.tar: 0002\.png has no label \(\.cls"),
        ({"0001.png": png(1), "0001.cls": b""}, r"set\.tar: 0001\.cls must hold the number or the name of a class"),
        ({"0001.png": png(1), "0001.json": b"{"}, r"set\.tar: 0001\.json cannot be read"),
        ({"0001.png": png(1), "0001.json": b'{"label": -1}'}, r"0001\.json must hold the number or the name"),
        ({"readme.png/": b""}, r"set\.tar.* has no picture beside it|holds no pictures"),
        ({}, r"set\.tar holds no pictures"),
    ],
)
def test_members_that_make_no_sample(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(write_tar(tmp_path / "set.tar", members))


def test_damaged_archives_are_named_with_the_last_good_member(tmp_path: Path) -> None:
    """Cut anywhere: amid a picture, amid a header, between members, and before its end; or overwritten."""
    whole = write_tar(tmp_path / "set.tar", {**sample(1), **sample(2)}).read_bytes()
    with tarfile.open(tmp_path / "set.tar") as archive:
        last = archive.getmembers()[-1]
    for content in (
        whole[: last.offset_data],
        whole[: last.offset + 100],
        whole[: last.offset],
        whole[: last.offset_data + 512],
        whole[: last.offset] + b"x" * 512 + whole[last.offset + 512 :],
    ):
        (tmp_path / "set.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"set\.tar is damaged after 000\d\.(png|cls) \(") as caught:
            load(tmp_path / "set.tar")
        assert "\n" not in str(caught.value)
    (tmp_path / "set.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"set\.tar is damaged after its first member"):
        load(tmp_path / "set.tar")


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    train = load(tmp_path, "parquet").train
    file = tmp_path / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:300] + bytes(200))
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet cannot be read on from row (0|16|32) \("):
        take(train, 9, workers=1)
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet cannot be read \("):
        load(tmp_path, "parquet")


def test_an_archive_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_tars(tmp_path)
    train = load(tmp_path).train
    os.truncate(tmp_path / "train-004.tar", 3000)
    with pytest.raises(UserError, match=r"train-004\.tar cannot be read on from picture 0 \(it ends before byte"):
        take(train, 20, workers=1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "data.root is empty"),
        ("none", "there is no file .*none; expected a folder of .tar files, or names such as train-"),
        ("train-{000..009}.tar", r"there is no file .*train-006\.tar"),
        ("empty", "holds no .tar files"),
        ("packed", r"a\.tar\.gz is compressed .*: unpack it to \.tar"),
    ],
)
def test_archives_that_are_not_there(tmp_path: Path, name: str, says: str) -> None:
    write_tars(tmp_path)
    for folder in ("empty", "packed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=says):
        load(str(tmp_path / name) if name else "")


def test_nothing_is_held_out_where_that_is_asked_for(tmp_path: Path) -> None:
    """A single picture streams so, and a set with a part for it is trained on without."""
    with pytest.raises(UserError, match=r"too few pictures to train on.* data\.split=none"):
        load(write_tar(tmp_path / "set.tar", ONE))
    splits = load(tmp_path / "set.tar", split="none")
    assert splits.test is None and number_of(take(splits.train, 1, 2)[0][0]) == [1, 1]
    (tmp_path / "whole").mkdir()
    write_tars(tmp_path / "whole")
    splits = load(tmp_path / "whole", split="none", lanes=6)
    found = sorted(number for x, _ in take(splits.train, 8) for number in number_of(x))
    assert splits.test is None and found == list(range(COUNT))


@pytest.mark.parametrize("label", [lambda index: index % 3, lambda index: "cba"[index % 3]])
def test_labels_of_classes_without_names_stream_as_they_are_in_memory(
    tmp_path: Path, label: Callable[[int], Any]
) -> None:
    """The held-out part has them too, though of 12 rows it may lack a class."""
    write_parquet(tmp_path, named=False, label=lambda index: label(index if index < 1000 else 1))
    whole, stream = (load(tmp_path, "parquet", storage) for storage in ("memory", "streaming"))
    assert stream.train.classes == whole.train.classes and len(whole.train.classes) == 3
    assert torch.equal(stream.test.labels, whole.test.labels)
    seen = {(image.numpy().tobytes(), told) for image, told in zip(whole.train.samples, whole.train.labels.tolist())}
    samples, told = next(batches(stream.train, 12, seed=3))
    assert {(image.numpy().tobytes(), label) for image, label in zip(samples, told["labels"].tolist())} <= seen


@pytest.mark.parametrize("storage", ["memory", "streaming"])
@pytest.mark.parametrize(("wrong", "said"), [(10**14, "is no number of one of"), (None, "column label must hold")])
def test_what_is_no_number_of_a_class_is_refused(tmp_path: Path, storage: str, wrong: int | None, said: str) -> None:
    write_parquet(tmp_path, named=False, label=lambda index: wrong if index == 5 else 0)
    with pytest.raises(UserError, match=said):
        load(tmp_path, "parquet", storage)


@pytest.mark.parametrize("label", ["0.5", "-1"])
def test_a_number_that_is_no_class_is_refused_in_an_archive(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(0), "0.cls": label.encode()})
    with pytest.raises(UserError, match=rf"0\.cls must hold the number or the name of a class, not '{label}'"):
        load(tmp_path)
