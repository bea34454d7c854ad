"""Pareto fronts and knees against their definitions, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sde_diffusion.core.errors import UserError
from sde_diffusion.report.front import SIGN, TOLERANCE, as_good, knee, pareto

Points = list[tuple[float, float]]


def drawn(seed: int, count: int = 40) -> Points:
    """Points on a coarse grid, so that there are ties, some of them not finite; of every other seed all are close."""
    rng = np.random.default_rng(seed)
    points = [(float(c), float(v) if seed % 2 else -1.0 - v / 50) for c, v in rng.integers(1, 9, (count, 2))]
    for index in rng.choice(count, 5, replace=False):
        points[index] = (points[index][0], [math.nan, math.inf, -math.inf][index % 3])
    return points


def finite(point: tuple[float, float]) -> bool:
    return all(map(math.isfinite, point))


def betters(a: tuple[float, float], b: tuple[float, float], better: str) -> bool:
    """a costs no more and is no worse than b, and one of the two truly."""
    s = SIGN[better]
    return a[0] <= b[0] and s * a[1] <= s * b[1] and a != b


@pytest.mark.parametrize("better", SIGN)
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_point_betters(seed: int, better: str) -> None:
    points = drawn(seed)
    expected = {
        i for i, b in enumerate(points) if finite(b) and not any(betters(a, b, better) for a in points if finite(a))
    }
    found = pareto(points, better)
    assert set(found) == expected and len(found) == len(expected)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_a_front_by_hand() -> None:
    points = [(1.0, 9.0), (2.0, 9.0), (2.0, 4.0), (2.0, 4.0), (3.0, 5.0), (4.0, 1.0), (9.0, math.nan)]
    assert pareto(points) == [0, 2, 3, 5]
    assert pareto(points, "higher") == [0]
    assert pareto([]) == [] and pareto([(1.0, math.inf)]) == []


@pytest.mark.parametrize("better", SIGN)
@pytest.mark.parametrize("seed", range(20))
def test_the_knee_is_the_cheapest_as_good_as_the_best(seed: int, better: str) -> None:
    """Against the definition, with intervals of random width; some are unknown."""
    rng = np.random.default_rng(seed)
    points, s = drawn(seed), SIGN[better]
    widths = rng.uniform(0, 2, len(points))
    intervals = [None if i % 4 == 0 else (v - w, v + w) for i, ((_, v), w) in enumerate(zip(points, widths))]
    found = [i for i, point in enumerate(points) if finite(point)]
    top = next(i for i in found if all(s * points[i][1] <= s * points[j][1] for j in found))
    value, interval = points[top][1], intervals[top]

    def good(v: float) -> bool:
        inside = interval is not None and interval[0] <= v <= interval[1]
        return v == value or inside or abs(v - value) <= TOLERANCE * abs(value)

    expected = [i for i in found if good(points[i][1])]
    assert as_good(points, better, intervals) == expected
    index = knee(points, better, intervals)
    assert index in expected
    assert points[index][0] == min(points[i][0] for i in expected)
    assert s * points[index][1] == min(s * points[i][1] for i in expected if points[i][0] == points[index][0])


def test_a_knee_by_hand() -> None:
    """4.1 at cost 20 is inside [3.5, 4.5]; without the interval it is 2.5 % away; 4.3 is 7.5 % away."""
    points = [(10.0, 9.0), (20.0, 4.1), (30.0, 4.3), (100.0, 4.0)]
    assert knee(points) == 1
    assert knee([(10.0, 9.0), (20.0, 4.3), (100.0, 4.0)]) == 2
    assert knee([(10.0, 9.0), (20.0, 4.3), (100.0, 4.0)], intervals=[None, None, (3.5, 4.5)]) == 1
    assert knee([]) is None and knee([(1.0, math.nan)]) is None


def test_an_unknown_direction_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'lower'"):
        pareto([(1.0, 1.0)], "lowest")
