"""Measures of how far generated samples are from real ones, by their features: x of N samples, y of M real ones.

    frechet             |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the squared 2-Wasserstein distance of the
                        normal distributions with the means m and covariances S of the features. Sampling alone makes
                        it positive, the more the fewer samples: compare equal numbers. Heusel et al. 2017, eq. 6;
                        Dowson & Landau 1982
    kid                 E k(x, x') + E k(y, y') - 2 E k(x, y) with k(a, b) = (<a, b> / d + 1)^3, the squared maximum
                        mean discrepancy without bias, hence negative at times; the mean over random subsets.
                        Binkowski et al. 2018, section 4
    inception_score     exp E KL(p(c|x) | p(c)) of class probabilities, p(c) their mean: 1 to the number of classes, in
                        one piece (the ten splits of the paper lower it for few samples). Salimans et al. 2016, sec. 4
    sliced_wasserstein  the mean over random directions u, |u| = 1, of the 1-Wasserstein distance of <u, x> and <u, y>,
                        the integral of |F_x - F_y|. Rabin et al. 2011; Bonneel et al. 2015
    energy              2 E|x - y| - E|x - x'| - E|y - y'|, 0 for equal distributions only. All pairs are counted, those
                        of a sample with itself too (a V-statistic), so that it is never negative and, like the Frechet
                        distance, biased upwards by O(1/N). Szekely & Rizzo 2013, eq. 2.5

and those of `neighbours`. Frechet distances, kernel distances and Inception Scores are torchmetrics', and the distances
on a line scipy's. Intervals are explained in `scores`; where the samples are as good as real ones, those of kid and
energy are too wide by about a third, as what is then left of them is of second order in the empirical distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.noise import randn, seeded
from sde_diffusion.metrics import neighbours
from sde_diffusion.metrics.extraction import Features
from sde_diffusion.metrics.packages import contained, torchmetrics
from sde_diffusion.metrics.scores import (
    DIRECTION_STREAM,
    LEAST,
    SUBSET_STREAM,
    USUAL,
    Judging,
    Score,
    bootstrapped,
    scored,
    spread,
)

__all__ = ["METRICS", "Judging", "Metric", "Score", "judge"]


ALONE = {"sync_on_compute": False}
"""What torchmetrics is told lest it wait for other processes, which have not the same samples to judge."""


class _Given(nn.Module):
    """A feature network for torchmetrics that takes features and passes them on."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(samples: Features, real: Features, judging: Judging) -> Score:
    """The Frechet distance of sets of more than d samples: the covariance of fewer is singular.

    Each of its resamples costs the eigenvalues of a d x d matrix: there are 100 of them up to 545 features, 14 for 1024
    and 10 for the 2048 of the Inception network (5 s each).
    """
    x, y = samples.values, real.values
    dims = x.shape[1]
    metric = torchmetrics("image.fid").FrechetInceptionDistance(_Given(dims), reset_real_features=False, **ALONE)
    metric.update(y, real=True)

    def distance(rows: Tensor) -> float:
        metric.reset()
        metric.update(rows, real=False)
        return metric.compute().item()

    return bootstrapped(distance, x, judging, 25 * dims**3 + len(x) * dims**2, 0.0)


def kid(samples: Features, real: Features, judging: Judging) -> Score:
    """The kernel distance, over subsets of equal size m, of two samples at least.

    The subsets' own noise is what torchmetrics finds; that of the samples is the bootstrap's of one subset's without
    bias, in which a sample makes no pair with its copies, times sqrt(m / N).
    """
    x, y = samples.values, real.values
    size = min(len(x), len(y), judging.subset_size)
    module = torchmetrics("image.kid")
    subsets = min(judging.subsets, max(LEAST, math.ceil(max(len(x), len(y)) / size)))  # by then each sample is in one
    with contained(judging.seed):
        metric = module.KernelInceptionDistance(_Given(x.shape[1]), subsets=subsets, subset_size=size, **ALONE)
        metric.update(y, real=True)
        metric.update(x, real=False)
        mean, std = (found.item() for found in metric.compute())
    generator = seeded(judging.seed, stream=SUBSET_STREAM)
    rows, others = (torch.randperm(len(points), generator=generator)[:size] for points in (x, y))
    x, y = x[rows], y[others]
    among = module.poly_kernel(x, x).fill_diagonal_(0.0)
    towards = module.poly_kernel(x, y).mean(1)
    counts = judging.of(rows).multiplicities(size, size**2)
    pairs = size**2 - counts.square().sum(1)
    resampled = ((counts @ among) * counts).sum(1) / pairs - 2 * counts @ towards / size
    return scored(mean, math.hypot(spread(resampled) * math.sqrt(size / len(samples.values)), std / math.sqrt(subsets)))


def inception_score(samples: Features, real: Features, judging: Judging) -> Score:
    """The Inception Score of the samples; the real ones play no part."""
    logits = samples.logits
    assert logits is not None  # as the metric needs them
    with contained(judging.seed):
        metric = torchmetrics("image.inception").InceptionScore(_Given(logits.shape[1]), splits=1, **ALONE)

        def score(rows: Tensor) -> float:
            metric.reset()
            metric.update(rows)
            return metric.compute()[0].item()

        return bootstrapped(score, logits, judging, 200 * logits.numel(), 1.0, float(logits.shape[1]))


def sliced_wasserstein(samples: Features, real: Features, judging: Judging) -> Score:
    """The sliced Wasserstein distance. A resample moves the steps of F_x, by its multiplicities, and no point."""
    from scipy.stats import wasserstein_distance

    x, y = samples.values, real.values
    generator = seeded(judging.seed, stream=DIRECTION_STREAM)
    directions = randn((judging.projections, x.shape[1]), generator, dtype=torch.float64)
    counts = judging.multiplicities(len(x), 20 * judging.projections * (len(x) + len(y)))
    # What each point adds to F_x - F_y: its multiplicity / N of the samples, -1 / M of the real ones.
    steps = torch.cat([counts.T / len(x), torch.full((len(y), len(counts)), -1 / len(y), dtype=torch.float64)])
    values, resampled = [], torch.zeros(len(counts), dtype=torch.float64)
    for direction in nn.functional.normalize(directions):
        u, v = x @ direction, y @ direction
        values.append(float(wasserstein_distance(u.numpy(), v.numpy())))
        points, order = torch.cat([u, v]).sort()
        resampled += points.diff() @ steps[order[:-1]].cumsum(0).abs()
    return scored(sum(values) / len(values), spread(resampled / len(values)), 0.0)


def energy(samples: Features, real: Features, judging: Judging) -> Score:
    """The energy distance. With c the multiplicities of a resample, E|x - x'| is c^T D c / N^2: one product for all."""
    x, y = samples.values, real.values
    counts = judging.multiplicities(len(x), len(x) ** 2)
    counts = torch.cat([torch.ones(1, len(x), dtype=torch.float64), counts])
    towards = torch.cat([found.mean(1) for _, found in neighbours.distances(x, y)])
    among = torch.zeros(len(counts), dtype=torch.float64)
    for rows, found in neighbours.distances(x, x):
        among += (counts[:, rows] * (counts @ found.T)).sum(1)
    own = sum(found.sum().item() for _, found in neighbours.distances(y, y)) / len(y) ** 2
    values = 2 * counts @ towards / len(x) - among / len(x) ** 2 - own
    return scored(values[0].item(), spread(values[1:]), 0.0)


Least = Callable[[int, Judging], tuple[int, int]]
"""(number of features, how figures are found) -> the fewest samples, and real ones, that a metric can judge."""


@dataclass(frozen=True)
class Metric:
    """A measure of samples against real ones.

    better: "lower", "higher", or "real" where the value of real samples is best. source: its paper. needs: "features",
    or "logits" where class probabilities are looked at.
    """

    compute: Callable[[Features, Features, Judging], Score]
    title: str
    better: str
    source: str
    needs: str = "features"
    least: Least = lambda dims, judging: (1, 1)

    def too_few(self, samples: int, real: int, dims: int, judging: Judging) -> str:
        """Why it cannot judge so many samples by so many real ones, of `dims` features; "" where it can."""
        for what, count, least in zip(("samples", "real samples"), (samples, real), self.least(dims, judging)):
            if count < least:
                return f"{count:,} {what} are too few for the {self.title} by {dims:,} features: {least:,} are needed"
        return ""


def _covariance(dims: int, judging: Judging) -> tuple[int, int]:
    """A covariance of full rank."""
    return dims + 1, dims + 1


def _pairs(dims: int, judging: Judging) -> tuple[int, int]:
    """A pair of each kind."""
    return 2, 2


def _neighbours(dims: int, judging: Judging) -> tuple[int, int]:
    """So many neighbours of each, in half of the samples too."""
    return 2 * judging.neighbours + 2, judging.neighbours + 1


_KYNKAANNIEMI, _NAEEM = "Kynkäänniemi et al. 2019", "Naeem et al. 2020"

METRICS: dict[str, Metric] = {
    "frechet": Metric(frechet, "Fréchet distance", "lower", "Heusel et al. 2017", least=_covariance),
    "kid": Metric(kid, "kernel distance", "lower", "Bińkowski et al. 2018", least=_pairs),
    "inception_score": Metric(inception_score, "Inception Score", "higher", "Salimans et al. 2016", "logits"),
    "precision": Metric(neighbours.precision, "precision", "higher", _KYNKAANNIEMI, least=_neighbours),
    "recall": Metric(neighbours.recall, "recall", "higher", _KYNKAANNIEMI, least=_neighbours),
    "density": Metric(neighbours.density, "density", "higher", _NAEEM, least=_neighbours),
    "coverage": Metric(neighbours.coverage, "coverage", "higher", _NAEEM, least=_neighbours),
    "sliced_wasserstein": Metric(sliced_wasserstein, "sliced Wasserstein distance", "lower", "Bonneel et al. 2015"),
    "energy": Metric(energy, "energy distance", "lower", "Székely & Rizzo 2013"),
    "nearest": Metric(neighbours.nearest, "distance to the nearest real sample", "real", "after Meehan et al. 2020"),
    "copies": Metric(neighbours.copies, "share of copies", "real", "after Meehan et al. 2020"),
}


def judge(names: Iterable[str], samples: Features, real: Features, judging: Judging = USUAL) -> dict[str, Score]:
    """Each measure of the samples. What cannot be measured of them has a reason instead of a value.

    Raises UserError for an unknown name.
    """
    chosen = {name: choose("metric", name, METRICS) for name in names}
    try:
        return {name: _score(metric, samples, real, judging) for name, metric in chosen.items()}
    finally:
        neighbours.forget()


def _score(metric: Metric, samples: Features, real: Features, judging: Judging) -> Score:
    try:
        _check(metric, samples, real, judging)
        return metric.compute(samples, real, judging)
    except UserError as error:
        return Score(None, reason=str(error))


def _check(metric: Metric, samples: Features, real: Features, judging: Judging) -> None:
    if metric.needs == "logits" and samples.logits is None:
        raise UserError(f"the {metric.title} needs class probabilities, which these features come without")
    if samples.values.shape[1:] != real.values.shape[1:]:
        raise UserError(f"{samples.values.shape[1]} features of samples, {real.values.shape[1]} of real ones")
    for what, found in (("samples", samples), ("real samples", real)):
        if not len(found.values):
            raise UserError(f"there are no {what}")
        bad = len(found.values) - int(found.values.isfinite().all(1).sum())
        if bad:
            raise UserError(f"{bad} of {len(found.values)} {what} have features that are not finite")
    reason = metric.too_few(len(samples.values), len(real.values), samples.values.shape[1], judging)
    if reason:
        raise UserError(reason)
