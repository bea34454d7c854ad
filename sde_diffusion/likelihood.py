"""Exact likelihoods through the probability-flow ODE, and bits per dimension.

Along the flow dx/dt = u(x, t) the log density changes by -div u (Chen et al. 2018), so that with x(t_min) = x

    log p(x) = log p_1(x(1)) + int_{t_min}^1 div u(x(t), t) dt        (Song et al. 2021, equation 39).

The divergence is the trace of the Jacobian: exactly, with one vector-Jacobian product a dimension, or by Hutchinson's
estimate (1990) p^T J p with E[p p^T] = I. K probes that are held fixed along the trajectory give K independent
estimates of the integral, hence the mean and its standard error.

For data dequantised from grey levels a spacing w apart in model units, the probability of an integer image is about
p(x) w^D, so that bits/dim = -log2 p(x) / D - log2 w (Theis et al. 2016; Ho et al. 2019, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.denoiser import CountingDenoiser, Denoiser
from sde_diffusion.errors import UserError, choose
from sde_diffusion.noise import Generators, rademacher, randn
from sde_diffusion.ode import integrate
from sde_diffusion.sde import SDE

PROBES = {"rademacher": rademacher, "gaussian": randn}


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each sample, and how it was found.

    nats            [B], natural-log density in model space
    standard_error  [B], of the mean over the probes, in nats; not a number for one probe; None for the exact trace
    latent          [B, *D], x at t = 1
    nfe             evaluations of the network for the whole batch
    t_min           the time at which x was placed
    """

    nats: Tensor
    standard_error: Tensor | None
    latent: Tensor
    nfe: int
    t_min: float


def _hutchinson(x: Tensor, probes: int, probe: str, generator: Generators) -> Tensor:
    if probes < 1:
        raise UserError(f"at least one probe is needed, got {probes}")
    draws = choose("probe", probe, PROBES)((len(x), probes, *x.shape[1:]), generator, like=x)
    return draws.movedim(1, 0)


def _basis(x: Tensor, probes: int, probe: str, generator: Generators) -> Tensor:
    dims = x[0].numel()
    eye = torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:])
    return eye.expand(dims, *x.shape)


DIVERGENCES = {"hutchinson": _hutchinson, "exact": _basis}
"""Vectors p_k [K, B, *D] whose products p_k^T J p_k average (Hutchinson) or add up (exact) to the trace of J."""


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    method: str = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe: str = "rademacher",
    generator: Generators = None,
    t_min: float | None = None,
    max_nfe: int = 100_000,
) -> LogLikelihood:
    """log p(x) in nats for x [B, *D] at time t_min (default: the process's smallest likelihood time).

    method: a key of `sde_diffusion.ode.SOLVERS`; divergence: "hutchinson" with `probes` draws of `probe`
    ("rademacher" or "gaussian") from the generator, or "exact".

    Raises UserError for integers, which must be dequantised first, and for values that are not finite.
    """
    if not x.is_floating_point():
        raise UserError(f"the likelihood is a density: {x.dtype} data must be dequantised first")
    if not bool(x.isfinite().all()):
        raise UserError("the data hold values that are not finite")
    start = sde.t_likelihood if t_min is None else t_min
    vectors = choose("divergence", divergence, DIVERGENCES)(x, probes, probe, generator)
    exact = divergence == "exact"
    columns = 1 if exact else probes
    dims = x[0].numel()
    counted = CountingDenoiser(denoiser)

    def field(t: Tensor, state: Tensor) -> Tensor:
        with torch.enable_grad():
            here = state[:, :dims].detach().reshape(x.shape).requires_grad_(True)
            velocity = sde.velocity(here, counted(here, sde.kernel(t)), t)
            traces = []
            for vector in vectors:
                (product,) = torch.autograd.grad(velocity, here, vector, retain_graph=True)
                traces.append((product * vector).flatten(1).sum(1))
        rates = torch.stack(traces, dim=1)
        rates = rates.sum(1, keepdim=True) if exact else rates
        return torch.cat([velocity.detach().flatten(1), rates], dim=1)

    state = torch.cat([x.detach().flatten(1), x.new_zeros(len(x), columns)], dim=1)
    state = integrate(field, state, start, 1.0, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe)
    latent, integrals = state[:, :dims].reshape(x.shape), state[:, dims:]
    error = None if exact else integrals.std(1) / math.sqrt(columns) if columns > 1 else integrals[:, 0] * math.nan
    return LogLikelihood(sde.prior_logp(latent) + integrals.mean(1), error, latent, counted.nfe, start)


def bits_per_dim(nats: Tensor, dims: int, bin_width: float) -> Tensor:
    """-log2 p(x) / dims - log2(bin_width), from a log density in nats.

    bin_width: the spacing of the grey levels in model units, stated by the dequantiser; 1 leaves the density of
    continuous data as it is. Raises UserError where it is not positive.
    """
    if not (dims >= 1 and bin_width > 0):
        raise UserError(f"dims must be at least 1 and bin_width positive, got {dims} and {bin_width}")
    return -nats / (dims * math.log(2.0)) - math.log2(bin_width)
