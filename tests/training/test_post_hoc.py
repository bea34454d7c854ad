"""Averages of any length after a training: the geometry of profiles in closed form, and a real training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.training.averages import (
    MANIFEST,
    SNAPSHOTS,
    Averages,
    Power,
    coefficients,
    inner_products,
    power_gamma,
    reconstruct,
    relative_residual,
    save_snapshot,
    snapshot_index,
)

STEPS, EVERY, STORED = 512, 16, (0.05, 0.10)
PAIR = [(float(n), power_gamma(sigma)) for n in range(EVERY, STEPS + 1, EVERY) for sigma in STORED]

Weights = dict[str, Tensor]


def distance(a: Weights, b: Weights) -> float:
    """|a - b| / |b| over all floats."""
    flat_a, flat_b = (
        torch.cat([w[k].flatten().double() for k in sorted(b) if b[k].is_floating_point()]) for w in (a, b)
    )
    return float((flat_a - flat_b).norm() / flat_b.norm())


# --- the geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [(3.0, 0.0), (5.0, 6.94)])
@pytest.mark.parametrize("b", [(3.0, 16.97), (7.0, 0.4), (4.0, 2.5)])
def test_inner_products_are_the_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    def density(tau: float, n: float, gamma: float) -> float:
        return (gamma + 1) * tau**gamma / n ** (gamma + 1)

    end = min(a[0], b[0])
    expected, _ = quad(lambda tau: density(tau, *a) * density(tau, *b), 0.0, end, epsabs=0.0, epsrel=1e-12)
    torch.testing.assert_close(inner_products([a], [b]).item(), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(inner_products([b], [a]).item(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.075, 0.2])
@pytest.mark.parametrize("step", [STEPS, STEPS - EVERY // 2])
def test_the_coefficients_are_least_squares_with_a_sum_of_one(sigma_rel: float, step: int) -> None:
    """At the minimum the residual is orthogonal to every p_i - p_j, and its norm is that of a fine grid's profiles."""
    target = (float(step), power_gamma(sigma_rel))
    x = coefficients(PAIR, target)
    torch.testing.assert_close(x.sum().item(), 1.0, rtol=0, atol=1e-12)
    slopes = (inner_products(PAIR, PAIR) @ x - inner_products(PAIR, [target])[:, 0]) / inner_products(
        [target], [target]
    )
    torch.testing.assert_close(slopes, slopes.mean().expand_as(slopes), rtol=0, atol=1e-10)
    edges = torch.linspace(0, STEPS, 2**16 + 1, dtype=torch.float64)
    columns = [(edges / n).clamp(max=1.0).pow(gamma + 1).diff() for n, gamma in [*PAIR, target]]
    profiles, wanted = torch.stack(columns[:-1], dim=1), columns[-1]
    expected = (profiles @ x - wanted).norm() / wanted.norm()
    torch.testing.assert_close(relative_residual(PAIR, target, x), expected.item(), rtol=1e-3, atol=0)


def test_steps_have_no_unit() -> None:
    """Profiles of n, gamma and of 2^30 n, gamma have the same coefficients, to the bit as 2^30 is exact."""
    target, unit = (float(STEPS), power_gamma(0.2)), 2.0**30
    x = coefficients([(unit * n, gamma) for n, gamma in PAIR], (unit * target[0], target[1]))
    assert torch.equal(x, coefficients(PAIR, target))


def test_a_stored_average_is_itself() -> None:
    for i in (0, 31, 63):
        x = coefficients(PAIR, PAIR[i])
        torch.testing.assert_close(x, torch.eye(64, dtype=torch.float64)[i], rtol=0, atol=1e-9)
        assert relative_residual(PAIR, PAIR[i], x) < 1e-7


def test_the_residual_of_one_profile_is_the_distance_of_two() -> None:
    """|p - q|^2 = <p, p> - 2 <p, q> + <q, q> with <p, q> = (a + 1)(b + 1)/(a + b + 1)/n at equal n."""
    a, b = power_gamma(0.05), power_gamma(0.1)
    pp, pq, qq = ((i + 1) * (j + 1) / (i + j + 1) for i, j in ((b, b), (a, b), (a, a)))
    x = coefficients([(100.0, a)], (100.0, b))
    assert x.tolist() == [pytest.approx(1.0)]
    expected = math.sqrt((pp - 2 * pq + qq) / pp)
    assert relative_residual([(100.0, a)], (100.0, b), x) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("change", [0.0, 1e-10, 1e-6])
def test_averages_that_are_all_but_the_same_are_not_subtracted_from_each_other(change: float) -> None:
    twice = [*PAIR, *((n, gamma * (1 + change)) for n, gamma in PAIR)]
    for sigma_rel in (0.03, 0.075, 0.2):
        target = (float(STEPS), power_gamma(sigma_rel))
        once, x = coefficients(PAIR, target), coefficients(twice, target)
        assert x.abs().sum() < 1.01 * once.abs().sum()
        assert relative_residual(twice, target, x) < 1.01 * relative_residual(PAIR, target, once)


# --- a training -----------------------------------------------------------------------------------------------

WANTED = (0.03, 0.05, 0.075, 0.15, 0.2)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[float, Weights]]]:
    """A run folder with 32 snapshots of two averages, and further averages as they were tracked."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Linear(32, 4))
    net.register_buffer("constant", torch.randn(50))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    averages = Averages(net, {str(sigma): Power(sigma) for sigma in {*STORED, *WANTED}})
    kept = {}
    for step in range(1, STEPS + 1):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        (net(x) - x.roll(1, dims=1).sin() - torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        averages.update(net)
        found = averages.weights()
        if step % EVERY == 0:
            save_snapshot(folder, step, {sigma: found[str(sigma)] for sigma in STORED})
        if step in (STEPS // 2, STEPS - EVERY // 2, STEPS):
            kept[step] = {s: {k: v.clone() for k, v in found[str(s)].items()} for s in WANTED}
            kept[step][0.0] = {k: v.clone() for k, v in net.state_dict().items()}
    return folder, kept


Run = tuple[Path, dict[int, dict[float, Weights]]]


@pytest.mark.parametrize("sigma_rel", WANTED)
@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_an_average_after_training_is_the_one_tracked_directly(training: Run, sigma_rel: float, step: int) -> None:
    folder, kept = training
    tracked = kept[step][sigma_rel]
    weights, residual = reconstruct(folder, sigma_rel, None if step == STEPS else step)
    assert weights.keys() == tracked.keys()
    assert all(
        weights[key].dtype == value.dtype and weights[key].shape == value.shape for key, value in tracked.items()
    )
    assert distance(weights, tracked) < 1e-3
    assert residual < 0.05
    assert weights["1.num_batches_tracked"] == step
    assert torch.equal(weights["constant"], tracked["constant"])
    if sigma_rel not in STORED:  # that this is no accident: neither the stored averages nor the raw weights are so near
        nearby = [kept[step][other] for other in (0.0, 0.05)]
        assert all(distance(other, tracked) > 10 * distance(weights, tracked) for other in nearby)


@pytest.mark.parametrize("sigma_rel", WANTED)
def test_between_two_snapshots_the_residual_tells(training: Run, sigma_rel: float) -> None:
    """Half an interval after a snapshot, the profile ends in a jump where no stored one has any."""
    folder, kept = training
    step = STEPS - EVERY // 2
    weights, residual = reconstruct(folder, sigma_rel, step)
    assert residual > 5 * reconstruct(folder, sigma_rel)[1]
    assert distance(weights, kept[step][sigma_rel]) < 0.01 * residual
    assert weights["1.num_batches_tracked"] == STEPS - EVERY


# --- the files ------------------------------------------------------------------------------------------------


def weights_of(value: float) -> Weights:
    return {"a": torch.full((2, 3), value), "count": torch.tensor(7)}


def test_errors_say_what_is_there(training: Run, tmp_path: Path) -> None:
    folder, _ = training
    with pytest.raises(UserError, match=r"there are no snapshots in .*ema_snapshots"):
        reconstruct(tmp_path, 0.1)
    for step in (EVERY - 1, STEPS + 1):
        with pytest.raises(UserError, match=rf"step {step} is not within .* of steps {EVERY} to {STEPS}"):
            reconstruct(folder, 0.1, step)
    with pytest.raises(UserError, match="sigma_rel must lie in"):
        reconstruct(folder, 0.3)


def test_a_snapshot_written_again_is_the_new_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_snapshot(tmp_path, 10, {0.05: weights_of(value), 0.1: weights_of(value)})
    (place,) = (tmp_path / SNAPSHOTS).iterdir()
    assert place.name == "step_000000010" and len(list(place.iterdir())) == 3
    assert [(one.step, one.sigma_rel) for one in snapshot_index(tmp_path)] == [(10, 0.05), (10, 0.1)]
    weights, _ = reconstruct(tmp_path, 0.07)
    assert torch.equal(weights["a"], torch.full((2, 3), 2.0)) and weights["count"] == 7


def test_half_precision_and_shared_memory_are_stored_as_float32(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3).bfloat16()
    save_snapshot(tmp_path, 10, {0.05: {"a": one, "tied": one, "turned": one.T}})
    weights, residual = reconstruct(tmp_path, 0.05)
    assert residual == pytest.approx(0.0, abs=1e-7)
    assert torch.equal(weights["a"], one.float()) and torch.equal(weights["turned"], one.T.float())


@pytest.mark.parametrize("damage", ["changed", "torn", "absent", "no manifest", "torn manifest"])
def test_a_damaged_snapshot_is_named_and_left_out(tmp_path: Path, damage: str) -> None:
    for step in (10, 20, 30):
        save_snapshot(tmp_path, step, {0.05: weights_of(step), 0.1: weights_of(step)})
    place = tmp_path / SNAPSHOTS / "step_000000020"
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["step"] == 20
    file = place / manifest["averages"][1]["file"]
    data = file.read_bytes()
    if damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "torn":
        file.write_bytes(data[:-4])
    elif damage == "absent":
        file.unlink()
    elif damage == "no manifest":
        (place / MANIFEST).unlink()
    else:
        (place / MANIFEST).write_text("{")
    with pytest.warns(UserWarning, match="step_000000020 is damaged and left out"):
        index = snapshot_index(tmp_path)
    assert [one.step for one in index] == [10, 10, 30, 30]
