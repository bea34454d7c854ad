"""Which of several runs are worth their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sde_diffusion.core.errors import choose

Point = tuple[float, float]
"""What a run costs and what it reaches."""
Interval = tuple[float, float]

SIGN = {"lower": 1.0, "higher": -1.0}
"""What a value is multiplied with so that less is better. Of measures that are best where real data have them, "real",
neither less nor more is better: they rank nothing."""
TOLERANCE = 0.05
"""Values that differ by this part of the best are as good, whatever their intervals say."""


def sign(better: str) -> float:
    """1 where a lower value is better, else -1. Raises UserError for an unknown word."""
    return choose("direction", better, SIGN)


def pareto(points: Sequence[Point], better: str = "lower") -> list[int]:
    """Indices of the points that no other betters, by cost.

    (c, v) is bettered by (c', v') if c' <= c and v' is no worse than v, and one of the two truly. Equal points are on
    the front together, points that are not finite never.
    """
    s = sign(better)
    ordered = sorted((c, s * v, i) for i, (c, v) in enumerate(points) if math.isfinite(c) and math.isfinite(v))
    front: list[int] = []
    last = (math.inf, math.inf)
    for cost, value, index in ordered:
        if value < last[1] or (cost, value) == last:
            front.append(index)
            last = (cost, value)
    return front


def as_good(
    points: Sequence[Point], better: str = "lower", intervals: Sequence[Interval | None] | None = None
) -> list[int]:
    """Indices of the points as good as the best: within its interval, or within TOLERANCE of its value.

    intervals: of each value, or None where none is known.
    """
    s = sign(better)
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    if not finite:
        return []
    best = min(finite, key=lambda i: s * points[i][1])
    value = points[best][1]
    interval = (intervals or [None] * len(points))[best] or (value, value)
    limit = max(s * value + TOLERANCE * abs(value), *(s * end for end in interval))
    return [i for i in finite if s * points[i][1] <= limit]


def knee(
    points: Sequence[Point], better: str = "lower", intervals: Sequence[Interval | None] | None = None
) -> int | None:
    """The cheapest of the points as good as the best, the better one of equally cheap ones; None without any."""
    s = sign(better)
    good = as_good(points, better, intervals)
    return min(good, key=lambda i: (points[i][0], s * points[i][1])) if good else None
