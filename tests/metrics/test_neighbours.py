"""Precision, recall, density, coverage, nearest and copies: constructed sets, and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sde_diffusion.metrics import Features, Judging, judge
from tests.metrics.drawn import F64, normal

FOUR = ["precision", "recall", "density", "coverage"]


def values(samples: Features, real: Features, k: int = 5, names: list[str] = FOUR) -> dict[str, float]:
    found = judge(names, samples, real, Judging(bootstraps=0, neighbours=k))
    return {name: -1.0 if score.value is None else score.value for name, score in found.items()}


def two_modes(count: int, seed: int, *, share: float = 0.5) -> Features:
    """Samples about (-10, 0), and the rest about (10, 0)."""
    points = normal(count, 2, seed).values
    points[:, 0] += torch.where(torch.arange(count) < share * count, -10.0, 10.0)
    return Features(points)


@pytest.mark.parametrize("k", [1, 5])
def test_identical_sets(k: int) -> None:
    """Every sample is in its own ball and, by the definition of a radius, in those of k others on average."""
    x = normal(60, 3)
    assert values(x, x, k) == pytest.approx({"precision": 1, "recall": 1, "coverage": 1, "density": (k + 1) / k})


def test_distances_that_are_equal_but_for_rounding_count_as_equal() -> None:
    """7^3 grey levels, moved by two: radii are one step or sqrt(2), so that one of its seven layers is out."""
    level = 2 / 255
    side = torch.arange(-3.0, 4.0, dtype=F64) * level
    grid = torch.cartesian_prod(side, side, side) + 0.3
    moved = grid + torch.tensor([2 * level, 0, 0], dtype=F64)
    found = values(Features(moved), Features(grid))
    assert (found["precision"], found["recall"], found["coverage"]) == pytest.approx((6 / 7, 6 / 7, 6 / 7))


def test_disjoint_sets() -> None:
    assert set(values(normal(60, 3), normal(60, 3, 1, mean=50.0)).values()) == {0.0}


def test_samples_of_the_real_distribution() -> None:
    """E density is 1: a sample is in a ball as often as another real one is, k times in M - 1, of M balls."""
    found = [values(normal(300, 3, 2 * i), normal(300, 3, 2 * i + 1)) for i in range(8)]
    mean = {name: np.mean([row[name] for row in found]) for name in FOUR}
    assert mean["density"] == pytest.approx(1.0, abs=0.04)
    # A ball is empty where the k nearest of both sets are all real: (M - 1)...(M - k) / (N + M - 1)..., about 2^-k.
    assert mean["coverage"] == pytest.approx(1 - 2**-5, abs=0.01)
    assert mean["precision"] > 0.93 and mean["recall"] > 0.93


def test_a_mode_that_is_dropped_costs_recall_and_coverage_only() -> None:
    real = two_modes(400, 0)
    whole, dropped = values(two_modes(400, 1), real), values(two_modes(400, 1, share=1.0), real)
    assert dropped["precision"] == pytest.approx(whole["precision"], abs=0.05)
    assert min(whole[name] for name in ("precision", "recall", "coverage")) > 0.9
    assert 0.4 < dropped["recall"] <= 0.5 and 0.4 < dropped["coverage"] <= 0.5


def test_one_far_sample_swells_recall_but_not_coverage() -> None:
    """The reason for Naeem's measures: the ball of a single outlier takes all real samples in."""
    real, x = normal(200, 2), normal(100, 2, 1, mean=8.0, std=0.1).values
    x[0] = -8.0
    found = values(Features(x), real)
    assert found["recall"] == 1.0 and found["coverage"] < 0.05


@pytest.mark.parametrize("k", [1, 4])
def test_brute_force(k: int) -> None:
    x, y = normal(30, 2, 1, mean=0.4, std=0.8), normal(40, 2, 2)
    a, b = x.values.numpy(), y.values.numpy()

    def radius(points: np.ndarray, i: int) -> float:
        return float(np.sort([np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i])[k - 1])

    gap = np.array([[np.linalg.norm(p - q) for q in b] for p in a])
    in_real = gap <= np.array([radius(b, j) for j in range(40)])
    in_fake = gap <= np.array([radius(a, i) for i in range(30)])[:, None]
    assert values(x, y, k) == pytest.approx(
        {
            "precision": in_real.any(1).mean(),
            "recall": in_fake.any(0).mean(),
            "density": in_real.sum() / (k * 30),
            "coverage": in_real.any(0).mean(),
        }
    )
    apart = np.array([[np.linalg.norm(p - q) if i != j else np.inf for j, q in enumerate(b)] for i, p in enumerate(b)])
    # torch's median of an even number is the lower of the two in the middle.
    typical, nearest = np.sort(apart.min(1))[19], np.sort(gap.min(1))[14]
    found = values(x, y, names=["nearest", "copies"])
    assert found["nearest"] == pytest.approx(nearest / typical)
    assert found["copies"] == pytest.approx((gap.min(1) < typical / 20).mean())


def test_copies_and_new_samples() -> None:
    real, new = normal(800, 3), normal(400, 3, 1)
    both = ["nearest", "copies"]
    assert values(Features(real.values[:300]), real, names=both) == pytest.approx({"nearest": 0, "copies": 1}, abs=1e-6)
    found = values(new, real, names=both)
    assert found["nearest"] == pytest.approx(1.0, abs=0.08) and found["copies"] < 0.01
    mixed = Features(torch.cat([real.values[:100] + 1e-4, new.values]))
    assert values(mixed, real, names=["copies"])["copies"] == pytest.approx(0.2, abs=0.01)
    assert values(normal(400, 3, 1, mean=5.0), real, names=["nearest"])["nearest"] > 5


def test_nothing_is_kept_of_features_that_were_judged() -> None:
    import gc
    import weakref

    x, y = normal(30, 2), normal(30, 2, 1)
    kept = [weakref.ref(x), weakref.ref(y)]
    values(x, y, names=[*FOUR, "nearest"])
    del x, y
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
