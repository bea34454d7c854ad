"""Samples of another request are kept under a name of their own, whenever the process dies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.shards import Shards
from tests.faults import deaths

OLD, NEW = {"seed": 0}, {"seed": 1}
SHOWN = b"a picture"


def sample(folder: Path, protocol: dict[str, int], fmt: str, count: int) -> str:
    """As the sampling pipeline does it; what is said of the former samples."""
    shards = Shards(folder, "x", protocol, fmt)
    for indices in shards.missing(count, 2):
        images = np.random.default_rng([protocol["seed"], *indices]).integers(0, 256, (len(indices), 2, 2, 3), np.uint8)
        shards.write(indices, {"images": images, "labels": np.zeros(len(indices), np.int64)})
    said = shards.keep_former(count)
    write_aside(folder / "samples_x.png", SHOWN + bytes([protocol["seed"]]))
    shards.finish(count, {"samples": count}, ["cat"])
    return said


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but for those that a death left half written beside a manifest or a picture."""
    files = (path for path in folder.rglob("*") if path.is_file() and not re.match(r"\.samples_x\.\w+\.\d", path.name))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("old", "new"), [("npz", "npz"), ("png", "zip"), ("png", "png")])
def test_a_kill_at_any_change_loses_neither(tmp_path: Path, old: str, new: str) -> None:
    """The former samples are whole at either name after each kill; going on ends as without one."""
    run = tmp_path / "run"
    sample(run, OLD, old, 3)
    former = {name: data for name, data in content(run).items() if not name.endswith(".json")}
    *left, end = deaths(run, lambda: sample(run, NEW, new, 4), tmp_path / "left")
    whole = content(end)
    renamed = {name.replace("samples_x", "samples_x_1", 1): data for name, data in former.items()}
    assert renamed.items() <= whole.items() and not any(name.startswith(".") for name in whole)
    for number, folder in enumerate(left):
        there = content(folder)
        for name, data in former.items():
            assert data in (there.get(name), there.get(name.replace("samples_x", "samples_x_1", 1))), (number, name)
        sample(folder, NEW, new, 4)
        assert content(folder) == whole, number
    assert len(left) > 20


def test_what_is_replaced_and_what_is_kept(tmp_path: Path) -> None:
    """More of the same request replace it; fewer, another request, and what cannot be read are kept, one by one."""
    assert sample(tmp_path, OLD, "npz", 2) == ""
    assert sample(tmp_path, OLD, "npz", 3) == sample(tmp_path, OLD, "npz", 3) == ""
    assert sample(tmp_path, OLD, "npz", 2) == "the 3 samples that were there are kept: samples_x_1.*"
    assert sample(tmp_path, NEW, "npz", 2) == "the 2 samples that were there are kept: samples_x_2.*"
    (tmp_path / "samples_x.json").write_text("{")
    assert sample(tmp_path, NEW, "npz", 2) == "the samples that were there are kept: samples_x_3.*"
    (tmp_path / "samples_x_1.json").unlink()
    (tmp_path / "samples_x_1.png").unlink()  # the .npz is a person's still
    assert sample(tmp_path, OLD, "npz", 2).endswith("samples_x_4.*")
    kept = json.loads((tmp_path / "samples_x_4.json").read_text())
    assert kept["files"].keys() == {"samples_x_4.npz"} and kept["classes"] == ["cat"]


def test_an_unfinished_sampling_does_not_take_the_files_of_another_request(tmp_path: Path) -> None:
    """Killed between the move of its files and that of its marks; then another request was finished."""
    shards = Shards(tmp_path, "x", OLD, "png")
    images = np.zeros((2, 2, 2, 3), np.uint8)
    shards.write(range(2), {"images": images})
    (shards.work / "files").rename(tmp_path / "samples_x")
    assert Shards(tmp_path, "x", OLD, "png").missing(2, 2) == []  # its own
    (shards.work / "files").rename(tmp_path / "samples_x")
    sample(tmp_path, NEW, "png", 4)
    before = {name: data for name, data in content(tmp_path).items() if name.startswith("samples_x")}
    with pytest.warns(UserWarning, match="damaged or lost"):
        assert shards.missing(2, 2) == [range(2)]
    assert before.items() <= content(tmp_path).items()


def test_names_of_classes_go_with_labels(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "x", OLD)
    shards.write(range(2), {"images": np.zeros((2, 2, 2, 3), np.uint8), "labels": np.array([1, 0])})
    path, _ = shards.finish(2, {}, ["cat", "Füchse"])
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == ["images", "labels", "classes"] and file["classes"].tolist() == ["cat", "Füchse"]
    plain = Shards(tmp_path, "plain", OLD)
    plain.write(range(2), {"images": np.zeros((2, 2, 2, 3), np.uint8)})
    path, manifest = plain.finish(2, {}, ["cat"])
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == ["images"] and "classes" not in json.loads(manifest.read_text())
