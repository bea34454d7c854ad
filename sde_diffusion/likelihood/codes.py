"""Latents: the states at t = 1 that the probability flow joins to data, one to one.

The flow is a bijection between x at t_min and z = x(1), so that z is a code of x from which x is decoded again (Song et
al. 2021, section 4.3 and Appendix D.4), up to the solver's error, which `round_trip` measures. An x between two modes,
which the flow tears apart, multiplies that error by some hundreds, hence tolerances of 1e-6. Under the prior, z has
independent normal coordinates: it lies near a sphere, and a straight line between two codes would leave it, so that
they are interpolated along the great circle (Shoemake 1985),

    z(w) = sin((1 - w) a)/sin(a) z_0 + sin(w a)/sin(a) z_1,    a the angle between z_0 and z_1.

A temperature tau multiplies the code: below 1 the decoded samples come from the denser part of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import match, widened
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.wrappers import CountingDenoiser
from sde_diffusion.solvers.flow import transport


def encode(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    t_min: float | None = None,
    method: str = "per_sample",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_nfe: int = 100_000,
    grad: bool = False,
) -> Tensor:
    """The latent [B, *D] at t = 1 of data x [B, *D] at t_min (default: the smallest likelihood time).

    method, rtol, atol, max_nfe: of `integrate`, whose errors it raises. Where x requires a gradient, or with grad, the
    latent has one, by x and by the network's parameters. Numbers of 16 bits are carried in float32.
    """
    start = sde.t_likelihood if t_min is None else t_min
    return transport(denoiser, x, sde, start, 1.0, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe, grad=grad)


def decode(
    denoiser: Denoiser,
    z: Tensor,
    sde: SDE,
    *,
    temperature: float = 1.0,
    t_min: float | None = None,
    method: str = "per_sample",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_nfe: int = 100_000,
    grad: bool = False,
) -> Tensor:
    """The data [B, *D] at t_min of latents z [B, *D], multiplied by the temperature.

    Gradients and numbers of 16 bits as in `encode`. Raises UserError for a temperature that is
    not positive, and as `integrate` does.
    """
    if not temperature > 0.0:
        raise UserError(f"the temperature must be positive, got {temperature}")
    end = sde.t_likelihood if t_min is None else t_min
    code = temperature * z
    return transport(denoiser, code, sde, 1.0, end, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe, grad=grad)


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """latent and decoded [B, *D]; error [B], the root mean square of decoded - x; nfe for both ways."""

    latent: Tensor
    decoded: Tensor
    error: Tensor
    nfe: int


@torch.no_grad()
def round_trip(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    t_min: float | None = None,
    method: str = "per_sample",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_nfe: int = 100_000,
) -> RoundTrip:
    """Encode x [B, *D] and decode it again. Options as those of `encode`; no gradients."""
    counted = CountingDenoiser(denoiser)
    z = encode(counted, x, sde, t_min=t_min, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe)
    back = decode(counted, z, sde, t_min=t_min, method=method, rtol=rtol, atol=atol, max_nfe=max_nfe)
    error = widened(back - x).square().flatten(1).mean(1).sqrt()
    return RoundTrip(z, back, error, counted.nfe)


def interpolate(z0: Tensor, z1: Tensor, weights: Tensor) -> Tensor:
    """Latents [n, B, *D] on the great circle from z0 to z1 [B, *D], at weights [n]: 0 is z0 and 1 is z1.

    Raises UserError for latents of different shapes.
    """
    if z0.shape != z1.shape or z0.ndim < 2:
        raise UserError(f"two batches [B, *D] of one shape are needed, got {tuple(z0.shape)} and {tuple(z1.shape)}")
    wide0, wide1 = widened(z0), widened(z1)
    a, b = wide0.flatten(1), wide1.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)
    angle = cosine.clamp(-1.0, 1.0).acos()
    found = []
    for w in weights.tolist():
        # Where the codes are parallel the circle is the straight line.
        straight = angle.sin() < 1e-6
        safe = torch.where(straight, torch.ones_like(angle), angle)
        first = torch.where(straight, 1.0 - w, ((1.0 - w) * safe).sin() / safe.sin())
        second = torch.where(straight, w, (w * safe).sin() / safe.sin())
        found.append((match(first, wide0) * wide0 + match(second, wide1) * wide1).to(z0))
    return torch.stack(found)
