"""Files beside pictures that tell what they show, in their good and their broken forms."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions, Splits, load_splits

NAMED = ["00000/a.png", "00000/b.png", "00001/c.png"]


def load(root: Path, **options: object) -> Splits:
    return load_splits("folder", DataOptions(root=str(root), split="none", **options))


def pictures(root: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * value).save(root / name)


def edm(root: Path, labels: object) -> Path:
    pictures(root, *NAMED)
    (root / "dataset.json").write_text(labels if isinstance(labels, str) else json.dumps({"labels": labels}))
    return root


def test_edm_labels_are_those_of_dataset_json_and_folders_are_no_classes(tmp_path: Path) -> None:
    root = edm(tmp_path, [["00001/c.png", 2], ["00000/a.png", 0], ["00000/b.png", 2]])
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        for path in (
            root / "00000" / "a.png",
            root / "00000" / "b.png",
            root / "00001" / "c.png",
            root / "dataset.json",
        ):
            archive.write(path, path.relative_to(root))
    (tmp_path / "only").mkdir()
    (tmp_path / "edm.zip").rename(tmp_path / "only" / "edm.zip")
    for place in (tmp_path / "only" / "edm.zip",):
        found = load(place)
        assert found.train.classes == ("0", "1", "2") and found.train.labels.tolist() == [0, 2, 2]
        assert found.train.samples[:, 0, 0, 0].tolist() == [0, 10, 20]
        assert "dataset.json gives" in found.inventory.labels and set(found.files) == {*NAMED, "dataset.json"}
        assert not any("dataset.json" in each.examples for each in found.inventory.skipped)


def test_edm_without_labels_has_no_classes(tmp_path: Path) -> None:
    found = load(edm(tmp_path, None))
    assert found.train.labels is None and found.train.classes == () and len(found.train) == 3


@pytest.mark.parametrize(
    ("lists", "name"), [([[1, 0], [0, 1], [1, 1]], "attributes"), ([[0.5, 2], [1, 3], [4, 5]], "targets")]
)
def test_edm_lists_are_attributes_or_targets(tmp_path: Path, lists: list[list[float]], name: str) -> None:
    found = load(edm(tmp_path, [[n, own] for n, own in zip(NAMED, lists)])).train
    assert found.columns == {name: ("0", "1")} and found.labels is None
    assert torch.equal(found.conditions[name], torch.tensor(lists, dtype=torch.float32))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("{", r"dataset\.json is no JSON.*repair or remove"),
        ([["00000/a.png", 0], ["00000/b.png", 1]], r"no row of 1 of the 3 pictures, such as '00001/c\.png': add rows"),
        ([*[[n, 0] for n in NAMED], ["x.png", 1]], r"tells of 1 files that are not there, such as 'x\.png'"),
        ([*[[n, 0] for n in NAMED], [NAMED[0], 1]], "two rows of '00000/a.png'"),
        ([[n, "cat"] for n in NAMED], r"the label of '00000/a\.png' is 'cat'; labels are whole numbers"),
        ([[n, -1] for n in NAMED], "is -1; labels are whole numbers"),
        ([NAMED], r'"labels" must be a list of \[name, label\]'),
    ],
)
def test_a_broken_dataset_json_is_told_of(tmp_path: Path, labels: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load(edm(tmp_path, labels))
    assert "dataset.json" in str(error.value)


def table(root: Path, text: str, name: str = "metadata.csv") -> Path:
    pictures(root, "0.png", "1.png", "sub/2.png")
    (root / name).write_text(text)
    return root


def test_metadata_gives_classes_attributes_and_targets(tmp_path: Path) -> None:
    text = "file_name,label,smiling,young,age,text\n1.png,dog,1,0,2.5,a\nsub/2.png,cat,0,0,40,b\n0.png,dog,1,1,7,c\n"
    found = load(table(tmp_path, text))
    train = found.train
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [1, 1, 0]
    assert train.columns == {"attributes": ("smiling", "young"), "targets": ("age",)}
    assert train.conditions["attributes"].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert train.conditions["targets"].flatten().tolist() == [7, 2.5, 40]
    assert found.inventory.labels.endswith(
        "gives classes by the column 'label'; attributes by smiling, young; targets by age; not used: text"
    )
    chosen = load(tmp_path, label_column="text", target_columns=("age", "young")).train
    assert chosen.classes == ("a", "b", "c") and chosen.columns == {"targets": ("age", "young")}


def test_metadata_of_lines_of_json_and_of_each_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / part, "0.png", "1.png")
        rows = [{"file_name": f"{i}.png", "class": i, "weight": i + 0.5} for i in (1, 0)]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_splits("folder", DataOptions(root=str(tmp_path)))
    for part in (found.train, found.test):
        assert part.labels.tolist() == [0, 1] and part.conditions["targets"].tolist() == [[0.5], [1.5]]
        assert part.classes == ("0", "1")
    (tmp_path / "test" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"there is no .*test/metadata\.jsonl"):
        load_splits("folder", DataOptions(root=str(tmp_path)))


def test_the_list_of_celeba_gives_attributes(tmp_path: Path) -> None:
    pictures(tmp_path, "img/0.jpg", "img/1.jpg")
    (tmp_path / "list_attr_celeba.txt").write_text("2\nBald Young\n0.jpg -1  1\n1.jpg  1 -1\n")
    found = load(tmp_path).train
    assert found.columns == {"attributes": ("Bald", "Young")} and found.classes == ()
    assert found.conditions["attributes"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("name,label\n0.png,1\n", {}, "has no column file_name.*it has name, label"),
        ("file_name,label\n0.png,1\n1.png\nsub/2.png,1\n", {}, "row 2: 1 cells where the line of names has 2"),
        ("file_name,label\n0.png,1\n1.png,\nsub/2.png,1\n", {}, r"column label, row 2 \(1\.png\): there is no class"),
        ("file_name\n", {}, "no rows below"),
        ("file_name,a,a\n0.png,1,1\n", {}, "two columns have one name"),
        (
            "file_name,a\n0.png,1\n1.png,x\nsub/2.png,0\n",
            {"target_columns": ("a",)},
            r"row 2 \(1\.png\): 'x' where a num",
        ),
        ("file_name,a\n0.png,1\n1.png,2\nsub/2.png,0\n", {"attribute_columns": ("a",)}, "'2' where 0 or 1 is expected"),
        ("file_name,age\n0.png,1\n", {"target_columns": ("agee",)}, "no column 'agee'; did you mean 'age'"),
    ],
)
def test_a_broken_table_is_told_of(tmp_path: Path, text: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load(table(tmp_path, text), **options)
    assert "metadata.csv" in str(error.value)


def test_columns_without_a_table_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    with pytest.raises(UserError, match=r"the column 'age' is wanted.*metadata\.csv"):
        load(tmp_path, target_columns=("age",))


def metadata(root: Path, lines: str) -> Path:
    return table(root, f"file_name,label\n{lines}\n")


@pytest.mark.parametrize(
    ("cells", "classes", "labels"),
    [
        (("1.0", "0.0", "1.0"), ("0", "1"), [1, 0, 1]),
        (("007", "7", "007"), ("007", "7"), [0, 1, 0]),
        (("10", "9", "-1"), ("-1", "9", "10"), [2, 1, 0]),
        (("cat", " cat ", "dog"), ("cat", "dog"), [0, 0, 1]),
        (("nan", "cat", "1"), ("1", "cat", "nan"), [2, 1, 0]),
    ],
)
def test_text_of_numbers_is_numbers_and_other_text_is_as_it_is(
    tmp_path: Path, cells: tuple[str, ...], classes: tuple[str, ...], labels: list[int]
) -> None:
    names = ("0.png", "1.png", "sub/2.png")
    found = load(metadata(tmp_path, "\n".join(map(",".join, zip(names, cells))))).train
    assert found.classes == classes and found.labels.tolist() == labels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,label\n0.png,0.5\n1.png,1.0\nsub/2.png,0\n", r"row 1 \(0\.png\): 0\.5 is no class"),
        ("file_name,label\n0.png,0\n1.png,nan\nsub/2.png,1\n", r"row 2 \(1\.png\): there is no class"),
        ("file_name;label\n0.png;0\n", "semicolons between its columns"),
        (",file_name,label\n0,0.png,0\n", "column 1 has no name"),
    ],
)
def test_what_programs_make_of_tables_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"metadata\.csv.*{said}"):
        load(table(tmp_path, text))


def test_a_number_that_no_class_can_have_is_refused_before_it_is_counted_to(tmp_path: Path) -> None:
    root = edm(tmp_path, [["00001/c.png", 10**15], ["00000/a.png", 0], ["00000/b.png", 2]])
    with pytest.raises(UserError, match=r"dataset\.json: the class 1000000000000000 is no number of one"):
        load(root)


def test_a_held_out_part_may_lack_classes_and_its_labels_are_those_of_the_training(tmp_path: Path) -> None:
    for part, labels in (("train", "abc"), ("test", "ca")):
        pictures(tmp_path / part, *(f"{index}.png" for index in range(len(labels))))
        lines = [f"{index}.png,{label}" for index, label in enumerate(labels)]
        (tmp_path / part / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    found = load_splits("folder", DataOptions(root=str(tmp_path)))
    assert found.test.classes == ("a", "b", "c") and found.test.labels.tolist() == [2, 0]
    (tmp_path / "test" / "metadata.csv").write_text("file_name,label\n0.png,d\n1.png,a\n")
    with pytest.raises(UserError, match=r"test/metadata\.csv tells of the classes a, d, and .*train.* of a, b, c"):
        load_splits("folder", DataOptions(root=str(tmp_path)))


def test_other_labels_in_as_many_bytes_are_another_file(tmp_path: Path) -> None:
    first = load(metadata(tmp_path, "0.png,a\n1.png,b\nsub/2.png,a")).files
    second = load(metadata(tmp_path, "0.png,b\n1.png,a\nsub/2.png,b")).files
    assert [name for name in first if first[name] != second[name]] == ["metadata.csv"]
