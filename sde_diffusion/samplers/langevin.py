"""Langevin correctors, the predictor-corrector sampler and annealed Langevin dynamics.

At a fixed noise level the Langevin step x + e score + sqrt(2 e) n leaves p_t invariant as e -> 0. Two step sizes:

    langevin   e = 2 a^2 (r |n| / |score|)^2     the score and noise parts in the ratio r, `snr_target`
                                                 (Song et al. 2021, Algorithms 4 and 5)
    annealed   e = 2 a^2 (r sigma)^2             (ibid., Appendix G; Song and Ermon 2019, Algorithm 1)

The first follows each sample's own scale, but its size depends on x, which tilts the stationary density by 1/e(x), and
on n, which widens the noise: the variance of a Gaussian in D dimensions is held at (1 + 2/D)^2 (1 + r^2) times its own.
That is nothing for images, 40 % too much in twelve dimensions, and ruinous in two. The second depends on neither: only
the discretisation's 1 + r^2 is left. It is the default.

With score = (alpha x0_hat - x) / sigma^2 the step is (1 - e/sigma^2) x + e alpha/sigma^2 x0_hat + sqrt(2 e) n.

a is the signal scale of the transition to the present level from the next (less noisy) one: a^2 = 1 - beta_i on
DDPM's levels, 1 for VE, and defined for every process and grid. The norms are those of each sample; the original
averages them over the batch (norm="batch"), which removes the tilt but makes a sample depend on its batch mates.

The predictor-corrector sampler takes some corrector steps at each node of the grid and then a predictor step to the
next one, the order of the original code. With no predictor it is annealed Langevin dynamics; between its levels x is
brought to the next signal scale, where a process has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import CLEAN, Kernel, combine
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.ancestral import ancestral_row, ddim_flow_row
from sde_diffusion.samplers.euler_maruyama import euler_maruyama_row
from sde_diffusion.samplers.march import Coefficients, OneStep, OnStep, Row, ignore_step, sample_norm, table
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion_row

Norm = Callable[[Tensor], Tensor]


def _batch_norm(x: Tensor) -> Tensor:
    """The mean of |x| over the batch, as the original code takes it, []."""
    return sample_norm(x).mean()


NORMS: dict[str, Norm] = {"sample": sample_norm, "batch": _batch_norm}


def langevin_size(
    x: Tensor, x0_hat: Tensor, noise: Tensor, kernel: Kernel, transition: Kernel, snr_target: float, norm: Norm
) -> Tensor:
    """e = 2 a^2 (snr_target |noise| / |score|)^2, [B] or []."""
    score = combine((kernel.alpha / kernel.variance, -1.0 / kernel.variance), x0_hat, x)
    return 2.0 * transition.alpha**2 * (snr_target * norm(noise) / norm(score)) ** 2


def annealed_size(
    x: Tensor, x0_hat: Tensor, noise: Tensor, kernel: Kernel, transition: Kernel, snr_target: float, norm: Norm
) -> Tensor:
    """e = 2 a^2 (snr_target sigma)^2, []."""
    return 2.0 * transition.alpha**2 * (snr_target * kernel.sigma) ** 2


CORRECTORS: dict[str, Callable[[Tensor, Tensor, Tensor, Kernel, Kernel, float, Norm], Tensor]] = {
    "langevin": langevin_size,
    "annealed": annealed_size,
}


def langevin_step(x: Tensor, x0_hat: Tensor, noise: Tensor, kernel: Kernel, size: Tensor) -> Tensor:
    """x + e score + sqrt(2 e) noise, [B, *D]."""
    pull = size / kernel.variance
    # A step of no size, such as one where alpha = 0, has a root without a derivative.
    root = (2.0 * size).clamp_min(torch.finfo(size.dtype).tiny).sqrt()
    return combine((1.0 - pull, pull * kernel.alpha, root), x, x0_hat, noise)


def _stay(sde: SDE, now: Node, next: Node) -> Coefficients:
    return (now.kernel.alpha * 0.0 + 1.0,)


def _carry(sde: SDE, now: Node, next: Node) -> Coefficients:
    """x brought to the signal scale of the next node; as it is where there is none."""
    return ((next.kernel.alpha / now.kernel.alpha).where(now.kernel.alpha > 0.0, 1.0),)


MOVES: dict[str, Row] = {"none": _stay, "carry": _carry}
"""Ways to the next node without the network, which leave all the work to the corrector."""

PREDICTORS: dict[str, Row] = {
    "euler_maruyama": euler_maruyama_row,
    "reverse_diffusion": reverse_diffusion_row,
    "ancestral": partial(ancestral_row, variance="beta"),
    "ddpm": ancestral_row,
    "ddim": ddim_flow_row,
}
"""Steps that evaluate the network once."""


def pc_rule(*, predictor: str, corrector_steps: int) -> OneStep:
    """The rule of `pc` where it has one, that of the predictor alone. Raises UserError otherwise."""
    if corrector_steps:
        raise UserError("pc has several evaluations a step: choose corrector_steps=0 for its transition")
    return OneStep(choose("predictor", predictor, PREDICTORS))


def pc(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    predictor: str = "reverse_diffusion",
    corrector: str = "annealed",
    corrector_steps: int = 1,
    snr_target: float = 0.16,
    norm: str = "sample",
) -> Tensor:
    """Predictor-corrector sampling (Song et al. 2021, Algorithm 1); corrector_steps + 1 evaluations a step.

    predictor: a key of PREDICTORS or MOVES; corrector: "langevin" or "annealed", corrector_steps of it at each
    node with the signal-to-noise ratio snr_target; norm: "sample", or "batch" for the original's. x: [B, *D].
    """
    rows = table(choose("predictor", predictor, {**PREDICTORS, **MOVES}), grid)
    step_size = choose("corrector", corrector, CORRECTORS)
    measure = choose("norm", norm, NORMS)
    if corrector_steps < 0 or not snr_target > 0:
        raise UserError(
            f"corrector_steps must be at least 0 and snr_target positive, got {corrector_steps} and {snr_target}"
        )
    notify = on_step or ignore_step
    nodes, levels = grid.nodes, grid.levels.kernel
    transitions = [*levels[:-1].after(levels[1:]).unbind(), levels[-1].after(CLEAN)]
    for index, (now, transition) in enumerate(zip(nodes, transitions)):
        is_last = index + 1 == len(nodes)
        for repeat in range(corrector_steps):
            x0_hat = denoiser(x, now.kernel)
            if repeat == 0 and not is_last:
                notify(index, now, x, x0_hat)
            drawn = noise(index, now, now, x)
            size = step_size(x, x0_hat, drawn, now.kernel, transition, snr_target, measure)
            x = langevin_step(x, x0_hat, drawn, now.kernel, size)
        if is_last:
            break
        terms = [x]
        if predictor in PREDICTORS:
            terms.append(denoiser(x, now.kernel))
            if corrector_steps == 0:
                notify(index, now, *terms)
        if len(rows[index]) == 3:
            terms.append(noise(index, now, nodes[index + 1], x))
        x = combine(rows[index], *terms)
    return x


def annealed_langevin(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    langevin_steps: int = 16,
    snr_target: float = 0.22,
) -> Tensor:
    """Annealed Langevin dynamics (Song and Ermon 2019, Algorithm 1); langevin_steps evaluations at each node.

    The distribution lags behind its level by about 1/(langevin_steps snr_target^2) of a level, and each step adds
    its discretisation error, of relative size snr_target^2. NCSN takes 100 steps of snr_target = 0.22 on each of ten
    levels. x: [B, *D].
    """
    return pc(
        denoiser,
        x,
        grid,
        noise=noise,
        on_step=on_step,
        predictor="carry",
        corrector="annealed",
        corrector_steps=langevin_steps,
        snr_target=snr_target,
    )
