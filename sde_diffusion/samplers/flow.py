"""Samplers of the probability-flow ODE dx/dt = u(x, t) = p x + q x0_hat (Song et al. 2021, equation 13).

    euler   x_next = x + dt u(x, t)                                                    order 1
    heun    x_next = x + dt/2 (u(x, t) + u(x + dt u(x, t), t_next))                    order 2
    ode     an adaptive solver between the ends of the grid, to given tolerances

t is the time of the grid. Under EDM's process, whose sigma is linear in t, the first two are the steps of Karras et al.
(2022), Algorithm 1; the driver's last step, to x0_hat, is their Euler step to sigma = 0.

Churn (ibid., Algorithm 2) adds noise before each update: sigma/alpha is raised by the factor 1 + gamma, where gamma is
churn/n for n steps, at most sqrt(2) - 1, and 0 outside of [churn_min, churn_max]. From the kernel of the node to that
of the raised level it is a transition of the process, x_hat = a x + churn_noise sqrt(v) n, for any process. The step to
x0_hat, the driver's, is never churned; in the paper it is, where its level lies in the range.

The variables that the adaptive solver may step in are those of sde_diffusion/solvers/flow.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import combine
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.euler_maruyama import euler_row
from sde_diffusion.samplers.march import Coefficients, OneStep, OnStep, as_table, ignore_step, march
from sde_diffusion.solvers.flow import transport

MOST_CHURN = math.sqrt(2.0) - 1.0
"""The most that one step may raise sigma/alpha, so that no more noise is added than there was (ibid., Algorithm 2)."""


def heun_rows(sde: SDE, now: Node, next: Node) -> tuple[Coefficients, Coefficients]:
    """The coefficients of (x, x0_hat) in the state ahead, and those of (x, x0_hat, x0_hat ahead) in x_next.

    With the state ahead, x + dt (p x + q x0_hat), put in, Heun's step is
    (1 + dt/2 (p + p' (1 + dt p))) x + dt/2 (1 + dt p') q x0_hat + dt/2 q' x0_hat'.
    """
    half, (p, q), (p_next, q_next) = 0.5 * (next.t - now.t), sde.flow(now.t), sde.flow(next.t)
    keep, pull = euler_row(sde, now, next)
    return (keep, pull), (1.0 + half * (p + p_next * keep), half * q + half * p_next * pull, half * q_next)


def churned(
    sde: SDE, node: Node, churn: float, churn_min: float, churn_max: float, churn_noise: float
) -> tuple[Node, Coefficients]:
    """The nodes [n] with their noise raised, and the coefficients of x and noise that take x there."""
    level = node.kernel.sigma / node.kernel.alpha
    inside = (level >= churn_min) & (level <= churn_max) & level.isfinite()
    raised = sde.time_of(node.kernel.logsnr - 2.0 * math.log1p(min(churn, MOST_CHURN)))
    t = torch.where(inside, raised, node.t)
    hat = Node(t, sde.kernel(t))
    transition = hat.kernel.after(node.kernel)
    # Where nothing is raised x stays as it is, at a node without signal too, whose transition to itself is 0/0.
    return hat, (transition.alpha.where(inside, 1.0), (churn_noise * transition.sigma).where(inside, 0.0))


def euler(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler's method on the flow; one evaluation a step, deterministic, order 1. x: [B, *D]."""
    return march(euler_row, denoiser, x, grid, noise, on_step)


def heun_rule(*, stages: int, churn: float) -> OneStep:
    """The rule of `heun` where it has one: Euler's step, of one stage and without churn. Raises UserError otherwise."""
    if stages != 1:
        raise UserError("heun has two evaluations a step: choose stages=1 for its transition")
    if churn:
        raise UserError("heun with churn moves x before the network sees it: choose churn=0 for its transition")
    return OneStep(euler_row)


def heun(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    stages: int = 2,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Tensor:
    """Heun's method on the flow with churn (Karras et al. 2022, Algorithm 2); two evaluations a step, order 2.

    stages: 1 leaves Euler's step. churn > 0 adds fresh noise of churn_noise times its standard deviation before each
    update whose sigma/alpha lies in [churn_min, churn_max]; without it no noise is drawn. on_step sees the raised
    level. x: [B, *D].
    """
    if stages not in (1, 2):
        raise UserError(f"heun has 1 or 2 stages, got {stages}")
    if not (churn >= 0 and churn_noise >= 0 and churn_min <= churn_max):
        raise UserError(
            f"churn and churn_noise must be at least 0 and churn_min at most churn_max, got {churn}, {churn_noise}, "
            f"{churn_min} and {churn_max}"
        )
    notify = on_step or ignore_step
    now, next = grid.levels[:-1], grid.levels[1:]
    nodes, raise_table = grid.nodes, []
    targets = nodes[1:]
    if churn:
        now, columns = churned(grid.sde, now, churn / grid.steps, churn_min, churn_max, churn_noise)
        nodes = now.unbind()
        raise_table = as_table(columns)
    ahead_row, full_row = heun_rows(grid.sde, now, next)
    for index, (ahead, full) in enumerate(zip(as_table(ahead_row), as_table(full_row))):
        if raise_table:
            scale, std = raise_table[index]
            drawn = [noise(index, grid.nodes[index], targets[index], x)] if std > 0 else []
            x = combine((scale, std)[: 1 + len(drawn)], x, *drawn)
        x0_hat = denoiser(x, nodes[index].kernel)
        notify(index, nodes[index], x, x0_hat)
        x_next = combine(ahead, x, x0_hat)
        if stages == 2:
            x_next = combine(full, x, x0_hat, denoiser(x_next, targets[index].kernel))
        x = x_next
    return x


def ode(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    method: str = "per_sample",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    variable: str = "log_angle",
    max_nfe: int = 100_000,
) -> Tensor:
    """The flow solved adaptively between the ends of the grid; as many evaluations as the tolerances need.

    method: a key of `sd.SOLVERS`, of which those of fixed steps take as many as the grid has; variable:
    "log_angle", "logsnr", "logsnr_scaled" or "t". The solver has no nodes, so on_step sees the last one
    only. Raises UserError where the variable is infinite at the first node.
    """
    return transport(
        denoiser,
        x,
        grid.sde,
        grid.times[0],
        grid.times[-1],
        variable=variable,
        method=method,
        rtol=rtol,
        atol=atol,
        steps=grid.steps,
        max_nfe=max_nfe,
        grad=True,  # where the driver records gradients
    )
