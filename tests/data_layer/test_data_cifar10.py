"""CIFAR-10 from files written here in its real formats, whole and damaged."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, cifar10, load_splits

FILES = cifar10.TRAIN_FILES + cifar10.TEST_FILES


@pytest.fixture
def pixels() -> np.ndarray:
    """Six files of four photographs, uint8 [6, 4, 3, 32, 32]."""
    return np.random.default_rng(0).integers(256, size=(6, 4, 3, 32, 32), dtype=np.uint8)


def records(pixels: np.ndarray) -> bytes:
    return b"".join(bytes([index]) + image.tobytes() for index, image in enumerate(pixels))


def write_archive(root: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    path = root / cifar10.ARCHIVE_NAME
    with tarfile.open(path, "w:gz") as archive:
        # As in the official archive, files are out of order and other files lie among them.
        for name, content in [("readme.html", b"hello"), *reversed(contents.items())]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def contents(pixels: np.ndarray) -> dict[str, bytes]:
    return {name: records(part) for name, part in zip(FILES, pixels, strict=True)}


def load(root: Path, **options):
    return load_splits("cifar10", DataOptions(root=str(root), **options))


def check(splits, pixels: np.ndarray) -> None:
    assert np.array_equal(splits.train.samples.numpy(), pixels[:5].reshape(20, 3, 32, 32))
    assert np.array_equal(splits.test.samples.numpy(), pixels[5])
    assert splits.train.labels.tolist() == [0, 1, 2, 3] * 5 and splits.test.labels.tolist() == [0, 1, 2, 3]
    assert splits.train.levels == 256 and splits.train.classes[3] == "cat"


def test_the_archive_is_read_in_place(tmp_path, pixels, monkeypatch):
    path = write_archive(tmp_path, contents(pixels), monkeypatch)
    splits = load(tmp_path)
    check(splits, pixels)
    check(load(path), pixels)
    assert splits.train.title == "CIFAR-10" and list(tmp_path.iterdir()) == [path]


def test_the_extracted_folder_is_read(tmp_path, pixels):
    (tmp_path / cifar10.EXTRACTED_NAME).mkdir()
    for name, content in contents(pixels).items():
        (tmp_path / cifar10.EXTRACTED_NAME / name).write_bytes(content)
    check(load(tmp_path), pixels)
    check(load(tmp_path / cifar10.EXTRACTED_NAME, source="binary"), pixels)


def test_a_truncated_archive_is_refused_and_kept(tmp_path, pixels, monkeypatch):
    path = write_archive(tmp_path, contents(pixels), monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    for part in (
        str(path),
        cifar10.ARCHIVE_MD5,
        hashlib.md5(whole[:1000]).hexdigest(),
        "1000 bytes",
        "170052171",
    ):
        assert part in message
    assert path.read_bytes() == whole[:1000]


def test_the_md5_is_that_of_the_official_archive():
    assert cifar10.ARCHIVE_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


def test_an_archive_that_is_no_archive_is_refused(tmp_path, pixels, monkeypatch):
    path = write_archive(tmp_path, contents(pixels), monkeypatch)
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="not a readable"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "12291 bytes"),
        (lambda content: b"", "0 bytes"),
        (lambda content: b"\x0a" + content[1:], "label 10"),
        (None, "data_batch_2.bin is missing"),
    ],
)
def test_damaged_records_are_refused(tmp_path, pixels, monkeypatch, damage, message):
    files = contents(pixels)
    content = files.pop("data_batch_2.bin")
    if damage:
        files["data_batch_2.bin"] = damage(content)
    write_archive(tmp_path, files, monkeypatch)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    # Port 9 of this machine answers nobody: the real client fails in the real way.
    monkeypatch.setattr(cifar10, "ARCHIVE_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match=r"cannot download .* put it there"):
        load(tmp_path)
    assert not list(tmp_path.glob("*.gz"))


def test_a_download_is_verified_and_used(tmp_path, pixels, monkeypatch):
    (tmp_path / "server").mkdir()
    (tmp_path / "root").mkdir()
    served = write_archive(tmp_path / "server", contents(pixels), monkeypatch)

    def fetch(url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(served.read_bytes())

    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar: fetch)
    check(load(tmp_path / "root"), pixels)
    assert (tmp_path / "root" / cifar10.ARCHIVE_NAME).is_file()


def write_parquet(root: Path, pixels: np.ndarray, kind: str = "png", image: str = "img", names: bool = True) -> None:
    for part, block in (("train", pixels[:5].reshape(20, 3, 32, 32)), ("test", pixels[5])):
        rows = []
        for index, picture in enumerate(block):
            file = io.BytesIO()
            Image.fromarray(picture.transpose(1, 2, 0)).save(file, kind)
            rows.append({image: {"bytes": file.getvalue(), "path": None}, "label": index % 4})
        table = pa.Table.from_pylist(rows)
        if names:
            features = {
                image: {"_type": "Image"},
                "label": {"names": [*cifar10.CLASSES], "_type": "ClassLabel"},
            }
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / f"{part}-00000-of-00001.parquet")


def test_parquet_files_are_read_and_nothing_is_written(tmp_path, pixels):
    write_parquet(tmp_path, pixels)
    before = sorted(tmp_path.iterdir())
    splits = load(tmp_path)
    check(splits, pixels)
    assert splits.train.title == "CIFAR-10" and sorted(tmp_path.iterdir()) == before


def test_jpeg_is_declared_in_the_title(tmp_path, pixels):
    write_parquet(tmp_path, pixels, kind="jpeg")
    assert load(tmp_path).test.title == "CIFAR-10 (JPEG)"


def test_parquet_without_metadata_numbers_its_classes(tmp_path, pixels):
    write_parquet(tmp_path, pixels, image="image", names=False)
    assert load(tmp_path).train.classes == ("0", "1", "2", "3")


def test_bad_parquet_is_explained(tmp_path, pixels):
    write_parquet(tmp_path, pixels)
    test = tmp_path / "test-00000-of-00001.parquet"
    test.write_bytes(test.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    test.unlink()
    with pytest.raises(UserError, match=r"no test-\*.parquet"):
        load(tmp_path)
    write_parquet(tmp_path, pixels, image="photograph")
    with pytest.raises(UserError, match="photograph"):
        load(tmp_path)


def test_a_path_that_leads_nowhere_is_explained(tmp_path):
    for part in ("train", "test"):
        table = pa.table({"img": [{"bytes": None, "path": "nowhere.png"}], "label": [0]})
        pq.write_table(table, tmp_path / f"{part}-0.parquet")
    with pytest.raises(UserError, match=r"nowhere\.png"):
        load(tmp_path)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing.*network"):
        load_splits("huggingface", DataOptions(name="nobody/nothing"))
    with pytest.raises(UserError, match="name the Hugging Face"):
        load_splits("huggingface", DataOptions())


def test_a_hub_data_set_is_decoded(monkeypatch, pixels):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z", "w"])})
    photographs = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in pixels[0]]
    hub = datasets.Dataset.from_dict({"image": photographs * 5, "label": [0, 1, 2, 3] * 5}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": hub}))
    splits = load_splits("cifar10", DataOptions(source="huggingface"))
    assert (len(splits.train), len(splits.test)) == (18, 2) and splits.train.classes == ("x", "y", "z", "w")
    for part in (splits.train, splits.test):
        assert np.array_equal(part.samples.numpy(), pixels[0][part.labels.numpy()])


def test_an_unknown_source_is_explained(tmp_path):
    with pytest.raises(UserError, match="parquet"):
        load(tmp_path, source="parqet")
