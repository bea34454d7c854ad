"""Diffusion processes: one object with an SDE view, an ODE view and, for DDPM and NCSN, a discrete view.

A process is given by its perturbation kernel p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), t from 0 (data) to 1
(noise), and by the rates alpha'_t and (sigma_t^2)'. All else follows from these once, in the base class. The
linear SDE dx = f_t x dt + g_t dw has mean and variance that solve m' = f m and V' = 2 f V + g^2, hence

    f_t   = alpha'_t / alpha_t                              drift
    g_t^2 = (sigma_t^2)' - 2 sigma_t^2 f_t                  diffusion
    dx/dt = f_t x - g_t^2/2 grad log p_t(x)                 probability flow (Song et al. 2021, equation 13)

With eps_hat = (x - alpha x0_hat) / sigma and score = -eps_hat / sigma the flow becomes

    dx/dt = alpha'_t x0_hat + sigma'_t eps_hat,             sigma' = (sigma^2)' / (2 sigma),

which is finite even where alpha = 0. The variance's rate is the primitive, not dlog sigma/dt = sigma'/sigma, because
the latter is infinite at t = 0 for processes that start from clean data while f and g are not.

A discrete process is the same object with a table: its levels lie at `times`, and between them log alpha (DDPM) or
log sigma (NCSN) is interpolated linearly, so every continuous sampler runs on it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, Scalar, as_schedule, combine, match
from sde_diffusion.core.noise import Generators, device_of, randn


class SDE(ABC):
    """A diffusion process dx = f_t x dt + g_t dw on t in [0, 1]."""

    t_train: ClassVar[float] = 1e-5
    """Smallest time of the training loss (Song et al. 2021, Appendix C)."""
    t_sample: ClassVar[float] = 1e-3
    """Smallest time of a sampling grid (ibid.: 1e-3 for VP and sub-VP, 1e-5 for VE)."""
    t_likelihood: ClassVar[float] = 1e-5
    """Smallest time of the likelihood's integral (ibid.)."""
    grid: ClassVar[str] = "uniform"
    """The kind of sampling grid that suits the process's time."""

    @abstractmethod
    def kernel(self, t: Scalar) -> Kernel:
        """p(x_t | x_0) at time t, a float or a tensor [] or [B]."""

    @abstractmethod
    def alpha_rate(self, t: Scalar) -> Tensor:
        """d alpha / dt, float64 [] or [B]."""

    @abstractmethod
    def variance_rate(self, t: Scalar) -> Tensor:
        """d sigma^2 / dt, float64 [] or [B]."""

    @abstractmethod
    def time_of(self, logsnr: Scalar) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) has the given value, the inverse of kernel(t).logsnr."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior, the Gaussian that stands for p(x_1)."""
        return 1.0

    @property
    def times(self) -> Tensor | None:
        """The times [N], ascending, of a discrete process; None for a continuous one."""
        return None

    @property
    def known_times(self) -> tuple[float, float]:
        """Between which times a network trained under the process knows its noise levels."""
        if self.times is not None:
            return float(self.times[0]), 1.0
        # One that starts from noisy data has a first level at t = 0; another none, as its log-SNR is infinite there.
        return (0.0 if float(self.kernel(0.0).sigma) > 0.0 else self.t_train), 1.0

    @property
    def t_signal(self) -> float:
        """The latest time at which x holds any signal: 1, or just before it where alpha = 0 there."""
        return 1.0 if float(self.kernel(1.0).alpha) > 0.0 else 1.0 - 1e-3

    def scaled(self, factor: float) -> SDE:
        """The process for data `factor` times as large, its noise with them; where alpha is not 1, the same process."""
        return self

    # --- what follows from the kernel -------------------------------------------------------------------------

    def dlog_alpha(self, t: Scalar) -> Tensor:
        """f_t = dlog alpha / dt, the drift's coefficient, [] or [B]."""
        return self.alpha_rate(t) / self.kernel(t).alpha

    def dlog_sigma(self, t: Scalar) -> Tensor:
        """dlog sigma / dt, [] or [B]; infinite, or not a number, where sigma = 0."""
        return 0.5 * self.variance_rate(t) / self.kernel(t).variance

    def drift(self, x: Tensor, t: Scalar) -> Tensor:
        """f_t x of the forward SDE, [B, *D]. Raises UserError where the rate f_t is infinite."""
        return match(_exists("the drift", t, self.dlog_alpha(t))[0], x) * x

    def diffusion(self, t: Scalar) -> Tensor:
        """g_t of the forward SDE, [] or [B]: g^2 = d sigma^2/dt - 2 sigma^2 dlog alpha/dt."""
        variance = self.variance_rate(t) - 2.0 * self.kernel(t).variance * self.dlog_alpha(t)
        return variance.clamp_min(0.0).sqrt()

    def flow(self, t: Scalar) -> tuple[Tensor, Tensor]:
        """(p, q) of the probability flow dx/dt = p x + q x0_hat, [] or [B]: p = sigma'/sigma, q = alpha' - alpha p.

        Raises UserError where they do not exist, at a level without noise.
        """
        kernel, p = self.kernel(t), self.dlog_sigma(t)
        p, q = _exists("the flow's velocity", t, p, self.alpha_rate(t) - kernel.alpha * p)
        return p, q

    def velocity(self, x: Tensor, x0_hat: Tensor, t: Scalar) -> Tensor:
        """dx/dt of the probability-flow ODE, alpha' x0_hat + sigma' eps_hat, [B, *D] (Song et al. 2021, eq. 13).

        Raises UserError as `flow` does.
        """
        return combine(self.flow(t), x, x0_hat)

    def reverse(self, t: Scalar, level: Scalar = 1.0) -> tuple[Tensor, Tensor]:
        """(p, q) of the drift p x + q x0_hat = velocity - level^2/2 g^2 score of a reverse-time SDE, [] or [B].

        With the noise level * g they all have the marginals of the process (Huang et al. 2021; Zhang and Chen 2023,
        section 2): level 1 is its time reversal (Anderson 1982), where the drift is f x - g^2 score, and level 0 the
        probability flow. Raises UserError where they do not exist.
        """
        kernel = self.kernel(t)
        p, q = self.flow(t)
        pull = 0.5 * (as_schedule(level) * self.diffusion(t)) ** 2 / kernel.variance
        p, q = _exists("the reverse drift", t, p + pull, q - pull * kernel.alpha)
        return p, q

    def reverse_drift(self, x: Tensor, x0_hat: Tensor, t: Scalar) -> Tensor:
        """f_t x - g_t^2 score of the reverse-time SDE, [B, *D] (Anderson 1982; Song et al. 2021, equation 6)."""
        return combine(self.reverse(t), x, x0_hat)

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A sample of the prior N(0, prior_std^2 I), [B, *D]."""
        noise = randn(shape, generator, dtype=dtype)
        return self.prior_std * noise.to(device_of(generator) if device is None else device)

    def prior_logp(self, x: Tensor) -> Tensor:
        """log density of x [B, *D] under the prior, in nats, [B]."""
        scaled = (x / self.prior_std).flatten(1)
        dims = scaled.shape[1]
        return -0.5 * (scaled**2).sum(1) - dims * (math.log(self.prior_std) + 0.5 * math.log(2.0 * math.pi))


def _exists(quantity: str, t: Scalar, *coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients, [] or [B]. Raises UserError where one is not finite: which quantity, and at which time.

    They lie on the CPU, where looking waits for no device.
    """
    finite = torch.stack([c.isfinite() for c in torch.broadcast_tensors(*coefficients)]).all(0)  # type: ignore[no-untyped-call]
    if not bool(finite.all()):
        first = float(as_schedule(t).expand_as(finite)[~finite].reshape(-1)[0])
        remedy = "take t >= 1e-5" if first < 0.5 else f"take t <= {1.0 - 1e-5}"
        raise UserError(
            f"{quantity} does not exist at t = {first:g}: its coefficients are infinite where sigma = 0 or alpha = 0; "
            f"{remedy}"
        )
    return coefficients


def _log_alpha_of(logsnr: Scalar) -> Tensor:
    """log alpha of a variance-preserving kernel: alpha^2 = 1 / (1 + exp(-logsnr))."""
    return -0.5 * softplus(-as_schedule(logsnr))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class VPSDE(SDE):
    """The variance-preserving SDE, the limit of DDPM: dx = -beta/2 x dt + sqrt(beta) dw (Song et al. 2021, eq. 11).

    beta(t) = beta_min + t (beta_max - beta_min);  log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _require(
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
        return self._time_of_log_alpha(_log_alpha_of(logsnr))


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
class VESDE(SDE):
    """The variance-exploding SDE, the limit of NCSN: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

    Song et al. 2021, equation 30. At t = 0 there is still noise of sigma_min.
    """

    t_sample: ClassVar[float] = 1e-5
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

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


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    _require(
        0.0 < sigma_min < sigma_max,
        f"0 < sigma_min < sigma_max is needed, got sigma_min = {sigma_min}, sigma_max = {sigma_max}",
    )


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
        _require(self.s > 0.0 and self.beta_max > 0.0, f"s and beta_max must be positive, got {self}")

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
        log_alpha = _log_alpha_of(logsnr)
        t_bound, log_alpha_bound = self._bound
        angle = (log_alpha.clamp_min(log_alpha_bound).exp() * math.cos(self._angle0)).acos()
        cosine = (angle - self._angle0) / self._angular_rate
        line = t_bound + (log_alpha_bound - log_alpha) * 2.0 / self.beta_max
        return torch.where(log_alpha >= log_alpha_bound, cosine, line)


@dataclass(frozen=True)
class EDM(SDE):
    """The process of Karras et al. (2022), alpha = 1 and sigma linear in time: sigma = sigma_max t.

    The paper's time runs to sigma_max; ours to 1. Their steps in sigma and ours in t are the same steps.
    """

    grid: ClassVar[str] = "karras"  # equal steps of sigma would jump over the data in the last one
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

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


# --- discrete processes ---------------------------------------------------------------------------------------


def _segment(x: Tensor, nodes: Tensor) -> Tensor:
    """Index i of the segment (nodes[i], nodes[i + 1]] that holds x; the first or last one outside of the nodes."""
    return (torch.searchsorted(nodes, x.contiguous()) - 1).clamp(0, len(nodes) - 2)


def _interpolate(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation, continued beyond the ends by the first and last segment."""
    i = _segment(x, nodes)
    weight = (x - nodes[i]) / (nodes[i + 1] - nodes[i])
    return torch.lerp(values[i], values[i + 1], weight)


def _slope(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    i = _segment(x, nodes)
    return (values[i + 1] - values[i]) / (nodes[i + 1] - nodes[i])


def _table(values: Any, name: str) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    _require(table.ndim == 1 and len(table) >= 2, f"{name} must be a table [N] of at least two levels")
    _require(bool(table.isfinite().all()), f"{name} must be finite")
    return table


@dataclass(frozen=True, eq=False)
class DiscreteVP(SDE):
    """DDPM: x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) n, for i = 0 .. N-1 (Ho et al. 2020, equation 2).

    Level i lies at time (i + 1)/N, where the VP-SDE of the same rates has almost the same kernel, and time 0 is
    clean data. betas: [N], each in (0, 1), but that the last one may be 1.

    With beta = 1 the last level is noise alone, alpha = 0 (zero terminal SNR, Lin et al. 2023), and log alpha has no
    value there to be interpolated. Between the last two levels alpha itself is then linear, as in rectified flow, so
    that the flow is regular; the SDE's rate f = -1/(1 - t), infinite at the end, is held at its value at the beginning.
    """

    betas: Tensor
    _nodes: tuple[Tensor, Tensor] = field(init=False, repr=False)
    """The times and log alpha of clean data and of the levels with a signal."""

    @property
    def t_sample(self) -> float:  # type: ignore[override]  # depends on the table here
        """The time of the first level, the last one that DDPM visits."""
        return 1.0 / len(self.betas)

    def __post_init__(self) -> None:
        betas = _table(self.betas, "betas")
        _require(
            bool(((betas > 0) & (betas <= 1)).all()) and bool((betas[:-1] < 1).all()),
            "every beta must lie strictly between 0 and 1, but for the last one, which may be 1",
        )
        object.__setattr__(self, "betas", betas)
        zero, heard = torch.zeros(1, dtype=torch.float64), betas < 1
        log_alphas = torch.cat([zero, 0.5 * torch.log1p(-betas[heard]).cumsum(0)])
        object.__setattr__(self, "_nodes", (torch.cat([zero, self.times[heard]]), log_alphas))

    @classmethod
    def linear(cls, n: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> DiscreteVP:
        """betas from beta_min/n to beta_max/n; for n = 1000 DDPM's 1e-4 to 0.02 (Ho et al. 2020, section 4)."""
        _require(
            n > beta_max,
            f"{n} levels are too few: beta_max/n must be below 1, so at least {int(beta_max) + 1}",
        )
        return cls(torch.linspace(beta_min / n, beta_max / n, n, dtype=torch.float64))

    @classmethod
    def cosine(cls, n: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> DiscreteVP:
        """alpha_bar = cos^2(pi/2 (t + s)/(1 + s)), betas at most max_beta (Nichol and Dhariwal 2021, eq. 17)."""
        t = torch.arange(n + 1, dtype=torch.float64) / n
        alpha_bar = ((t + s) / (1.0 + s) * math.pi / 2.0).cos() ** 2
        return cls((1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(max_beta))

    def rescaled(self) -> DiscreteVP:
        """The process with zero terminal SNR: alpha moved and scaled to end at 0 (Lin et al. 2023, Algorithm 1).

        The first level stays as it is. A process that has zero terminal SNR already is its own.
        """
        alpha = self.levels.alpha - self.levels.alpha[-1]
        # Betas are ratios, in which the scale does not show but for the first one's, which is kept.
        return DiscreteVP(torch.cat([self.betas[:1], 1.0 - (alpha[1:] / alpha[:-1]) ** 2]))

    @property
    def times(self) -> Tensor:
        n = len(self.betas)
        return torch.arange(1, n + 1, dtype=torch.float64) / n

    @property
    def t_signal(self) -> float:
        return float(self._nodes[0][-1])

    @property
    def levels(self) -> Kernel:
        """The kernels of all levels, [N]."""
        return self.kernel(self.times)

    @property
    def _fading(self) -> float:
        """How long alpha falls to 0 behind the last level with a signal: 1/N, or no time at all."""
        return 1.0 - self.t_signal

    def log_alpha(self, t: Scalar) -> Tensor:
        """log alpha, exact at the levels and linear between them, [] or [B]; log of a linear alpha before alpha = 0."""
        t = as_schedule(t)
        log_alpha = _interpolate(t, *self._nodes)
        if not self._fading:
            return log_alpha
        left = ((1.0 - t) / self._fading).clamp_min(0.0)
        return torch.where(t <= self.t_signal, log_alpha, self._nodes[1][-1] + left.log())

    def kernel(self, t: Scalar) -> Kernel:
        log_alpha = self.log_alpha(t)
        return Kernel(log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt())

    def dlog_alpha(self, t: Scalar) -> Tensor:
        t = as_schedule(t)
        slope = _slope(t, *self._nodes)
        return torch.where(t <= self.t_signal, slope, -1.0 / self._fading) if self._fading else slope

    def alpha_rate(self, t: Scalar) -> Tensor:
        t = as_schedule(t)
        # Where alpha is linear, its rate and dlog_alpha are those at the beginning.
        return self.dlog_alpha(t) * self.log_alpha(t.clamp_max(self.t_signal) if self._fading else t).exp()

    def variance_rate(self, t: Scalar) -> Tensor:
        return -2.0 * self.alpha_rate(t) * self.log_alpha(t).exp()

    def time_of(self, logsnr: Scalar) -> Tensor:
        times, log_alphas = self._nodes
        log_alpha = _log_alpha_of(logsnr)
        t = _interpolate(-log_alpha, -log_alphas, times)
        if not self._fading:
            return t
        left = (log_alpha - log_alphas[-1]).exp()
        return torch.where(left >= 1.0, t, 1.0 - self._fading * left)


@dataclass(frozen=True, eq=False)
class DiscreteVE(SDE):
    """NCSN: a ladder of noise levels sigma_0 < ... < sigma_{N-1} with alpha = 1 (Song and Ermon 2019).

    Level i lies at time i/(N - 1), where the VE-SDE of the same range has the same kernel for a geometric ladder.
    """

    t_sample: ClassVar[float] = 0.0
    sigmas: Tensor

    def __post_init__(self) -> None:
        sigmas = _table(self.sigmas, "sigmas")
        _require(bool((sigmas > 0).all() and (sigmas.diff() > 0).all()), "sigmas must be positive and ascending")
        object.__setattr__(self, "sigmas", sigmas)

    @classmethod
    def geometric(cls, sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = 1000) -> DiscreteVE:
        """A geometric sequence of n levels (Song and Ermon 2020, Technique 2)."""
        _check_sigmas(sigma_min, sigma_max)
        _require(n >= 2, f"at least 2 levels are needed, got {n}")
        return cls(torch.linspace(math.log(sigma_min), math.log(sigma_max), n, dtype=torch.float64).exp())

    @property
    def prior_std(self) -> float:
        return float(self.sigmas[-1])

    @property
    def times(self) -> Tensor:
        n = len(self.sigmas)
        return torch.arange(n, dtype=torch.float64) / (n - 1)

    @property
    def levels(self) -> Kernel:
        """The kernels of all levels, [N]."""
        return Kernel(1.0, self.sigmas)

    def scaled(self, factor: float) -> DiscreteVE:
        return DiscreteVE(factor * self.sigmas)

    def kernel(self, t: Scalar) -> Kernel:
        return Kernel(1.0, _interpolate(as_schedule(t), self.times, self.sigmas.log()).exp())

    def alpha_rate(self, t: Scalar) -> Tensor:
        return torch.zeros_like(as_schedule(t))

    def variance_rate(self, t: Scalar) -> Tensor:
        t = as_schedule(t)
        return 2.0 * _slope(t, self.times, self.sigmas.log()) * self.kernel(t).variance

    def time_of(self, logsnr: Scalar) -> Tensor:
        return _interpolate(-0.5 * as_schedule(logsnr), self.sigmas.log(), self.times)


PROCESSES: dict[str, type[SDE]] = {
    "VPSDE": VPSDE,
    "SubVPSDE": SubVPSDE,
    "VESDE": VESDE,
    "CosineVPSDE": CosineVPSDE,
    "EDM": EDM,
    "RectifiedFlow": RectifiedFlow,
    "DiscreteVP": DiscreteVP,
    "DiscreteVE": DiscreteVE,
}


def process_state(sde: SDE) -> dict[str, Any]:
    """A process as plain containers that JSON can hold: its name and its parameters."""
    values = {f.name: getattr(sde, f.name) for f in fields(sde) if f.init}  # type: ignore[arg-type]  # all are dataclasses
    return {"name": type(sde).__name__} | {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}


def process_from_state(state: dict[str, Any]) -> SDE:
    """The process that `process_state` described. Raises UserError for an unknown name."""
    values = dict(state)
    return choose("process", values.pop("name"), PROCESSES)(**values)
