"""The transition of every sampler whose step is a row: what it answers for, the sampler does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, generator, quick_denoiser, run

DENOISER = quick_denoiser(MIXTURES[2])
MEMORYLESS = (
    *(
        "euler",
        "euler_maruyama",
        "reverse_diffusion",
        "ancestral",
        "ito",
        "ito flow",
        "ito beyond",
        "ddpm",
        "ddpm beta",
    ),
    *("ddim", "ddim eta=0.7", "heun stages=1", "pc euler_maruyama"),
)
MULTISTEP = (
    *("dpmpp_2m", "dpmpp_2m order=1", "dpmpp_2m exact", "dpmpp_2m_sde", "dpmpp_2m_sde exact", "dpmpp_3m ramp"),
    *("deis order=1", "deis order=2", "lms order=2"),
)
REFUSED = {
    **dict.fromkeys(("pc", "pc langevin", "pc ddim", "pc carry"), "choose corrector_steps=0"),
    **dict.fromkeys(("heun", "heun churn"), "choose stages=1"),
    **dict.fromkeys(("unipc", "unipc order=1", "unipc b1", "unipc eps", "unipc order=3"), "choose corrector=False"),
    **dict.fromkeys(
        ("dpmpp_3m", "unipc predictor", "deis", "deis order=4", "deis t", "lms", "lms order=3"), "choose start='ramp'"
    ),
    **dict.fromkeys(
        ("annealed_langevin", "dpmpp_2s", "dpmpp_2s eta=1", "ode", "adaptive_sde"),
        "has no transition given one x0_hat.*choose one of .*, ddim, ",
    ),
}
"""Row -> what is said of it."""
HISTORIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{row: (row.split()[0], dict(ROWS[row].options)) for row in MULTISTEP},
    "dpmpp_2m_sde final": ("dpmpp_2m_sde", {"final_order": 1}),
    "unipc predictor ramp": ("unipc", {"corrector": False, "order": 3}),
    "unipc predictor eps": ("unipc", {"corrector": False, "output": "eps"}),
    "deis t ramp": ("deis", {"variable": "t", "order": 3}),
    "lms ramp": ("lms", {}),
}
"""Multistep methods: the sampler and its options."""


def transition_of(row: str, grid: sd.TimeGrid) -> sd.Transition:
    return sd.transition(row.split()[0], grid, **ROWS[row].options)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def zero_and_one(step: int, now: Node, next: Node, like: Tensor) -> Tensor:
    """In the place of the normal draws: zero for the first half of the batch, and one for the second."""
    return torch.cat(
        [torch.zeros_like(half) if not i else torch.ones_like(half) for i, half in enumerate(like.chunk(2))]
    )


class Learned:
    """The mixture's denoiser with a fraction of the variance that differs from element to element."""

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        return DENOISER(x, kernel)

    def moments(self, x: Tensor, kernel: sd.Kernel) -> tuple[Tensor, Tensor]:
        return self(x, kernel), torch.sigmoid(x)


def test_every_row_is_here() -> None:
    assert {*MEMORYLESS, *MULTISTEP, *REFUSED} == set(ROWS)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("row", MEMORYLESS)
def test_one_step_has_this_mean_and_variance(row: str, process: str) -> None:
    """From a fixed x: the step without noise is the mean, and noise of one adds the square root of the variance."""
    grid = sd.make_grid(PROCESSES[process], 6)
    own, x = transition_of(row, grid), torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    for i in range(grid.steps - 1):
        part = sd.TimeGrid(grid.sde, grid.times[i : i + 2])
        mean, shifted = run(row, DENOISER, grid=part, x=torch.cat([x, x]), noise=zero_and_one, finish="none").x.chunk(2)
        close(own.mean(i, x, DENOISER(x, grid.nodes[i].kernel)), mean)
        variance = own.variance(i)
        assert variance.shape == () and variance.dtype == torch.float64
        assert (float(variance) == 0.0) == ROWS[row].deterministic
        close((shifted - mean).square(), variance.expand_as(x))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_learned_variance_comes_from_the_network(process: str) -> None:
    grid, denoiser = sd.make_grid(PROCESSES[process], 6), Learned()
    own, x = sd.transition("ddpm", grid, variance="learned"), torch.randn(3, 2, generator=generator(1)).double()
    for i, (now, _) in enumerate(grid.pairs()):
        part = sd.TimeGrid(grid.sde, grid.times[i : i + 2])
        options = {"sampler": "ddpm", "variance": "learned", "noise": zero_and_one, "finish": "none"}
        mean, shifted = sd.sample(denoiser, grid=part, x=torch.cat([x, x]), **options).x.chunk(2)
        x0_hat, fraction = denoiser.moments(x, now.kernel)
        close(own.mean(i, x, x0_hat), mean)
        close(own.variance(i, fraction), (shifted - mean).square())
    with pytest.raises(sd.UserError, match="give the fraction that its `moments` returns"):
        own.variance(0)


def test_variances_are_those_of_the_papers() -> None:
    """Ho et al. 2020, equation 7; Nichol and Dhariwal 2021, equation 15; g^2 |dt| of Song et al. 2021."""
    process = PROCESSES["DiscreteVP"]
    grid = sd.TimeGrid(process, process.times.flip(0)[400:404])  # levels 599 to 596
    alphas_cumprod = grid.levels.kernel.alpha.square()
    beta = 1.0 - alphas_cumprod[0] / alphas_cumprod[1]
    posterior = (1.0 - alphas_cumprod[1]) / (1.0 - alphas_cumprod[0]) * beta
    torch.testing.assert_close(sd.transition("ddpm", grid).variance(0), posterior, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(sd.transition("ancestral", grid).variance(0), beta, rtol=1e-9, atol=0.0)
    fraction = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    learned = (fraction * beta.log() + (1.0 - fraction) * posterior.log()).exp()
    torch.testing.assert_close(
        sd.transition("ddpm", grid, variance="learned").variance(0, fraction), learned, rtol=1e-9, atol=0.0
    )
    sde = sd.VESDE()
    grid = sd.make_grid(sde, 11)
    dt, g = grid.times[3] - grid.times[4], sde.diffusion(grid.times[3])
    close(sd.transition("euler_maruyama", grid).variance(3), g**2 * dt)
    close(sd.transition("ito", grid, stochasticity=0.5).variance(3), 0.25 * g**2 * dt)


@pytest.mark.parametrize("process", ["VPSDE", "EDM", "RectifiedFlow"])
@pytest.mark.parametrize("row", HISTORIES)
def test_multistep_given_what_was_so_far(row: str, process: str) -> None:
    """Every step of a walk, from x and x0_hat at the nodes before."""
    sampler, options = HISTORIES[row]
    grid = sd.make_grid(PROCESSES[process], 7, "logsnr")
    own, visited, drawn = sd.transition(sampler, grid, **options), [], []

    def source(step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        drawn.append(torch.randn(like.shape, generator=generator(step), dtype=like.dtype))
        return drawn[-1]

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        visited.append((x, x0_hat))

    x = torch.randn(3, 2, generator=generator(1), dtype=torch.float64) * grid.nodes[0].kernel.sigma
    last = sd.sample(
        DENOISER, grid=grid, x=x, sampler=sampler, noise=source, on_step=on_step, finish="none", **options
    ).x
    assert len(own) == len(visited) == grid.steps - 1 and len(drawn) in (0, grid.steps - 1)
    for i, ((x, x0_hat), found) in enumerate(zip(visited, [*(one[0] for one in visited[1:]), last])):
        mean, variance = own.mean(i, x, x0_hat, visited[:i][::-1]), own.variance(i)
        assert (float(variance) > 0.0) == bool(drawn)
        torch.testing.assert_close(found, mean + variance.sqrt() * drawn[i] if drawn else mean, rtol=1e-11, atol=1e-11)


def test_too_short_a_history() -> None:
    own, x = sd.transition("dpmpp_3m", sd.make_grid(sd.VPSDE(), 7)), torch.zeros(2, 2)
    with pytest.raises(sd.UserError, match=r"step 4 also looks at 2 nodes before.*and has 1"):
        own.mean(4, x, x, [(x, x)])
    assert own.mean(0, x, x).shape == x.shape


@pytest.mark.parametrize("row", REFUSED)
def test_no_transition_in_words(row: str) -> None:
    with pytest.raises(sd.UserError, match=REFUSED[row]):
        transition_of(row, sd.make_grid(sd.VPSDE(), 7))


def test_churn_and_moves_without_the_network_have_none() -> None:
    grid = sd.make_grid(sd.VPSDE(), 7)
    with pytest.raises(sd.UserError, match="choose churn=0"):
        sd.transition("heun", grid, stages=1, churn=3.0)
    with pytest.raises(sd.UserError, match="unknown predictor 'carry'"):
        sd.transition("pc", grid, predictor="carry", corrector_steps=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "ode"])
def test_options_are_refused_as_sample_does(sampler: str) -> None:
    grid, sentences = sd.make_grid(sd.VPSDE(), 7), []
    for call in (
        lambda: sd.transition(sampler, grid, etaa=1.0),
        lambda: sd.sample(DENOISER, (2, 2), grid, sampler=sampler, etaa=1.0),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    with pytest.raises(sd.UserError, match="eta must lie in"):
        sd.transition("ddim", grid, eta=2.0)
    with pytest.raises(sd.UserError, match="did you mean 'ddim'"):
        sd.transition("dimm", grid)


def test_log_prob_is_that_of_the_gaussian() -> None:
    grid = sd.make_grid(sd.VPSDE(), 7)
    x, x0_hat, x_next, fraction = torch.randn(4, 3, 2, 2, generator=generator(2), dtype=torch.float64)
    for options, told in (({}, None), ({"variance": "learned"}, fraction)):
        own = sd.transition("ddpm", grid, **options)
        normal = torch.distributions.Normal(own.mean(2, x, x0_hat), own.variance(2, told).sqrt())
        close(own.log_prob(2, x_next, x, x0_hat, fraction=told), normal.log_prob(x_next).flatten(1).sum(1))
    with pytest.raises(sd.UserError, match="deterministic"):
        sd.transition("ddim", grid).log_prob(2, x_next, x, x0_hat)
