"""Samplers: functions (denoiser, x, grid, *, generator, on_step, named options) -> x, and the driver `sample`.

A sampler walks down the nodes of a grid and stops at the last one, which still has noise. The driver draws the prior,
counts evaluations, and takes the last step to x0_hat for all of them alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import CheckedDenoiser, CountingDenoiser, Denoiser
from sde_diffusion.errors import NotFinite, UserError, choose, no_option
from sde_diffusion.grids import TimeGrid
from sde_diffusion.noise import Generators, fresh, rewind, states
from sde_diffusion.samplers.adaptive_sde import adaptive_sde
from sde_diffusion.samplers.ancestral import ancestral, ddim, ddim_inversion, ddpm
from sde_diffusion.samplers.euler_maruyama import euler_maruyama, ito
from sde_diffusion.samplers.flow import euler, heun, ode
from sde_diffusion.samplers.langevin import annealed_langevin, pc
from sde_diffusion.samplers.march import OnStep
from sde_diffusion.samplers.multistep import deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, lms, unipc
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion
from sde_diffusion.samplers.singlestep import dpmpp_2s

__all__ = [
    "SAMPLERS",
    "SAMPLER_TABLE",
    "Entry",
    "Sample",
    "check_options",
    "ddim_inversion",
    "sample",
    "sampler_options",
]


@dataclass(frozen=True)
class Entry:
    """A sampler and what is to be known of it, under its default options.

    order         of convergence: of the flow's solution, or weakly, of mean and covariance
    evaluations   of the network in a step; the last step, to x0_hat, is one more for all
    noise         "none", or "drawn" for a stochastic sampler
    source        the paper
    grid          the kind of grid that suits it: methods of higher order extrapolate over the last step of a uniform
                  grid, which is many times longer in log-SNR than the one before; "" for that of the process
    tolerances    of one with step sizes of its own: values of rtol and atol that a comparison takes in place of steps
    """

    function: Callable[..., Tensor]
    order: str
    evaluations: str
    noise: str
    source: str
    grid: str = ""
    tolerances: tuple[float, ...] = ()


SAMPLER_TABLE: dict[str, Entry] = {
    "euler_maruyama": Entry(euler_maruyama, "1", "1", "drawn", "Song et al. 2021, eq. 6"),
    "reverse_diffusion": Entry(reverse_diffusion, "1", "1", "drawn", "Song et al. 2021, Appendix E"),
    "ancestral": Entry(ancestral, "1", "1", "drawn", "Song et al. 2021, Appendix F"),
    "pc": Entry(pc, "1", "1 + corrector_steps", "drawn", "Song et al. 2021, Algorithm 1"),
    "annealed_langevin": Entry(annealed_langevin, "-", "langevin_steps", "drawn", "Song and Ermon 2019, Algorithm 1"),
    "ode": Entry(
        ode,
        "adaptive, 5",
        "adaptive",
        "none",
        "Song et al. 2021, eq. 13; Dormand and Prince 1980",
        tolerances=(1e-1, 1e-2, 1e-3, 1e-4),
    ),
    "euler": Entry(euler, "1", "1", "none", "Song et al. 2021, eq. 13"),
    "heun": Entry(heun, "2", "2", "with churn", "Karras et al. 2022, Algorithm 2", "logsnr"),
    "ito": Entry(ito, "1", "1", "drawn", "Huang et al. 2021"),
    "adaptive_sde": Entry(
        adaptive_sde,
        "adaptive, 1",
        "2",
        "drawn",
        "Jolicoeur-Martineau et al. 2021, Algorithm 1",
        tolerances=(0.3, 0.1, 0.03, 0.01),
    ),
    "ddpm": Entry(ddpm, "1", "1", "drawn", "Ho et al. 2020, Algorithm 2"),
    "ddim": Entry(ddim, "1", "1", "with eta", "Song et al. 2020, eq. 12"),
    "dpmpp_2s": Entry(dpmpp_2s, "2", "2", "with eta", "Lu et al. 2022b, Algorithm 1", "logsnr"),
    "dpmpp_2m": Entry(dpmpp_2m, "2", "1", "none", "Lu et al. 2022b, Algorithm 2", "logsnr"),
    "dpmpp_3m": Entry(dpmpp_3m, "2; 3 with Runge-Kutta start", "1", "none", "Lu et al. 2022b, eq. 8", "logsnr"),
    "dpmpp_2m_sde": Entry(dpmpp_2m_sde, "1", "1", "drawn", "Lu et al. 2022b, SDE-DPM-Solver++", "logsnr"),
    "unipc": Entry(unipc, "2", "1", "none", "Zhao et al. 2023, Algorithms 1 and 2", "logsnr"),
    "deis": Entry(deis, "2; 3 with Runge-Kutta start", "1", "none", "Zhang and Chen 2023, AB-DEIS", "logsnr"),
    "lms": Entry(
        lms, "2; 4 with Runge-Kutta start", "1", "none", "Adams-Bashforth for Karras et al. 2022, eq. 1", "logsnr"
    ),
}
"""The samplers; a new one is one line here."""

SAMPLERS: dict[str, Callable[..., Tensor]] = {name: entry.function for name, entry in SAMPLER_TABLE.items()}

_SHARED = ("denoiser", "x", "grid", "generator", "on_step")
FINISHES = {"denoise": True, "none": False}


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples x [B, *D] and nfe, the number of network evaluations of the whole batch, the last one included."""

    x: Tensor
    nfe: int


@cache
def _schema(function: Callable[..., Tensor]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name not in _SHARED}


def sampler_options(sampler: str) -> dict[str, Any]:
    """The named options of a sampler and their defaults. Raises UserError for an unknown sampler."""
    return dict(_schema(choose("sampler", sampler, SAMPLERS)))


def check_options(sampler: str, options: dict[str, Any]) -> None:
    """Raises TypeError for an option that the sampler does not have, naming those it has."""
    valid = sampler_options(sampler)
    for name in options:
        if name not in valid:
            raise TypeError(no_option("sampler", sampler, name, valid))


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

    Raises TypeError for an option that the sampler does not have; UserError for other bad arguments, for a denoiser
    that returns another shape, and for values that are not finite, with the step at which they first appear.
    """
    if grid is None:
        raise UserError("a grid is needed, such as make_grid(sde, 50)")
    if (x is None) == (shape is None):
        raise UserError("either a shape [B, *D] or a starting point x is needed, and not both")
    check_options(sampler, options)
    denoise = choose("finish", finish, FINISHES)
    home = getattr(denoiser, "device", None)
    if x is None and shape is not None:
        where = device or home
        generator = fresh(generator, where)
        x = grid.sde.prior_sample(shape, generator=generator, dtype=dtype, device=where)
    assert x is not None
    if home is not None and x.device != torch.empty(0, device=home).device:
        raise UserError(f"x is on {x.device} and the denoiser on {home}; bring x there with x.to({str(home)!r})")
    if not bool(x.isfinite().all()):
        raise UserError("the starting point x holds values that are not finite")
    generator = fresh(generator, x.device)
    before = states(generator)
    counted = CountingDenoiser(denoiser)

    def run(notify: OnStep | None, *, finite: bool) -> Tensor:
        checked = CheckedDenoiser(counted, grid.place, finite=finite)
        out = SAMPLERS[sampler](checked, x, grid, generator=generator, on_step=notify, **options)
        if denoise:
            last = grid.nodes[-1]
            x0_hat = checked(out, last.kernel)
            if notify is not None:
                notify(grid.steps - 1, last, out, x0_hat)
            out = x0_hat
        return out

    try:
        out = run(on_step, finite=False)
        if bool(out.isfinite().all()):
            return Sample(out, counted.nfe)
        complaint: UserError = NotFinite(f"{sampler} gave samples that are not finite: take more or smaller steps")
    except NotFinite as error:
        complaint = error
    # Looking at every step would cost each sampling a pass over the memory, and a GPU its lead over the host; so the
    # steps are taken once more, with the same noise, to find the first bad one.
    rewind(generator, before)
    run(None, finite=True)
    raise complaint
