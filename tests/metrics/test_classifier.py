"""The classifier of a set: how well it knows its classes, what is kept of it, and what its features tell."""

from __future__ import annotations

import multiprocessing
import warnings
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import randn, seeded
from sde_diffusion.data import Dataset, Splits
from sde_diffusion.metrics import Extractor, Features, Judging, as_samples, extractor, judge
from sde_diffusion.metrics.classifier import RECIPE, Classifier, Network, augmented, train
from sde_diffusion.metrics.extraction import eight_bits

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of a few updates."""
    monkeypatch.setitem(RECIPE, "updates", [4, 4])


def test_it_knows_digits_that_it_has_not_seen(classifier: Classifier, digits: Splits) -> None:
    """The held-out digits of the set; and what it says of itself, by a tenth of those it was given, agrees."""
    found = classifier(as_samples(digits.test))
    assert digits.test.labels is not None and found.logits is not None
    accuracy = (found.logits.argmax(1) == digits.test.labels).double().mean().item()
    assert accuracy > 0.95 and classifier.accuracy > 0.95
    assert found.values.shape == (300, classifier.dims) and found.values.dtype == torch.float64


def test_features_are_in_units_of_their_spread_over_the_training_split(classifier: Extractor, digits: Splits) -> None:
    found = classifier(as_samples(digits.train)).values
    assert found.mean(0).abs().max() < 0.05 and (found.std(0) - 1).abs().max() < 0.05


def test_features_do_not_depend_on_the_batch(classifier: Extractor, digits: Splits) -> None:
    samples = as_samples(digits.test)
    whole = classifier(samples).values
    torch.testing.assert_close(whole[100:103], classifier(samples[100:103]).values, rtol=0, atol=1e-5)


def test_it_is_trained_once(classifier: Classifier, digits: Splits, cache: Path) -> None:
    (path,) = cache.glob("classifier-*.safetensors")
    before = path.stat().st_mtime_ns
    again = extractor("classifier", digits.train, cache, CPU)
    assert isinstance(again, Classifier) and (again.digest, again.accuracy) == (classifier.digest, classifier.accuracy)
    samples = as_samples(digits.test)[:20]
    assert torch.equal(again(samples).values, classifier(samples).values)
    assert path.stat().st_mtime_ns == before and list(cache.glob("classifier-*")) == [path]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "another file"])
def test_a_damaged_file_is_written_again(damage: str, digits: Splits, tmp_path: Path) -> None:
    first = extractor("classifier", digits.train, tmp_path, CPU)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 64  # of a weight
    path.write_bytes(
        {"torn": whole[:-100], "flipped": bytes(flipped), "empty": b"", "another file": b"{}" * 99}[damage]
    )
    with pytest.warns(UserWarning, match=f"{path} is damaged and the classifier is trained again: "):
        again = extractor("classifier", digits.train, tmp_path, CPU)
    assert again.digest == first.digest and list(tmp_path.iterdir()) == [path]
    assert extractor("classifier", digits.train, tmp_path, CPU).digest == first.digest, "and now it is whole"


@pytest.mark.usefixtures("short")
def test_other_data_and_other_recipes_have_other_files(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits.train, digits.test
    assert isinstance(train, Dataset)
    digests = {
        extractor("classifier", source, tmp_path, CPU).digest
        for source in (train, test, train.select(torch.arange(900)))
    }
    monkeypatch.setitem(RECIPE, "rate", 1e-3)
    digests.add(extractor("classifier", train, tmp_path, CPU).digest)
    assert len(digests) == len(list(tmp_path.iterdir())) == 4


@pytest.mark.usefixtures("short")
def test_the_training_is_the_same_every_time_and_leaves_the_random_state(digits: Splits) -> None:
    """The fixture of this folder sees to the state."""
    whole = eight_bits(digits.train)
    (one, accuracy), (other, again) = train(whole, CPU), train(whole, CPU)
    assert accuracy == again and all(torch.equal(one[name], other[name]) for name in one)


def train_when_told(cache: Path, together: Barrier, said: SimpleQueue[str]) -> None:
    samples = torch.randint(0, 17, (200, 1, 8, 8), generator=seeded(0)).to(torch.uint8)
    source = Dataset(samples, torch.arange(200) % 2, 17, ("a", "b"), "some")
    together.wait(60)
    said.put(extractor("classifier", source, cache, CPU).digest)


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end with the same weights, and one file is left, which is whole."""
    monkeypatch.setitem(RECIPE, "updates", [20, 20])
    forked = multiprocessing.get_context("fork")
    together, said = forked.Barrier(2), forked.SimpleQueue()
    processes = [forked.Process(target=train_when_told, args=(tmp_path, together, said)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    digests = {said.get() for _ in processes}
    (path,) = tmp_path.iterdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = forked.Barrier(1)
        train_when_told(tmp_path, together, said)
    assert digests == {said.get()} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (3, 9, 5), (2, 3, 3)])
def test_pictures_of_any_size(shape: tuple[int, int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        network = Network(shape[0], 4)
    features, logits = network(randn((3, *shape), seeded(0)))
    assert features.shape == (3, Classifier.dims) and logits.shape == (3, 4)
    assert features.isfinite().all() and (features[0] != features[1]).any()


def test_augmentation_moves_pictures_and_adds_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise each is the picture as seen through a moved frame, whose edge continues; noise has a random std."""
    x = randn((200, 2, 16, 24), seeded(0))
    noisy = augmented(x, seeded(1))
    monkeypatch.setitem(RECIPE, "noise", 0.0)
    moved = augmented(x, seeded(1))
    assert 0.02 < (noisy - moved).std() < 0.1
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="replicate")
    shifts = [(i, j) for i in range(5) for j in range(7)]
    frames = torch.stack([padded[:, :, i : i + 16, j : j + 24] for i, j in shifts])
    hits = (frames == moved).flatten(2).all(2)
    assert torch.equal(hits.sum(0), torch.ones(200, dtype=torch.int64)) and hits.any(1).all()


@pytest.mark.parametrize("kind", ["pictures", "vectors"])
def test_sets_without_classes_or_pictures_are_refused(kind: str, tmp_path: Path) -> None:
    samples = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    sets = {
        "pictures": (Dataset(samples, None, 256, (), "unlabelled"), "unlabelled has no labels"),
        "vectors": (Dataset(torch.zeros(5, 2), torch.zeros(5).long(), None, ("a",), "moons"), "moons has no pictures"),
    }
    source, says = sets[kind]
    with pytest.raises(
        UserError, match=f"{says} to train a classifier on: choose the features 'inception' or 'values'"
    ):
        extractor("classifier", source, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_samples_of_another_shape_are_refused(classifier: Extractor) -> None:
    with pytest.raises(
        UserError, match=r"classifier of digits take samples of shape \[N, 8, 8, 1\], not \[2, 9, 8, 1\]"
    ):
        classifier(np.zeros((2, 9, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"pictures to judge must be uint8 \[N, H, W, C\], not float64"):
        classifier(np.zeros((2, 8, 8, 1)))


def test_its_distance_agrees_with_an_independent_classifier(classifier: Extractor, digits: Splits) -> None:
    """Digits under more and more noise: the less a support vector machine is sure of them, the larger the distance."""
    real, held = eight_bits(digits.train), as_samples(digits.test)
    assert real.labels is not None
    machine = CalibratedClassifierCV(SVC(gamma=0.001, random_state=0), cv=3, ensemble=False)
    machine.fit(real.samples.flatten(1).numpy() / 16, real.labels.numpy())
    reference: Features = classifier(as_samples(digits.train))
    noise, labels = np.random.default_rng(0).normal(size=held.shape), digits.test.labels
    levels = (0, 48, 80, 120, 180)
    corrupted = [(held + level * noise).round().clip(0, 255).astype(np.uint8) for level in levels]
    sure = [machine.predict_proba(x.reshape(300, -1) / 16)[np.arange(300), labels].mean() for x in corrupted]
    for name in ("frechet", "kid", "energy"):
        found = [judge([name], classifier(x), reference, Judging(bootstraps=0))[name].value for x in corrupted]
        assert scipy.stats.spearmanr(sure, found).statistic == pytest.approx(-1.0), name
    assert sure[0] > 0.9 and sure[-1] < 0.5
