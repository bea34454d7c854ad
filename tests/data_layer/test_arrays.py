"""Arrays and tables as sets: what is read of them, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Dataset, Splits, load_splits

RNG = np.random.default_rng(0)


def load(path: Path, **options: object) -> Splits:
    return load_splits("array", DataOptions(root=str(path), split="none", **options))


@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (5, 3, 4, 6), (5, 4, 6), (5, 4, 6, 1), (5, 1, 4, 6)])
def test_the_axis_of_channels_is_found(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    channels = 3 if 3 in (shape[1], shape[-1]) else 1
    found = load(tmp_path / "a.npy").train
    assert found.shape == (channels, 4, 6) and found.levels == 256 and found.title == "a"
    last = found.samples.permute(0, 2, 3, 1).numpy()
    expected = array if shape[-1] == channels else np.moveaxis(array, 1, -1) if len(shape) == 4 else array[..., None]
    assert np.array_equal(last, expected)


def test_an_npz_gives_all_that_the_toolkit_writes_and_more(tmp_path: Path) -> None:
    arrays = {
        "images": RNG.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8),
        "labels": np.array([0, 1, 0, 1, 2, 2]),
        "classes": np.array(["ant", "bee", "cat"]),
        "attributes": np.eye(6)[:, :2],
        "attributes_columns": np.array(["small", "quick"]),
        "targets": np.arange(6.0)[:, None],
    }
    np.savez(tmp_path / "samples_ddim.npz", **arrays)
    found = load(tmp_path / "samples_ddim.npz")
    train = found.train
    assert train.classes == ("ant", "bee", "cat") and train.labels.tolist() == arrays["labels"].tolist()
    assert train.columns == {"attributes": ("small", "quick"), "targets": ("0",)}
    assert np.array_equal(train.conditions["attributes"].numpy(), arrays["attributes"])
    assert list(found.files) == ["samples_ddim.npz"]
    again = load(tmp_path / "samples_ddim.npz")
    np.savez(tmp_path / "samples_ddim.npz", **{**arrays, "targets": -arrays["targets"]})
    assert again.files == found.files != load(tmp_path / "samples_ddim.npz").files, "a change of content is noticed"
    np.savez(tmp_path / "names.npz", samples=np.ones((3, 2)), labels=np.array(["b", "a", "b"]))
    named = load(tmp_path / "names.npz").train
    assert named.classes == ("a", "b") and named.labels.tolist() == [1, 0, 1] and named.levels is None
    held = load_splits("array", DataOptions(root=str(tmp_path / "samples_ddim.npz")))
    assert (len(held.train), len(held.test)) == (5, 1) and held.test.columns == train.columns


def test_tables_are_vectors_with_conditions(tmp_path: Path) -> None:
    rows = {"x": [0.5, 1.5, -2.0], "kind": ["b", "a", "b"], "y": [1, 2, 3], "ok": [0, 1, 1], "size": [7.0, 8.0, 9.0]}
    text = "\n".join([",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values()))])
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    options = {"label_column": "kind", "attribute_columns": ("ok",), "target_columns": ("size",)}
    for name in ("t.csv", "t.parquet"):
        found = load(tmp_path / name, **options).train
        assert found.samples.tolist() == [[0.5, 1], [1.5, 2], [-2, 3]]
        assert found.classes == ("a", "b") and found.labels.tolist() == [1, 0, 1]
        assert found.conditions["attributes"].tolist() == [[0], [1], [1]]
        assert found.conditions["targets"].tolist() == [[7], [8], [9]]
        with pytest.raises(UserError, match=r"column kind, row 1: 'b' where a number.*data\.label_column=kind"):
            load(tmp_path / name)
    (tmp_path / "u.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    plain = load(tmp_path / "u.csv").train
    assert plain.classes == ("0", "1") and plain.samples.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "arrays", "said"),
    [
        ("a.npy", np.zeros((3, 4, 4, 3)), r"is float64 \[3, 4, 4, 3\]: expected are images uint8.*round 255 times"),
        ("a.npy", np.zeros((3, 4, 4, 5), np.uint8), "1 or 3 channels"),
        ("a.npy", np.array([[1.0, np.nan]]), "row 0, column 1: nan is no finite number"),
        ("a.npy", np.array([{"a": 1}]), "Python objects are not read, since that runs code"),
        ("a.npz", {"pictures": np.zeros(3)}, r"holds pictures; samples are expected in one of images, samples"),
        ("a.npz", {"samples": np.zeros((3, 2)), "labels": np.array([0, 1])}, "'labels' has 2 rows, and there are 3"),
        ("a.npz", {"samples": np.zeros((2, 2)), "labels": np.array([0.5, 1])}, "whole numbers or names"),
        ("a.npz", {"samples": np.zeros((2, 2)), "labels": np.array([0, 2]), "classes": ["a", "b"]}, "run from 0 to 2"),
        (
            "a.npz",
            {"samples": np.zeros((2, 2)), "labels": np.array([0, 10**12])},
            "the class 1000000000000 is no number",
        ),
        (
            "a.npz",
            {"samples": np.zeros((2, 2)), "labels": np.array([0, 1]), "classes": ["a", "a"]},
            "have one name: a, a",
        ),
        ("a.csv", "x,y\n1,1e39\n", r"column y, row 1: 1e\+39 is beyond 32 bits; scale it"),
        ("a.csv", "x;y\n1,5;2\n", "semicolons between its columns"),
        ("a.csv", ",x\n0,1\n", "column 1 has no name"),
        ("a.csv", "x,y\n1,\n", "column y, row 1: nothing where a number is expected"),
        ("a.csv", "x,y\n1,2,3\n", "row 1: 3 cells"),
        ("a.csv", "label\n1\n", "none is left to be their vector"),
        ("a.npz", "not an archive", "cannot be read as arrays"),
        ("a.parquet", "not a table", "cannot be read as parquet"),
        ("a.mat", "x", r"unknown ending of a file of arrays '\.mat'.*\.csv, \.npy, \.npz, \.parquet"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path: Path, name: str, arrays: object, said: str) -> None:
    path = tmp_path / name
    if isinstance(arrays, str):
        path.write_text(arrays)
    elif isinstance(arrays, dict):
        np.savez(path, **arrays)
    else:
        np.save(path, arrays, allow_pickle=True)
    with pytest.raises(UserError, match=said) as error:
        load(path)
    assert name in str(error.value) or name == "a.mat"


def test_lists_in_a_table_are_no_numbers(tmp_path: Path) -> None:
    for columns in ({"v": [[1.0, 2.0], [3.0, 4.0]]}, {"x": [1.0, 2.0], "v": [[1.0, 2.0], [3.0, 4.0]]}):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"a\.parquet, column v, row 1: \[1\.0, 2\.0\] where a number is expected"):
            load(tmp_path / "a.parquet")


def test_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", samples=np.zeros((2, 2)), label=np.array([0, 1]))
    with pytest.warns(UserWarning, match=r"a\.npz: not read are label, but samples and labels, classes"):
        assert load(tmp_path / "a.npz").train.labels is None


def test_files_of_arrays_and_folders_are_not_taken_for_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"data\.dataset='array'"):
        load_splits("folder", DataOptions(root=str(tmp_path / "a.npy")))
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path)


def test_tensors_are_a_set() -> None:
    told = {"labels": torch.tensor([0, 2]), "targets": torch.ones(2, 3)}
    found = Dataset.from_tensors(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), told, classes=("a", "b", "c"))
    assert found.levels == 256 and found.columns == {"targets": ("0", "1", "2")} and found.labels.tolist() == [0, 2]
    with pytest.raises(UserError, match="labels run from 0 to 2"):
        Dataset.from_tensors(torch.zeros(2, 3), told, classes=("a",))
