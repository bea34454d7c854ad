"""A figure with its uncertainty.

The intervals are value +- 1.96 s, where s is the standard error from resampling the generated samples; the real ones,
which all models of a table share, stay as they are. Percentiles of the resampled values would be wrong: a resample
holds about 63 % of the samples and copies of those, so that a Frechet distance, which grows as a set gets smaller,
grows by about as much again as it is biased already, and the interval would miss the value that it belongs to. Their
spread is right all the same. An interval ends where the figure's range does. Source: Efron & Tibshirani 1993, chapters
6 and 10.

Two sorts of figures are treated differently. Of a mean over samples s is known without resampling, std / sqrt(N). And
figures of the samples' neighbours among themselves are taken from random halves without repetition, whose values
spread as those of resamples do, as copies would be each other's nearest neighbours (Politis & Romano 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import rand, seeded

NORMAL_95 = 1.96
BOOTSTRAP_STREAM, DIRECTION_STREAM, SUBSET_STREAM = 12, 13, 14

# Multiply-adds that the resampling of one figure may take, about a minute of one core, and what is done in any case.
BUDGET = 4e11
LEAST = 10


@dataclass(frozen=True)
class Score:
    """A figure and its interval of 95 %; None for those that there are not, and the reason why there is no value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Judging:
    """How figures are found.

    bootstraps: resamples for an interval, 0 for none; where one costs much, fewer, but 10 at least. neighbours: k of
    precision, recall, density and coverage. projections: directions of the sliced Wasserstein distance. subsets,
    subset_size: of the kernel distance, at most. strata: the group 0, 1, ... of each sample, of which every resample
    has as many as the samples do: those drawn class by class vary less than resamples of all. Raises UserError for
    values that mean nothing.
    """

    bootstraps: int = 100
    seed: int = 0
    neighbours: int = 5
    projections: int = 128
    subsets: int = 100
    subset_size: int = 1000
    strata: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"bootstraps": 0, "seed": 0, "subset_size": 2}
        for field in fields(self)[:-1]:
            least, value = lowest.get(field.name, 1), getattr(self, field.name)
            if not value >= least:
                raise UserError(f"{field.name} must be at least {least}, got {value}")

    def of(self, rows: Tensor) -> Judging:
        """The same for some of the samples."""
        return replace(self, strata=tuple(self.strata[i] for i in rows.tolist()) if self.strata else ())

    def rounds(self, cost: float) -> int:
        """How many resamples there will be, where one takes `cost` multiply-adds."""
        return min(self.bootstraps, max(LEAST, int(BUDGET / cost)))

    def resamples(self, count: int, cost: float) -> Tensor:
        """Which of `count` samples make up each resample, drawn with repetition; int64 [rounds, count]."""
        generator = seeded(self.seed, stream=BOOTSTRAP_STREAM)
        uniform = rand((self.rounds(cost), count), generator, dtype=torch.float64)
        groups, order = torch.tensor(self.strata if len(self.strata) == count else [0] * count).sort(stable=True)
        sizes = groups.bincount()
        first = sizes.cumsum(0) - sizes
        # Each place of a resample takes one of the samples of its own group.
        return order[first[groups] + (uniform * sizes[groups]).long()]

    def multiplicities(self, count: int, cost: float) -> Tensor:
        """How often each sample is in each resample; float64 [rounds, count]."""
        picked = self.resamples(count, cost)
        ones = torch.ones(picked.shape, dtype=torch.float64)
        return torch.zeros_like(ones).scatter_add_(1, picked, ones)

    def halves(self, count: int, cost: float) -> Tensor:
        """Which samples are in each of some random halves; bool [rounds, count]."""
        generator = seeded(self.seed, stream=BOOTSTRAP_STREAM)
        return torch.rand(self.rounds(cost), count, generator=generator).argsort(1) < count // 2


USUAL = Judging()


def scored(value: float, error: float, low: float = -math.inf, high: float = math.inf) -> Score:
    """A value whose standard error is known, of a figure between `low` and `high`; no interval for an error of NaN."""
    if math.isnan(error):
        return Score(value)
    reach = NORMAL_95 * error
    return Score(value, max(low, value - reach), min(high, value + reach))


def spread(values: Tensor) -> float:
    """The standard deviation of what resampling gave; NaN without two values."""
    return values.std().item() if len(values) > 1 else math.nan


def mean_scored(values: Tensor, low: float = -math.inf, high: float = math.inf) -> Score:
    """The mean of independent numbers [N], with its standard error std / sqrt(N)."""
    return scored(values.mean().item(), spread(values) / math.sqrt(len(values)), low, high)


def bootstrapped(
    of: Callable[[Tensor], float], samples: Tensor, judging: Judging, cost: float, low: float, high: float = math.inf
) -> Score:
    """A function of a set of samples [N, d], with its spread over resamples."""
    values = [of(samples[rows]) for rows in judging.resamples(len(samples), cost)]
    return scored(of(samples), spread(torch.tensor(values, dtype=torch.float64)), low, high)
