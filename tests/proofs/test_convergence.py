"""Order of convergence: deterministic samplers against the exact flow, stochastic ones against the exact marginal.

The exact flow is the eighth-order solver at a tolerance of 1e-11, from the same x at t = 1 to the grid's last
node, with the closed-form denoiser. A sampler of order p has an error proportional to h^p on any smooth
family of grids.

The grid of each process is one on which all steps contribute alike, so that the slope is that of the method:

    VPSDE, SubVPSDE              uniform, down to t = 0.02: at VP's t = 0 sigma' is infinite, and on equal steps
                                 the last one would hide the rest
    VESDE                        uniform, which is logsnr: sigma is geometric in t
    EDM                          karras, the grid of its paper: equal steps of 0.1 to 1 in sigma would jump over the
                                 data in the last one
    CosineVPSDE, RectifiedFlow   logsnr, from t = 0.98 to 0.02: beyond it lie the kink at t = 0.998 where the cosine's
                                 rate is held, and alpha = 0

Between the basins of two modes the flow amplifies any error without bound, which says nothing of the method,
so of 64 starts the 32 are kept to whose perturbation the flow is least sensitive.

A stochastic sampler starts from the exact marginal at the first node, so that the error of its mean and covariance at
the last one is its own. On a single Gaussian every sampler is affine in its noise: with x_k the result when only the
k-th draw is not zero, and that one is all ones, the mean is that without noise and the variance sum_k (x_k - mean)^2
exactly, so that the order is measured without any sampling error. On a mixture it
is measured on samples of grids that share their noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from tests.proofs.cases import (
    MIXTURES,
    PROCESSES,
    ROWS,
    SAMPLERS,
    at_two,
    generator,
    in_turn,
    quick_denoiser,
    run,
    slope,
)

STEPS = {1: (100, 200, 400), 2: (50, 100, 200), 3: (200, 400, 800), 4: (200, 400, 800)}
"""Order -> numbers of steps at which it is seen for every process."""
STARTS = 32


@dataclass(frozen=True)
class GridRow:
    """The family of grids on which a process is measured."""

    kind: str = "uniform"
    t_end: float | None = None
    t_start: float = 1.0


GRIDS: dict[str, GridRow] = {
    "VPSDE": GridRow(t_end=0.02),
    "SubVPSDE": GridRow(t_end=0.02),
    "VESDE": GridRow(),
    "CosineVPSDE": GridRow(kind="logsnr", t_end=0.02, t_start=0.98),
    "EDM": GridRow(kind="karras"),
    "RectifiedFlow": GridRow(kind="logsnr", t_end=0.02, t_start=0.98),
}
DETERMINISTIC = [name for name, row in ROWS.items() if row.deterministic and row.order is not None]
STOCHASTIC = [name for name, row in ROWS.items() if not row.deterministic and row.order is not None]


@cache
def grid_of(process: str, steps: int) -> sd.TimeGrid:
    row, sde = GRIDS[process], PROCESSES[process]
    if row.t_start == 1.0:
        return sd.make_grid(sde, steps, row.kind, t_end=row.t_end)
    start, end = sde.kernel(torch.tensor([row.t_start, row.t_end], dtype=torch.float64)).logsnr
    times = sde.time_of(torch.lerp(start, end, torch.linspace(0.0, 1.0, steps, dtype=torch.float64)))
    return sd.TimeGrid(sde, times)


def exact_flow(process: str, dims: int, x: Tensor, grid: sd.TimeGrid) -> Tensor:
    sde, denoiser = PROCESSES[process], quick_denoiser(MIXTURES[dims])

    def field(t: Tensor, x: Tensor) -> Tensor:
        return sde.velocity(x, denoiser(x, sde.kernel(t)), t)

    return sd.integrate(field, x, grid.times[0], grid.times[-1], method="dop853", rtol=1e-11, atol=1e-12)


@pytest.fixture(scope="module")
def start() -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """x at t = 1 and the exact x at the end, for every process and dimension."""
    pairs = {}
    for process in GRIDS:
        for dims in MIXTURES:
            g, sde = generator(5), PROCESSES[process]
            x = sde.prior_sample((2 * STARTS, dims), generator=g, dtype=torch.float64)
            nudged = x + 1e-4 * sde.prior_sample(x.shape, generator=g, dtype=torch.float64)
            end, other = exact_flow(process, dims, torch.cat([x, nudged]), grid_of(process, 4)).chunk(2)
            keep = (other - end).norm(dim=1).argsort()[:STARTS]
            pairs[process, dims] = x[keep], end[keep]
    return pairs


def steps_of(row: str) -> tuple[int, ...]:
    """The numbers of steps that a row's order is measured at."""
    return STEPS[ROWS[row].order or 0]


def errors(row: str, process: str, dims: int, start: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> list[float]:
    x, exact = start[process, dims]
    found = []
    for steps in steps_of(row):
        out = run(row, quick_denoiser(MIXTURES[dims]), grid=grid_of(process, steps + 1), x=x, finish="none")
        found.append(float((out.x - exact).square().mean().sqrt()))
    return found


def every_and_at_two(rows: list[str]) -> list[tuple[str, int, str]]:
    """Samplers under every process; under other options at two of them in turn."""
    processes = list(GRIDS)
    own = [row for row in rows if row in SAMPLERS]
    return in_turn(own, processes) + at_two([row for row in rows if row not in SAMPLERS], processes)


@pytest.mark.parametrize(("row", "dims", "process"), every_and_at_two(DETERMINISTIC))
def test_order(row: str, dims: int, process: str, start: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> None:
    order = ROWS[row].order
    assert order is not None
    found = errors(row, process, dims, start)
    measured = -slope([float(n) for n in steps_of(row)], found)
    assert measured >= order - 0.25, (measured, found)
    assert found[-1] < 0.1, found


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE", "EDM"])
@pytest.mark.parametrize(
    ("method", "variable"),
    [
        ("per_sample", "log_angle"),
        ("per_sample", "t"),
        ("per_sample", "logsnr"),
        ("rk45", "logsnr_scaled"),
        ("dopri5", "t"),
    ],
)
@pytest.mark.parametrize("dims", MIXTURES)
def test_adaptive_flow_keeps_its_tolerance(
    dims: int, method: str, variable: str, process: str, start: dict[tuple[str, int], tuple[Tensor, Tensor]]
) -> None:
    """At rtol = atol = 1e-6 every coordinate is within 1e-4 of the exact flow, at the scale of the data."""
    x, exact = start[process, dims]
    out = sd.sample(
        MIXTURES[dims].denoiser(),
        grid=grid_of(process, 2),
        x=x,
        sampler="ode",
        finish="none",
        method=method,
        variable=variable,
        rtol=1e-6,
        atol=1e-6,
    )
    assert float((out.x - exact).abs().max()) < 1e-4


# --- stochastic samplers ------------------------------------------------------------------------------------


class Impulses:
    """In the place of the normal draws: the k-th is all ones for row k of the batch, and zero for all others."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        self.draws += 1
        noise = torch.zeros_like(like)
        noise[self.draws] = 1.0
        return noise


def law_of(row: str, process: str, steps: int, gaussian: sd.GaussianMixture) -> tuple[Tensor, Tensor]:
    """Mean and variance [d] of a sampler's result, started from the exact marginal of a single Gaussian."""
    grid = grid_of(process, steps + 1)
    draws = 2 * steps + 3
    start, impulses = grid.nodes[0].kernel, Impulses()
    mean = start.alpha * gaussian.means
    std = (start.alpha**2 * gaussian.stds**2 + start.variance).sqrt()
    # Row 0 has no noise at all; the last row starts one standard deviation off.
    x = torch.cat([mean.expand(draws, -1), mean + std])
    options = {**ROWS[row].shrinking(steps), "noise": impulses}
    out = run(row, quick_denoiser(gaussian), grid=grid, x=x, finish="none", **options).x
    assert 0 < impulses.draws < draws
    return out[0], (out[1:] - out[0]).square().sum(0)


GAUSSIANS = {dims: sd.GaussianMixture(mixture.means[:1], mixture.stds[:1], [1.0]) for dims, mixture in MIXTURES.items()}


@pytest.mark.parametrize(("row", "dims", "process"), every_and_at_two(STOCHASTIC))
def test_weak_order_on_a_gaussian(row: str, dims: int, process: str) -> None:
    gaussian, sizes = GAUSSIANS[dims], (100, 400)
    last = grid_of(process, 2).nodes[-1].kernel
    truth = last.alpha * gaussian.means[0], last.alpha**2 * gaussian.stds[0] ** 2 + last.variance
    found = []
    for steps in sizes:
        mean, variance = law_of(row, process, steps, gaussian)
        found.append((float((mean - truth[0]).norm()), float((variance - truth[1]).norm())))
    for errors in zip(*found, strict=True):
        # An error at rounding level (a method that is exact for a Gaussian's mean) has no order to measure.
        measured = -slope([float(n) for n in sizes], list(errors)) if errors[0] > 1e-9 else float("inf")
        assert measured >= 0.8, (measured, found)
        assert errors[-1] < 0.1, found


class Paths:
    """Normal draws [steps, draws a step, B, d] of the finest grid, and for coarser ones their sums.

    A step that covers r of the finest ones takes sum_k n_k / sqrt(r), which is again a standard normal: the samples
    of a coarse and of a fine grid follow the same noise, so that the difference of their moments is that of the
    sampler and hardly that of the draws.
    """

    def __init__(self, noise: Tensor) -> None:
        self.noise = list(noise)

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        return self.noise.pop(0)


WEAK_SIZES = (40, 80, 160)


@cache
def shared_noise(count: int, dims: int, draws: int) -> dict[int, Tensor]:
    """Number of steps -> normal draws [(steps + 1) draws, count, dims], those of coarse grids sums of the finest's."""
    finest = WEAK_SIZES[-1]
    fine = torch.randn(finest + 1, draws, count, dims, generator=generator(23), dtype=torch.float64)
    found = {}
    for steps in WEAK_SIZES:
        ratio = finest // steps
        whole = torch.cat([fine[:finest], fine[-1:].expand(ratio, -1, -1, -1)])
        found[steps] = (whole.unflatten(0, (-1, ratio)).sum(1) / ratio**0.5).flatten(0, 1)
    return found


ON_A_MIXTURE = [
    (row, dims, list(GRIDS)[(index + shift) % len(GRIDS)])
    for index, row in enumerate(STOCHASTIC)
    for shift, dims in ((0, 2), (2, 12))
]
"""Each row under two processes, in turn: on a Gaussian all of them are seen."""


@pytest.mark.parametrize(("row", "dims", "process"), ON_A_MIXTURE)
def test_weak_order_on_a_mixture(row: str, dims: int, process: str) -> None:
    """The moments of n and 2n steps differ by e (1 - 2^-p), those of 2n and 4n by 2^-p of it; p >= 0.8.

    What the two halves of the samples disagree about is left to the draws. That the limit is the truth is the moment
    test's (test_moments.py).
    """
    mixture, count = MIXTURES[dims], {2: 6000, 12: 3000}[dims]
    noise = shared_noise(count, dims, 2 if row.startswith("pc") else 1)
    x0 = mixture.sample(count, generator=generator(21))
    first = torch.randn(x0.shape, generator=generator(22), dtype=torch.float64)
    moments = []
    for steps in WEAK_SIZES:
        grid, paths = grid_of(process, steps + 1), Paths(noise[steps])
        x, options = grid.nodes[0].kernel.perturb(x0, first), {**ROWS[row].shrinking(steps), "noise": paths}
        out = run(row, quick_denoiser(mixture), grid=grid, x=x, finish="none", **options).x
        halves = [torch.cat([half.mean(0), half.T.cov().flatten()]) for half in out.chunk(2)]
        moments.append(torch.stack(halves))
    (coarse, _), (finer, unsure) = (
        (float(change.mean(0).norm()), float(change.diff(dim=0).norm()) / 2.0)
        for change in (a - b for a, b in pairwise(moments))
    )
    assert finer <= 2.0**-0.8 * coarse + unsure, (coarse, finer, unsure)


@pytest.mark.parametrize("process", GRIDS)
@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if row.flow])
def test_without_noise_it_is_its_ode(row: str, process: str) -> None:
    """With the options that take its noise a sampler is its ODE, step for step; euler_maruyama as ito is."""
    assert ROWS[row].flow is not None
    other, silent = ROWS[row].flow
    x = PROCESSES[process].prior_sample((4, 2), generator=generator(3), dtype=torch.float64)
    grid, denoiser = sd.make_grid(PROCESSES[process], 20, GRIDS[process].kind), quick_denoiser(MIXTURES[2])
    without = (
        run("ito", denoiser, grid=grid, x=x, stochasticity=0.0)
        if not silent
        else run(row, denoiser, grid=grid, x=x, **silent)
    )
    torch.testing.assert_close(without.x, run(other, denoiser, grid=grid, x=x).x, rtol=1e-12, atol=1e-12)
