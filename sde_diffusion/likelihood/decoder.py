"""The decoder: log p(x | x_0'), of data given a state at the lowest noise level.

Of continuous data it is the Gaussian N(x0_hat, v_0) itself. Of grey levels a spacing w apart it is that Gaussian
integrated over each level's bin, the first and last bins reaching to infinity (Ho et al. 2020, equation 13),

    P(x) = Phi((x + w/2 - x0_hat) / s) - Phi((x - w/2 - x0_hat) / s),    s^2 = v_0,

a distribution over the levels. In continuous time the decoder needs no x0_hat: by Bayes' rule with equal weights the
level x has p(x | z_0) = q(z_0 | x) / sum_k q(z_0 | k) (Kingma et al. 2021, equation 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import log_ndtr

from sde_diffusion.core.errors import choose


def _exact_cdf(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), with low < high, accurate in both tails."""
    # In the lower tail the numbers are small and their logarithms exact.
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top = log_ndtr(high)
    return top + torch.log(-torch.expm1(log_ndtr(low) - top))


def _tanh_cdf(low: Tensor, high: Tensor) -> Tensor:
    """The same by tanh, and no less than log(1e-12): what improved-diffusion computes."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    return (cdf(high) - cdf(low)).clamp_min(1e-12).log()


CDFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"exact": _exact_cdf, "tanh": _tanh_cdf}
"""How the normal distribution function is computed; tanh is Page's approximation (1977) with Hendrycks' constants."""


def discretized_gaussian(x: Tensor, mean: Tensor, log_std: Tensor, levels: int, cdf: str = "exact") -> Tensor:
    """log P(x) of grey levels under a Gaussian integrated over their bins, elementwise, in nats.

    x: values 2 k / (levels - 1) - 1, k = 0 .. levels - 1; bins of width 2 / (levels - 1) around them, the outer two of
    which reach to infinity, so that the probabilities sum to one (Ho et al. 2020, equation 13). cdf: a key of CDFS.
    """
    between = choose("distribution function", cdf, CDFS)
    half, scale = 1.0 / (levels - 1), (-log_std).exp()
    # A number of standard deviations that stands for infinity: Phi is 0 or 1 there in any precision.
    far = torch.full_like(x, 1e4)
    low = torch.where(x < -1.0 + half, -far, ((x - mean - half) * scale).clamp(-1e4, 1e4 - 1.0))
    high = torch.where(x > 1.0 - half, far, ((x - mean + half) * scale).clamp(-1e4 + 1.0, 1e4))
    return between(low, high)


@dataclass(frozen=True)
class Space:
    """Where the data lie, and so what the last step of the bound is measured by.

    levels      number of grey levels of data 2 k / (levels - 1) - 1 - offset; None for continuous data
    offset      what was subtracted from the data in model units, broadcasting to [B, *D]
    cdf         a key of CDFS
    decoder     log v_0 of the grey levels' decoder where it is not that of the chain
    """

    levels: int | None = 256
    offset: Tensor | float = 0.0
    cdf: str = "exact"
    decoder: Tensor | None = None

    def reconstruction(self, x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """-log p(x | x_0') of the Gaussian decoder, elementwise, in nats."""
        if self.levels is None:
            return 0.5 * (((x0 - mean) * (-log_std).exp()).square() + math.log(2.0 * math.pi)) + log_std
        return -discretized_gaussian(x0 + self.offset, mean + self.offset, log_std, self.levels, self.cdf)


GREY_LEVELS = Space()
"""8-bit images in [-1, 1]."""


def level_nats(x0: Tensor, noise: Tensor, std: float, space: Space) -> Tensor:
    """-log p(x | z_0), p(x | z_0) proportional to q(z_0 | x) over the grey levels; [B], in nats.

    z_0/alpha = x_0 + std noise.
    """
    levels = space.levels
    assert levels is not None
    values = 2.0 * torch.arange(levels, dtype=torch.float64, device=x0.device) / (levels - 1) - 1.0
    here = -0.5 * noise.square().flatten(1).sum(1)
    seen = x0 + space.offset + std * noise
    # One sample at a time: of each number there are as many as levels.
    everywhere = [(-0.5 * ((row[..., None] - values) / std).square()).logsumexp(-1).sum() for row in seen]
    return torch.stack(everywhere) - here
