"""Samplers: functions (denoiser, x, grid, *, generator, on_step, named options) -> x, and the driver `sample`.

A sampler walks down the nodes of a grid and stops at the last one, which still has noise. The driver draws the prior,
counts evaluations, and takes the last step to x0_hat for all of them alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import CountingDenoiser, Denoiser
from sde_diffusion.errors import UserError, choose, nearest
from sde_diffusion.grids import TimeGrid
from sde_diffusion.noise import Generators, fresh
from sde_diffusion.samplers.ancestral import ancestral, ddim, ddpm
from sde_diffusion.samplers.euler_maruyama import euler_maruyama
from sde_diffusion.samplers.flow import euler, heun, ode
from sde_diffusion.samplers.langevin import annealed_langevin, pc
from sde_diffusion.samplers.march import OnStep
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "pc": pc,
    "annealed_langevin": annealed_langevin,
    "ode": ode,
    "euler": euler,
    "heun": heun,
    "ddpm": ddpm,
    "ddim": ddim,
}

_SHARED = ("denoiser", "x", "grid", "generator", "on_step")
FINISHES = {"denoise": True, "none": False}


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples x [B, *D] and nfe, the number of network evaluations of the whole batch, the last one included."""

    x: Tensor
    nfe: int


def sampler_options(sampler: str) -> dict[str, Any]:
    """The named options of a sampler and their defaults. Raises UserError for an unknown sampler."""
    parameters = inspect.signature(choose("sampler", sampler, SAMPLERS)).parameters
    return {name: p.default for name, p in parameters.items() if name not in _SHARED}


def check_options(sampler: str, options: dict[str, Any]) -> None:
    """Raises TypeError for an option that the sampler does not have, naming those it has."""
    valid = sampler_options(sampler)
    for name in options:
        if name not in valid:
            raise TypeError(
                f"sampler {sampler!r} has no option {name!r}; "
                + (nearest(name, valid) if valid else "it takes no options.")
            )


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    grid: TimeGrid | None = None,
    *,
    sampler: str = "ddim",
    x: Tensor | None = None,
    generator: Generators = None,
    finish: str = "denoise",
    on_step: OnStep | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Sample:
    """Draw samples: from the prior of the grid's process (shape [B, *D]) or from a given x at its first node.

    finish="denoise" ends with x0_hat at the last node, one more evaluation; "none" returns x at that node.
    generator: one for the batch, or one for each sample, which makes a sample independent of its batch.
    The device is that of x, or else `device`, the denoiser's own (where it has one), or the generator's.

    Raises TypeError for an option that the sampler does not have, UserError for other bad arguments and for samples
    that are not finite.
    """
    if grid is None:
        raise UserError("a grid is needed, such as make_grid(sde, 50)")
    if (x is None) == (shape is None):
        raise UserError("either a shape [B, *D] or a starting point x is needed, and not both")
    check_options(sampler, options)
    denoise = choose("finish", finish, FINISHES)
    generator = fresh(generator)
    if x is None and shape is not None:
        where = device or getattr(denoiser, "device", None)
        x = grid.sde.prior_sample(shape, generator=generator, dtype=dtype, device=where)
    counted = CountingDenoiser(denoiser)
    out = SAMPLERS[sampler](counted, x, grid, generator=generator, on_step=on_step, **options)
    if denoise:
        last = grid.nodes[-1]
        x0_hat = counted(out, last.kernel)
        if on_step is not None:
            on_step(grid.steps - 1, last, out, x0_hat)
        out = x0_hat
    if not bool(out.isfinite().all()):
        raise UserError(f"{sampler} gave samples that are not finite: check the model, or take more or smaller steps")
    return Sample(out, counted.nfe)
