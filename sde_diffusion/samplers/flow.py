"""Samplers of the probability-flow ODE dx/dt = u(x, t) in the time of the grid (Song et al. 2021, equation 13).

    euler   x_next = x + dt u(x, t)                                                    order 1
    heun    x_next = x + dt/2 (u(x, t) + u(x + dt u(x, t), t_next))                    order 2
    ode     an adaptive solver between the ends of the grid, to given tolerances

Under EDM's process, whose sigma is linear in t, these are the Euler and Heun steps of Karras et al. (2022),
Algorithm 1; the driver's last step, to x0_hat, is their Euler step to sigma = 0.
"""

from __future__ import annotations

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.kernel import match
from sde_diffusion.noise import Generators
from sde_diffusion.ode import integrate
from sde_diffusion.samplers.march import OnStep, march_flow
from sde_diffusion.sde import SDE


def euler_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
    """x + dt u, [B, *D]."""
    return x + match(next.t - now.t, x) * sde.velocity(x, x0_hat, now.t)


def euler(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler's method on the flow; one evaluation a step, deterministic, order 1. x: [B, *D]."""
    return march_flow(euler_step, denoiser, x, grid, on_step)


def heun(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Heun's method on the flow; two evaluations a step, deterministic, order 2. x: [B, *D]."""

    def heun_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
        dt = match(next.t - now.t, x)
        slope = sde.velocity(x, x0_hat, now.t)
        ahead = x + dt * slope
        return x + 0.5 * dt * (slope + sde.velocity(ahead, denoiser(ahead, next.kernel), next.t))

    return march_flow(heun_step, denoiser, x, grid, on_step)


def ode(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
    method: str = "per_sample",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 100_000,
) -> Tensor:
    """The flow solved adaptively between the ends of the grid; as many evaluations as the tolerances need.

    method: a key of `sde_diffusion.ode.SOLVERS`. The solver has no nodes, so on_step sees the last one only.
    """
    sde = grid.sde

    def field(t: Tensor, x: Tensor) -> Tensor:
        return sde.velocity(x, denoiser(x, sde.kernel(t)), t)

    ends = grid.times[0], grid.times[-1]
    return integrate(field, x, *ends, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe)
