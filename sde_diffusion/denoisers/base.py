"""Denoisers: functions (x, kernel) -> x0_hat = E[x_0 | x_t], all that a sampler sees of a model.

What a model says of x_t = alpha x_0 + sigma n follows from x0_hat, linearly at a given x:

    eps = (x - alpha x0_hat) / sigma        score = -eps / sigma
    v = alpha eps - sigma x0_hat            velocity = eps - x0_hat
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.core.prediction import (
    eps_from_x0,
    score_from_x0,
    v_from_x0,
    velocity_from_x0,
)


class Denoiser(Protocol):
    """E[x_0 | x_t = x] for noisy data x [B, *D] at the noise level of a kernel; conditioning is by name.

    Samplers keep what it returns over some steps: it must not write to that tensor again.
    """

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor: ...


def moments(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
    """x0_hat and, where the denoiser has a method `moments` for it, the fraction [B, *D] of its learned variance.

    The fraction, 0 to 1 or a little beyond, says where the log-variance of a DDPM step is between those of the
    posterior and of beta (Nichol and Dhariwal 2021, equation 15).
    """
    both = getattr(denoiser, "moments", None)
    return both(x, kernel, **conditioning) if both else (denoiser(x, kernel, **conditioning), None)


def score(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """grad_x log p_t(x) = (alpha x0_hat - x) / sigma^2, [B, *D]. Raises UserError where sigma = 0."""
    return score_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def eps(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """The predicted standard noise (x - alpha x0_hat) / sigma, [B, *D]. Raises UserError where sigma = 0."""
    return eps_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def v(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """alpha eps - sigma x0_hat, [B, *D]. Raises UserError where sigma = 0."""
    return v_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def velocity(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """eps - x0_hat, [B, *D]: for the kernel of rectified flow its dx/dt, which `SDE.velocity` gives of any process."""
    return velocity_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def to_model_range(
    both: Callable[..., tuple[Tensor, Tensor | None]],
    low: float,
    high: float,
    x: Tensor,
    kernel: Kernel,
    /,
    **conditioning: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """The moments of a denoiser for data in [low, high], asked for and given in model space [-1, 1].

    With y_0 = c x_0 + d, c = (high - low)/2 and d = (high + low)/2: if x has the kernel (alpha, sigma), then
    c x + alpha d has the kernel (alpha, c sigma) of y.
    """
    c, d = 0.5 * (high - low), 0.5 * (high + low)
    y = c * x + match(kernel.alpha * d, x)
    y0_hat, fraction = both(y, Kernel(kernel.alpha, c * kernel.sigma), **conditioning)
    return (y0_hat - d) / c, fraction
