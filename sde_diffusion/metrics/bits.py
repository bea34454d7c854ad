"""Bits/dim of stored samples by each method: the flow's likelihood, the discrete bound, the continuous bound.

A figure is a function of a batch that gives columns [B] of numbers, the first of which, named as the figure, is the
bits/dim of each sample. Noise and probes depend on the seed and a sample's index only, so that neither the batch nor an
interruption changes a number, but for solvers that share their steps among the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.noise import sample_generators
from sde_diffusion.core.process import SDE
from sde_diffusion.data import DataTransform, Dequantizer
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.likelihood.bound import Bound, OnLevel
from sde_diffusion.likelihood.continuous import vlb
from sde_diffusion.likelihood.discrete import elbo
from sde_diffusion.likelihood.flow import bits_per_dim, log_likelihood

# One stream of random numbers for each purpose; those below 5 are the training's.
DEQUANTIZE_STREAM, PROBE_STREAM, BOUND_STREAM = 5, 6, 7

Columns = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as they are stored [B, *D], their labels [B] or None, their indices in the data set, and the seed."""

    samples: Tensor
    labels: Tensor | None
    indices: Sequence[int]
    seed: int

    def dequantized(self, transform: DataTransform, dequantizer: Dequantizer, device: Any) -> tuple[Tensor, Tensor]:
        """x in model space on a device, and the nats that turn log p(x) into log P of the samples."""
        noise = sample_generators(self.seed, self.indices, stream=DEQUANTIZE_STREAM)
        found = transform.dequantized(self.samples, self.labels, generator=noise, dequantizer=dequantizer)
        return found.x.to(device), found.log_volume


Figure = Callable[[Denoiser, Batch, OnLevel], tuple[Columns, int]]
"""(denoiser with its conditioning, batch, on_level) -> columns [B] and evaluations of the network."""


def flow_figure(
    sde: SDE, transform: DataTransform, device: Any, dequantizer: Dequantizer, options: dict[str, Any]
) -> Figure:
    """The flow's likelihood of dequantised data; options are those of `log_likelihood`."""

    def figure(denoiser: Denoiser, batch: Batch, on_level: OnLevel) -> tuple[Columns, int]:
        x, volume = batch.dequantized(transform, dequantizer, device)
        probes = sample_generators(batch.seed, batch.indices, stream=PROBE_STREAM)
        space = "continuous" if transform.levels is None else "images"
        found = log_likelihood(denoiser, x, sde, generator=probes, space=space, **options)
        dims = x[0].numel()
        columns = {"ode": bits_per_dim(found.nats.double().cpu() + volume.cpu(), dims, 1.0)}
        if found.standard_error is not None and found.probes > 1:
            columns["ode_probe_error"] = found.standard_error.double().cpu() / (dims * math.log(2.0))
        if found.sensitivity is not None:
            columns["ode_t_min_change"] = -found.sensitivity.double().cpu() / (dims * math.log(2.0))
        return columns, found.nfe

    return figure


def _terms(name: str, bound: Bound) -> tuple[Columns, int]:
    found = bound.per_sample
    parts = {"prior": found.prior, "denoising": found.denoising.sum(1), "reconstruction": found.reconstruction}
    columns = {name: found.total, **{f"{name}_{part}": value for part, value in parts.items()}}
    return {key: value.cpu() for key, value in columns.items()}, bound.nfe


@dataclass(frozen=True)
class BoundSpace:
    """Where a bound is one on the data: at their grey levels, or of dequantised or continuous data (dequantizer)."""

    transform: DataTransform
    device: Any
    dequantizer: Dequantizer | None

    def data(self, batch: Batch) -> tuple[Tensor, dict[str, Any], Tensor | float]:
        """The data, the options that tell a bound where they lie, and nats to add to log p."""
        transform = self.transform
        if self.dequantizer is None:
            levels, like = transform.levels, batch.samples.float()
            return batch.samples, {"levels": levels, "offset": transform.offset(like, batch.labels)}, 0.0
        x, volume = batch.dequantized(transform, self.dequantizer, self.device)
        return x, {"levels": None}, volume


def elbo_figure(process: SDE | TimeGrid, space: BoundSpace, options: dict[str, Any]) -> Figure:
    """The discrete bound; options are those of `elbo`."""

    def figure(denoiser: Denoiser, batch: Batch, on_level: OnLevel) -> tuple[Columns, int]:
        x, where, volume = space.data(batch)
        noise = sample_generators(batch.seed, batch.indices, stream=BOUND_STREAM)
        bound = elbo(denoiser, x, process, generator=noise, on_level=on_level, **where, **options)
        return _shifted(*_terms("elbo", bound), volume, x[0].numel())

    return figure


def vlb_figure(sde: SDE, space: BoundSpace, options: dict[str, Any]) -> Figure:
    """The continuous-time bound; options are those of `vlb`."""

    def figure(denoiser: Denoiser, batch: Batch, on_level: OnLevel) -> tuple[Columns, int]:
        x, where, volume = space.data(batch)
        noise = sample_generators(batch.seed, batch.indices, stream=BOUND_STREAM)
        bound = vlb(denoiser, x, sde, generator=noise, on_level=on_level, **where, **options)
        return _shifted(*_terms("vlb", bound), volume, x[0].numel())

    return figure


def _shifted(columns: Columns, nfe: int, volume: Tensor | float, dims: int) -> tuple[Columns, int]:
    """The columns with the volume of the bins in the reconstruction and the total."""
    bits = (volume.cpu() if isinstance(volume, Tensor) else volume) / (dims * math.log(2.0))
    shifted = {key: value - bits if key in _WITH_VOLUME else value for key, value in columns.items()}
    return shifted, nfe


_WITH_VOLUME = {f"{name}{part}" for name in ("elbo", "vlb") for part in ("", "_reconstruction")}
