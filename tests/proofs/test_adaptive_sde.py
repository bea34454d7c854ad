"""The steps of adaptive_sde, taken by hand: its error is measured beside the states before and after the step."""

from __future__ import annotations

import math

import torch

import sde_diffusion as sd
from tests.proofs.cases import generator

MIXTURE = sd.GaussianMixture([[-1.0, 0.5], [1.0, -0.5]], [0.5, 0.5], [1.0, 1.0])


def test_steps_follow_the_error_beside_the_state_before() -> None:
    """Algorithm 1 of Jolicoeur-Martineau et al. 2021 in plain numbers: delta = max(atol, rtol max(|x'|, |x'_prev|)).

    The end lies before the first refused step, so that noise is drawn once a step; without x'_prev a step is refused.
    """
    sde, rtol, atol, end = sd.VPSDE(), 0.1, 0.01, 0.86
    denoiser, g = MIXTURE.denoiser(), generator(9)
    x = sde.prior_sample((1, 2), generator=generator(0), dtype=torch.float64)
    start = x

    def drift(x: torch.Tensor, t: float) -> torch.Tensor:
        at = torch.tensor(t, dtype=torch.float64)
        kernel, beta = sde.kernel(at), float(sde.diffusion(at)) ** 2
        return -0.5 * beta * x - beta * sd.score(denoiser, x, kernel)

    t, size, before, steps = 1.0, 0.01, x, 0
    while t > end:
        size = min(size, t - end)
        n = math.sqrt(size) * torch.randn(1, 2, generator=g, dtype=torch.float64)
        ahead, now, after = (
            t - size,
            *(float(sde.diffusion(torch.tensor(s, dtype=torch.float64))) for s in (t, t - size)),
        )
        first = x - size * drift(x, t) + now * n
        second = x - size * drift(first, ahead) + after * n
        better = 0.5 * (first + second)
        delta = (rtol * torch.maximum(first.abs(), before.abs())).clamp_min(atol)
        error = float(((first - better) / delta).square().mean().sqrt())
        assert error <= 1.0
        t, x, before, steps = ahead, better, first, steps + 1
        size *= min(10.0, 0.9 * error**-0.9)
    assert steps == 4
    grid = sd.TimeGrid(sde, torch.tensor([1.0, end], dtype=torch.float64))
    options = {"rtol": rtol, "atol": atol, "generator": generator(9), "finish": "none"}
    out = sd.sample(denoiser, grid=grid, x=start, sampler="adaptive_sde", **options)
    assert out.nfe == 2 * steps
    torch.testing.assert_close(out.x, x, rtol=1e-10, atol=1e-10)
