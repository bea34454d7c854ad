"""`integrate` on equations with known solutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.errors import TooManyEvaluations
from tests.proofs.cases import generator, slope

ORDERS = {"per_sample": 5, "rk45": 5, "rk23": 3, "dop853": 8, "dopri5": 5, "dopri8": 8, "bosh3": 3}
"""Order of each Runge-Kutta pair."""
FIXED = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Order and evaluations a step of each method of equal steps."""


def test_every_solver_is_tested() -> None:
    assert set(sd.SOLVERS) == {*ORDERS, *FIXED, "lsoda"}


def column(t: Tensor, y: Tensor) -> Tensor:
    """A time [] or [B], ready to multiply y [B, d]."""
    return t.reshape(-1, 1).to(y) if t.ndim else t.to(y)


def rotation(t: Tensor, y: Tensor) -> Tensor:
    """Linear: (y_0, y_1)' = (-3 y_1, 3 y_0)."""
    return 3.0 * torch.stack([-y[:, 1], y[:, 0]], dim=1)


def logistic(t: Tensor, y: Tensor) -> Tensor:
    """Nonlinear: y' = y (1 - y)."""
    return y * (1.0 - y)


def fall(t: Tensor, y: Tensor) -> Tensor:
    """Nonlinear, with time: y' = -2 t y^2, y = 1/(c + t^2)."""
    return -2.0 * column(t, y) * y**2


def rotated(y: Tensor, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack([c * y[:, 0] - s * y[:, 1], s * y[:, 0] + c * y[:, 1]], dim=1)


START = 0.2 + torch.rand(5, 2, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("method", [*ORDERS, "lsoda"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.3), (1.3, 0.1)])
def test_known_solutions_in_both_directions(t0: float, t1: float, tolerance: float, method: str) -> None:
    """The error is within some tens of tolerances: it adds up over the interval."""
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    close = {"rtol": 0.0, "atol": 50 * tolerance}
    found = sd.integrate(rotation, START, t0, t1, **options)
    torch.testing.assert_close(found, rotated(START, 3.0 * (t1 - t0)), **close)
    begin = 0.7 * START  # below 1: above it the backward solution runs off to infinity
    grown = begin * math.exp(t1 - t0)
    torch.testing.assert_close(sd.integrate(logistic, begin, t0, t1, **options), grown / (1.0 - begin + grown), **close)
    begin, end = (1.0 / (1.0 / START + t**2) for t in (t0, t1))
    torch.testing.assert_close(sd.integrate(fall, begin, t0, t1, **options), end, **close)


@pytest.mark.parametrize("method", ORDERS)
def test_order(method: str) -> None:
    """Error against the number of evaluations, as the tolerance tightens: the slope is minus the order."""
    order, nfe, errors = ORDERS[method], [], []
    for exponent in range(3, 8, 2) if order > 3 else range(3, 6):
        calls: list[float] = []

        def counted(t: Tensor, y: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(1.0)
            return rotation(t, y)

        found = sd.integrate(counted, START, 0.0, 10.0, method=method, rtol=10.0**-exponent, atol=10.0**-exponent)
        nfe.append(float(len(calls)))
        errors.append(float((found - rotated(START, 30.0)).abs().max()))
    measured = -slope(nfe, errors)
    assert order - 0.6 <= measured <= order + 1.5, (measured, nfe, errors)


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_fixed_steps(method: str, order: int) -> None:
    """The error against the number of steps, the evaluations, and the times, whatever the tolerances."""
    counts, errors, times = [40, 80, 160], [], []
    for steps in counts:
        times.clear()

        def watched(t: Tensor, y: Tensor) -> Tensor:
            times.append(float(t))
            return rotation(t, y)

        found = sd.integrate(watched, START, 2.0, 0.0, method=method, steps=steps, rtol=1.0, atol=1.0)
        errors.append(float((found - rotated(START, -6.0)).abs().max()))
        assert len(times) == order * steps and times[0] == 2.0
        assert times[::order][1] == pytest.approx(2.0 - 2.0 / steps, abs=1e-12)
    assert -slope([float(n) for n in counts], errors) == pytest.approx(order, abs=0.15)


def test_rows_are_independent_of_the_batch_bit_for_bit() -> None:
    """per_sample: a row alone, in a batch, beside an easy or a hard row, is the same number."""
    y = torch.randn(7, 3, generator=generator(1), dtype=torch.float64)
    y[3] *= 30.0

    def stiff(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(5.0 * column(t, y)) * y - 0.1 * y**3

    whole = sd.integrate(stiff, y, 0.0, 2.0)
    for rows in ([0], [3], [2, 3], [6, 0, 5]):
        assert torch.equal(sd.integrate(stiff, y[rows], 0.0, 2.0), whole[rows])


def test_shapes_and_an_empty_interval() -> None:
    y = torch.randn(2, 3, 4, generator=generator(1), dtype=torch.float64)
    for method in sd.SOLVERS:
        factor = 0.99**100 if method == "euler" else math.exp(-1.0)  # of 100 steps of Euler's: exactly that
        found = sd.integrate(lambda t, x: -x, y, 0.0, 1.0, method=method, rtol=1e-6, atol=1e-8, steps=100)
        torch.testing.assert_close(found, y * factor, rtol=1e-4, atol=1e-5)
    assert sd.integrate(lambda t, x: -x, y, 0.5, 0.5) is y


@pytest.mark.parametrize("method", sd.SOLVERS)
def test_the_interval_is_never_left(method: str) -> None:
    """No evaluation beyond either end, where a schedule need not exist."""
    seen: list[float] = []

    def watch(t: Tensor, y: Tensor) -> Tensor:
        seen.extend(t.reshape(-1).tolist())
        return -5.0 * y

    for t0, t1 in ((1.0, 1e-3), (1e-5, 1.0)):
        seen.clear()
        sd.integrate(watch, START, t0, t1, method=method)
        assert min(seen) >= min(t0, t1) - 1e-12 and max(seen) <= max(t0, t1) + 1e-12


@pytest.mark.parametrize("method", sd.SOLVERS)
def test_too_many_evaluations_are_an_error(method: str) -> None:
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return rotation(t, y)

    with pytest.raises(TooManyEvaluations, match=r"more than 30 evaluations.*has come to \d+% of its way"):
        sd.integrate(field, START, 0.0, 100.0, method=method, rtol=1e-8, atol=1e-8, max_nfe=30)
    assert calls <= 30


def test_refusals() -> None:
    with pytest.raises(sd.UserError, match="unknown ODE method"):
        sd.integrate(logistic, START, 0.0, 1.0, method="rk54")
    with pytest.raises(sd.UserError, match="positive"):
        sd.integrate(logistic, START, 0.0, 1.0, rtol=0.0)
    with pytest.raises(sd.UserError, match="not finite after 0% of its way"):
        sd.integrate(lambda t, y: y * math.nan, START, 0.0, 1.0)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_a_solution_that_ends_early_is_a_sentence(method: str) -> None:
    """y' = y^2 from 1 has no value beyond t = 1."""
    with pytest.raises(sd.UserError, match=rf"torchdiffeq's {method} stopped at .*% of its way: underflow in dt"):
        sd.integrate(lambda t, y: y**2, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, method=method)
