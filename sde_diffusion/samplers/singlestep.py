"""DPM-Solver++(2S): an exponential midpoint step, two evaluations (Lu et al. 2022b, Algorithm 1, r_1 = 1/2).

The flow solves to x' = (sigma'/sigma) x + alpha' int exp(l - lam') x0_hat(l) dl over the half log-SNR from lam to lam'.
With x0_hat frozen at the level half way, reached by a DDIM step,

    x' = (sigma'/sigma) x + alpha' (1 - exp(-h)) x0_hat_middle,       h = lam' - lam,

which has order 2. Ancestral noise as in DDIM: the step goes down to sigma'' = sqrt(sigma'^2 - eta^2 s^2) and adds
eta s n, with s^2 the posterior variance of the transition; eta = 0 draws none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import Kernel, combine
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.ancestral import check_eta, ddim_flow_row, ddim_row
from sde_diffusion.samplers.march import OnStep, as_table, ignore_step


def middle_level(sde: SDE, now: Node, next: Node) -> Node:
    """The nodes half way in log-SNR; half way in time where alpha = 0 and there is no log-SNR."""
    logsnr = 0.5 * (now.kernel.logsnr + next.kernel.logsnr)
    t = torch.where(logsnr.isfinite(), sde.time_of(logsnr), 0.5 * (now.t + next.t))
    return Node(t, sde.kernel(t))


def dpmpp_2s(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver++(2S); two evaluations a step, order 2 for eta = 0, where no noise is drawn. x: [B, *D]."""
    check_eta(eta)
    notify = on_step or ignore_step
    sde, now, next = grid.sde, grid.levels[:-1], grid.levels[1:]
    # x' is DDIM's step with x0_hat at the middle, and keep = sigma''/sigma.
    keep, pull, added = ddim_row(sde, now, next, eta=eta)
    middle = middle_level(sde, now, Node(next.t, Kernel(next.kernel.alpha, keep * now.kernel.sigma)))
    halves = as_table(ddim_flow_row(sde, now, middle))
    steps = zip(grid.nodes, middle.unbind(), halves, as_table((keep, pull, added)))
    for index, (node, between, half, (*whole, std)) in enumerate(steps):
        x0_hat = denoiser(x, node.kernel)
        notify(index, node, x, x0_hat)
        x = combine(whole, x, denoiser(combine(half, x, x0_hat), between.kernel))
        if eta:
            x.add_(noise(index, node, grid.nodes[index + 1], x), alpha=std)
    return x
