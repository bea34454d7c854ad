"""Euler-Maruyama on the reverse-time SDEs (Song et al. 2021, equation 6).

Backwards in time the process solves dx = (f x - g^2 score) dt + g dw, with dt < 0. It is one of a family,

    dx = (u - s^2/2 g^2 score) dt + s g dw,          u = f x - g^2/2 score,

which all have the same marginals: s = 1 is the time reversal, s = 0 the probability flow, and s > 1 forgets its past
faster (Huang et al. 2021; Zhang and Chen 2023, section 2). The score is linear in x and x0_hat, so that the drift is
p x + q x0_hat, and one step over dt = t_next - t is

    x_next = (1 + dt p) x + dt q x0_hat + s g_t sqrt(-dt) n,          n ~ N(0, I),

weakly of order one.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.march import Coefficients, OneStep, OnStep, march


def euler_row(sde: SDE, now: Node, next: Node) -> Coefficients:
    """x + dt (p x + q x0_hat) on the probability flow."""
    dt, (p, q) = next.t - now.t, sde.flow(now.t)
    return 1.0 + dt * p, dt * q


def euler_maruyama_row(sde: SDE, now: Node, next: Node, *, level: float = 1.0) -> Coefficients:
    """x + dt (p x + q x0_hat) + level g sqrt(-dt) n on a reverse SDE."""
    dt, (p, q) = next.t - now.t, sde.reverse(now.t, level)
    return 1.0 + dt * p, dt * q, level * sde.diffusion(now.t) * (-dt).sqrt()


def ito_rule(*, stochasticity: float) -> OneStep:
    """The rule of `ito`."""
    if not stochasticity >= 0:
        raise UserError(f"stochasticity must be 0 (the flow) or more, 1 being the reverse SDE, got {stochasticity}")
    return OneStep(partial(euler_maruyama_row, level=stochasticity) if stochasticity else euler_row)


def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE; one evaluation a step, stochastic, weak order 1. x: [B, *D]."""
    return march(euler_maruyama_row, denoiser, x, grid, noise, on_step)


def ito(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    stochasticity: float = 0.5,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE with `stochasticity` times its noise; one evaluation a step, weak order 1.

    stochasticity: 0 is `euler` and draws no noise, 1 is `euler_maruyama`; there is no upper bound. x: [B, *D].
    """
    return march(ito_rule(stochasticity=stochasticity).row, denoiser, x, grid, noise, on_step)
