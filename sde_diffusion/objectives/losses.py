"""Denoising score matching, in continuous and in discrete time.

The network's denoiser is trained by E_{t, x_0, eps} w(t) |x0_hat(x_t, t) - x_0|^2 with x_t = alpha x_0 + sigma eps. As
eps_hat - eps = -(alpha/sigma)(x0_hat - x_0), score_hat + eps/sigma = (alpha/sigma^2)(x0_hat - x_0) and, for the
velocity u = eps - x_0, u_hat - u = -(alpha/sigma + 1)(x0_hat - x_0), every published weighting is a weight on this one
error:

    simple      alpha^2 / sigma^2                              |eps_hat - eps|^2 (Ho et al. 2020, equation 14)
    v           (alpha^2 + sigma^2)^2 / sigma^2                |v_hat - v|^2 (Salimans and Ho 2022)
    velocity    ((alpha + sigma) / sigma)^2                    |u_hat - u|^2 (Liu et al. 2022, equation 1)
    likelihood  g^2 alpha^2 / sigma^4                          g^2 |score error|^2 (Song et al. 2021b, equation 7)
    edm         (s^2 + s_d^2) / (s s_d)^2,  s = sigma/alpha    (Karras et al. 2022, Table 1)
    min_snr     min(alpha^2 / sigma^2, 5)                      (Hang et al. 2023, equation 8)
    x0          1                                              |x0_hat - x0|^2

Discrete time is the same loss with times drawn from the levels of a discrete process. There the variational bound (see
likelihood/discrete.py) is a loss too, T times the term L_i of a level drawn from T, and the only one for a learned
variance. iDDPM mixes the two (Nichol and Dhariwal 2021, section 3.1),

    L_hybrid = L_simple + 0.001 L_vlb,

where L_vlb trains the variance alone: x0_hat is held fixed in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.core.prediction import EDM_SIGMA_DATA
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser, moments
from sde_diffusion.likelihood.decoder import GREY_LEVELS, Space
from sde_diffusion.likelihood.discrete import STEP_VARIANCES, Chain, bound_term

MIN_SNR_GAMMA = 5.0
"""The bound on the weight (Hang et al. 2023, section 3.4)."""
VLB_WEIGHT = 1e-3
"""The share of L_vlb in L_hybrid (Nichol and Dhariwal 2021, section 3.1)."""


def _simple(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return k.snr


def _v(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return (k.alpha**2 + k.variance) ** 2 / k.variance


def _velocity(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return ((k.alpha + k.sigma) / k.sigma) ** 2


def _likelihood(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return sde.diffusion(t) ** 2 * k.snr / k.variance


def _edm(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return k.snr + sigma_data**-2


def _x0(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return torch.ones_like(k.snr)


def _min_snr(sde: SDE, t: Tensor, k: Kernel, sigma_data: float) -> Tensor:
    return k.snr.clamp_max(MIN_SNR_GAMMA)


WEIGHTINGS: dict[str, Callable[[SDE, Tensor, Kernel, float], Tensor]] = {
    "simple": _simple,
    "v": _v,
    "velocity": _velocity,
    "likelihood": _likelihood,
    "edm": _edm,
    "min_snr": _min_snr,
    "x0": _x0,
}
"""Names -> functions (process, times, their kernel, standard deviation of the data) -> w(t), [B]."""


def denoising_score_matching(
    denoiser: Denoiser,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    weighting: str = "simple",
    sigma_data: float = EDM_SIGMA_DATA,
    **conditioning: Tensor,
) -> Tensor:
    """w(t) |x0_hat(alpha x0 + sigma noise) - x0|^2, the mean over the dimensions of each sample, [B].

    x0, noise: [B, *D]; t: [B]; weighting: a key of WEIGHTINGS; sigma_data: the standard deviation of the data, of which
    "edm" alone makes use. Raises UserError for an unknown weighting, and for times at which its weight is infinite.
    """
    kernel = sde.kernel(t)
    root = _root_weight(sde, t, kernel, weighting, sigma_data)
    x0_hat = denoiser(kernel.perturb(x0, noise), kernel, **conditioning)
    return _weighted(root, x0_hat - x0)


def _root_weight(sde: SDE, t: Tensor, kernel: Kernel, weighting: str, sigma_data: float) -> Tensor:
    """sqrt w(t), [B]: it multiplies the error, which keeps the product in the range of float32."""
    root = choose("weighting", weighting, WEIGHTINGS)(sde, t, kernel, sigma_data).sqrt()
    finite = root.isfinite()
    if not bool(finite.all()):
        first = float(t.detach().cpu().expand_as(finite)[~finite].reshape(-1)[0])
        raise UserError(
            f"the loss with weighting {weighting!r} does not exist at t = {first:g}: its weight is infinite where "
            "sigma = 0; take t >= 1e-5, or the weighting 'min_snr' or 'x0'"
        )
    return root


def _weighted(root: Tensor, error: Tensor) -> Tensor:
    """w(t) |error|^2, the mean over the dimensions, [B]."""
    return (match(root, error) * error).square().flatten(1).mean(1)


def variational_loss(
    denoiser: Denoiser,
    chain: Chain,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    variance: str = "learned",
    space: Space = GREY_LEVELS,
    **conditioning: Tensor,
) -> Tensor:
    """L_vlb: T times the bound's term at the levels of times t, in bits/dim, [B].

    With levels drawn uniformly its expectation is the bound but for the prior's term. x0, noise: [B, *D]; t: [B], of
    the chain's levels; variance: a key of STEP_VARIANCES; space: where x0 lies.
    """
    index = chain.index_of(t)
    kernel = chain.levels[index]
    x0_hat, fraction = moments(denoiser, kernel.perturb(x0, noise), kernel, **conditioning)
    return _term(chain, index, x0, x0_hat, fraction, variance, space)


def _term(
    chain: Chain, index: Tensor, x0: Tensor, x0_hat: Tensor, fraction: Tensor | None, variance: str, space: Space
) -> Tensor:
    """T times the term, in bits/dim, [B]."""
    term = bound_term(chain, index, x0, x0_hat, fraction, variance=variance, space=space)
    return len(chain) / math.log(2.0) * term.flatten(1).mean(1)


def hybrid_loss(
    denoiser: Denoiser,
    sde: SDE,
    chain: Chain,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    weighting: str = "simple",
    vlb_weight: float = VLB_WEIGHT,
    variance: str = "learned",
    space: Space = GREY_LEVELS,
    sigma_data: float = EDM_SIGMA_DATA,
    **conditioning: Tensor,
) -> Tensor:
    """L_hybrid: the weighted loss plus vlb_weight times L_vlb, in which x0_hat is held fixed, [B].

    Source: Nichol and Dhariwal 2021, section 3.1. Arguments as in `denoising_score_matching` and `variational_loss`.
    """
    index = chain.index_of(t)
    kernel = chain.levels[index]
    root = _root_weight(sde, t, kernel, weighting, sigma_data)
    x0_hat, fraction = moments(denoiser, kernel.perturb(x0, noise), kernel, **conditioning)
    bound = _term(chain, index, x0, x0_hat.detach(), fraction, variance, space)
    return _weighted(root, x0_hat - x0) + vlb_weight * bound


# --- what a training minimises --------------------------------------------------------------------------------


class Objective(Protocol):
    """The loss of each sample, [B], for data x0 [B, *D] in a space, times t [B] and noise [B, *D]."""

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, space: Space, **conditioning: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the objectives may be told; each reads what concerns it."""

    weighting: str = "simple"
    vlb_weight: float = VLB_WEIGHT
    variance: str = "learned"
    sigma_data: float = EDM_SIGMA_DATA


DEFAULTS = ObjectiveOptions()


def _score_matching(sde: SDE, settings: ObjectiveOptions) -> Objective:
    def loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, space: Space, **conditioning: Tensor) -> Tensor:
        return denoising_score_matching(
            denoiser,
            sde,
            x0,
            t,
            noise,
            weighting=settings.weighting,
            sigma_data=settings.sigma_data,
            **conditioning,
        )

    return loss


def _vlb(sde: SDE, settings: ObjectiveOptions) -> Objective:
    chain = Chain.of(sde)

    def loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, space: Space, **conditioning: Tensor) -> Tensor:
        return variational_loss(denoiser, chain, x0, t, noise, variance=settings.variance, space=space, **conditioning)

    return loss


def _hybrid(sde: SDE, settings: ObjectiveOptions) -> Objective:
    chain = Chain.of(sde)

    def loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, space: Space, **conditioning: Tensor) -> Tensor:
        return hybrid_loss(
            denoiser,
            sde,
            chain,
            x0,
            t,
            noise,
            weighting=settings.weighting,
            vlb_weight=settings.vlb_weight,
            variance=settings.variance,
            space=space,
            sigma_data=settings.sigma_data,
            **conditioning,
        )

    return loss


OBJECTIVES: dict[str, Callable[[SDE, ObjectiveOptions], Objective]] = {
    "score_matching": _score_matching,
    "vlb": _vlb,
    "hybrid": _hybrid,
}


def objective(sde: SDE, kind: str = "score_matching", settings: ObjectiveOptions = DEFAULTS) -> Objective:
    """The objective of that kind, a key of OBJECTIVES, for a process.

    Raises UserError for an unknown kind, and for a bound of a process without levels.
    """
    choose("weighting", settings.weighting, WEIGHTINGS)
    choose("variance", settings.variance, dict.fromkeys(STEP_VARIANCES))
    return choose("loss", kind, OBJECTIVES)(sde, settings)
