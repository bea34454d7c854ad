"""Reverse diffusion: the reverse SDE discretised as the forward process is (Song et al. 2021, Appendix E).

The forward transition from the next (less noisy) node is x = a x_next + sqrt(v) n, that is a step with drift part
(a - 1) x and noise sqrt(v). Reversed with both parts taken at the present x,

    x_next = x - (a - 1) x + v score + sqrt(v) n = (2 - a) x + v score + sqrt(v) n,

with score = (alpha x0_hat - x) / sigma^2.
a and v come from the exact transition of the two kernels: sqrt(1 - beta) and beta on DDPM's levels,
1 and sigma_i^2 - sigma_{i-1}^2 on NCSN's, and well defined for every other process (where the original code takes an
Euler-Maruyama step for sub-VP).
"""

from __future__ import annotations

from torch import Tensor

from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.march import Coefficients, OnStep, march


def reverse_diffusion_row(sde: SDE, now: Node, next: Node) -> Coefficients:
    """(2 - a) x + v (alpha x0_hat - x) / sigma^2 + sqrt(v) n."""
    transition = now.kernel.after(next.kernel)
    pull = transition.variance / now.kernel.variance
    return 2.0 - transition.alpha - pull, pull * now.kernel.alpha, transition.sigma


def reverse_diffusion(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
) -> Tensor:
    """The reverse SDE in the forward process's own discretisation; one evaluation a step, stochastic. x: [B, *D]."""
    return march(reverse_diffusion_row, denoiser, x, grid, noise, on_step)
