"""Classes and columns by their names."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.naming import by_class_names, by_column_names, numbered


def told(*classes: str) -> Dataset:
    labels = torch.arange(len(classes))
    columns = {"attributes": tuple(f"is {name}" for name in classes)}
    others = {"attributes": torch.eye(len(classes))}
    return Dataset(labels.float()[:, None], labels, None, classes, "set", others=others, columns=columns)


def test_a_permutation_is_mapped() -> None:
    data = told("dogs", "cats", "ants")
    found = by_class_names(data, ("ants", "cats", "dogs"))
    assert found.classes == ("ants", "cats", "dogs") and found.labels.tolist() == [2, 1, 0]
    names = [found.classes[label] for label in found.labels.tolist()]
    assert names == ["dogs", "cats", "ants"], "every sample keeps its name"
    wanted = {"attributes": ("is cats", "is ants", "is dogs")}
    moved = by_column_names(data, wanted, ("attributes",))
    assert moved.columns == wanted and moved.others["attributes"].argmax(1).tolist() == [2, 0, 1]
    assert by_class_names(data, data.classes) is data and by_column_names(data, data.columns, ("attributes",)) is data


def test_other_classes_are_refused_and_numbers_are_not() -> None:
    with pytest.raises(UserError, match=r"new are felines, missing are cats .*the data have dogs, felines"):
        by_class_names(told("dogs", "felines"), ("cats", "dogs"))
    with pytest.raises(UserError, match="missing are cats"):
        by_class_names(told("dogs"), ("cats", "dogs"))
    few = by_class_names(told("dogs"), ("cats", "dogs"), all_of_them=False)
    assert few.labels.tolist() == [1]
    assert by_class_names(told("dogs", "cats"), ("0", "1")).labels.tolist() == [0, 1], "a network without names"
    with pytest.raises(UserError, match=r"the attributes of set .*is dogs"):
        by_column_names(told("dogs"), {"attributes": ("is cats",)}, ("attributes",))


def test_classes_are_told_with_their_numbers() -> None:
    assert numbered(("1", "10", "2")) == "3 classes: 0 = 1, 1 = 10, 2 = 2"
    many = numbered([f"c{i}" for i in range(1000)])
    assert many.startswith("1,000 classes: 0 = c0, 1 = c1") and many.endswith("..., 999 = c999") and len(many) < 200
