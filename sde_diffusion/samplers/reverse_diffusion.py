"""Reverse diffusion: the reverse SDE discretised as the forward process is (Song et al. 2021, Appendix E).

The forward transition from the next (less noisy) node is x = a x_next + sqrt(v) n, that is a step with drift part
(a - 1) x and noise sqrt(v). Reversed with both parts taken at the present x,

    x_next = x - (a - 1) x + v score + sqrt(v) n = (2 - a) x + v score + sqrt(v) n.

a and v come from the exact transition of the two kernels: sqrt(1 - beta) and beta on DDPM's levels,
1 and sigma_i^2 - sigma_{i-1}^2 on NCSN's, and well defined for every other process (where the original code takes an
Euler-Maruyama step for sub-VP).
"""

from __future__ import annotations

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.kernel import match
from sde_diffusion.noise import Generators
from sde_diffusion.prediction import score_from_x0
from sde_diffusion.samplers.march import OnStep, march
from sde_diffusion.sde import SDE


def reverse_diffusion_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor) -> Tensor:
    """(2 - a) x + v score + sqrt(v) noise for the transition N(a x_next, v), [B, *D]."""
    transition = now.kernel.after(next.kernel)
    score = score_from_x0(x0_hat, x, now.kernel)
    drift = match(2.0 - transition.alpha, x) * x + match(transition.variance, x) * score
    return drift + match(transition.sigma, x) * noise


def reverse_diffusion(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The reverse SDE in the forward process's own discretisation; one evaluation a step, stochastic. x: [B, *D]."""
    return march(reverse_diffusion_step, denoiser, x, grid, generator, on_step)
