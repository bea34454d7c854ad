"""The law of a sampler's step: what a sampler does with given noise is mean + sqrt(variance) n, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, generator, quick_denoiser, run

WITH_RULE = {name: row for name, row in ROWS.items() if sd.samplers.SAMPLER_TABLE[name.split()[0]].rule}


def refused(row: str) -> str:
    """Why a row of options has no transition of one evaluation; "" where it has."""
    sampler, options = row.split()[0], ROWS[row].options
    if sampler == "unipc" and options.get("corrector", True):
        return "corrector=False"
    return "start='ramp'" if options.get("start") == "runge_kutta" else ""


class Walk:
    """What a sampler visits, and the noise that it draws."""

    def __init__(self) -> None:
        self.visits: list[tuple[Tensor, Tensor]] = []
        self.drawn: list[Tensor] = []
        self.own = generator(3)

    def __call__(self, index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        self.visits.append((x, x0_hat))

    def noise(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        self.drawn.append(torch.randn(like.shape, generator=self.own, dtype=like.dtype))
        return self.drawn[-1]


LAWS = [(row, list(PROCESSES)[(i + shift) % len(PROCESSES)]) for i, row in enumerate(WITH_RULE) for shift in (0, 3)]


@pytest.mark.parametrize(("row", "process"), LAWS)
def test_a_step_is_its_mean_and_its_noise(row: str, process: str) -> None:
    sde, options = PROCESSES[process], ROWS[row].options
    grid = sd.make_grid(sde, 8, {"EDM": "karras"}.get(process, "uniform"))
    sampler = row.split()[0]
    if why := refused(row):
        with pytest.raises(sd.UserError, match=why):
            sd.transition(sampler, grid, **options)
        return
    law, walk = sd.transition(sampler, grid, **options), Walk()
    start = sde.prior_sample((5, 2), generator=generator(1), dtype=torch.float64)
    run(row, quick_denoiser(MIXTURES[2]), grid=grid, x=start, noise=walk.noise, on_step=walk)
    assert len(law) == 7 and len(walk.visits) == 8
    for step in range(7):
        (x, x0_hat), (after, _) = walk.visits[step : step + 2]
        expected = law.mean(step, x, x0_hat, walk.visits[:step][::-1])
        variance = law.variance(step)
        if walk.drawn:
            assert float(variance) > 0.0 or step == 6
            expected = expected + variance.sqrt() * walk.drawn[step]
        else:
            assert float(variance) == 0.0
        torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)


def test_a_learned_variance_is_that_of_the_network() -> None:
    """Between the posterior's and beta's in logarithms, at a fraction of its own for every number."""
    mixture, sde = MIXTURES[2], sd.DiscreteVP.linear(100)

    class Learned:
        def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
            return quick_denoiser(mixture)(x, kernel)

        def moments(self, x: Tensor, kernel: sd.Kernel) -> tuple[Tensor, Tensor]:
            return self(x, kernel), torch.sigmoid(x)

    grid, walk = sd.make_grid(sde, 6, "strided"), Walk()
    law = sd.transition("ddpm", grid, variance="learned")
    start = sde.prior_sample((5, 2), generator=generator(1), dtype=torch.float64)
    sd.sample(Learned(), grid=grid, x=start, sampler="ddpm", variance="learned", noise=walk.noise, on_step=walk)
    ends = [sd.transition("ddpm", grid, variance=name) for name in ("posterior", "beta")]
    for step in range(5):
        (x, x0_hat), (after, _) = walk.visits[step : step + 2]
        variance = law.variance(step, torch.sigmoid(x))
        expected = law.mean(step, x, x0_hat) + variance.sqrt() * walk.drawn[step]
        torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
        low, high = (float(end.variance(step)) for end in ends)
        torch.testing.assert_close(law.variance(step, torch.zeros(1)), torch.tensor([low]), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(law.variance(step, torch.ones(1)), torch.tensor([high]), rtol=1e-6, atol=0.0)
    with pytest.raises(sd.UserError, match="give the fraction that its `moments` returns"):
        law.variance(0)


def test_what_has_no_transition_says_why() -> None:
    grid = sd.make_grid(sd.VPSDE(), 5)
    for sampler, entry in sd.samplers.SAMPLER_TABLE.items():
        if entry.rule is None:
            with pytest.raises(sd.UserError, match=f"{sampler} has no transition given one x0_hat.*choose one of"):
                sd.transition(sampler, grid)
    with pytest.raises(TypeError, match="has no option 'etta'; did you mean 'eta'"):
        sd.transition("ddim", grid, etta=1.0)
    with pytest.raises(sd.UserError, match=r"eta must lie in \[0, 1\]"):
        sd.transition("ddim", grid, eta=2.0)
    law, x = sd.transition("dpmpp_2m", grid), torch.zeros(1, 2)
    with pytest.raises(sd.UserError, match="step 2 also looks at 1 node before"):
        law.mean(2, x, x)
