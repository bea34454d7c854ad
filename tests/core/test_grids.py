"""Time grids: strictly descending, from the prior to the sampling time, at the noise levels their names promise."""

from __future__ import annotations

import math

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.core.grids import fixed_steps, grid_options
from tests.proofs.cases import PROCESSES

CONTINUOUS = ("uniform", "quadratic", "karras", "logsnr", "polyexponential")
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


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("process", FINITE_PRIOR)
def test_polyexponential_spacing(process: str, rho: float) -> None:
    """log(sigma/alpha) = start + (end - start) (1 - (1 - u)^rho)."""
    sde, n = PROCESSES[process], 15
    log_ratio = -0.5 * sd.make_grid(sde, n, "polyexponential", rho=rho).levels.kernel.logsnr
    u = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    expected = log_ratio[0] + (log_ratio[-1] - log_ratio[0]) * (1.0 - (1.0 - u) ** rho)
    torch.testing.assert_close(log_ratio, expected, rtol=1e-6, atol=1e-6)
    if rho == 1.0:
        torch.testing.assert_close(
            sd.make_grid(sde, n, "polyexponential").times, sd.make_grid(sde, n, "logsnr").times, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("s", [0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_shift_of_rectified_flow(kind: str, s: float) -> None:
    """t -> s t/(1 + (s - 1) t) (Esser et al. 2024, equation 23), the first node and the last one too."""
    for options in ({}, {"t_start": 0.8, "t_end": 0.05}):
        t = sd.make_grid(sd.RectifiedFlow(), 30, kind, **options).times
        shifted = sd.make_grid(sd.RectifiedFlow(), 30, kind, shift=s, **options).times
        torch.testing.assert_close(shifted, s * t / (1.0 + (s - 1.0) * t), rtol=1e-12, atol=1e-15)


def test_a_shift_of_edm_multiplies_sigma() -> None:
    """By s, up to sigma_max: nodes beyond it lie between it and the nearest inside, in equal ratios."""
    sigma = sd.make_grid(sd.EDM(), 18, "karras").levels.kernel.sigma
    less = sd.make_grid(sd.EDM(), 18, "karras", shift=0.25).levels.kernel.sigma
    torch.testing.assert_close(less, 0.25 * sigma, rtol=1e-12, atol=0.0)
    more = sd.make_grid(sd.EDM(), 18, "karras", shift=3.0).levels.kernel.sigma
    beyond = int((3.0 * sigma >= 80.0).sum())
    assert beyond == 4 and float(more[0]) == 80.0
    torch.testing.assert_close(more[beyond:], 3.0 * sigma[beyond:], rtol=1e-12, atol=0.0)
    ratios = more[1 : beyond + 1] / more[:beyond]
    torch.testing.assert_close(ratios, ratios[:1].expand(beyond), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("s", [0.2, 0.9, 1.5, 5.0])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_a_shift_of_every_process(kind: str, process: str, s: float) -> None:
    """log-SNR - 2 log s inside the process's range, its end for the outermost node beyond, distinct times in it."""
    sde, n = PROCESSES[process], 40
    plain, shifted = (sd.make_grid(sde, n, kind, shift=shift) for shift in (1.0, s))
    bottom = min(float(plain.times[-1]), sde.known_times[0])
    most, least = sde.kernel(torch.tensor([bottom, 1.0], dtype=torch.float64)).logsnr
    moved = plain.levels.kernel.logsnr - 2.0 * math.log(s)
    inside = (moved > least) & (moved < most)
    assert int(inside.sum()) > 2
    logsnr = shifted.levels.kernel.logsnr
    torch.testing.assert_close(logsnr[inside], moved[inside], rtol=1e-7, atol=1e-7)
    if s > 1.0:
        assert float(shifted.times[0]) == 1.0
    elif float(moved[-1]) >= float(most):
        assert float(shifted.times[-1]) == bottom
    for beyond in (logsnr[moved <= least], logsnr[moved >= most]):
        if len(beyond) > 2:
            torch.testing.assert_close(beyond.diff(), beyond.diff()[:1].expand(len(beyond) - 1), rtol=1e-5, atol=1e-7)


def test_a_shift_that_leaves_no_node() -> None:
    with pytest.raises(sd.UserError, match="every node of the grid out of the process's range: choose one nearer to 1"):
        sd.make_grid(sd.VPSDE(), 10, shift=1e9)
    assert sd.make_grid(sd.VPSDE(), 1, shift=1e9).times.tolist() == [1.0]
    for wrong in (0.0, -2.0, float("inf"), float("nan")):
        with pytest.raises(sd.UserError, match="a shift is a factor of sigma/alpha above 0"):
            sd.make_grid(sd.VPSDE(), 10, shift=wrong)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_a_grid_begins_where_it_is_told(kind: str, process: str) -> None:
    """As a grid of its kind between the two times: of all but quadratic spacing the cut of one that hits t_start."""
    sde, start = PROCESSES[process], 0.7
    times = sd.make_grid(sde, 12, kind, t_start=start).times
    assert float(times[0]) == start and float(times[-1]) == pytest.approx(t_end(process), abs=1e-15)
    assert sd.make_grid(sde, 1, kind, t_start=start).times.tolist() == [start]
    variable = {
        "uniform": lambda t: t,
        "quadratic": torch.sqrt,
        "karras": lambda t: (-sde.kernel(t).logsnr / 14.0).exp(),
    }.get(kind, lambda t: sde.kernel(t).logsnr)(times)
    steps = variable.diff()
    torch.testing.assert_close(steps, steps.mean().expand(11), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("start", [0.0, 1.1, -0.5, float("nan")])
def test_a_start_that_is_none(start: float) -> None:
    with pytest.raises(sd.UserError, match=r"t_start must lie in \(0, 1\]"):
        sd.make_grid(sd.VPSDE(), 10, t_start=start)
    with pytest.raises(sd.UserError, match=r"descends from t_start to t_end, and .* is not above"):
        sd.make_grid(sd.VPSDE(), 10, t_start=1e-3)


def test_options_of_a_grid() -> None:
    assert {kind: grid_options(kind) for kind in sd.GRIDS} == {
        "uniform": {},
        "quadratic": {},
        "karras": {"rho": 7.0},
        "logsnr": {},
        "polyexponential": {"rho": 1.0},
        "strided": {"spacing": "linspace"},
        "respaced": {"sections": ""},
        "given": {"sigmas": (), "times": ()},
    }
    with pytest.raises(sd.UserError, match="unknown grid 'karas'; did you mean 'karras'"):
        grid_options("karas")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_given_grid_visits_the_nodes_that_are_given(process: str) -> None:
    """sigma/alpha, or t, to rounding; in any process, whose largest may be among them."""
    sde = PROCESSES[process]
    most = float(sde.kernel(0.999).sigma / sde.kernel(0.999).alpha)
    sigmas = (most, 0.5 * most, 0.3, 0.05)
    grid = sd.make_grid(sde, 4, "given", sigmas=sigmas)
    kernel = grid.levels.kernel
    assert (kernel.sigma / kernel.alpha).tolist() == pytest.approx(list(sigmas), rel=1e-9)
    times = sd.make_grid(sde, 3, "given", times=[1.0, 0.25, 0.1]).times
    assert times.tolist() == [1.0, 0.25, 0.1]
    assert fixed_steps("given", {"sigmas": sigmas, "times": ()}) == 4


def test_steps_that_a_grids_options_fix() -> None:
    assert fixed_steps("respaced", {"sections": "10,10,5"}) == 25 and fixed_steps("respaced", {"sections": ""}) is None
    assert fixed_steps("karras", {"rho": 7.0}) is None and fixed_steps("given", {"sigmas": (), "times": ()}) is None


def test_a_given_grid_that_is_none() -> None:
    def refused(sentence: str, steps: int = 3, **options: object) -> None:
        with pytest.raises(sd.UserError, match=sentence):
            sd.make_grid(sd.VESDE(), steps, "given", **options)  # type: ignore[arg-type]

    refused("needs its sigmas .* or its times, not both")
    refused("needs its sigmas", sigmas=(3.0, 2.0, 1.0), times=(1.0, 0.5, 0.1))
    refused("3 sigmas are given, and the steps are 4", 4, sigmas=(3.0, 2.0, 1.0))
    refused("above 0 that descend", sigmas=(3.0, 2.0, 2.0))
    refused("above 0 that descend", sigmas=(3.0, 2.0, 0.0))
    refused(r"VESDE over 1 to 0: sigma/alpha from 50 to 0\.01", sigmas=(80.0, 2.0, 1.0))
    refused("sigmas of grid 'given' is numbers, such as .*, not '3,2,1'", sigmas="3,2,1")


def test_refusals() -> None:
    vp = sd.VPSDE()
    for bad in (lambda: sd.make_grid(vp, 0), lambda: sd.make_grid(vp, 10, t_end=1.0)):
        with pytest.raises(sd.UserError):
            bad()
    with pytest.raises(sd.UserError, match="discrete"):
        sd.make_grid(vp, 10, "strided")
    with pytest.raises(sd.UserError, match="unknown spacing 'trail'; did you mean 'trailing'"):
        sd.make_grid(PROCESSES["DiscreteVP"], 10, "strided", spacing="trail")
    for kind in ("karras", "polyexponential"):
        with pytest.raises(sd.UserError, match="rho must be positive"):
            sd.make_grid(vp, 10, kind, rho=0.0)
        with pytest.raises(sd.UserError, match=r"a number, such as .*, not '7'"):
            sd.make_grid(vp, 10, kind, rho="7")
    with pytest.raises(sd.UserError, match="a string, such as '', not 50"):
        sd.make_grid(PROCESSES["DiscreteVP"], 50, "respaced", sections=50)
    with pytest.raises(sd.UserError, match="1 to 1000"):
        sd.make_grid(PROCESSES["DiscreteVP"], 1001, "strided")
    with pytest.raises(sd.UserError, match="without noise"):
        sd.make_grid(vp, 10, t_end=0.0)
    with pytest.raises(sd.UserError, match="descend"):
        sd.TimeGrid(vp, torch.tensor([0.5, 0.5]))
    with pytest.raises(sd.UserError, match="no option 'rho'"):
        sd.make_grid(vp, 10, "uniform", rho=7.0)
