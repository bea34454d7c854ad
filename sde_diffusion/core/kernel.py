"""The perturbation kernel, p(x_t | x_0) = N(alpha x_0, sigma^2 I): the primitive of every process.

The signal scale alpha and the noise standard deviation sigma are float64 tensors on the CPU, of shape
[] (one noise level for the whole batch) or [B] (one for each sample). All schedule arithmetic happens in
that precision; `match` and `combine` are the one place where such a number meets a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_diffusion.core.errors import UserError

Scalar = float | Tensor


def as_schedule(value: Scalar) -> Tensor:
    """A schedule quantity as a float64 tensor on the CPU, [] or [B]."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()  # in this order: a device may have no float64
    return torch.tensor(float(value), dtype=torch.float64)


def log_alpha_of(logsnr: Scalar) -> Tensor:
    """log alpha of a variance-preserving kernel, [] or [B]: alpha^2 = 1 / (1 + exp(-logsnr))."""
    return -0.5 * softplus(-as_schedule(logsnr))


def match(value: Tensor, x: Tensor) -> Tensor:
    """A schedule quantity [] or [B], ready to multiply a batch x [B, *D].

    A zero-dimensional CPU tensor multiplies a tensor of any device and dtype without a copy or a device
    synchronisation, so it stays as it is. One value a sample takes the dtype and the device of x and
    trailing axes of length one.

    Raises ValueError if there are several values and x has another batch size.
    """
    if value.ndim == 0:
        return value
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"one noise level a sample is needed: got {tuple(value.shape)} levels for a batch of shape {tuple(x.shape)}"
        )
    return beside(value.to(device=x.device, dtype=x.dtype), x)


def beside(row: Tensor, x: Tensor) -> Tensor:
    """One value a sample, [B], with trailing axes of length one, to stand beside x [B, *D]."""
    return row.reshape(-1, *(1,) * (x.ndim - 1))


def combine(coefficients: Iterable[Scalar], *tensors: Tensor) -> Tensor:
    """sum_i c_i x_i, with coefficients [] or [B] and tensors [B, *D]: one pass over the memory for each term.

    Raises ValueError if there are not as many coefficients as tensors.
    """
    terms = zip(coefficients, tensors, strict=True)
    c, x = next(terms)
    out = (match(c, x) if isinstance(c, Tensor) else c) * x
    for c, x in terms:
        if isinstance(c, Tensor) and (c.ndim or c.device.type != "cpu"):
            out.addcmul_(match(c, x), x)
        else:
            out.add_(x, alpha=float(c))
    return out


def lifted_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for dtypes of fewer bits: solvers and sums lose a step's change in half precision."""
    return torch.promote_types(dtype, torch.float32)


def lifted(x: Tensor) -> Tensor:
    """x in float32 where it has fewer bits; integers as they are."""
    return x.to(lifted_dtype(x.dtype)) if x.is_floating_point() else x


def has_float64(x: Tensor) -> bool:
    """Whether the device of x has float64, which MPS has not: the one place that asks."""
    try:
        x.new_empty(0, dtype=torch.float64)
    except TypeError:
        return False
    return True


def widened(x: Tensor) -> Tensor:
    """x in float64, on its device where that has it and else on the CPU."""
    return x.double() if has_float64(x) else x.cpu().double()


def check_batch(x: Tensor) -> None:
    """Raises UserError where x is no batch of samples [B, *D]."""
    if x.ndim < 2:
        raise UserError(
            f"a batch [B, *D] is needed, got shape {tuple(x.shape)}: x.reshape(-1, 1) makes samples of one number, and "
            "x[None] a batch of one sample"
        )


@dataclass(frozen=True, eq=False)
class Kernel:
    """p(x_t | x_0) = N(alpha x_0, sigma^2 I), for one noise level [] or one a sample [B]."""

    alpha: Tensor
    sigma: Tensor

    def __init__(self, alpha: Scalar, sigma: Scalar) -> None:
        alpha, sigma = torch.broadcast_tensors(as_schedule(alpha), as_schedule(sigma))  # type: ignore[no-untyped-call]
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "sigma", sigma)

    @property
    def logsnr(self) -> Tensor:
        """log(alpha^2 / sigma^2), [] or [B]."""
        return 2.0 * (self.alpha.log() - self.sigma.log())

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, [] or [B]."""
        return (self.alpha / self.sigma) ** 2

    @property
    def variance(self) -> Tensor:
        """sigma^2, [] or [B]."""
        return self.sigma**2

    def __getitem__(self, index: int | slice | Tensor) -> Kernel:
        """The kernels of some of the levels or samples."""
        return _checked(self.alpha[index], self.sigma[index])

    def unbind(self) -> list[Kernel]:
        """The kernels [] of all levels [n]."""
        return [_checked(alpha, sigma) for alpha, sigma in zip(self.alpha.unbind(), self.sigma.unbind())]

    def perturb(self, x0: Tensor, noise: Tensor) -> Tensor:
        """alpha x0 + sigma noise, a sample of x_t given x_0. Shapes [B, *D]."""
        return match(self.alpha, x0) * x0 + match(self.sigma, x0) * noise

    def after(self, earlier: Kernel) -> Kernel:
        """The transition p(x_t | x_s) = N(a x_s, v I) of a Markov process, s earlier than t, as Kernel(a, sqrt v).

        a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2; for a DDPM step a^2 = 1 - beta, v = beta.
        """
        alpha = self.alpha / earlier.alpha
        variance = self.variance - (alpha * earlier.sigma) ** 2
        return Kernel(alpha, variance.clamp_min(0.0).sqrt())


def _checked(alpha: Tensor, sigma: Tensor) -> Kernel:
    """A kernel of float64 tensors on the CPU of one shape: a grid makes many of them."""
    kernel = object.__new__(Kernel)
    object.__setattr__(kernel, "alpha", alpha)
    object.__setattr__(kernel, "sigma", sigma)
    return kernel


CLEAN = Kernel(1.0, 0.0)
"""The kernel of the data itself. Never a grid node; it closes the last step of a pure update rule."""
