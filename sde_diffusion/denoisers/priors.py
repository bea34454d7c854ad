"""What stands for the noisy data where sampling starts: the distribution of x at the grid's first node.

At t = 1 nearly nothing is left of the data, and the process's own prior N(0, s^2 I) stands for them. Further down the
marginal is alpha x_0 + sigma n, of which a prior has to know as much as there is of x_0. So a drawn start where the SNR
is above MOST_SNR needs a prior that is named:

    process     N(0, sigma^2 I), as if x_0 were 0; at t = 1 the process's own
    gaussian    N(alpha m, alpha^2 diag s^2 + sigma^2 I), for data of mean m and standard deviations s

Either has the noise of its node. The process's prior has prior_std at t = 1, which for the VP-SDE is 1 where sigma is
0.99998; below it keeps that ratio, so that it is one function of the level.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.core.noise import Generators, device_of, randn
from sde_diffusion.core.process import SDE

MOST_SNR = 0.1
"""The share of signal, alpha^2/sigma^2, up to which the process's own prior stands for the data: log-SNR -2.3."""


class Prior(Protocol):
    """A distribution of x at one noise level of a process, as its mean and standard deviation, [] or [*D]."""

    def law(self, sde: SDE, kernel: Kernel) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class ProcessPrior:
    """N(0, sigma^2 I): the noise of the level alone."""

    def law(self, sde: SDE, kernel: Kernel) -> tuple[Tensor, Tensor]:
        std = sde.prior_std * (kernel.sigma / sde.kernel(1.0).sigma)
        return torch.zeros_like(std), std


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """N(alpha m, alpha^2 diag s^2 + sigma^2 I): mean and std [*D] of the data, each number on its own."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, data: Tensor) -> GaussianPrior:
        """The prior of data [N, *D] in model space, N at least 2."""
        if len(data) < 2:
            raise UserError(f"a Gaussian is fitted to two samples or more, got {len(data)}")
        wide = data.detach().to("cpu", torch.float64)
        return cls(wide.mean(0), wide.std(0))

    def law(self, sde: SDE, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return kernel.alpha * self.mean, ((kernel.alpha * self.std) ** 2 + kernel.variance).sqrt()


PRIORS: dict[str, Callable[..., Prior]] = {"process": ProcessPrior, "gaussian": GaussianPrior}


def prior_of(prior: str | Prior) -> Prior:
    """The prior of that name, or the prior itself. Raises UserError for an unknown name, and one that needs data."""
    if not isinstance(prior, str):
        return prior
    make = choose("prior", prior, PRIORS)
    if any(p.default is p.empty for p in inspect.signature(make).parameters.values()):
        raise UserError(f"prior {prior!r} is made from data: give sd.{getattr(make, '__name__', prior)}.fit(data)")
    return make()


def draw(
    prior: str | Prior | None,
    sde: SDE,
    kernel: Kernel,
    shape: Sequence[int],
    *,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A start x [B, *D] at a noise level; of the process's own prior where none is named.

    Raises UserError where none is named and the level has more signal than that prior can stand for.
    """
    if prior is None and float(kernel.snr) > MOST_SNR:
        level = f"alpha {float(kernel.alpha):.4g}, sigma {float(kernel.sigma):.4g}"
        raise UserError(
            f"the grid starts at log-SNR {round(float(kernel.logsnr), 2) + 0.0:g} ({level}), where noise alone does "
            f"not stand for the data: start at more noise, below log-SNR {math.log(MOST_SNR):.1f}, from data (x=, "
            "sd.edit), or name a prior, such as prior='process'"
        )
    noise = randn(shape, generator, dtype=dtype)
    noise = noise.to(device_of(generator) if device is None else device)
    mean, std = (value.to(noise.dtype).to(noise.device) for value in prior_of(prior or "process").law(sde, kernel))
    return mean + std * noise


def log_prob(prior: str | Prior, sde: SDE, kernel: Kernel, x: Tensor) -> Tensor:
    """log density of x [B, *D] at a noise level, in nats, [B]."""
    mean, std = (value.to(x.dtype).to(x.device) for value in prior_of(prior).law(sde, kernel))
    scaled = ((x - mean) / std).flatten(1)
    dims = scaled.shape[1]
    volume = std.log().expand(x.shape[1:]).sum()
    return -0.5 * scaled.square().sum(1) - volume - 0.5 * dims * math.log(2.0 * math.pi)
