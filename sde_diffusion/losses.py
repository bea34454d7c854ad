"""Denoising score matching, in continuous and in discrete time.

The network's denoiser is trained by E_{t, x_0, eps} w(t) |x0_hat(x_t, t) - x_0|^2 with x_t = alpha x_0 + sigma eps. As
eps_hat - eps = -(alpha/sigma)(x0_hat - x_0) and score_hat + eps/sigma = (alpha/sigma^2)(x0_hat - x_0), every published
weighting is a weight on this one error:

    simple      alpha^2 / sigma^2                              |eps_hat - eps|^2 (Ho et al. 2020, equation 14)
    v           (alpha^2 + sigma^2)^2 / sigma^2                |v_hat - v|^2 (Salimans and Ho 2022)
    likelihood  g^2 alpha^2 / sigma^4                          g^2 |score error|^2 (Song et al. 2021b, equation 7)
    edm         (s^2 + s_d^2) / (s s_d)^2,  s = sigma/alpha    (Karras et al. 2022, Table 1)
    min_snr     min(alpha^2 / sigma^2, 5)                      (Hang et al. 2023, equation 8)

Discrete time is the same loss with times drawn from the levels of a discrete process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError, choose
from sde_diffusion.kernel import Kernel, match
from sde_diffusion.noise import rand, randn
from sde_diffusion.prediction import EDM_SIGMA_DATA
from sde_diffusion.sde import SDE

MIN_SNR_GAMMA = 5.0
"""The bound on the weight (Hang et al. 2023, section 3.4)."""
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2
"""log sigma ~ N(P_mean, P_std^2) in training (Karras et al. 2022, Table 1)."""


def _simple(sde: SDE, t: Tensor, k: Kernel) -> Tensor:
    return k.snr


def _v(sde: SDE, t: Tensor, k: Kernel) -> Tensor:
    return (k.alpha**2 + k.variance) ** 2 / k.variance


def _likelihood(sde: SDE, t: Tensor, k: Kernel) -> Tensor:
    return sde.diffusion(t) ** 2 * k.snr / k.variance


def _edm(sde: SDE, t: Tensor, k: Kernel) -> Tensor:
    return k.snr + EDM_SIGMA_DATA**-2


def _min_snr(sde: SDE, t: Tensor, k: Kernel) -> Tensor:
    return k.snr.clamp_max(MIN_SNR_GAMMA)


WEIGHTINGS: dict[str, Callable[[SDE, Tensor, Kernel], Tensor]] = {
    "simple": _simple,
    "v": _v,
    "likelihood": _likelihood,
    "edm": _edm,
    "min_snr": _min_snr,
}


@dataclass(frozen=True)
class TimeRange:
    """Where training times lie: t in [t_min, 1], and log(sigma/alpha) ~ N(p_mean, p_std^2) for "lognormal"."""

    t_min: float
    p_mean: float = EDM_P_MEAN
    p_std: float = EDM_P_STD


def _uniform(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> Tensor:
    return within.t_min + (1.0 - within.t_min) * rand((n,), generator, dtype=torch.float64).cpu()


def _stratified(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> Tensor:
    # One draw shifts n equally spaced points (Kingma et al. 2021, Appendix I.1): the marginal stays uniform.
    first = rand((1,), generator, dtype=torch.float64).cpu()
    return within.t_min + (1.0 - within.t_min) * (first + torch.arange(n, dtype=torch.float64) / n).remainder(1.0)


def _levels(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> Tensor:
    if sde.times is None:
        raise UserError(f"times 'levels' are those of a discrete process; {type(sde).__name__} has none")
    index = torch.randint(0, len(sde.times), (n,), generator=generator, device=generator.device)
    return sde.times[index.cpu()]


def _lognormal(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> Tensor:
    log_sigma = within.p_mean + within.p_std * randn((n,), generator, dtype=torch.float64).cpu()
    return sde.time_of(-2.0 * log_sigma).clamp(within.t_min, 1.0)


TIME_SAMPLERS: dict[str, Callable[[SDE, int, torch.Generator, TimeRange], Tensor]] = {
    "uniform": _uniform,
    "stratified": _stratified,
    "levels": _levels,
    "lognormal": _lognormal,
}


def sample_times(
    sde: SDE,
    n: int,
    *,
    generator: torch.Generator,
    kind: str = "uniform",
    t_min: float | None = None,
    p_mean: float = EDM_P_MEAN,
    p_std: float = EDM_P_STD,
) -> Tensor:
    """n training times [n], float64: "uniform", "stratified", "levels" (of a discrete process) or "lognormal".

    t_min: the smallest time (default: the process's smallest training time). p_mean, p_std: of log(sigma/alpha) in
    "lognormal" (default: EDM's).
    """
    within = TimeRange(sde.t_train if t_min is None else t_min, p_mean, p_std)
    return choose("time sampler", kind, TIME_SAMPLERS)(sde, n, generator, within)


def denoising_score_matching(
    denoiser: Denoiser,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    weighting: str = "simple",
    **conditioning: Tensor,
) -> Tensor:
    """w(t) |x0_hat(alpha x0 + sigma noise) - x0|^2, the mean over the dimensions of each sample, [B].

    x0, noise: [B, *D]; t: [B]; weighting: a key of WEIGHTINGS. Raises UserError for an unknown one.
    """
    weigh = choose("weighting", weighting, WEIGHTINGS)
    kernel = sde.kernel(t)
    error = denoiser(kernel.perturb(x0, noise), kernel, **conditioning) - x0
    # The root of the weight multiplies the error, which keeps the product in the range of float32.
    return (match(weigh(sde, t, kernel).sqrt(), error) * error).square().flatten(1).mean(1)
