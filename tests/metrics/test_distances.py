"""The measures against closed forms, brute force and the packages; what cannot be measured has a reason."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Splits
from sde_diffusion.metrics import METRICS, Extractor, Features, Judging, as_samples, judge
from sde_diffusion.metrics.packages import torchmetrics
from sde_diffusion.metrics.scores import SUBSET_STREAM
from tests.metrics.drawn import F64, normal, with_moments

QUICK = Judging(bootstraps=0)


def value(name: str, samples: Features, real: Features, judging: Judging = QUICK) -> float:
    score = judge([name], samples, real, judging)[name]
    assert score.value is not None, score.reason
    assert type(score.value) is float
    return score.value


def close(found: float, expected: float, rtol: float) -> None:
    assert found == pytest.approx(expected, rel=rtol, abs=1e-12)


# --- Frechet --------------------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_the_normal_distributions() -> None:
    """Samples with exact moments; where covariances commute it is |dm|^2 + sum (sqrt(a) - sqrt(b))^2."""
    a, b = torch.tensor([4.0, 1.0, 0.25], dtype=F64), torch.tensor([1.0, 2.25, 0.25], dtype=F64)
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
    turn = torch.linalg.qr(normal(3, 3, seed=5).values).Q
    x = with_moments(50, mean, turn @ a.diag() @ turn.T, seed=1)
    y = with_moments(70, torch.zeros(3, dtype=F64), turn @ b.diag() @ turn.T, seed=2)
    close(value("frechet", x, y), 0.25 + 1 + 4 + (1 + 0.25), 1e-10)
    close(value("frechet", normal(40_000, 2, 3, mean=0.5), normal(40_000, 2, 4, std=2.0)), 2 * 0.25 + 2 * 1, 0.02)


def test_frechet_distance_equals_the_packages_and_a_matrix_root() -> None:
    x, y = normal(90, 6, 1, mean=0.3).values, normal(120, 6, 2).values @ normal(6, 6, 3).values
    found = value("frechet", Features(x), Features(y))

    class Identity(nn.Module):
        num_features = 6

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    metric = torchmetrics("image.fid").FrechetInceptionDistance(feature=Identity()).set_dtype(F64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    close(found, metric.compute().item(), 1e-12)
    covariances = [np.cov(rows.numpy(), rowvar=False) for rows in (x, y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    difference = (x.mean(0) - y.mean(0)).numpy()
    close(found, difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root), 1e-8)


def test_frechet_distance_does_not_depend_on_the_origin_nor_on_the_order() -> None:
    x, y = normal(80, 4, 1, mean=0.4, std=0.8), normal(80, 4, 2)
    moved = [Features(features.values + 100) for features in (x, y)]
    close(value("frechet", *moved), value("frechet", x, y), 1e-7)
    close(value("frechet", y, x), value("frechet", x, y), 1e-9)


def test_halves_of_real_digits_are_far_closer_than_noise(digits: Splits, classifier: Extractor) -> None:
    draw = np.random.default_rng(0)
    real = draw.permutation(as_samples(digits.train))
    noise = draw.integers(0, 256, (700, *real.shape[1:]), dtype=np.uint8)
    other = classifier(real[700:])
    for name, limit in {"frechet": 0.05, "kid": 0.01, "energy": 0.02, "sliced_wasserstein": 0.2}.items():
        halves, noisy = (value(name, classifier(rows), other) for rows in (real[:700], noise))
        assert halves < limit * noisy, name


# --- kernel distance ------------------------------------------------------------------------------------------


def test_kernel_distance_is_its_formula() -> None:
    """All samples in one subset, so that nothing is random: sums over pairs of different samples."""
    x, y = normal(12, 3, 1, mean=0.5).values.numpy(), normal(12, 3, 2).values.numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 3 + 1) ** 3

    def among(points: np.ndarray) -> float:
        return sum(kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j) / (12 * 11)

    expected = among(x) + among(y) - 2 * sum(kernel(a, b) for a in x for b in y) / 144
    close(value("kid", *(Features(torch.from_numpy(points)) for points in (x, y))), expected, 1e-10)


def test_the_interval_of_a_kernel_distance_pairs_no_sample_with_its_copies() -> None:
    """The spread of its formula over resamples, of which copies of one sample make no pairs."""
    judging = Judging(bootstraps=30)
    x, y = normal(12, 3, 1, mean=0.5, std=2.0), normal(12, 3, 2)
    rows = x.values[torch.randperm(12, generator=seeded(0, stream=SUBSET_STREAM))]
    among, towards = (((rows @ points.T) / 3 + 1) ** 3 for points in (rows, y.values))
    resampled = []
    for picked in judging.resamples(12, 1.0).tolist():
        pairs = [among[i, j].item() for i in picked for j in picked if i != j]
        resampled.append(np.mean(pairs) - 2 * towards[picked].mean().item())
    score = judge(["kid"], x, y, judging)["kid"]
    assert score.value is not None and score.high is not None
    close((score.high - score.value) / 1.96, float(np.std(resampled, ddof=1)), 1e-9)


def test_the_interval_of_a_kernel_distance_counts_all_samples_and_not_a_subset_only() -> None:
    """Four times as many samples as a subset holds: half of the spread that a subset's resamples have.

    Where x and y differ by a shift, the values of other samples spread as the interval says, to the error of 40 draws.
    """
    judging, y = Judging(bootstraps=30, subset_size=50, subsets=10), normal(200, 3, 1)
    scores = [judge(["kid"], normal(200, 3, 2 + i, mean=0.7), y, judging)["kid"] for i in range(40)]
    errors = [
        (score.high - score.value) / 1.96 for score in scores if score.high is not None and score.value is not None
    ]
    values = [score.value for score in scores if score.value is not None]
    assert len(errors) == len(values) == 40
    assert 0.75 < float(np.mean(errors) / np.std(values, ddof=1)) < 1.45  # twice as much without the factor


@pytest.mark.parametrize("size", [60, 25])
def test_kernel_distance_has_no_bias(size: int) -> None:
    """The mean over draws of one distribution is zero within its error, with all samples or with subsets of them."""
    judging = Judging(bootstraps=0, subset_size=size)
    found = torch.tensor([value("kid", normal(60, 4, 2 * i), normal(60, 4, 2 * i + 1), judging) for i in range(80)])
    assert abs(found.mean()) < 2.5 * found.std() / math.sqrt(80)
    assert found.std() > 0 and found.min() < 0 < found.max()


def test_kernel_distance_depends_on_its_seed_only() -> None:
    x, y = normal(300, 4, 1, std=1.2), normal(300, 4, 2)
    one, other = Judging(bootstraps=20, subset_size=50), Judging(bootstraps=20, subset_size=50, seed=1)
    assert judge(["kid"], x, y, one) == judge(["kid"], x, y, one) != judge(["kid"], x, y, other)


# --- Inception Score ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 7])
def test_inception_score_of_certain_and_of_uncertain_classes(classes: int) -> None:
    """K where every class is as frequent and certain, 1 where nothing is known, 1 where all are of one class."""
    points, real = normal(8 * classes, 2), normal(10, 2, 1)
    certain = 200.0 * torch.eye(classes, dtype=F64).repeat(8, 1)
    for logits, expected in ((certain, classes), (0 * certain, 1.0), (certain[:1].expand_as(certain), 1.0)):
        close(value("inception_score", Features(points.values, logits), real), expected, 1e-10)


def test_inception_score_is_its_formula() -> None:
    logits = normal(50, 5, 3, std=2.0).values
    p = scipy.special.softmax(logits.numpy(), axis=1)
    expected = math.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), axis=1)))
    close(value("inception_score", Features(normal(50, 2).values, logits), normal(9, 2)), expected, 1e-10)


# --- sliced Wasserstein and energy ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 5])
def test_sliced_wasserstein_of_a_shift(dims: int) -> None:
    """E |<u, delta>| = |delta| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) for u uniform on the sphere."""
    x = normal(50, dims)
    delta = torch.linspace(1, 2, dims, dtype=F64)
    expected = delta.norm() * math.gamma(dims / 2) / (math.sqrt(math.pi) * math.gamma((dims + 1) / 2))
    found = value("sliced_wasserstein", Features(x.values + delta), x, Judging(bootstraps=0, projections=3000))
    close(found, expected.item(), 0.03)


@pytest.mark.parametrize("counts", [(30, 30), (30, 47)])
def test_distances_on_a_line_are_scipys(counts: tuple[int, int]) -> None:
    x, y = normal(counts[0], 1, 1, mean=0.7), normal(counts[1], 1, 2, std=1.5)
    u, v = x.values[:, 0].numpy(), y.values[:, 0].numpy()
    close(value("sliced_wasserstein", x, y), scipy.stats.wasserstein_distance(u, v), 1e-12)
    close(value("energy", x, y), scipy.stats.energy_distance(u, v) ** 2, 1e-9)


def test_energy_distance_is_its_formula() -> None:
    x, y = normal(9, 3, 1, mean=0.5).values.numpy(), normal(13, 3, 2).values.numpy()

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.sqrt(np.sum((p - q) ** 2)) for q in b] for p in a]))

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    close(value("energy", *(Features(torch.from_numpy(points)) for points in (x, y))), expected, 1e-9)


def test_blocks_of_distances_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(83, 3, 1, std=0.8), normal(101, 3, 2)
    names = ["precision", "recall", "density", "coverage", "energy", "nearest", "copies"]
    whole = judge(names, x, y, Judging(bootstraps=10))
    monkeypatch.setattr("sde_diffusion.metrics.neighbours.ELEMENTS", 500)
    for name, score in judge(names, x, y, Judging(bootstraps=10)).items():
        for found, expected in zip(
            (score.value, score.low, score.high), (whole[name].value, whole[name].low, whole[name].high)
        ):
            close(found, expected, 1e-8)


# --- judging --------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'frechett'; did you mean 'frechet'\? Valid names: copies,"):
        judge(["kid", "frechett"], normal(5, 2), normal(5, 2))


def bad(features: Features) -> Features:
    values = features.values.clone()
    values[3, 1] = math.nan
    values[4, 0] = math.inf
    return Features(values)


@pytest.mark.parametrize(
    ("name", "samples", "real", "reason"),
    [
        (
            "frechet",
            normal(4, 4),
            normal(9, 4),
            r"4 samples are too few for the Fréchet distance by 4 features: 5 are needed",
        ),
        ("frechet", normal(9, 4), normal(3, 4), r"3 real samples are too few for the Fréchet .*: 5 are needed"),
        (
            "kid",
            normal(1, 4),
            normal(9, 4),
            r"1 samples are too few for the kernel distance by 4 features: 2 are needed",
        ),
        ("recall", normal(11, 2), normal(20, 2), r"11 samples are too few for the recall by 2 features: 12 are needed"),
        (
            "coverage",
            normal(20, 2),
            normal(5, 2),
            r"5 real samples are too few for the coverage by 2 features: 6 are needed",
        ),
        (
            "inception_score",
            normal(9, 2),
            normal(9, 2),
            r"needs class probabilities, which these features come without",
        ),
        ("nearest", normal(9, 2), Features(torch.zeros(9, 2, dtype=F64)), r"half of the real samples have copies"),
        ("nearest", normal(9, 2), normal(1, 2), r"one real sample has no distance"),
        ("energy", normal(9, 2), normal(9, 3), r"2 features of samples, 3 of real ones"),
        ("energy", bad(normal(9, 2)), normal(9, 2), r"2 of 9 samples have features that are not finite"),
        ("frechet", normal(9, 2), bad(normal(9, 2)), r"2 of 9 real samples have features that are not finite"),
        ("energy", Features(torch.zeros(0, 2, dtype=F64)), normal(9, 2), r"there are no samples"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(name: str, samples: Features, real: Features, reason: str) -> None:
    """And does not keep other measures from theirs."""
    score = judge([name, "copies"], samples, real, QUICK)[name]
    assert (score.value, score.low, score.high) == (None, None, None)
    assert re.search(reason, score.reason), score.reason


@pytest.mark.parametrize(("name", "least"), [("frechet", 4), ("kid", 2), ("precision", 12), ("density", 12)])
def test_so_many_samples_are_enough_and_one_less_is_not(name: str, least: int) -> None:
    """What the numbers alone foretell is what happens: a covariance of 3 features has full rank with 4 samples."""
    for count in (least - 1, least):
        reason = METRICS[name].too_few(count, 50, 3, QUICK)
        score = judge([name], normal(count, 3), normal(50, 3), QUICK)[name]
        assert (score.reason, score.value is None) == (reason, count < least) and bool(reason) == (count < least)


@pytest.mark.parametrize("name", METRICS)
def test_every_measure_has_a_title_a_source_and_warns_of_nothing(name: str) -> None:
    metric = METRICS[name]
    assert metric.title and metric.source[-4:].isdigit() and metric.better in {"lower", "higher", "real"}
    x = Features(normal(40, 2).values, normal(40, 3).values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = judge([name], x, normal(40, 2, 1))[name]
    assert score.value is not None and score.low is not None and score.high is not None
    assert score.low <= score.value <= score.high and not score.reason


@pytest.mark.parametrize("name", ["frechet", "kid", "energy", "sliced_wasserstein"])
def test_a_distance_grows_with_the_distance(name: str) -> None:
    real = normal(200, 3)
    found = [value(name, normal(200, 3, 1, mean=mean), real) for mean in (0.0, 0.3, 0.6, 1.2)]
    assert found == sorted(found) and found[0] < found[2] / 3


@pytest.mark.parametrize("wrong", [{"bootstraps": -1}, {"neighbours": 0}, {"projections": 0}, {"subset_size": 1}])
def test_judging_that_means_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(wrong))} must be at least \d, got"):
        Judging(**wrong)
