"""Time grids: strictly descending, from the prior to the sampling time, at the levels their names promise."""

from __future__ import annotations

import pytest
import torch

import sde_diffusion as sd
from tests.proofs.cases import PROCESSES

CONTINUOUS = ("uniform", "quadratic", "karras", "logsnr")
DISCRETE = [name for name, sde in PROCESSES.items() if sde.times is not None]
FINITE_PRIOR = [name for name in PROCESSES if name != "RectifiedFlow"]
"""Processes whose log-SNR is finite at t = 1."""


def t_end(process: str) -> float:
    """The sampling time; for quadratic spacing of a process that ends at 0 too."""
    return PROCESSES[process].t_sample


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 1000])
def test_a_grid_descends_from_1_to_its_end(steps: int, kind: str, process: str) -> None:
    grid = sd.make_grid(PROCESSES[process], steps, kind)
    assert grid.steps == len(grid.times) == len(grid.nodes) == steps
    assert grid.times.dtype == torch.float64 and float(grid.times[0]) == 1.0
    if steps > 1:
        assert float(grid.times[-1]) == pytest.approx(t_end(process), abs=1e-15)
    assert bool((grid.times.diff() < 0).all())
    assert all(float(node.kernel.sigma) > 0 for node in grid.nodes)
    pairs = list(grid.pairs())
    assert [float(now.t) for now, _ in pairs] == grid.times[:-1].tolist()
    assert [float(next.t) for _, next in pairs] == grid.times[1:].tolist()


@pytest.mark.parametrize("process", DISCRETE)
def test_strided_grids_of_any_length_visit_levels(process: str) -> None:
    """1 to 1000 steps: distinct levels of the table, the first and the last among them, strides within one of
    another."""
    sde = PROCESSES[process]
    assert sde.times is not None
    for steps in [*range(1, 60), 97, 128, 250, 333, 499, 500, 501, 750, 998, 999, 1000]:
        times = sd.make_grid(sde, steps, "strided").times
        assert len(times) == steps and bool(torch.isin(times, sde.times).all())
        assert float(times[0]) == 1.0 and (steps == 1 or float(times[-1]) == float(sde.times[0]))
        index = torch.searchsorted(sde.times, times)
        if steps > 1:
            strides = -index.diff()
            assert int(strides.min()) >= 1 and int(strides.max() - strides.min()) <= 1
    assert torch.equal(sd.make_grid(sde, 1000, "strided").times, sde.times.flip(0))


@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "EDM"])
def test_uniform_and_quadratic_spacing(process: str) -> None:
    sde = PROCESSES[process]
    uniform = sd.make_grid(sde, 11).times
    torch.testing.assert_close(uniform.diff(), uniform.diff()[:1].expand(10), rtol=1e-10, atol=0.0)
    roots = sd.make_grid(sde, 11, "quadratic").times.sqrt().diff()
    torch.testing.assert_close(roots, roots[:1].expand(10), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("process", FINITE_PRIOR)
def test_logsnr_spacing(process: str) -> None:
    sde = PROCESSES[process]
    steps = sde.kernel(sd.make_grid(sde, 20, "logsnr").times).logsnr.diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("rho", [3.0, 7.0])
@pytest.mark.parametrize("process", FINITE_PRIOR)
def test_karras_spacing(process: str, rho: float) -> None:
    """(sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (Karras et al. 2022, equation
    5)."""
    sde, n = PROCESSES[process], 18
    grid = sd.make_grid(sde, n, "karras", rho=rho)
    levels = torch.stack([node.kernel.sigma / node.kernel.alpha for node in grid.nodes])
    high, low = levels[0] ** (1 / rho), levels[-1] ** (1 / rho)
    expected = (high + torch.arange(n, dtype=torch.float64) / (n - 1) * (low - high)) ** rho
    torch.testing.assert_close(levels, expected, rtol=1e-6, atol=0.0)


def test_edms_grid_is_the_papers() -> None:
    """18 steps from 80 to 0.002, rho = 7."""
    grid = sd.make_grid(sd.EDM(), 18, "karras")
    sigma = torch.stack([node.kernel.sigma for node in grid.nodes])
    i = torch.arange(18, dtype=torch.float64) / 17
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_t_end_is_the_callers(kind: str) -> None:
    assert float(sd.make_grid(sd.VPSDE(), 10, kind, t_end=0.05).times[-1]) == pytest.approx(0.05)


def test_refusals() -> None:
    vp = sd.VPSDE()
    for bad in (lambda: sd.make_grid(vp, 0), lambda: sd.make_grid(vp, 10, t_end=1.0)):
        with pytest.raises(sd.UserError):
            bad()
    with pytest.raises(sd.UserError, match="discrete"):
        sd.make_grid(vp, 10, "strided")
    with pytest.raises(sd.UserError, match="1 to 1000"):
        sd.make_grid(PROCESSES["DiscreteVP"], 1001, "strided")
    with pytest.raises(sd.UserError, match="without noise"):
        sd.make_grid(vp, 10, t_end=0.0)
    with pytest.raises(sd.UserError, match="descend"):
        sd.TimeGrid(vp, torch.tensor([0.5, 0.5]))
    with pytest.raises(sd.UserError, match="no option 'rho'"):
        sd.make_grid(vp, 10, "uniform", rho=7.0)
