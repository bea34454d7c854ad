"""Measures of who lies next to whom among N samples x and M real samples y.

With r_k(a; A) the distance from a to its k-th nearest among the others of A,

    precision  share of the x in a ball of some y:  |x_i - y_j| <= r_k(y_j; Y) for some j
    recall     share of the y in a ball of some x:  |x_i - y_j| <= r_k(x_i; X) for some i
    density    number of balls of Y that an x is in, / k, on average: 1 for samples of the real distribution
    coverage   share of the y with some x in their ball

A sample far from all others makes a large ball; with it precision grows more than density, recall more than coverage.
And with d(x) = min_j |x - y_j|, what is new:

    nearest    median of d(x_i) / median over j of r_1(y_j; Y): about 1 for new samples, 0 for copies of real ones
    copies     share of the x with d(x_i) below a twentieth of that median

Distances that are equal but for rounding count as equal. Sources: precision and recall Kynkaanniemi et al. 2019,
equations 1 and 2; density and coverage Naeem et al. 2020, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.metrics.extraction import Features
from sde_diffusion.metrics.scores import Judging, Score, bootstrapped, mean_scored, scored, spread

ELEMENTS = 2**24  # of a block of distances: 128 MiB
ROUNDING = 1e-9  # of distances relative to each other
COPY = 1 / 20


def distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """|x_i - y_j| for some rows at a time; x [N, d], y [M, d] -> rows and [rows, M]."""
    # Products of small numbers lose less to rounding; distances do not depend on the origin.
    origin = y.mean(0)
    step = max(1, ELEMENTS // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, torch.cdist(x[rows] - origin, y - origin)


def radii(points: Tensor, k: int) -> Tensor:
    """The distance from each point to its k-th nearest among the others, [N]."""
    return torch.cat([furthest(found, k) for _, found in distances(points, points)])


def furthest(block: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row of distances, besides that of a point to itself."""
    return block.topk(k + 1, dim=1, largest=False).values[:, -1]


def radii_among(points: Tensor, parts: Tensor, k: int) -> Tensor:
    """The same among the points of each part, bool [P, N] -> [P, N]; -1 for those that are not in it."""
    found = torch.full(parts.shape, -1.0, dtype=points.dtype)
    for rows, block in distances(points, points):
        for part, radius in zip(parts, found[:, rows], strict=True):
            radius[part[rows]] = furthest(block[part[rows]][:, part], k)
    return found


@dataclass(frozen=True, eq=False)
class Balls:
    """balls: of how many real balls each sample is in, [N]. recalled, covered: for the whole and each half, [1 + R, M]:
    which real samples are in a ball of its samples, and which have one of its samples in their own.
    """

    balls: Tensor
    recalled: Tensor
    covered: Tensor


@lru_cache(maxsize=1)  # four measures look at the same balls
def neighbourhoods(samples: Features, real: Features, judging: Judging) -> Balls:
    """Who is in whose ball, for all samples and for random halves of them."""
    x, y, k = samples.values, real.values, judging.neighbours
    halves = judging.halves(len(x), 50 * len(x) * (len(x) + len(y)))
    parts = torch.cat([torch.ones(1, len(x), dtype=torch.bool), halves])
    reach, y_reach = ((1 + ROUNDING) * found for found in (radii_among(x, parts, k), radii(y, k)))
    recalled, covered = torch.zeros(2, len(parts), len(y), dtype=torch.bool)
    balls = []
    for rows, block in distances(x, y):
        inside = block <= y_reach
        balls.append(inside.sum(1))
        covered |= parts[:, rows].float() @ inside.float() > 0
        for radius, found in zip(reach[:, rows], recalled, strict=True):
            found |= (block - radius[:, None]).amin(0) <= 0  # for some sample, in half the time of `any`
    return Balls(torch.cat(balls), recalled, covered)


def precision(samples: Features, real: Features, judging: Judging) -> Score:
    return mean_scored((neighbourhoods(samples, real, judging).balls > 0).double(), 0.0, 1.0)


def density(samples: Features, real: Features, judging: Judging) -> Score:
    return mean_scored(neighbourhoods(samples, real, judging).balls.double() / judging.neighbours, 0.0)


def recall(samples: Features, real: Features, judging: Judging) -> Score:
    return _share(neighbourhoods(samples, real, judging).recalled)


def coverage(samples: Features, real: Features, judging: Judging) -> Score:
    return _share(neighbourhoods(samples, real, judging).covered)


def _share(found: Tensor) -> Score:
    whole, *_ = shares = found.double().mean(1)
    return scored(whole.item(), spread(shares[1:]), 0.0, 1.0)


@lru_cache(maxsize=1)
def closeness(samples: Features, real: Features) -> Tensor:
    """d(x_i) in units of the real samples' own median, [N]. Raises UserError where that is zero."""
    if len(real.values) < 2:
        raise UserError("one real sample has no distance to others of its kind")
    own = radii(real.values, 1).median()
    nearest = torch.cat([found.min(1).values for _, found in distances(samples.values, real.values)])
    if not own > ROUNDING * nearest.max():
        raise UserError("half of the real samples have copies among themselves, so that there is no distance to go by")
    return nearest / own


def nearest(samples: Features, real: Features, judging: Judging) -> Score:
    near = closeness(samples, real)
    return bootstrapped(lambda part: part.median().item(), near, judging, 100 * len(near), 0.0)


def copies(samples: Features, real: Features, judging: Judging) -> Score:
    return mean_scored((closeness(samples, real) < COPY).double(), 0.0, 1.0)


def forget() -> None:
    """Let go of the last features."""
    neighbourhoods.cache_clear()
    closeness.cache_clear()
