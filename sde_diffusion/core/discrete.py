"""Discrete processes: a table of noise levels, and a process in continuous time that runs through them.

A step of DDPM, x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) n, multiplies alpha by sqrt(1 - beta_i) and keeps
alpha^2 + sigma^2 = 1. A level of NCSN is its sigma_i. So the tables are

    DiscreteVP    log alpha_i = 1/2 sum_{j <= i} log(1 - beta_j),    sigma^2 = 1 - alpha^2
    DiscreteVE    log sigma_i,                                       alpha = 1.

The levels lie at `times`. Between them log alpha (DDPM) or log sigma (NCSN) is linear in t, so its rate is the slope of
the segment, time_of interpolates the same table the other way, and every continuous sampler runs on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.core.errors import require
from sde_diffusion.core.kernel import Kernel, Scalar, as_schedule, log_alpha_of
from sde_diffusion.core.process import SDE, check_sigmas


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
        require(
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
        require(
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
        log_alpha = log_alpha_of(logsnr)
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
        require(bool((sigmas > 0).all() and (sigmas.diff() > 0).all()), "sigmas must be positive and ascending")
        object.__setattr__(self, "sigmas", sigmas)

    @classmethod
    def geometric(cls, sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = 1000) -> DiscreteVE:
        """A geometric sequence of n levels (Song and Ermon 2020, Technique 2)."""
        check_sigmas(sigma_min, sigma_max)
        require(n >= 2, f"at least 2 levels are needed, got {n}")
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


# --- tables ---------------------------------------------------------------------------------------------------


def _table(values: Any, name: str) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    require(table.ndim == 1 and len(table) >= 2, f"{name} must be a table [N] of at least two levels")
    require(bool(table.isfinite().all()), f"{name} must be finite")
    return table


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
