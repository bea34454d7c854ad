"""The variational bound in continuous time: an integral over the log-SNR.

With s_i^2 for the variance of a step too, the step from level i to i-1 of the discrete bound costs
(snr_{i-1} - snr_i)/2 |x_0 - x0_hat|^2. As the levels grow many the sum becomes 1/2 int |x_0 - x0_hat|^2 dsnr, with
snr = exp(lam) and snr |x_0 - x0_hat|^2 = |eps - eps_hat|^2 an integral over the log-SNR lam (Kingma et al. 2021,
equation 17),

    1/2 int_{lam_1}^{lam_0} E |eps - eps_hat(x_lam)|^2 dlam,

with the decoder p(x | z_0) proportional to q(z_0 | x) at the last level (ibid., equation 13), which of continuous data
is a Gaussian with the entropy D/2 (1 + log(2 pi sigma^2/alpha^2)). For the exact denoiser the bound is -log p(x), for
each x.

Of continuous data |eps|^2 makes most of the variance at high log-SNR. E |eps|^2 = D, so that sigmoid(lam) (|eps|^2 - D)
is subtracted from the integrand, which changes nothing on average.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import widened
from sde_diffusion.core.noise import Generators, fresh, randn
from sde_diffusion.core.process import SDE
from sde_diffusion.core.spacings import logsnr_ends
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.wrappers import CountingDenoiser
from sde_diffusion.likelihood import estimators
from sde_diffusion.likelihood.bound import Bound, OnLevel, Terms, ignore, model_data, prior_nats
from sde_diffusion.likelihood.decoder import Space, level_nats


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    levels: int | None = 256,
    offset: Tensor | float = 0.0,
    bin_width: float = 1.0,
    points: int = 100,
    t_min: float | None = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    on_level: OnLevel = ignore,
) -> Bound:
    """The continuous-time bound on -log2 P(x)/D: an integral over the log-SNR (Kingma et al. 2021, equation 17).

    It runs from the prior's time to t_min (default: the process's smallest likelihood time), and is estimated with one
    log-SNR a sample in each of `points` equal sections. Data, levels, offset and bin_width as in `elbo`; the bound's
    `denoising` [points] is the integral over each section, from data to noise.
    """
    start = sde.t_likelihood if t_min is None else t_min
    if points < 1 or not 0.0 <= start < 1.0 or not bin_width > 0:
        raise UserError(
            f"points must be at least 1, t_min in [0, 1) and bin_width positive; got {points}, {start} and {bin_width}"
        )
    x0 = model_data(denoiser, x, levels, offset, bin_width, dtype)
    space = Space(levels, widened(offset.to(x0)) if isinstance(offset, Tensor) else offset)
    generator, counted, exact = fresh(generator, x0.device), CountingDenoiser(denoiser), widened(x0)
    dims = x0[0].numel()
    least, most = logsnr_ends(sde, start)
    if not bool(most.isfinite()):
        raise UserError(f"the bound does not exist where there is no noise at t_min = {start}; take t_min >= 1e-5")
    found, mse = (exact.new_zeros(len(x0), points) for _ in range(2))
    half = 0.5 * float((most - least) / points)
    for section, logsnr in estimators.logsnrs(least, most, points, len(x0), generator):
        kernel = sde.kernel(sde.time_of(logsnr))
        noise = randn(x0.shape, generator, like=x0)
        error = (exact - widened(counted(kernel.perturb(x0, noise), kernel))).square().flatten(1)
        integrand = kernel.snr.to(exact.device) * error.sum(1)
        if levels is None:  # of the noise little is found at high log-SNR, where its own size then makes the variance
            excess = widened(noise).square().flatten(1).sum(1) - dims
            integrand = integrand - torch.sigmoid(kernel.logsnr).to(exact.device) * excess
        found[:, section] = half * integrand
        mse[:, section] = error.mean(1)
        on_level(points - section, points)
    last = sde.kernel(sde.time_of(most))
    std = float(last.sigma / last.alpha)
    if levels is None:
        decoder = exact.new_full((len(x0),), 0.5 * dims * (1.0 + math.log(2.0 * math.pi * std**2)))
    else:
        decoder = level_nats(exact, widened(randn(x0.shape, generator, like=x0)), std, space)
    bits = 1.0 / (dims * math.log(2.0))
    prior = prior_nats(x0, sde.kernel(sde.time_of(least)), sde.prior_std)
    return Bound(Terms(bits * prior, bits * found, bits * decoder - math.log2(bin_width), mse), counted.nfe)
