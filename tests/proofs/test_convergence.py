"""Order of convergence: deterministic samplers against the exact probability flow.

The exact flow is the eighth-order solver at a tolerance of 1e-11, from the same x at t = 1 to the grid's last
node, with the closed-form denoiser. A sampler of order p has an error proportional to h^p on any smooth
family of grids.

The grid of each process is one on which all steps contribute alike, so that the slope is that of the method:

    VPSDE, SubVPSDE, RectifiedFlow   uniform, down to t = 0.02: at VP's t = 0 sigma' is infinite, and on equal
    steps
                                     the last one would hide the rest
    CosineVPSDE                      the same from t = 0.98, below the kink at t = 0.998 where its rate is
    held VESDE                            uniform, which is logsnr: sigma is geometric in t
    EDM                              karras, the grid of its paper: equal steps of 0.1 to 1 in sigma would
    jump over
                                     the data in the last one

Between the basins of two modes the flow amplifies any error without bound, which says nothing of the method,
so of 64 starts the 32 are kept to whose perturbation the flow is least sensitive.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from tests.proofs.cases import MIXTURES, PROCESSES, SAMPLERS, generator, quick_denoiser, slope

STEPS = (64, 128, 256, 512)
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
    "CosineVPSDE": GridRow(t_end=0.02, t_start=0.98),
    "EDM": GridRow(kind="karras"),
    "RectifiedFlow": GridRow(t_end=0.02),
}
DETERMINISTIC = [name for name, row in SAMPLERS.items() if row.order is not None]


def grid_of(process: str, steps: int) -> sd.TimeGrid:
    row = GRIDS[process]
    grid = sd.make_grid(PROCESSES[process], steps, row.kind, t_end=row.t_end)
    if row.t_start == 1.0:
        return grid
    last = float(grid.times[-1])
    return sd.TimeGrid(grid.sde, last + (grid.times - last) * (row.t_start - last) / (1.0 - last))


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


def errors(sampler: str, process: str, dims: int, start: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> list[float]:
    x, exact = start[process, dims]
    found = []
    for steps in STEPS:
        out = sd.sample(
            quick_denoiser(MIXTURES[dims]),
            grid=grid_of(process, steps + 1),
            x=x,
            sampler=sampler,
            finish="none",
            **SAMPLERS[sampler].options,
        )
        found.append(float((out.x - exact).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("process", GRIDS)
@pytest.mark.parametrize("dims", MIXTURES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_order(sampler: str, dims: int, process: str, start: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> None:
    order = SAMPLERS[sampler].order
    assert order is not None
    found = errors(sampler, process, dims, start)
    measured = -slope([float(n) for n in STEPS], found)
    assert measured >= order - 0.25, (measured, found)
    assert found[-1] < 0.1, found


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE"])
@pytest.mark.parametrize("method", ["per_sample", "rk45", "dopri5"])
@pytest.mark.parametrize("dims", MIXTURES)
def test_adaptive_flow_keeps_its_tolerance(
    dims: int, method: str, process: str, start: dict[tuple[str, int], tuple[Tensor, Tensor]]
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
        rtol=1e-6,
        atol=1e-6,
    )
    assert float((out.x - exact).abs().max()) < 1e-4
