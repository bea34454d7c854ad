"""Which conditions sample i is drawn for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.pipelines.chosen import Turns, class_turns, listed

NAMES = ("1", "10", "2", "cat:3", "dog")


@pytest.mark.parametrize(
    ("entries", "labels", "counts"),
    [
        ((2, 0), [2, 0], ()),  # numbers in a configuration are those of labels
        (("2", "10"), [2, 1], ()),  # text is a name where there is one
        (("3", "4"), [3, 4], ()),  # and else a number
        (("cat:3", "dog"), [3, 4], ()),
        (("cat:3:5", "dog:2", "0:1"), [3, 4, 0], (5, 2, 1)),
    ],
)
def test_classes_by_number_and_by_name(entries: tuple[Any, ...], labels: list[int], counts: tuple[int, ...]) -> None:
    turns = class_turns(entries, NAMES)
    assert turns.rows["labels"].tolist() == labels and turns.counts == counts


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (("dgo",), "there is no class 'dgo'; did you mean 'dog'"),
        ((5,), r"there is no class 5; The network knows 0 = 1, 1 = 10, 2 = 2, 3 = cat:3, 4 = dog$"),
        ((-1,), "no class -1"),
        ((True,), "no class True"),
        (("dog:0",), "'dog:0' should be a class with its count"),
        (("dog", "4"), r"asks twice for class 4 \(dog\)"),
        (("dog:2", "1"), "all classes have counts"),
    ],
)
def test_classes_that_are_none(entries: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        class_turns(entries, NAMES)


def test_samples_take_turns_until_each_class_has_its_count() -> None:
    turns = Turns({"labels": torch.tensor([7, 3, 9])}, (4, 1, 2))
    assert turns.of(range(turns.count))["labels"].tolist() == [7, 3, 9, 7, 9, 7, 7]
    without_end = Turns({"labels": torch.tensor([7, 3]), "scale": torch.tensor([0.5, 2.0])})
    for some in (turns, without_end):
        whole = some.of(range(7))
        for cut in (1, 3, 6):
            parts = [some.of(range(cut)), some.of(range(cut, 7))]
            assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in whole)
    assert without_end.of(range(5))["scale"].tolist() == [0.5, 2.0, 0.5, 2.0, 0.5]
    assert Turns({}).of(range(3)) == {} and without_end.count == 0
    with pytest.raises(UserError, match="asks for 7 samples, and there are 8"):
        turns.exactly(8)


def test_many_classes_are_listed_in_part() -> None:
    assert listed([0, 2], NAMES) == "0 = 1, 2 = 2"
    assert listed(range(1000), [f"c{i}" for i in range(1000)]).endswith("11 = c11, ... (1,000 classes)")
