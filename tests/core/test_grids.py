"""Time grids: strictly descending, from the prior to the sampling time, at the levels their names promise."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.core.grids import fixed_steps, grid_options
from sde_diffusion.core.levels import SPACINGS, _nearest_distinct, respacing_count
from tests.proofs.cases import PROCESSES

CONTINUOUS = ("uniform", "quadratic", "karras", "logsnr", "polyexponential")
DISCRETE = [name for name, sde in PROCESSES.items() if sde.times is not None]
FINITE_PRIOR = [name for name in PROCESSES if name != "RectifiedFlow"]
"""Processes whose log-SNR is finite at t = 1."""

LEVELS = 64
SMALL: dict[str, sd.SDE] = {
    "DiscreteVP": sd.DiscreteVP.linear(LEVELS),
    "cosine": sd.DiscreteVP.cosine(LEVELS),
    "DiscreteVE": sd.DiscreteVE.geometric(0.01, 50.0, LEVELS),
}
"""Discrete processes so small that a test can take every number of steps."""
OF_LEVELS: list[tuple[str, dict[str, Any]]] = [
    ("strided", {"spacing": "linspace"}),
    ("strided", {"spacing": "leading"}),
    ("strided", {"spacing": "trailing"}),
    ("respaced", {}),
]
HOMES = [("VPSDE", "DiscreteVP"), ("CosineVPSDE", "cosine"), ("VESDE", "DiscreteVE"), ("RectifiedFlow", "DiscreteVP")]
HOMES += [(name, name) for name in SMALL]
"""Process of the grid, process whose levels it is snapped to."""


def times_of(sde: sd.SDE) -> torch.Tensor:
    assert sde.times is not None
    return sde.times


def levels_of(grid: sd.TimeGrid, home: sd.SDE) -> torch.Tensor:
    """The level of every node, [n], which must be one to within 1e-6 in log-SNR."""
    levels, nodes = home.kernel(times_of(home)).logsnr, grid.levels.kernel.logsnr
    distance, index = (nodes[:, None] - levels).abs().min(1)
    assert float(distance.max()) < 1e-6
    return index


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


# --- shift and t_start ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["strided", "respaced"])
def test_levels_are_not_moved(kind: str) -> None:
    """They are refused by name, and the remedy is right: another kind, snapped."""
    sde = SMALL["DiscreteVP"]
    for options in ({"shift": 2.0}, {"t_start": 0.5}):
        with pytest.raises(
            sd.UserError, match=f"a {kind} grid has the nodes that it says.* choose one of uniform, .*snap"
        ):
            sd.make_grid(sde, 8, kind, **options)
    snapped = sd.make_grid(sde, 8, "logsnr", shift=2.0, t_start=0.9, snap=sde)
    nodes = levels_of(snapped, sde)
    wanted = sd.make_grid(sde, 8, "logsnr", shift=2.0, t_start=0.9).levels.kernel.logsnr
    nearest = (wanted[:, None] - sde.kernel(times_of(sde)).logsnr).abs().argmin(1)
    assert torch.equal(nodes, nearest)


@pytest.mark.parametrize("start", [0.0, 1.1, -0.5, float("nan")])
def test_a_start_that_is_none(start: float) -> None:
    with pytest.raises(sd.UserError, match=r"t_start must lie in \(0, 1\]"):
        sd.make_grid(sd.VPSDE(), 10, t_start=start)
    with pytest.raises(sd.UserError, match=r"descends from t_start to t_end, and .* is not above"):
        sd.make_grid(sd.VPSDE(), 10, t_start=1e-3)


# --- levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", SMALL)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_continuous_grids_of_every_length_on_a_discrete_process(kind: str, process: str) -> None:
    sde = SMALL[process]
    for steps in range(1, LEVELS + 1):
        times = sd.make_grid(sde, steps, kind).times
        assert len(times) == steps and float(times[0]) == 1.0 and bool((times.diff() < 0).all())
        assert steps == 1 or float(times[-1]) == sde.t_sample


@pytest.mark.parametrize("process", SMALL)
@pytest.mark.parametrize(("kind", "options"), OF_LEVELS)
def test_grids_of_levels_of_every_length(kind: str, options: dict[str, Any], process: str) -> None:
    sde = SMALL[process]
    for steps in range(1, LEVELS + 1):
        grid = sd.make_grid(sde, steps, kind, **options)
        levels = levels_of(grid, sde)
        assert grid.steps == steps and torch.equal(grid.times, times_of(sde)[levels])
        first, last = {
            "leading": (LEVELS - 1 if steps == 1 else (steps - 1) * (LEVELS // steps), 0),
            "trailing": (LEVELS - 1, round(LEVELS / steps) - 1),
        }.get(options.get("spacing", ""), (LEVELS - 1, 0))
        assert int(levels[0]) == first and (steps == 1 or int(levels[-1]) == last)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 40, 64])
def test_spacings(steps: int) -> None:
    sde = SMALL["DiscreteVP"]
    last = LEVELS - 1
    expected = {
        "linspace": [round((steps - 1 - i) * last / (steps - 1)) for i in range(steps)],
        "leading": [i * (LEVELS // steps) for i in reversed(range(steps))],
        "trailing": [round(LEVELS - i * LEVELS / steps) - 1 for i in range(steps)],
    }
    assert expected.keys() == SPACINGS.keys()
    for spacing, levels in expected.items():
        assert levels_of(sd.make_grid(sde, steps, "strided", spacing=spacing), sde).tolist() == levels


@pytest.mark.parametrize(
    ("sections", "levels"),
    [
        ("ddim64", list(range(64))),
        ("ddim16", list(range(0, 64, 4))),
        ("ddim13", list(range(0, 64, 5))),
        ("ddim1", [0]),
        ("3", [0, 32, 63]),  # 31.5 rounds to even
        ("1", [0]),
        ("2,1,0,3", [0, 15, 16, 48, 56, 63]),  # sections of 16; 7.5 rounds to even
        ("2,2,2", [0, 21, 22, 42, 43, 63]),  # sections of 22, 21 and 21
    ],
)
def test_respacing_strings(sections: str, levels: list[int]) -> None:
    sde = SMALL["DiscreteVP"]
    assert respacing_count(sections) == len(levels)
    grid = sd.make_grid(sde, len(levels), "respaced", sections=sections)
    assert levels_of(grid, sde).tolist() == levels[::-1]


def test_an_integer_stride_or_the_nearest_that_exists() -> None:
    """Every count that some stride gives is accepted, with the smallest; any other names the nearest such count."""
    sde = SMALL["DiscreteVP"]
    strides = {len(range(0, LEVELS, s)): s for s in range(LEVELS, 0, -1)}
    for count in range(1, LEVELS + 1):
        if count in strides:
            grid = sd.make_grid(sde, count, "respaced", sections=f"ddim{count}")
            assert levels_of(grid, sde).tolist() == list(range(0, LEVELS, strides[count]))[::-1]
        else:
            with pytest.raises(sd.UserError, match=f"{count} of {LEVELS} levels.*'ddim") as refusal:
                sd.make_grid(sde, count, "respaced", sections=f"ddim{count}")
            named = int(str(refusal.value).rpartition("ddim")[2].rstrip("'"))
            assert abs(named - count) == min(abs(n - count) for n in strides)


@pytest.mark.parametrize("sections", ["ddim", "ddim0", "ddim-5", "ddim5,5", "abc", "10,,5", "10,", "0", "0,0", "-1,5"])
def test_malformed_respacing(sections: str) -> None:
    for ask in (
        lambda: respacing_count(sections),
        lambda: sd.make_grid(SMALL["DiscreteVP"], 10, "respaced", sections=sections),
    ):
        with pytest.raises(sd.UserError, match="'10,10,5'"):
            ask()


def test_respacing_refusals() -> None:
    sde = SMALL["DiscreteVP"]
    with pytest.raises(sd.UserError, match=r"'10,10,5' gives 25 levels.* got 20"):
        sd.make_grid(sde, 20, "respaced", sections="10,10,5")
    with pytest.raises(sd.UserError, match=r"section 2 of 2 has 32 of the 64 levels.*at most 32"):
        sd.make_grid(sde, 43, "respaced", sections="10,33")
    with pytest.raises(sd.UserError, match="1 to 64"):
        sd.make_grid(sde, 65, "respaced", sections="65")
    with pytest.raises(sd.UserError, match="discrete process, which VPSDE"):
        sd.make_grid(sd.VPSDE(), 10, "respaced")


# --- snap -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize(("process", "home"), HOMES)
def test_snapped_grids_of_every_length(process: str, home: str, kind: str) -> None:
    """Distinct levels, the last one first; without a collision each node's own nearest level."""
    target = SMALL[home]
    sde = target if process == home else PROCESSES[process]
    logsnr = target.kernel(times_of(target)).logsnr
    for steps in range(1, LEVELS + 1):
        free, grid = sd.make_grid(sde, steps, kind), sd.make_grid(sde, steps, kind, snap=target)
        assert grid.sde is sde and grid.steps == steps
        levels = levels_of(grid, target)
        assert int(levels[0]) == LEVELS - 1 and bool((levels.diff() < 0).all())
        if sde is target:
            assert torch.equal(grid.times, times_of(target)[levels])
        nearest = (free.levels.kernel.logsnr[:, None] - logsnr).abs().argmin(1)
        nearest[0] = LEVELS - 1
        if bool((nearest.diff() < 0).all()):
            assert torch.equal(levels, nearest)
        if steps == LEVELS:
            assert torch.equal(levels, torch.arange(LEVELS).flip(0))


def test_a_node_moves_by_half_a_gap_at_most() -> None:
    home, sde = sd.DiscreteVP.linear(1000), sd.VPSDE()
    free, grid = (sd.make_grid(sde, 20, "logsnr", t_end=0.02, snap=snap) for snap in (None, home))
    levels, logsnr = levels_of(grid, home), home.kernel(home.times).logsnr
    gaps = torch.stack([logsnr[levels[1:] - 1] - logsnr[levels[1:]], logsnr[levels[1:]] - logsnr[levels[1:] + 1]])
    moved = (grid.levels.kernel.logsnr - free.levels.kernel.logsnr).abs()[1:]
    assert bool((moved <= 0.5 * gaps.max(0).values + 1e-9).all())


@pytest.mark.parametrize("seed", range(20))
def test_snapping_is_the_least_squares_choice(seed: int) -> None:
    """Against every choice of n of 9 levels."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(9, generator=g, dtype=torch.float64).cumsum(0).sort().values
    targets = (2.0 * torch.randn(1 + seed % 9, generator=g, dtype=torch.float64)).sort().values
    for first in (False, True):
        choices = torch.tensor([c for c in combinations(range(9), len(targets)) if not first or c[0] == 0])
        sums = ((values[choices] - targets.clamp(values[0], values[-1])) ** 2).sum(1)
        index = _nearest_distinct(values, targets, first=first)
        assert index.tolist() in choices.tolist()
        found = ((values[index] - targets.clamp(values[0], values[-1])) ** 2).sum()
        torch.testing.assert_close(found, sums.min())


@pytest.mark.parametrize(("kind", "options"), OF_LEVELS)
def test_levels_stay_where_they_are(kind: str, options: dict[str, Any]) -> None:
    sde = SMALL["DiscreteVP"]
    for steps in (1, 2, 7, 40, LEVELS):
        plain = sd.make_grid(sde, steps, kind, **options).times
        assert torch.equal(sd.make_grid(sde, steps, kind, snap=sde, **options).times, plain)


def test_snap_refusals() -> None:
    with pytest.raises(sd.UserError, match=r"snap needs .*VESDE does not have"):
        sd.make_grid(sd.VPSDE(), 10, snap=sd.VESDE())
    with pytest.raises(sd.UserError, match="1 to 64"):
        sd.make_grid(sd.VPSDE(), 65, snap=SMALL["DiscreteVP"])
    with pytest.raises(sd.UserError, match="sigma = 50 in EDM, whose prior has 80"):
        sd.make_grid(sd.EDM(), 10, snap=SMALL["DiscreteVE"])
    assert sd.make_grid(sd.EDM(sigma_max=50.0), 10, snap=SMALL["DiscreteVE"]).steps == 10


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
