"""A data set that is given the files of another one names that one, and nothing is downloaded among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, load_splits


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def retrieve(*arguments: object, **options: object) -> None:
        pytest.fail("a download was begun")

    monkeypatch.setattr("pooch.retrieve", retrieve)


def refused(sentence: str, dataset: str, root: Path, **options: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=sentence):
        load_splits(dataset, DataOptions(root=str(root), **options))
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("source", ["auto", "binary"])
@pytest.mark.parametrize("name", ["0.png", "cats/old/0.png"])
def test_cifar10_names_the_set_that_reads_pictures(tmp_path: Path, source: str, name: str) -> None:
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "mine" / name)
    refused(f"It holds {name}, which is read by data.dataset=folder", "cifar10", tmp_path / "mine", source=source)
    packed = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", tmp_path / "mine"))
    refused("data.dataset=folder reads zips", "cifar10", packed, source=source)


def test_no_download_goes_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    refused("holds thesis.tex, and neither .* Name an empty folder", "cifar10", tmp_path)


@pytest.mark.parametrize("name", ["train-0.parquet", "cifar-10-batches-bin/test_batch.bin", "cifar-10-binary.tar.gz"])
def test_folder_names_the_set_that_reads_cifar10(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    refused(f"It holds {name}, which is read by data.dataset=cifar10", "folder", tmp_path)


@pytest.mark.parametrize("dataset", ["digits", "toy2d", "huggingface"])
def test_sets_that_come_from_elsewhere_refuse_a_folder(tmp_path: Path, dataset: str) -> None:
    refused("is not read from a folder.*choose data.dataset=folder", dataset, tmp_path, name="some/set")
