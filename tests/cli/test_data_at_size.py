"""Training from data that do not lie in memory, by the command line: killed, from archives, with broken pictures."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file
from warm import Warm

KILLS = (1, 50, 75, 100)
"""Changes of the disk after which a training is killed; a checkpoint is about 25 of them."""
STEPS, EPOCH = 20, 15
CLASSES = ("cat", "dog")
TINY = (
    "--config",
    "vpsde_cifar",
    "--device",
    "cpu",
    "--config.model.network=mlp",
    "--config.model.mlp.width=16",
    "--config.model.mlp.blocks=1",
    "--config.model.class_conditional=True",
    "--config.training.batch_size=8",
    "--config.training.warmup_steps=5",
    "--config.training.log_every=10",
    "--config.training.evaluate_every=1000",
    "--config.training.held_out_batches=1",
    "--config.training.sample_every=0",
)
"""Milliseconds a step, of which reading is a good part; labels, flips and dropout included."""


def survivors(warm: Warm, seconds: float = 10.0) -> list[int]:
    """The processes that come from the warm one and are still there after some seconds."""

    def here(place: Path) -> bool:
        try:  # what waits for its parent to ask how it ended has no environment any more
            return f"WARM={warm.mark}\0".encode() in (place / "environ").read_bytes()
        except OSError:
            return False

    deadline = time.monotonic() + seconds
    while True:
        found = {int(place.name) for place in Path("/proc").glob("[0-9]*") if here(place)} - {warm.process.pid}
        if not found or time.monotonic() > deadline:
            return sorted(found)
        time.sleep(0.1)


# --- pictures -------------------------------------------------------------------------------------------------


def picture(index: int, width: int, height: int, form: str = "png") -> bytes:
    """Noise that is another for every number."""
    array = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in the Hugging Face layout, but for its size: 180 pictures in three shards, and 20 held out."""
    root = tmp_path_factory.mktemp("shards")
    features = {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    for part, count, files in (("train", 180, 3), ("test", 20, 1)):
        rows = [{"img": {"bytes": picture(i + count, 32, 32), "path": None}, "label": i % 2} for i in range(count)]
        size = math.ceil(count / files)
        for file in range(files):
            table = pa.Table.from_pylist(rows[file * size : (file + 1) * size])
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pq.write_table(table, root / f"{part}-{file:05}-of-{files:05}.parquet", row_group_size=20)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures in class folders and 16 held out, of many sizes and two formats."""
    root = tmp_path_factory.mktemp("folders") / "photos"
    for part, count in (("train", 120), ("test", 16)):
        for index in range(count):
            form = ("png", "jpeg")[index // 2 % 2]
            path = root / part / CLASSES[index % 2] / f"{index:03}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(index + count, 20 + index % 13, 20 + index % 7, form))
    return root


def packed(folder: Path, archive: Path, **more: bytes) -> Path:
    """A zip archive of a folder, with more members."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder.parent))
        for name, content in more.items():
            file.writestr(name, content)
    return archive


# --- trainings ------------------------------------------------------------------------------------------------


def training(folder: Path, steps: int, **data: Any) -> tuple[object, ...]:
    """The command line of a training with these options of its data."""
    options = [f"--config.data.{name}={value}" for name, value in data.items()]
    length = (f"--config.training.steps={steps}", "--config.training.checkpoint_every=5")
    return (*TINY, "--mode", "train", "--workdir", folder, *length, *options)


def of_photos(folder: Path, root: Path, steps: int = STEPS, **data: Any) -> tuple[object, ...]:
    return training(folder, steps, dataset="folder", root=root, image_size=16, **{"storage": "mapped", **data})


def newest(folder: Path) -> Path:
    return sorted(folder.glob("checkpoints/step_*"))[-1]


def reached(folder: Path) -> int:
    """The step of the newest checkpoint; 0 before there is one."""
    return max((int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*")), default=0)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["training"]
    return found


def outcome(folder: Path) -> tuple[dict[str, np.ndarray], object]:
    """All tensors of the newest checkpoint, weights, averages and moments, and where it is in the data."""
    place = json.loads((newest(folder) / "manifest.json").read_text())["progress"]["data"]
    files = sorted(newest(folder).glob("*.safetensors"))
    return {f"{file.name}/{k}": v for file in files for k, v in load_file(file).items()}, place


def same(one: Path, other: Path) -> bool:
    """Whether two trainings came to the same bits."""
    (mine, here), (theirs, there) = outcome(one), outcome(other)
    assert newest(one).name == newest(other).name and mine.keys() == theirs.keys() and len(mine) > 30
    return here == there and all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(("storage", "whole"), [("streaming", "streaming"), ("mapped", "memory")])
def test_kills_of_a_training_whose_data_workers_read(
    warm: Warm, shards: Path, storage: str, whole: str, tmp_path: Path
) -> None:
    """As it begins, and in and between checkpoints later on: the bits are those of an unbroken one without workers.

    What is mapped gives those of what lies in memory. No worker outlives its trainer.
    """
    steps, folder = 60, tmp_path / "killed"
    data: dict[str, Any] = {"root": shards, "shuffle_window": 50}  # windows that begin amid the shards
    warm.run(*training(tmp_path / "whole", steps, storage=whole, **data))
    flags = training(folder, steps, storage=storage, workers=2, **data)
    steps_at = []
    for number in KILLS:
        assert warm.killed(number, folder, *flags)
        steps_at.append(reached(folder))
    assert steps_at[0] == 0 < steps_at[1] < steps_at[-1] < steps and steps_at == sorted(set(steps_at))
    warm.run(*flags)
    assert same(tmp_path / "whole", folder)
    assert (outcome(folder)[1] != {}) == (storage == "streaming")
    assert not survivors(warm)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 pictures in eight archives in the WebDataset layout, and 8 held out."""
    root = tmp_path_factory.mktemp("archives")
    for part, first, count in (*((f"train-{n}", 16 * n, 16) for n in range(8)), ("test-0", 500, 8)):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for index in range(first, first + count):
                for name, content in (("png", picture(index, 16, 16)), ("cls", str(index % 2).encode())):
                    info = tarfile.TarInfo(f"{index:03}.{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


def test_archives_are_read_once_by_two_processes_and_after_a_kill(warm: Warm, archives: Path, tmp_path: Path) -> None:
    """An epoch of 16 steps: two processes read every byte of the pictures once between them, and train as one.

    One that is killed goes on with the pictures of an unbroken training.
    """
    data: dict[str, Any] = {"dataset": "webdataset", "root": archives, "storage": "streaming"}
    for name in ("whole", "killed", "two"):
        (tmp_path / name).mkdir()
    same_masks = "--config.model.dropout=0.0"  # of dropout, which each process draws for itself
    warm.run(*training(tmp_path / "whole", 16, **data), same_masks)
    killed = (*training(tmp_path / "killed", 16, workers=2, **data), same_masks)
    assert warm.killed(80, tmp_path / "killed", *killed)
    assert 0 < reached(tmp_path / "killed") < 16
    assert "in another order" not in warm.run(*killed)
    assert same(tmp_path / "whole", tmp_path / "killed")

    flags = (*training(tmp_path / "two", 16, **data), same_masks)
    warm.run(*flags, processes=2, reads=(archives, tmp_path))
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    read = Counter((name, byte) for share in shares for name, first, stop in share for byte in range(first, stop))
    for path in archives.glob("train-*.tar"):
        with tarfile.open(path) as archive:
            pictures = [member for member in archive if member.name.endswith(".png")]
        # Before and behind these are headers, which each process lists as it begins.
        places = range(pictures[0].offset_data, pictures[-1].offset_data + pictures[-1].size)
        assert {read[path.name, byte] for byte in places} == {1}
    (mine, here), (theirs, there) = outcome(tmp_path / "whole"), outcome(tmp_path / "two")
    assert here == there
    keys = [key for key in mine if key.startswith("weights_raw")]
    one, two = (np.concatenate([found[key].ravel() for key in keys]) for found in (mine, theirs))
    assert np.linalg.norm(one - two) < 1e-4 * np.linalg.norm(one)


@pytest.fixture(scope="module")
def plain(warm: Warm, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training from a folder whose pictures are decoded as they are read."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    warm.run(*of_photos(folder, photos))
    return folder


def test_an_archive_trains_as_its_folder(warm: Warm, photos: Path, plain: Path, tmp_path: Path) -> None:
    archive = packed(photos, tmp_path / "photos.zip", **{"__MACOSX/photos/train/cat/._000.png": b"fork"})
    text = warm.run(*of_photos(tmp_path / "run", archive, workers=2))
    assert "on photos, 120 samples" in text
    assert same(plain, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos.zip", "run"], "something was extracted"


def test_random_crops_go_on_where_they_were(warm: Warm, photos: Path, plain: Path, tmp_path: Path) -> None:
    """In two sessions, by workers, as in one without; and other pictures than the middles."""
    data: dict[str, Any] = {"crop": "random", "min_crop": 0.5}
    warm.run(*of_photos(tmp_path / "whole", photos, **data))
    warm.run(*of_photos(tmp_path / "parts", photos, 9, workers=2, **data))
    text = warm.run(*of_photos(tmp_path / "parts", photos, workers=1, prefetch=3, **data))
    assert f"step 9 to {STEPS}" in text
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert not same(tmp_path / "whole", plain)


# --- broken pictures ------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The photos, of which one held out is broken, and those that are needed at steps 2, 5, 8 and 12; their names."""
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    broken = "test/dog/007.jpeg", "train/cat/070.jpeg", "train/dog/111.jpeg", "train/dog/033.png", "train/cat/004.png"
    names = [str(root / name) for name in broken]
    for name in names:
        Path(name).write_bytes(Path(name).read_bytes()[:200])
    return root, names


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_broken_pictures_are_counted_and_named(
    warm: Warm, damaged: tuple[Path, list[str]], storage: str, tmp_path: Path
) -> None:
    """On the screen, once, and in the results: those of the sessions before among them."""
    root, names = damaged
    data: dict[str, Any] = {"storage": storage, "workers": 2, "corrupt_limit": 0.1}
    first = warm.run(*of_photos(tmp_path / "run", root, 9, **data))
    found = results(tmp_path / "run")["corrupt_files"]
    text = warm.run(*of_photos(tmp_path / "run", root, EPOCH, **data))
    assert results(tmp_path / "run")["corrupt_files"] == sorted(names) and "files that could not be read (5)" in text
    said = [line for line in (first + text).splitlines() if line.startswith("warning: photos: ")]
    if storage == "memory":
        assert found == sorted(names) and len(said) == 2
        assert all("5 of 136 pictures cannot be read and are left out: " in line for line in said)
    else:
        assert found == sorted(names[:4])
        assert sum("photos: 1 of 16 pictures cannot be read and are left out: " in line for line in said) == 2
        assert [sum(name in line for line in said) for name in names] == [2, 1, 1, 1, 1]
        replaced = "4 of 108 pictures cannot be read and are replaced by the next; 1 more: "
        assert f"photos: {replaced}{names[4]} (image file is truncated" in said[-1]


def test_too_many_broken_pictures_are_one_sentence(warm: Warm, damaged: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The last checkpoint stays; beginning again does not make the limit a wider one, and a wider limit does."""
    root, names = damaged
    data: dict[str, Any] = {"workers": 2, "corrupt_limit": 0.02}  # two of 120
    flags = (*of_photos(tmp_path / "run", root, EPOCH, **data), "--config.training.checkpoint_every=1")
    said = warm.refused(*flags)
    assert "photos: 3 of 75 pictures cannot be read, and no more than a share of 0.02 may be broken" in said
    assert "(data.corrupt_limit)" in said and [name in said for name in names] == [False, True, True, True, False]
    assert reached(tmp_path / "run") == 8
    before, _ = outcome(tmp_path / "run")
    assert warm.refused(*flags) == said and reached(tmp_path / "run") == 8
    assert all(np.array_equal(before[key], value) for key, value in outcome(tmp_path / "run")[0].items())
    text = warm.run(*flags, "--config.data.corrupt_limit=0.1")
    assert f"step 8 to {EPOCH}" in text and results(tmp_path / "run")["corrupt_files"] == sorted(names)


# --- bad requests ---------------------------------------------------------------------------------------------

ZEROS = bytes(10_000_000)


def many_pixels() -> bytes:
    """400 million pixels in 50 kilobytes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("member", "content", "says"),
    [
        ("../evil.png", b"", "is refused: its member '../evil.png' has a path that leads out of the archive."),
        ("photos/train/cat/x.bmp", ZEROS, "declares 10,000,000 bytes in 9,732, as decompression bombs do."),
        (
            "photos/train/cat/x.png",
            None,
            "x.png (it has more than the 178,956,970 pixels of data.max_pixels",
        ),
    ],
)
def test_archives_that_are_made_to_do_harm(
    warm: Warm, photos: Path, member: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    root = tmp_path / "set" / "photos.zip"
    root.parent.mkdir()
    packed(photos, root, **{member: many_pixels() if content is None else content})
    said = warm.refused(*of_photos(tmp_path / "run", root, storage="memory", corrupt_limit=0.001))
    assert says in said and str(root) in said
    assert not (tmp_path / "run").exists()
    assert [path.name for path in root.parent.iterdir()] == ["photos.zip"] and not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"storage": "streeming"}, "unknown storage 'streeming'; did you mean 'streaming'?"),
        ({"storage": "memory", "crop": "random"}, "random crops are made as pictures are decoded: choose the storage"),
        (
            {"dataset": "digits", "crop": "random"},
            "digits lies in memory and cannot be cropped at random: leave",
        ),
        ({"crop": "center"}, "unknown crop 'center'; did you mean 'centre'?"),
        ({"root": "nowhere"}, "no folder 'nowhere': expected one that holds pictures, CLASS/*.png"),
        ({"root": "nowhere", "dataset": "cifar10"}, "nowhere does not exist; expected a folder of CIFAR-10 parquet"),
        ({"storage": "streaming"}, "folders and archives are not streamed: choose the storage 'mapped'"),
        ({"crop": "random", "image_size": 0}, "random crops are resized to one size: set the image size"),
    ],
)
def test_data_that_cannot_be_read_so(warm: Warm, photos: Path, data: dict[str, Any], says: str, tmp_path: Path) -> None:
    options = {"dataset": "folder", "root": photos, "image_size": 16, **data}
    if options["dataset"] != "folder":
        options["image_size"] = 0
    assert says in warm.refused(*training(tmp_path / "run", STEPS, **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("workers", -1, "data.workers must be 0 (none) or more, got -1"),
        ("prefetch", 0, "data.prefetch must be at least 1, got 0"),
        ("shuffle_window", 0, "data.shuffle_window must be at least 1, got 0"),
        ("held_out", -1, "data.held_out must be 0 (all) or more, got -1"),
        ("image_size", -3, "data.image_size, unless it is 0 (the set's own), must be a whole number of pixels"),
        ("min_crop", 0, "data.min_crop is a share of the largest crop's side, in (0, 1], not 0.0."),
        ("corrupt_limit", 1, "data.corrupt_limit in [0, 1), not 1.0."),
        ("dataset", "cifra10", "unknown data set 'cifra10'; did you mean 'cifar10'?"),
        ("subtract_mean", "al", "unknown mean to subtract 'al'; did you mean 'all'?"),
    ],
)
def test_values_that_no_set_has(warm: Warm, photos: Path, key: str, value: object, says: str, tmp_path: Path) -> None:
    """Found before anything is done."""
    options = {"dataset": "folder", "root": photos, key: value}
    assert says in warm.refused(*training(tmp_path / "run", STEPS, **options))
    assert not (tmp_path / "run").exists()
