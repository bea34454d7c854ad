"""Batches depend on (seed, step) only, and use every sample once an epoch."""

import itertools

import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.dataset import Dataset, hold_out
from sde_diffusion.data.loader import batches


def numbered(count: int = 10) -> Dataset:
    """Images whose left pixel holds their index and whose right pixel is black; label = index."""
    samples = torch.zeros(count, 1, 1, 2, dtype=torch.uint8)
    samples[:, 0, 0, 0] = torch.arange(count, dtype=torch.uint8)
    return Dataset(samples, torch.arange(count), 256, tuple(map(str, range(count))), "numbered")


def take(count: int, batch_size: int, **options) -> list[torch.Tensor]:
    stream = batches(numbered(), batch_size, **options)
    return [told["labels"] for _, told in itertools.islice(stream, count)]


@pytest.mark.parametrize("batch_size", [3, 5, 10, 24])
def test_every_sample_is_used_once_an_epoch(batch_size):
    drawn = torch.cat(take(30, batch_size, seed=0))
    epochs = drawn[: len(drawn) // 10 * 10].reshape(-1, 10)
    assert (epochs.sort(dim=1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs), "epochs repeat one order"


@pytest.mark.parametrize("batch_size", [3, 24])
@pytest.mark.parametrize("start", [1, 7, 20])
def test_resuming_gives_the_batches_of_an_unbroken_run(batch_size, start):
    unbroken = list(itertools.islice(batches(numbered(), batch_size, seed=4, flip=True), start + 5))[start:]
    resumed = batches(numbered(), batch_size, seed=4, start_step=start, flip=True)
    for (samples, told), (samples_again, told_again) in zip(unbroken, resumed, strict=False):
        assert torch.equal(samples, samples_again) and torch.equal(told["labels"], told_again["labels"])


def test_samples_travel_with_their_labels_and_seeds_differ():
    samples, told = next(batches(numbered(), 10, seed=0))
    labels = told["labels"]
    assert samples.dtype == torch.uint8 and torch.equal(samples[:, 0, 0, 0].long(), labels)
    assert not torch.equal(labels, take(1, 10, seed=1)[0])


def test_half_the_images_are_mirrored_whole():
    dataset = numbered(200)
    count, total = 0, 0
    for samples, told in itertools.islice(batches(dataset, 100, seed=0, flip=True), 40):
        labels = told["labels"]
        plain = dataset.samples[labels]
        mirrored = (samples == plain.flip(-1)).flatten(1).all(1) & (labels > 0)
        assert (mirrored | (samples == plain).flatten(1).all(1)).all()
        count, total = count + int(mirrored.sum()), total + int((labels > 0).sum())
    assert abs(count / total - 0.5) < 4 * 0.5 / total**0.5


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    take(5, 3, seed=0, flip=True)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_requests_are_refused_at_once():
    vectors = Dataset(torch.zeros(4, 2), None, None, (), "vectors")
    with pytest.raises(UserError, match="flipped"):
        batches(vectors, 2, seed=0, flip=True)
    with pytest.raises(UserError, match="batch_size"):
        batches(vectors, 0, seed=0)
    assert next(batches(vectors, 2, seed=0))[1] == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": torch.zeros(3, 1, 2, 2)}, "uint8"),
        ({"samples": torch.full((3, 1, 2, 2), 17, dtype=torch.uint8)}, "grey level 17"),
        ({"samples": torch.zeros(0, 1, 2, 2, dtype=torch.uint8), "labels": None}, "no samples"),
        ({"labels": torch.tensor([0, 1])}, "int64"),
        ({"labels": torch.tensor([0, 1, 2])}, "2 classes"),
        ({"levels": 1}, "levels"),
        ({"levels": None, "samples": torch.full((3, 2), float("nan"))}, "finite"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(fields, message):
    good = {
        "samples": torch.full((3, 1, 2, 2), 16, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 1]),
        "levels": 17,
        "classes": ("a", "b"),
        "title": "set",
    }
    assert Dataset(**good).shape == (1, 2, 2)
    with pytest.raises(UserError, match=message):
        Dataset(**(good | fields))


def test_held_out_samples_are_stratified_disjoint_and_fixed():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    whole = Dataset(torch.arange(100.0)[:, None], labels, None, ("a", "b", "c"), "set")
    (train, test), (_, again) = hold_out(whole, 20), hold_out(whole, 20)
    assert torch.equal(test.samples, again.samples)
    assert test.labels.bincount().tolist() == [12, 6, 2]
    everything = torch.cat([train.samples, test.samples]).flatten()
    assert torch.equal(everything.sort().values, torch.arange(100.0))
    with pytest.raises(UserError, match="hold"):
        hold_out(whole, 100)
