"""Continuous processes: each gives its kernel, its two rates, and the time of a log-SNR.

    VPSDE          alpha = exp(-1/2 int_0^t beta), beta linear      sigma^2 = 1 - alpha^2
    SubVPSDE       the same alpha                                   sigma = 1 - alpha^2
    CosineVPSDE    alpha = cos(angle(t)) / cos(angle(0))            sigma^2 = 1 - alpha^2
    VESDE          alpha = 1                                        sigma = sigma_min (sigma_max/sigma_min)^t
    EDM            alpha = 1                                        sigma = sigma_max t
    RectifiedFlow  alpha = 1 - t                                    sigma = t

With beta = -2 dlog alpha/dt the rate of alpha is -beta alpha/2. Where sigma^2 = 1 - alpha^2 that of the variance is
beta alpha^2, and log-SNR gives alpha^2 = 1 / (1 + exp(-logsnr)). For sub-VP the rate of the variance is
2 sigma beta alpha^2, and alpha/sigma = alpha/(1 - alpha^2) = 1 / (2 sinh(-log alpha)). The time then follows from
log alpha, or where alpha = 1 from log sigma = -logsnr/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.core.errors import require
from sde_diffusion.core.kernel import Kernel, Scalar, as_schedule, log_alpha_of
from sde_diffusion.core.process import SDE, check_sigmas


@dataclass(frozen=True)
class VPSDE(SDE):
    """The variance-preserving SDE, the limit of DDPM: dx = -beta/2 x dt + sqrt(beta) dw (Song et al. 2021, eq. 11).

    beta(t) = beta_min + t (beta_max - beta_min);  log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(
            0.0 < self.beta_min < self.beta_max,
            f"0 < beta_min < beta_max is needed, got beta_min = {self.beta_min}, beta_max = {self.beta_max}",
        )

    def beta(self, t: Scalar) -> Tensor:
        """The rate beta(t), [] or [B]."""
        return self.beta_min + as_schedule(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Scalar) -> Tensor:
        """log alpha = -1/2 int_0^t beta, [] or [B]."""
        t = as_schedule(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def kernel(self, t: Scalar) -> Kernel:
        log_alpha = self.log_alpha(t)
        return Kernel(log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt())

    def alpha_rate(self, t: Scalar) -> Tensor:
        return -0.5 * self.beta(t) * self.log_alpha(t).exp()

    def variance_rate(self, t: Scalar) -> Tensor:
        return self.beta(t) * (2.0 * self.log_alpha(t)).exp()

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        b, c = 0.5 * self.beta_min, -log_alpha
        return 2.0 * c / (b + (b**2 + c * (self.beta_max - self.beta_min)).sqrt())

    def time_of(self, logsnr: Scalar) -> Tensor:
        return self._time_of_log_alpha(log_alpha_of(logsnr))


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """The sub-VP SDE: the drift of VP with a smaller variance, sigma = 1 - alpha^2 (Song et al. 2021, equation 29)."""

    def kernel(self, t: Scalar) -> Kernel:
        log_alpha = self.log_alpha(t)
        return Kernel(log_alpha.exp(), -torch.expm1(2.0 * log_alpha))

    def variance_rate(self, t: Scalar) -> Tensor:
        log_alpha = self.log_alpha(t)
        return -2.0 * torch.expm1(2.0 * log_alpha) * self.beta(t) * (2.0 * log_alpha).exp()

    def time_of(self, logsnr: Scalar) -> Tensor:
        # alpha / (1 - alpha^2) = exp(logsnr/2) is sinh(-log alpha) = exp(-logsnr/2) / 2.
        return self._time_of_log_alpha(-torch.asinh(0.5 * (-0.5 * as_schedule(logsnr)).exp()))


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """The variance-preserving process of iDDPM: alpha = cos(angle(t)) / cos(angle(0)).

    angle(t) = pi/2 (t + s)/(1 + s) (Nichol and Dhariwal 2021, equation 17). alpha would reach 0 at t = 1 with an
    infinite rate, so beta(t) is held at `beta_max` once it gets there (t = 0.998): the limit of that paper's bound
    of beta <= 0.999 for 1000 steps. From there log alpha is a straight line.
    """

    s: float = 0.008
    beta_max: float = 999.0

    def __post_init__(self) -> None:
        require(self.s > 0.0 and self.beta_max > 0.0, f"s and beta_max must be positive, got {self}")

    @property
    def _angle0(self) -> float:
        return 0.5 * math.pi * self.s / (1.0 + self.s)

    @property
    def _angular_rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.s)

    @property
    def _bound(self) -> tuple[float, float]:
        """The time at which beta = 2 angle' tan(angle) reaches beta_max, and log alpha there."""
        angle = math.atan(self.beta_max / (2.0 * self._angular_rate))
        return (angle - self._angle0) / self._angular_rate, math.log(math.cos(angle) / math.cos(self._angle0))

    def log_alpha(self, t: Scalar) -> Tensor:
        """log alpha, [] or [B]."""
        t = as_schedule(t)
        t_bound, log_alpha_bound = self._bound
        angle = self._angle0 + self._angular_rate * t.clamp_max(t_bound)
        cosine = (angle.cos() / math.cos(self._angle0)).log()
        return torch.where(t <= t_bound, cosine, log_alpha_bound - 0.5 * self.beta_max * (t - t_bound))

    def beta(self, t: Scalar) -> Tensor:
        """The rate beta = -2 dlog alpha/dt, [] or [B]."""
        angle = self._angle0 + self._angular_rate * as_schedule(t).clamp_max(self._bound[0])
        return 2.0 * self._angular_rate * angle.tan()

    def kernel(self, t: Scalar) -> Kernel:
        t = as_schedule(t)
        log_alpha = self.log_alpha(t)
        # sigma^2 = 1 - cos^2 a / cos^2 a_0 = sin(a - a_0) sin(a + a_0) / cos^2 a_0: no cancellation at small t.
        step = self._angular_rate * t.clamp_max(self._bound[0])
        near = step.sin() * (step + 2.0 * self._angle0).sin() / math.cos(self._angle0) ** 2
        return Kernel(log_alpha.exp(), torch.where(t < 0.5, near, -torch.expm1(2.0 * log_alpha)).sqrt())

    def alpha_rate(self, t: Scalar) -> Tensor:
        return -0.5 * self.beta(t) * self.log_alpha(t).exp()

    def variance_rate(self, t: Scalar) -> Tensor:
        return self.beta(t) * (2.0 * self.log_alpha(t)).exp()

    def time_of(self, logsnr: Scalar) -> Tensor:
        log_alpha = log_alpha_of(logsnr)
        t_bound, log_alpha_bound = self._bound
        angle = (log_alpha.clamp_min(log_alpha_bound).exp() * math.cos(self._angle0)).acos()
        cosine = (angle - self._angle0) / self._angular_rate
        line = t_bound + (log_alpha_bound - log_alpha) * 2.0 / self.beta_max
        return torch.where(log_alpha >= log_alpha_bound, cosine, line)


@dataclass(frozen=True)
class VESDE(SDE):
    """The variance-exploding SDE, the limit of NCSN: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

    Song et al. 2021, equation 30. At t = 0 there is still noise of sigma_min.
    """

    t_sample: ClassVar[float] = 1e-5
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def scaled(self, factor: float) -> VESDE:
        return VESDE(factor * self.sigma_min, factor * self.sigma_max)

    def kernel(self, t: Scalar) -> Kernel:
        return Kernel(1.0, self.sigma_min * (self._log_ratio * as_schedule(t)).exp())

    def alpha_rate(self, t: Scalar) -> Tensor:
        return torch.zeros_like(as_schedule(t))

    def variance_rate(self, t: Scalar) -> Tensor:
        return 2.0 * self._log_ratio * self.kernel(t).variance

    def time_of(self, logsnr: Scalar) -> Tensor:
        return (-0.5 * as_schedule(logsnr) - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class EDM(SDE):
    """The process of Karras et al. (2022), alpha = 1 and sigma linear in time: sigma = sigma_max t.

    The paper's time runs to sigma_max; ours to 1. Their steps in sigma and ours in t are the same steps.
    """

    grid: ClassVar[str] = "karras"  # equal steps of sigma would jump over the data in the last one
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def t_sample(self) -> float:  # type: ignore[override]  # depends on the parameters here
        """The time at which sigma = sigma_min, the last node of the paper's grid."""
        return self.sigma_min / self.sigma_max

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def known_times(self) -> tuple[float, float]:
        """Training draws log sigma from a normal law, which has no ends: so far, and ten times sigma_max."""
        return 1e-4 * self.t_sample, 10.0

    def scaled(self, factor: float) -> EDM:
        return EDM(factor * self.sigma_min, factor * self.sigma_max)

    def kernel(self, t: Scalar) -> Kernel:
        return Kernel(1.0, self.sigma_max * as_schedule(t))

    def alpha_rate(self, t: Scalar) -> Tensor:
        return torch.zeros_like(as_schedule(t))

    def variance_rate(self, t: Scalar) -> Tensor:
        return 2.0 * self.sigma_max**2 * as_schedule(t)

    def time_of(self, logsnr: Scalar) -> Tensor:
        return (-0.5 * as_schedule(logsnr)).exp() / self.sigma_max


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """Straight paths from data to noise, alpha = 1 - t and sigma = t (Liu et al. 2022; Lipman et al. 2022).

    The flow is regular on all of (0, 1]. The SDE's rates are not: f = -1/(1 - t) is infinite at t = 1, where only
    noise is left, so there it is held at its value at t = 0.999, which keeps N(0, I) invariant.
    """

    max_rate: ClassVar[float] = 1000.0

    def kernel(self, t: Scalar) -> Kernel:
        t = as_schedule(t)
        return Kernel(1.0 - t, t)

    def alpha_rate(self, t: Scalar) -> Tensor:
        return -torch.ones_like(as_schedule(t))

    def variance_rate(self, t: Scalar) -> Tensor:
        return 2.0 * as_schedule(t)

    def dlog_alpha(self, t: Scalar) -> Tensor:
        return -1.0 / (1.0 - as_schedule(t)).clamp_min(1.0 / self.max_rate)

    def time_of(self, logsnr: Scalar) -> Tensor:
        return torch.sigmoid(-0.5 * as_schedule(logsnr))
