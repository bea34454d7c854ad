"""The variational bound on the likelihood: what it consists of, in discrete and in continuous time alike.

A diffusion with levels 0 .. T-1 is a latent variable model: a prior p(x_{T-1}), steps p(x_{i-1} | x_i), and a decoder
p(x | x_0'), x_0' the state at level 0. With Jensen's inequality (Sohl-Dickstein et al. 2015; Ho et al. 2020, equation
5),

    -log p(x) <= KL(q(x_{T-1} | x) || p(x_{T-1}))                            prior matching
              + sum_{i>=1} E_q KL(q(x_{i-1} | x_i, x) || p(x_{i-1} | x_i))   denoising matching
              - E_q log p(x | x_0')                                          reconstruction.

The prior is N(0, s^2 I), so that with v = sigma^2/s^2 of the last level prior matching is, for each dimension,

    1/2 ( v - 1 - log v + alpha^2 x^2 / s^2 ).

See decoder.py for the reconstruction, discrete.py and continuous.py for denoising matching.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import Kernel, lifted, widened
from sde_diffusion.denoisers.base import Denoiser


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of the bound of each sample, in bits/dim.

    prior [B], denoising [B, T] (0 at level 0, whose term is the reconstruction), reconstruction [B];
    x0_mse [B, T], the mean of (x0_hat - x_0)^2 over the dimensions.
    """

    prior: Tensor
    denoising: Tensor
    reconstruction: Tensor
    x0_mse: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of each sample, [B]."""
        return self.prior + self.denoising.sum(1) + self.reconstruction


@dataclass(frozen=True, eq=False)
class Bound:
    """An upper bound on the negative log likelihood, averaged over a batch, in bits/dim.

    prior           [], prior matching
    denoising       [T], denoising matching at each level from data to noise (0 at level 0)
    reconstruction  [], the decoder's
    total           [], their sum
    standard_error  [], of the total over the batch; not a number for one sample
    nfe             evaluations of the network for the whole batch
    per_sample      the same of each sample
    """

    per_sample: Terms
    nfe: int

    @property
    def prior(self) -> Tensor:
        return self.per_sample.prior.mean()

    @property
    def denoising(self) -> Tensor:
        return self.per_sample.denoising.mean(0)

    @property
    def reconstruction(self) -> Tensor:
        return self.per_sample.reconstruction.mean()

    @property
    def total(self) -> Tensor:
        return self.per_sample.total.mean()

    @property
    def standard_error(self) -> Tensor:
        total = self.per_sample.total
        return total.std() / math.sqrt(len(total)) if len(total) > 1 else total[0] * math.nan


def prior_nats(x0: Tensor, last: Kernel, prior_std: float) -> Tensor:
    """KL(N(alpha x_0, sigma^2) || N(0, s^2)) of each sample, [B]."""
    variance = last.variance / prior_std**2
    moved = (last.alpha / prior_std) ** 2
    constant = 0.5 * x0[0].numel() * (variance - 1.0 - variance.log())
    return float(constant) + 0.5 * float(moved) * widened(x0).square().flatten(1).sum(1)


def model_data(
    denoiser: Denoiser,
    x: Tensor,
    levels: int | None,
    offset: Tensor | float,
    bin_width: float,
    dtype: torch.dtype | None,
) -> Tensor:
    """Data in model space, [B, *D], in float32 or more. Raises UserError for values that are not what `levels` says."""
    if x.ndim < 2 or not x.numel():
        raise UserError(f"a batch [B, *D] of data is needed, got shape {tuple(x.shape)}")
    device = getattr(denoiser, "device", None) or x.device
    if levels is not None and bin_width != 1.0:
        raise UserError("bin_width is for densities, levels=None: the bound of grey levels is of probabilities already")
    if levels is None:
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise UserError("with levels=None the data are continuous: finite floating-point numbers are needed")
        return lifted(x.to(device=device, dtype=dtype or x.dtype))
    if not isinstance(levels, int) or levels < 2:
        raise UserError(f"a whole number of at least 2 grey levels is needed, got {levels}")
    if x.is_floating_point() or x.dtype == torch.bool:
        raise UserError(
            f"the bound is one of grey levels 0 to {levels - 1} as integers, got {x.dtype}; levels=None is for "
            "continuous data"
        )
    if int(x.min()) < 0 or int(x.max()) >= levels:
        raise UserError(f"grey levels must be 0 to {levels - 1}, got {int(x.min())} to {int(x.max())}; see levels=")
    if isinstance(offset, Tensor) and offset.shape not in (x.shape, x.shape[1:], ()):
        raise UserError(f"the offset must have the shape of the data or of one sample, got {tuple(offset.shape)}")
    scaled = 2.0 * lifted(x.to(device=device, dtype=dtype or torch.get_default_dtype())) / (levels - 1) - 1.0
    return scaled - (offset.to(scaled) if isinstance(offset, Tensor) else offset)


OnLevel = Callable[[int, int], None]
"""Called after each evaluation, with how many are done and how many there are."""


def ignore(done: int, total: int) -> None:
    """The default of `on_level`."""
