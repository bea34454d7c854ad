"""Which conditions sample i is drawn for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataTransform
from sde_diffusion.pipelines.chosen import Turns, attributes_of, class_turns, listed, wanted_turns
from sde_diffusion.storage.checkpoint import Checkpoint

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
        ((5,), r"there is no class 5\. The network knows 0 = 1, 1 = 10, 2 = 2, 3 = cat:3, 4 = dog$"),
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


def trained(*conditions: str, **examples: torch.Tensor) -> Checkpoint:
    """The checkpoint of a network that is told these, and the conditions of some training samples."""
    spec = sd.NetworkSpec(sd.VPSDE(), "v", "time", shape=(2,), network="mlp", conditions=conditions)
    columns = {"attributes": ("smiling", "young", "hat"), "targets": ("age",)}
    return Checkpoint(0, spec, DataTransform(None), {}, {}, {}, "faces", NAMES, columns=columns, examples=examples)


ATTRIBUTES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
TARGETS = torch.tensor([[0.1], [0.2], [0.3]])


def test_vectors_are_those_of_training_samples() -> None:
    """All conditions of one sample together; beside a chosen class, those of its first sample."""
    labels = torch.tensor([4, 0, 4])
    found = trained("labels", "attributes", labels=labels, attributes=ATTRIBUTES)
    turns = wanted_turns((), (), found, NAMES)
    assert turns is not None and turns.of(range(2, 4))["labels"].tolist() == [4, 4]
    assert torch.equal(turns.of(range(2, 4))["attributes"], ATTRIBUTES[[2, 0]])
    turns = wanted_turns(("0:1", "dog:2"), (), found, NAMES)
    assert turns is not None and turns.of(range(3))["labels"].tolist() == [0, 4, 4]
    assert torch.equal(turns.of(range(3))["attributes"], ATTRIBUTES[[1, 0, 0]])
    assert wanted_turns((), (), trained("labels"), NAMES) is None


def test_attributes_are_the_same_for_every_sample() -> None:
    found = trained("attributes", "targets", attributes=ATTRIBUTES, targets=TARGETS)
    turns = wanted_turns((), ("hat", "smiling"), found, ())
    assert turns is not None and turns.of(range(2))["attributes"].tolist() == [[1.0, 0.0, 1.0]] * 2
    assert torch.equal(turns.of(range(2))["targets"], TARGETS[[0, 0]])
    both = wanted_turns(("dog:1", "0:2"), ("young",), trained("labels", "attributes"), NAMES)
    assert both is not None and both.of(range(3))["labels"].tolist() == [4, 0, 0]
    assert both.of(range(3))["attributes"].tolist() == [[0.0, 1.0, 0.0]] * 3
    assert attributes_of(("young",), found, 2)["attributes"].tolist() == [[0.0, 1.0, 0.0]] * 2
    with pytest.raises(UserError, match="no attribute 'yuong'; did you mean 'young'"):
        wanted_turns((), ("yuong",), found, ())
    with pytest.raises(UserError, match="say by --attributes which of smiling, young, hat"):
        attributes_of((), found, 2)
    with pytest.raises(UserError, match=r"sampling\.attributes chooses attributes, and the network is told none"):
        wanted_turns((), ("young",), trained("labels"), NAMES)


def test_many_classes_are_listed_in_part() -> None:
    assert listed([0, 2], NAMES) == "0 = 1, 2 = 2"
    assert listed(range(1000), [f"c{i}" for i in range(1000)]).endswith("11 = c11, ... (1,000 classes)")


def test_a_class_with_a_comma_in_its_name_is_given_by_its_number() -> None:
    with pytest.raises(
        UserError, match=r"no class 'x'.* A name with a comma is given by its number\. The network knows"
    ):
        class_turns(("x", "y"), ("cat", "x,y"))
