"""The probability flow dx/dt = u(x, t) in a variable and a scale that make it easy to integrate.

With y = x/r it is dy/du = p y + q x0_hat in a variable u, where r, p and q depend on the noise level alone. Let c and s
be the cosine and sine of the angle phi = atan(sigma/alpha):

    variable        u                    r                           p              q
    log_angle       log(phi + 0.3)       sqrt(alpha^2 + sigma^2)     phi' c/s       -phi'/s
    logsnr          log(alpha^2/sigma^2) sqrt(alpha^2 + sigma^2)     -c^2/2         c/2
    logsnr_scaled   log(alpha^2/sigma^2) alpha                       -1/2           1/2
    t               t                    1                           sigma'/sigma   alpha' - alpha p

In the angle phi the state, of about unit variance, moves at the v-prediction, c eps_hat - s x0_hat (Salimans and Ho
2022, Appendix D): a speed of about one from noise to data, under every process, and no singular end where alpha = 0.
What the network decides is spread evenly over log phi, down to a phi of some tenths, below which the path is nearly
straight; so in log_angle, phi' = dphi/du = phi + 0.3, the steps are of almost one length, and hardly any is refused.
On networks and mixtures it takes the fewest evaluations: see benchmarks/flow_variable.py. t is the variable of Song et
al. (2021).

Changing the variable does not change the path. A density changes with the scale: log p_x(x) = log p_y(x/r) - D log r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, Scalar, as_schedule, check_batch, combine, lifted, match
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.solvers.ode import Field, integrate, recording


@dataclass(frozen=True)
class Variable:
    """A variable u in which to integrate the flow, and the scale r of its state y = x/r.

    of      (t, kernel) -> u
    time    (sde, u) -> t
    scale   kernel -> r
    rates   (sde, t, kernel) -> (p, q) of dy/du = p y + q x0_hat
    """

    of: Callable[[Tensor, Kernel], Tensor]
    time: Callable[[SDE, Tensor], Tensor]
    scale: Callable[[Kernel], Tensor]
    rates: Callable[[SDE, Tensor, Kernel], tuple[Tensor, Tensor]]


def _norm(kernel: Kernel) -> Tensor:
    return torch.hypot(kernel.alpha, kernel.sigma)


STRAIGHT = 0.3
"""The angle atan(sigma/alpha) below which a step of log_angle is one of the angle itself. Measured on images in
[-1, 1]: 0.05 takes as many evaluations and leaves four times the error in log p; 1 takes more; paths do not mind."""


def _log_angle_rates(sde: SDE, t: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    rate = torch.atan2(kernel.sigma, kernel.alpha) + STRAIGHT
    return rate * kernel.alpha / kernel.sigma, -rate * _norm(kernel) / kernel.sigma


def _logsnr_rates(sde: SDE, t: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    c = kernel.alpha / _norm(kernel)
    return -0.5 * c**2, 0.5 * c


def _scaled_rates(sde: SDE, t: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    half = torch.full_like(kernel.alpha, 0.5)
    return -half, half


VARIABLES: dict[str, Variable] = {
    "log_angle": Variable(
        of=lambda t, kernel: (torch.atan2(kernel.sigma, kernel.alpha) + STRAIGHT).log(),
        # Rounding must not carry the angle beyond that of pure noise.
        time=lambda sde, u: sde.time_of(-2.0 * (u.exp() - STRAIGHT).clamp_max(0.5 * math.pi).tan().log()),
        scale=_norm,
        rates=_log_angle_rates,
    ),
    "logsnr": Variable(
        of=lambda t, kernel: kernel.logsnr,
        time=lambda sde, u: sde.time_of(u),
        scale=_norm,
        rates=_logsnr_rates,
    ),
    "logsnr_scaled": Variable(
        of=lambda t, kernel: kernel.logsnr,
        time=lambda sde, u: sde.time_of(u),
        scale=lambda kernel: kernel.alpha,
        rates=_scaled_rates,
    ),
    "t": Variable(
        of=lambda t, kernel: t,
        time=lambda sde, u: u,
        scale=lambda kernel: torch.ones_like(kernel.alpha),
        rates=lambda sde, t, kernel: sde.flow(t),
    ),
}


@dataclass(frozen=True)
class Flow:
    """The flow of a process between two times, in a variable.

    start, end      the variable at the two times
    scales          the state's scale r there
    """

    sde: SDE
    variable: Variable
    start: Tensor
    end: Tensor
    scales: tuple[Tensor, Tensor]

    @classmethod
    def between(cls, sde: SDE, t0: Scalar, t1: Scalar, variable: str) -> Flow:
        """The flow from time t0 to t1 in the variable of that name.

        Raises UserError for an unknown variable, for times outside [0, 1] or without noise, and for a variable that is
        infinite at one of them.
        """
        along = choose("variable", variable, VARIABLES)
        times = [as_schedule(t0), as_schedule(t1)]
        kernels = [sde.kernel(t) for t in times]
        start, end = (along.of(t, kernel) for t, kernel in zip(times, kernels))
        for t, u, kernel in zip(times, (start, end), kernels):
            if not 0.0 <= float(t) <= 1.0:
                raise UserError(f"times lie in [0, 1], got {float(t):g}")
            if float(kernel.sigma) == 0.0:
                raise UserError(f"the flow cannot begin or end at t = {float(t):g}, where sigma = 0; take t >= 1e-5")
            if not bool(u.isfinite()):
                raise UserError(
                    f"{variable} is infinite at t = {float(t):g}, where alpha = 0; choose 'log_angle' or 't'"
                )
        return cls(sde, along, start, end, (along.scale(kernels[0]), along.scale(kernels[1])))

    def rate(self, denoiser: Denoiser, u: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """dy/du for the state y [B, *D]; the denoiser sees x in `dtype`, which y may exceed in precision."""
        t = self.variable.time(self.sde, u)
        kernel = self.sde.kernel(t)
        x = (match(self.variable.scale(kernel), y) * y).to(dtype)
        return combine(self.variable.rates(self.sde, t, kernel), y, denoiser(x, kernel).to(y.dtype))

    def where(self, u: Tensor) -> str:
        """The time to which the slowest sample has come, and its share of the way."""
        share = (u.reshape(-1) - self.start) / (self.end - self.start)
        slowest = share.argmin()
        t = self.variable.time(self.sde, u.reshape(-1)[slowest])
        return f"t = {float(t):.3g} ({100.0 * float(share[slowest]):.0f}% of its way)"

    def solve(
        self,
        field: Field,
        y: Tensor,
        *,
        method: str,
        rtol: float,
        atol: float,
        steps: int,
        max_nfe: int,
    ) -> Tensor:
        """The state at the end, from y [B, *] at the start, by `integrate`."""
        return integrate(
            field,
            y,
            self.start,
            self.end,
            method=method,
            rtol=rtol,
            atol=atol,
            steps=steps,
            max_nfe=max_nfe,
            where=self.where,
        )


def transport(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    t0: Scalar,
    t1: Scalar,
    *,
    variable: str = "log_angle",
    method: str = "per_sample",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 100,
    max_nfe: int = 100_000,
    grad: bool = False,
) -> Tensor:
    """x [B, *D] at time t0 carried along the flow to time t1, later or earlier.

    variable: a key of VARIABLES; method, rtol, atol, steps and max_nfe as in `integrate`, whose errors it raises.
    Numbers of 16 bits are carried in float32, and come back in their dtype. Where x requires a gradient, or with grad,
    the result has one, by x and by the network's parameters: that of the steps taken (see ode.py). Under torch.no_grad
    it has none.
    """
    if not x.is_floating_point():
        raise UserError(f"the flow carries floating-point numbers, got {x.dtype}")
    check_batch(x)
    flow, start = Flow.between(sde, t0, t1, variable), lifted(x)
    with torch.set_grad_enabled(recording(x, grad)):
        y = flow.solve(
            lambda u, state: flow.rate(denoiser, u, state, start.dtype),
            start / match(flow.scales[0], start),
            method=method,
            rtol=rtol,
            atol=atol,
            steps=steps,
            max_nfe=max_nfe,
        )
        return (match(flow.scales[1], y) * y).to(x.dtype)
