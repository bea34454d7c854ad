"""Time travel: evaluations, what is walked, and the law of a Gaussian, which the way up and down leaves as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from sde_diffusion.core.kernel import combine
from sde_diffusion.core.noise import randn
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, generator, quick_denoiser, run
from tests.proofs.test_convergence import GAUSSIANS, Impulses
from tests.proofs.test_moments import deviation
from tests.proofs.test_transitions import MEMORYLESS

DENOISER = quick_denoiser(MIXTURES[2])
GAUSSIAN = GAUSSIANS[2]
PARTS = ((0, 3), (3, 6), (6, 7))
"""First and last node of the segments of Travel(3, ...) on a grid of 8 nodes."""


def start(grid: sd.TimeGrid, rows: int = 3) -> Tensor:
    return grid.nodes[0].kernel.sigma * torch.randn(rows, 2, generator=generator(1), dtype=torch.float64)


def grid_of(process: str, steps: int, t_start: float = 1.0) -> sd.TimeGrid:
    return sd.make_grid(PROCESSES[process], steps, t_start=t_start)


@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if row.nfe is not None])
def test_evaluations(row: str) -> None:
    """Each segment costs what its own grid costs, as often as it is walked, and the step to x0_hat one more."""
    grid, nfe = sd.make_grid(sd.VPSDE(), 8, "logsnr"), ROWS[row].nfe
    assert nfe is not None
    for repeats in (1, 2, 3):
        out = run(row, DENOISER, grid=grid, x=start(grid), generator=generator(0), travel=sd.Travel(3, repeats))
        assert out.nfe == repeats * sum(nfe(b - a + 1) - 1 for a, b in PARTS) + 1


@pytest.mark.parametrize("row", MEMORYLESS)
def test_once_is_as_without(row: str) -> None:
    grid = sd.make_grid(sd.VPSDE(), 8, "logsnr")
    without, once = (
        run(row, DENOISER, grid=grid, x=start(grid), generator=generator(0), travel=travel)
        for travel in (None, sd.Travel(3, 1))
    )
    assert torch.equal(without.x, once.x) and once.nfe == without.nfe


def test_a_grid_of_one_node_has_nothing_to_walk_again() -> None:
    """Correctors work at it as without travel; without signal, too."""
    grid = sd.TimeGrid(sd.RectifiedFlow(), torch.ones(1))
    for sampler in ("ddim", "pc"):
        without, with_travel = (
            sd.sample(DENOISER, grid=grid, x=start(grid), sampler=sampler, generator=generator(0), travel=travel)
            for travel in (None, sd.Travel(3, 2))
        )
        assert torch.equal(without.x, with_travel.x) and with_travel.nfe == without.nfe


@pytest.mark.parametrize("process", ["VPSDE", "RectifiedFlow"])
@pytest.mark.parametrize(
    "row", ["ddim", "ddpm", "heun churn", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "pc", "ode", "adaptive_sde"]
)
def test_segments_are_walked_again_from_the_forward_transition(row: str, process: str) -> None:
    """The same bits by hand: the sampler on the segment's nodes, and the transition to its start; nodes as numbered."""
    grid, seen, by_hand = grid_of(process, 8, t_start=0.9), [], []
    options = {"rtol": 0.3, "atol": 0.1} if row == "adaptive_sde" else {}
    out = run(
        row,
        DENOISER,
        grid=grid,
        x=start(grid),
        generator=generator(4),
        travel=sd.Travel(3, 3),
        on_step=lambda index, node, x, x0_hat: seen.append((index, x)),
        **options,
    )
    x, g, nfe = start(grid), generator(4), 1
    for first, last in PARTS:
        part = sd.TimeGrid(grid.sde, grid.times[first : last + 1])
        up = grid.nodes[first].kernel.after(grid.nodes[last].kernel)
        for walk in range(3):
            if walk:
                x = combine((up.alpha, up.sigma), x, randn(x.shape, g, like=x))
            note = lambda index, node, x, x0_hat, first=first: by_hand.append((first + index, x))  # noqa: E731
            walked = run(row, DENOISER, grid=part, x=x, generator=g, finish="none", on_step=note, **options)
            x, nfe = walked.x, nfe + walked.nfe
    by_hand.append((7, x))
    assert torch.equal(out.x, DENOISER(x, grid.nodes[-1].kernel)) and out.nfe == nfe
    assert [index for index, _ in seen] == [index for index, _ in by_hand]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(seen, by_hand))


class ExactVariance:
    """A Gaussian's denoiser with the fraction for which a DDPM step is a draw from the true p(x' | x).

    Its variance is s_post^2 + c^2 Var(x_0 | x), with s_post^2 that of q(x' | x, x_0), and c x_0 the part of its mean.
    """

    def __init__(self, grid: sd.TimeGrid) -> None:
        self.nodes = grid.nodes

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        return self.moments(x, kernel)[0]

    def moments(self, x: Tensor, kernel: sd.Kernel) -> tuple[Tensor, Tensor]:
        (index,) = (i for i, node in enumerate(self.nodes) if torch.equal(node.kernel.sigma, kernel.sigma))
        x0_hat = quick_denoiser(GAUSSIAN)(x, kernel)
        if index + 1 == len(self.nodes):
            return x0_hat, torch.zeros_like(x)
        below, spread = self.nodes[index + 1].kernel, GAUSSIAN.stds**2
        beta = kernel.after(below).variance
        posterior = beta * below.variance / kernel.variance
        part = below.alpha - kernel.after(below).alpha * below.variance / kernel.variance * kernel.alpha
        true = posterior + part**2 * spread * kernel.variance / (kernel.alpha**2 * spread + kernel.variance)
        return x0_hat, ((true / posterior).log() / (beta / posterior).log()).expand_as(x)


def law_of(denoiser: Any, grid: sd.TimeGrid, draws: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance [d] at the last node from the exact marginal at the first one; see test_convergence."""
    first, impulses = grid.nodes[0].kernel, Impulses()
    mean = first.alpha * GAUSSIAN.means
    x = torch.cat([mean.expand(draws + 1, -1), mean + (first.alpha**2 * GAUSSIAN.stds**2 + first.variance).sqrt()])
    out = sd.sample(denoiser, grid=grid, x=x, noise=impulses, finish="none", **options).x
    assert impulses.draws == draws
    return out[0], (out[1:] - out[0]).square().sum(0)


def truth(grid: sd.TimeGrid) -> tuple[Tensor, Tensor]:
    last = grid.nodes[-1].kernel
    return last.alpha * GAUSSIAN.means[0], last.alpha**2 * GAUSSIAN.stds[0] ** 2 + last.variance


@pytest.mark.parametrize("t_start", [1.0, 0.6])
@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE", "EDM", "RectifiedFlow"])
def test_a_gaussian_keeps_its_law_exactly(process: str, t_start: float) -> None:
    """With a sampler that is exact at any steps, by way of the learned variance, the law after travel is exact too."""
    grid = grid_of(process, 8, t_start)
    own = law_of(ExactVariance(grid), grid, 2 * 7 + 3, sampler="ddpm", variance="learned", travel=sd.Travel(3, 2))
    for found, true in zip(own, truth(grid), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE", "EDM", "RectifiedFlow"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_maruyama", "dpmpp_2m"])
def test_the_law_comes_nearer_with_the_steps(sampler: str, process: str) -> None:
    """Four times the steps in as many segments: 0.4 of the error or less, if it was above rounding, and below 0.05."""
    errors = []
    for steps in (40, 160):
        grid = sd.make_grid(PROCESSES[process], steps + 1, "logsnr", t_start=0.95, t_end=0.05)
        draws = 4 + (2 * steps if sampler == "euler_maruyama" else 0)
        mean, variance = law_of(quick_denoiser(GAUSSIAN), grid, draws, sampler=sampler, travel=sd.Travel(steps // 4, 2))
        own = truth(grid)
        errors.append((float((mean - own[0]).norm()), float((variance / own[1] - 1.0).norm())))
    for coarse, fine in zip(*errors, strict=True):
        assert fine < max(0.4 * coarse, 1e-9) and fine < 0.05, errors


@pytest.mark.parametrize("process", ["VPSDE", "RectifiedFlow"])
@pytest.mark.parametrize("row", ["ddim", "dpmpp_2m_sde"])
def test_the_law_of_a_mixture_stays(row: str, process: str) -> None:
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


def test_noise_that_is_given() -> None:
    """The source is told the way: down from a node to the next, and up from the node with that number."""
    grid, calls = grid_of("VPSDE", 8), []

    def source(step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        calls.append((step, float(now.t), float(next.t)))
        return torch.randn(like.shape, generator=generator(len(calls)), dtype=like.dtype)

    t, travel = grid.times.tolist(), sd.Travel(3, 2)
    expected = []
    for first, last in PARTS:
        down = [(i, t[i], t[i + 1]) for i in range(first, last)]
        expected += [*down, (last, t[last], t[first]), *down]
    by_source = sd.sample(DENOISER, grid=grid, x=start(grid), sampler="ddpm", noise=source, travel=travel).x
    assert calls == expected
    tensors = [torch.randn(3, 2, generator=generator(i + 1), dtype=torch.float64) for i in range(len(calls))]
    given = sd.sample(DENOISER, grid=grid, x=start(grid), sampler="ddpm", noise=tensors, travel=travel).x
    assert torch.equal(given, by_source)
    with pytest.raises(sd.UserError, match="drew noise 3 times, and noise= has 4 tensors"):
        sd.sample(DENOISER, grid=grid, x=start(grid), sampler="ddim", noise=tensors[:4], travel=travel)


def test_samples_are_independent_of_their_batch() -> None:
    grid, x = grid_of("VPSDE", 8), start(grid_of("VPSDE", 8), 4)
    whole, part = (
        sd.sample(
            DENOISER,
            grid=grid,
            x=x[rows.start : rows.stop],
            sampler="ddpm",
            generator=sd.sample_generators(0, rows),
            travel=sd.Travel(3, 2),
        ).x
        for rows in (range(4), range(2, 4))
    )
    torch.testing.assert_close(whole[2:], part, rtol=1e-12, atol=1e-12)


def test_a_brownian_path_leads_down_only() -> None:
    grid = grid_of("VPSDE", 8)
    for sampler in ("ddpm", "ddim"):
        with pytest.raises(sd.UserError, match="a Brownian path has one value at each level: choose noise='white'"):
            sd.sample(DENOISER, grid=grid, x=start(grid), sampler=sampler, noise="brownian", travel=sd.Travel(3, 2))


@pytest.mark.parametrize(
    ("travel", "sentence"),
    [
        (lambda: sd.Travel(0, 2), "length of Travel must be a whole number of at least 1, got 0"),
        (lambda: sd.Travel(2, 0), "repeats of Travel must be a whole number of at least 1, got 0"),
        (lambda: sd.Travel(1.5, 2), "length of Travel must be a whole number"),
        (lambda: sd.Travel(True, 2), "length of Travel must be a whole number"),
        (lambda: (3, 2), r"travel= takes Travel\(length, repeats\), got a tuple"),
    ],
)
def test_travel_that_is_none(travel: Any, sentence: str) -> None:
    with pytest.raises(sd.UserError, match=sentence):
        sd.sample(DENOISER, (2, 2), grid_of("VPSDE", 4), travel=travel())
