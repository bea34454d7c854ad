"""Intervals: standard errors against those of fresh draws, and where an interval ends."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.metrics import METRICS, Features, Judging, Score, judge
from sde_diffusion.metrics.scores import BUDGET, LEAST, bootstrapped, mean_scored, scored
from tests.metrics.drawn import normal

DRAWS, COUNT, DIMS = 120, 200, 3


def drawn(seed: int) -> Features:
    """Samples too wide along one axis and too narrow along another."""
    logits = normal(COUNT, 4, 1000 + seed, std=2.0).values
    return Features(0.2 + torch.tensor([0.7, 1.0, 1.3]) * normal(COUNT, DIMS, seed).values, logits)


@pytest.fixture(scope="module")
def fresh() -> dict[str, float]:
    """The standard deviation of each measure over independent draws of samples, the real ones fixed."""
    judging = Judging(bootstraps=0, projections=16)
    rows = [judge(METRICS, drawn(seed), REAL, judging) for seed in range(DRAWS)]
    return {name: torch.tensor([row[name].value for row in rows]).std().item() for name in METRICS}


REAL = normal(300, DIMS, 999)
ERRORS = [name for name in METRICS if name != "copies"]


@pytest.fixture(scope="module")
def estimated() -> list[dict[str, Score]]:
    return [judge(METRICS, drawn(seed), REAL, Judging(bootstraps=60, projections=16)) for seed in range(12)]


@pytest.mark.parametrize("name", ERRORS)
def test_standard_errors_are_those_of_fresh_draws(
    name: str, fresh: dict[str, float], estimated: list[dict[str, Score]]
) -> None:
    """Half an interval over 1.96, on average over some draws; that of 120 draws is itself known to 6 %."""
    found = []
    for scores in estimated:
        value, low, high = scores[name].value, scores[name].low, scores[name].high
        assert value is not None and low is not None and high is not None
        found.append(max(high - value, value - low) / 1.96)  # the side that does not end with the range
    assert sum(found) / len(found) == pytest.approx(fresh[name], rel=0.25)


@pytest.mark.parametrize("bootstraps", [0, 1])
def test_without_resamples_there_are_no_intervals(bootstraps: int) -> None:
    scores = judge(METRICS, drawn(0), REAL, Judging(bootstraps=bootstraps, projections=4))
    for name in ("frechet", "kid", "recall", "coverage", "sliced_wasserstein", "energy", "nearest", "inception_score"):
        assert scores[name].value is not None and scores[name].low is scores[name].high is None


def test_values_do_not_depend_on_the_resamples() -> None:
    one, other = (judge(METRICS, drawn(0), REAL, Judging(bootstraps=count, projections=4)) for count in (3, 30))
    assert all(one[name].value == pytest.approx(other[name].value, rel=1e-12) for name in METRICS)


def test_an_interval_ends_where_the_range_does() -> None:
    assert scored(0.98, 0.05, 0.0, 1.0) == Score(0.98, pytest.approx(0.882), 1.0)
    assert scored(0.01, 0.05, 0.0, 1.0) == Score(0.01, 0.0, pytest.approx(0.108))
    assert scored(3.0, math.nan, 0.0) == Score(3.0)


def test_the_spread_of_a_mean_is_the_same_either_way() -> None:
    """std / sqrt(N), and by resampling."""
    numbers = normal(400, 1).values[:, 0]
    exact = mean_scored(numbers)
    found = bootstrapped(lambda rows: rows.mean().item(), numbers, Judging(bootstraps=2000), 1.0, -math.inf)
    assert exact.value == found.value == numbers.mean().item()
    assert exact.high is not None and found.high is not None and exact.value is not None
    assert exact.high - exact.value == pytest.approx(1.96 * numbers.std().item() / 20)
    assert found.high - exact.value == pytest.approx(exact.high - exact.value, rel=0.05)


def test_what_costs_much_is_resampled_less_often() -> None:
    judging = Judging()
    assert judging.rounds(1.0) == judging.rounds(BUDGET / 100) == 100
    assert judging.rounds(BUDGET / 40) == 40 and judging.rounds(BUDGET) == judging.rounds(1e30) == LEAST
    assert Judging(bootstraps=4).rounds(1e30) == 4
    frechet = {dims: judging.rounds(25 * dims**3) for dims in (32, 512, 1024, 2048)}
    assert frechet == {32: 100, 512: 100, 1024: 14, 2048: 10}, "the docstring of frechet says so"


def test_resamples_and_halves() -> None:
    judging = Judging(bootstraps=200, seed=3)
    counts, halves = judging.multiplicities(50, 1.0), judging.halves(51, 1.0)
    assert torch.equal(counts.sum(1), torch.full((200,), 50.0, dtype=torch.float64))
    assert (counts > 0).double().mean() == pytest.approx(1 - (1 - 1 / 50) ** 50, abs=0.01)
    for row, picked in zip(counts, judging.resamples(50, 1.0)):
        assert torch.equal(picked.bincount(minlength=50).double(), row)
    assert halves.sum(1).tolist() == [25] * 200 and halves.double().mean(0).sub(25 / 51).abs().max() < 0.15
    assert not torch.equal(Judging(bootstraps=200, seed=4).halves(51, 1.0), halves)


def test_strata_keep_their_numbers() -> None:
    """Every resample has as many samples of each stratum; sets of another size have none."""
    groups = torch.tensor([0, 2, 1, 0, 2, 2, 0, 0, 2, 0])
    judging = Judging(bootstraps=50, strata=tuple(groups.tolist()))
    picked = judging.resamples(10, 1.0)
    assert torch.equal(groups[picked].sort(1).values, groups.sort().values.expand(50, 10))
    assert {int(row) for row in picked[groups[picked] == 2]} == {1, 4, 5, 8}
    assert torch.equal(judging.resamples(9, 1.0), Judging(bootstraps=50).resamples(9, 1.0))
