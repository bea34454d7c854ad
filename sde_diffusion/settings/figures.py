"""The figures of bits/dim that a configuration can name: how each is computed, and its protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.grids import make_grid
from sde_diffusion.core.process import SDE
from sde_diffusion.data import DataTransform
from sde_diffusion.metrics.bits import BoundSpace, Figure, elbo_figure, flow_figure, vlb_figure
from sde_diffusion.settings.likelihood import LikelihoodSettings
from sde_diffusion.solvers.ode import FIXED_STEPS


@dataclass(frozen=True, eq=False)
class NamedFigure:
    """A figure of bits/dim, what it is about in words, and how it is computed, for its protocol."""

    compute: Figure
    space: str
    protocol: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What bits/dim are about: a network's process, its data's transform, and what it was trained on.

    dequantize: whether it was trained on dequantised grey levels; variance: of its steps, "posterior" or "learned".
    """

    sde: SDE
    transform: DataTransform
    device: torch.device
    dequantize: bool
    variance: str

    def bound_space(self, settings: LikelihoodSettings) -> BoundSpace:
        """A network trained on dequantised levels knows nothing of the levels themselves, and the other way round."""
        continuous = self.dequantize or self.transform.levels is None
        return BoundSpace(self.transform, self.device, settings.dequantized_by() if continuous else None)


def _flow(settings: LikelihoodSettings, about: Evaluation) -> NamedFigure:
    options, noise = settings.flow_options(), settings.dequantized_by()
    smallest = about.sde.t_likelihood if options["t_min"] is None else options["t_min"]
    compute = flow_figure(about.sde, about.transform, about.device, noise, options)
    # The limit on the evaluations changes no number, and a solver has either steps or tolerances.
    idle = {"max_nfe", *(("rtol", "atol") if options["method"] in FIXED_STEPS else ("steps",))}
    idle |= {"probes", "probe"} if options["divergence"] == "exact" else set()
    protocol = {name: value for name, value in options.items() if name not in idle}
    return NamedFigure(compute, about.transform.space(noise), {**protocol, "smallest_time": smallest})


def _elbo(settings: LikelihoodSettings, about: Evaluation) -> NamedFigure:
    sde, space = about.sde, about.bound_space(settings)
    chain = TimeGrid(sde, sde.times.flip(0)) if sde.times is not None else make_grid(sde, settings.levels, "logsnr")
    options = {
        "variance": about.variance,
        "cdf": settings.cdf,
        "terms": settings.terms if 0 < settings.terms < chain.steps else None,
    }
    stated = {name: value for name, value in options.items() if name != "cdf" or space.dequantizer is None}
    protocol = {**stated, "steps": chain.steps, "smallest_time": float(chain.times[-1])}
    return NamedFigure(elbo_figure(chain, space, options), about.transform.space(space.dequantizer), protocol)


def _vlb(settings: LikelihoodSettings, about: Evaluation) -> NamedFigure:
    space = about.bound_space(settings)
    options = {"points": settings.points, "t_min": about.sde.t_sample}
    protocol = {**options, "smallest_time": about.sde.t_sample}
    return NamedFigure(vlb_figure(about.sde, space, options), about.transform.space(space.dequantizer), protocol)


FIGURES: dict[str, Callable[[LikelihoodSettings, Evaluation], NamedFigure]] = {"ode": _flow, "elbo": _elbo, "vlb": _vlb}
"""Bits/dim: by the probability flow, by the bound in discrete time, by that in continuous time."""
