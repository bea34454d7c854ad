"""Pairs of samples, their latents by the flow, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.process import SDE
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.likelihood.codes import RoundTrip, decode, interpolate, round_trip
from sde_diffusion.settings.root import Settings


def pairs_of(dataset: Dataset, count: int, same_class: bool) -> Tensor:
    """Indices [2, count] of samples to interpolate between; those of a pair share a class if they must.

    Raises UserError where there is no such pair.
    """
    if not same_class or dataset.labels is None:
        count = min(count, len(dataset) // 2)
        return torch.arange(2 * count).view(count, 2).T
    found = [torch.nonzero(dataset.labels == label)[:2, 0] for label in range(len(dataset.classes))]
    pairs = [pair for pair in found if len(pair) == 2][:count]
    if not pairs:
        raise UserError("no class has two held-out samples to interpolate between")
    return torch.stack(pairs, dim=1)


@dataclass(frozen=True, eq=False)
class Coded:
    """Pairs of samples that went to their latents and back: the trips, pictures by name, and figures."""

    trips: list[RoundTrip]
    columns: dict[str, list[Tensor]]
    figures: dict[str, float]


def coded_pairs(settings: Settings, model: Denoiser, sde: SDE, ends: Sequence[Tensor]) -> Coded:
    """Both ends [pairs, *D] encoded and decoded, what lies between them, and the first ends at other temperatures."""
    own, t_min = settings.latents, settings.likelihood.smallest_time
    most = settings.likelihood.max_nfe
    tolerances: dict[str, Any] = {"rtol": own.rtol, "atol": own.rtol, "t_min": t_min, "max_nfe": most}
    first, last = trips = [round_trip(model, x, sde, **tolerances) for x in ends]
    path = interpolate(first.latent, last.latent, torch.linspace(0.0, 1.0, own.points, dtype=torch.float64))
    error, latent = (torch.cat([getattr(trip, name) for trip in trips]) for name in ("error", "latent"))
    columns = {
        "round_trip": [ends[0], first.decoded, ends[1], last.decoded],
        "interpolation": [decode(model, z, sde, **tolerances) for z in path],
        "temperature": [decode(model, first.latent, sde, temperature=tau, **tolerances) for tau in own.temperatures],
    }
    figures = {
        "round_trip_rms": float(error.square().mean().sqrt()),
        "round_trip_worst": float(error.max()),
        "latent_rms": float(latent.square().mean().sqrt() / sde.prior_std),
        "nfe": first.nfe,
        "smallest_time": sde.t_likelihood if t_min is None else t_min,
    }
    return Coded(trips, columns, figures)
