"""A diffusion process: one object with an SDE view, an ODE view and, for DDPM and NCSN, a discrete view.

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
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, require
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


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    require(
        0.0 < sigma_min < sigma_max,
        f"0 < sigma_min < sigma_max is needed, got sigma_min = {sigma_min}, sigma_max = {sigma_max}",
    )
