"""The reverse SDE with step sizes of its own for every sample (Jolicoeur-Martineau et al. 2021, Algorithm 1).

An Euler-Maruyama step, and a second one with the same noise from where it arrived, make the stochastic improved Euler
step, which has twice the order; their distance tells the error of the first at no further evaluation:

    x'  = x + dt F(x, t) + g_t sqrt(-dt) n                  F = p x + q x0_hat, the drift of the reverse SDE
    x'' = (x' + x + dt F(x', t + dt) + g_{t+dt} sqrt(-dt) n) / 2
    error = sqrt(mean_j ((x'_j - x''_j) / max(atol, rtol max(|x'_j|, |x'_j of the step before|)))^2).

Where the error is at most 1 the sample takes x'' and moves on; the next step is dt times 0.9 error^(-0.9).

A step that is refused is tried again with less noise of the same path, not with new noise, which would favour the noise
that passes: of W over dt the part over the shorter dt' is drawn from the Brownian bridge,

    W' = (dt'/dt) W + sqrt(dt' (dt - dt')/dt) n',

and the rest of W is kept for the step that follows, which goes no further than to its end. A step inside the bridge
that is refused too forgets its W' and draws another, given the same W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.core.errors import NotFinite, UserError
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import combine, match
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.march import OnStep

SAFETY, EXPONENT, FIRST_STEP = 0.9, 0.9, 0.01
"""Ibid., Algorithm 1: theta, r and the first step."""


def improved_step(
    denoiser: Denoiser, sde: SDE, t: Tensor, t_next: Tensor, x: Tensor, motion: Tensor
) -> tuple[Tensor, Tensor]:
    """x' and x'' for a step of each sample from t [B] to t_next [B], with the increments of W, [B, *D]."""
    dt = t_next - t
    p, q = sde.reverse(t)
    first = combine((1.0 + dt * p, dt * q, sde.diffusion(t)), x, denoiser(x, sde.kernel(t)), motion)
    p, q = sde.reverse(t_next)
    ahead = denoiser(first, sde.kernel(t_next))
    second = combine((1.0, dt * p, dt * q, sde.diffusion(t_next)), x, first, ahead, motion)
    return first, 0.5 * (first + second)


def adaptive_sde(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    rtol: float = 0.02,
    atol: float = 0.0078,
    max_nfe: int = 100_000,
) -> Tensor:
    """Adaptive improved Euler on the reverse SDE between the ends of the grid; two evaluations a step, stochastic.

    Each sample has its own steps; all are evaluated together, until the slowest is done. atol: the paper's, one of 256
    grey levels of data in [-1, 1]. The solver has no nodes, so on_step sees the last one only. x: [B, *D].

    Raises UserError for tolerances that are not positive and for more than max_nfe evaluations.
    """
    if not (rtol > 0 and atol > 0):
        raise UserError(f"rtol and atol must be positive, got {rtol} and {atol}")
    start, end = float(grid.times[0]), float(grid.times[-1])
    t = torch.full((len(x),), start, dtype=torch.float64)
    proposal = torch.full_like(t, FIRST_STEP)
    known = torch.zeros_like(t)  # the time over which the noise is drawn already, ...
    rest = torch.zeros_like(x)  # ... and that noise
    before, nfe = x, 0
    while bool((t > end).any()):
        nfe += 2
        if nfe > max_nfe:
            raise UserError(
                f"the reverse SDE needs more than {max_nfe} evaluations: at rtol {rtol}, atol {atol} the slowest "
                f"sample reached t = {float(t.max()):.4g} of {end:.4g}; loosen the tolerances or raise max_nfe"
            )
        bridged = known > 0
        size = torch.minimum(proposal, torch.where(bridged, known, t - end)).clamp_max(t - end)
        share = torch.where(bridged, size / known.clamp_min(1e-300), 0.0)
        spread = (size * (1.0 - share)).sqrt()
        t_next = torch.where(size >= t - end, end, t - size)
        now, next = (Node(at, grid.sde.kernel(at)) for at in (t, t_next))
        motion = combine((share, spread), rest, noise(nfe // 2 - 1, now, next, x))
        first, second = improved_step(denoiser, grid.sde, t, t_next, x, motion)
        scale = torch.maximum(first.detach().abs(), before.detach().abs()).mul_(rtol).clamp_min_(atol)
        error = ((first - second) / scale).detach().flatten(1).square().mean(1).sqrt().cpu().double()
        if bool(error.isnan().any()):
            raise NotFinite(f"the reverse SDE is not a number at t = {float(t.max()):.4g}: check the model's output")
        accept = error <= 1.0
        passed, kept = (match(mask.to(t), x) > 0 for mask in (accept, bridged & (size < known)))
        x, before = torch.where(passed, second, x), torch.where(passed, first, before)
        rest = torch.where(passed, rest - motion, torch.where(kept, rest, motion))
        known = torch.where(accept, (known - size).clamp_min(0.0), torch.where(bridged, known, size))
        t = torch.where(accept, t_next, t)
        wished = size * (SAFETY * error.clamp_min(1e-10) ** -EXPONENT).clamp_max(10.0)
        proposal = torch.where(accept, torch.maximum(wished, proposal.where(size < proposal, wished)), wished)
    return x
