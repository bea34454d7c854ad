"""Langevin correctors, the predictor-corrector sampler and annealed Langevin dynamics.

At a fixed noise level the Langevin step x + e score + sqrt(2 e) n leaves p_t invariant as e -> 0. Two step sizes:

    langevin   e = 2 a^2 (r |n| / |score|)^2     the score and noise parts in the ratio r, `snr_target`
                                                 (Song et al. 2021, Algorithms 4 and 5)
    annealed   e = 2 a^2 (r sigma)^2             (ibid., Appendix G; Song and Ermon 2019, Algorithm 1)

The first follows each sample's own scale, but its size depends on x, which tilts the stationary density by a factor
1/e(x): the variance of a Gaussian in D dimensions grows by up to 2/D. That is nothing for images and ruinous in two
dimensions. The second, which does not depend on x, has no such bias and is the default.

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

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError, choose
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.kernel import CLEAN, Kernel, match
from sde_diffusion.noise import Generators, fresh, randn
from sde_diffusion.prediction import score_from_x0
from sde_diffusion.samplers.ancestral import ancestral_step, ddim_step
from sde_diffusion.samplers.euler_maruyama import euler_maruyama_step
from sde_diffusion.samplers.march import OnStep, Step, ignore_step
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion_step

Norm = Callable[[Tensor], Tensor]


def _sample_norm(x: Tensor) -> Tensor:
    """|x| of each sample, [B, 1, ...]."""
    return x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))


def _batch_norm(x: Tensor) -> Tensor:
    """The mean of |x| over the batch, as the original code takes it, []."""
    return _sample_norm(x).mean()


NORMS: dict[str, Norm] = {"sample": _sample_norm, "batch": _batch_norm}


def langevin_size(
    score: Tensor, noise: Tensor, kernel: Kernel, transition: Kernel, snr_target: float, norm: Norm
) -> Tensor:
    """e = 2 a^2 (snr_target |noise| / |score|)^2, broadcasting to [B, *D]."""
    size = 2.0 * (snr_target * norm(noise) / norm(score)) ** 2
    return match(transition.alpha**2, score) * size


def annealed_size(
    score: Tensor, noise: Tensor, kernel: Kernel, transition: Kernel, snr_target: float, norm: Norm
) -> Tensor:
    """e = 2 a^2 (snr_target sigma)^2."""
    return match(2.0 * transition.alpha**2 * (snr_target * kernel.sigma) ** 2, score)


CORRECTORS: dict[str, Callable[[Tensor, Tensor, Kernel, Kernel, float, Norm], Tensor]] = {
    "langevin": langevin_size,
    "annealed": annealed_size,
}


def langevin_step(x: Tensor, score: Tensor, noise: Tensor, size: Tensor) -> Tensor:
    """x + e score + sqrt(2 e) noise, [B, *D]."""
    return x + size * score + (2.0 * size).sqrt() * noise


def _stay(now: Node, next: Node, x: Tensor) -> Tensor:
    return x


def _carry(now: Node, next: Node, x: Tensor) -> Tensor:
    """x brought to the signal scale of the next node, [B, *D]; as it is where the scale does not change (VE)."""
    return match(next.kernel.alpha / now.kernel.alpha, x) * x if now.kernel.alpha > 0 else x


MOVES: dict[str, Callable[[Node, Node, Tensor], Tensor]] = {"none": _stay, "carry": _carry}
"""Ways to the next node without the network, which leave all the work to the corrector."""

PREDICTORS: dict[str, Step] = {
    "euler_maruyama": euler_maruyama_step,
    "reverse_diffusion": reverse_diffusion_step,
    "ancestral": partial(ancestral_step, variance="beta"),
    "ddpm": ancestral_step,
    "ddim": partial(ddim_step, eta=0.0),
}
"""Steps that evaluate the network once."""


def pc(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
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
    choose("predictor", predictor, dict.fromkeys([*PREDICTORS, *MOVES]))
    step_size = choose("corrector", corrector, CORRECTORS)
    measure = choose("norm", norm, NORMS)
    if corrector_steps < 0 or not snr_target > 0:
        raise UserError(
            f"corrector_steps must be at least 0 and snr_target positive, got {corrector_steps} and {snr_target}"
        )
    generator, notify = fresh(generator), on_step or ignore_step
    nodes = grid.nodes
    for index, now in enumerate(nodes):
        next = nodes[index + 1] if index + 1 < len(nodes) else None
        transition = now.kernel.after(next.kernel if next else CLEAN)
        for repeat in range(corrector_steps):
            x0_hat = denoiser(x, now.kernel)
            if repeat == 0 and next is not None:
                notify(index, now, x, x0_hat)
            score = score_from_x0(x0_hat, x, now.kernel)
            noise = randn(x.shape, generator, like=x)
            x = langevin_step(x, score, noise, step_size(score, noise, now.kernel, transition, snr_target, measure))
        if next is None:
            break
        if predictor in MOVES:
            x = MOVES[predictor](now, next, x)
        else:
            x0_hat = denoiser(x, now.kernel)
            if corrector_steps == 0:
                notify(index, now, x, x0_hat)
            noise = randn(x.shape, generator, like=x)
            x = PREDICTORS[predictor](grid.sde, now, next, x, x0_hat, noise)
    return x


def annealed_langevin(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
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
        generator=generator,
        on_step=on_step,
        predictor="carry",
        corrector="annealed",
        corrector_steps=langevin_steps,
        snr_target=snr_target,
    )
