"""Time travel: the evaluations, the nodes that are visited, and the law that it leaves as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from tests.proofs.cases import MIXTURES, PROCESSES, generator, quick_denoiser, run
from tests.proofs.test_moments import deviation

DENOISER = quick_denoiser(MIXTURES[2])
MEMORYLESS = (
    "euler_maruyama",
    "reverse_diffusion",
    "ancestral",
    "ddpm",
    "ddim eta=0.7",
    "ito",
    "euler",
    "ddim",
    "heun",
)


@pytest.mark.parametrize("row", MEMORYLESS)
def test_once_is_as_without(row: str) -> None:
    grid = sd.make_grid(sd.VPSDE(), 12)
    without, once = (
        run(row, DENOISER, (3, 2), grid, generator=generator(0), dtype=torch.float64, travel=travel)
        for travel in (None, sd.Travel(5, 1))
    )
    assert torch.equal(without.x, once.x) and once.nfe == without.nfe


@pytest.mark.parametrize(("length", "repeats"), [(1, 3), (4, 2), (5, 3), (20, 2)])
def test_evaluations_and_visits(length: int, repeats: int) -> None:
    """Each of the n - 1 steps is taken `repeats` times, and the last evaluation once."""
    grid, visits = sd.make_grid(sd.VPSDE(), 12), list[int]()

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        assert float(node.t) == float(grid.times[index])
        visits.append(index)

    travel = sd.Travel(length, repeats)
    out = sd.sample(DENOISER, (2, 2), grid, sampler="ddim", travel=travel, generator=generator(0), on_step=on_step)
    pieces = [list(range(first, min(first + length, 11))) for first in range(0, 11, length)]
    assert visits == [i for piece in pieces for _ in range(repeats) for i in piece] + [11]
    assert out.nfe == 11 * repeats + 1


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE", "EDM", "RectifiedFlow", "DiscreteVP"])
@pytest.mark.parametrize("row", ["ddim", "dpmpp_2m_sde"])
def test_the_law_stays(row: str, process: str) -> None:
    """Mean and covariance of the mixture, within the sampling error, after walking back and forth: a wrong factor in
    the way up would show in each of its pieces."""
    mixture, sde = MIXTURES[2], PROCESSES[process]
    steps = 200 if row == "ddim" else 100
    grid = sd.make_grid(sde, steps, {"EDM": "karras", "RectifiedFlow": "logsnr"}.get(process, "uniform"))
    out = run(
        row,
        DENOISER,
        (2000, 2),
        grid,
        generator=generator(7),
        dtype=torch.float64,
        travel=sd.Travel(steps // 4, 2),
    )
    found = deviation(out.x, mixture, excess=0.03)
    assert found.mean < 4.0 and found.trace < 4.0 and found.entry < 5.0, found


def test_the_way_up_is_the_forward_transition() -> None:
    """On one piece of one step of DDIM, twice: down, up with the noise of the source, and down again."""
    sde = sd.VPSDE()
    grid = sd.TimeGrid(sde, torch.tensor([0.8, 0.4], dtype=torch.float64))
    x, n = (torch.randn(4, 2, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    out = sd.sample(DENOISER, grid=grid, x=x, travel=sd.Travel(1, 2), noise=[n], finish="none").x

    def down(y: Tensor) -> Tensor:
        return sd.sample(DENOISER, grid=grid, x=y, finish="none").x

    high, low = (node.kernel for node in grid.nodes)
    a = high.alpha / low.alpha
    up = a * down(x) + (high.variance - a**2 * low.variance).sqrt() * n
    torch.testing.assert_close(out, down(up), rtol=1e-12, atol=1e-12)


def test_what_cannot_travel_is_said() -> None:
    grid = sd.make_grid(sd.VPSDE(), 5)
    for wrong in ({"length": 0}, {"repeats": 0}, {"repeats": 1.5}, {"length": True}):
        with pytest.raises(sd.UserError, match="of Travel must be a whole number of at least 1"):
            sd.Travel(**wrong)  # type: ignore[arg-type]
    with pytest.raises(sd.UserError, match="a Brownian path has one value at each level: choose noise='white'"):
        sd.sample(DENOISER, (1, 2), grid, travel=sd.Travel(), noise="brownian", generator=generator(0))
