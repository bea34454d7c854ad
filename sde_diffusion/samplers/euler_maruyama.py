"""Euler-Maruyama on the reverse-time SDE (Song et al. 2021, equation 6).

Backwards in time the process solves dx = (f x - g^2 score) dt + g dw, with dt < 0. One step over dt = t_next - t,

    x_next = x + dt (f_t x - g_t^2 score) + g_t sqrt(-dt) n,          n ~ N(0, I),

is weakly of order one.
"""

from __future__ import annotations

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.kernel import match
from sde_diffusion.noise import Generators
from sde_diffusion.samplers.march import OnStep, march
from sde_diffusion.sde import SDE


def euler_maruyama_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor) -> Tensor:
    """x + dt (f x - g^2 score) + g sqrt(-dt) noise, [B, *D]."""
    dt = next.t - now.t
    std = sde.diffusion(now.t) * (-dt).sqrt()
    return x + match(dt, x) * sde.reverse_drift(x, x0_hat, now.t) + match(std, x) * noise


def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE; one evaluation a step, stochastic, weak order 1. x: [B, *D]."""
    return march(euler_maruyama_step, denoiser, x, grid, generator, on_step)
