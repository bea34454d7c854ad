"""The samplers, functions (denoiser, x, grid, *, noise, on_step, named options) -> x, and what is known of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from sde_diffusion.core.errors import choose, no_option
from sde_diffusion.samplers.adams import Scheme
from sde_diffusion.samplers.adaptive_sde import adaptive_sde
from sde_diffusion.samplers.ancestral import ancestral, ancestral_rule, ddim, ddim_rule, ddpm, ddpm_rule
from sde_diffusion.samplers.euler_maruyama import euler_maruyama, euler_maruyama_row, euler_row, ito, ito_rule
from sde_diffusion.samplers.flow import euler, heun, heun_rule, ode
from sde_diffusion.samplers.langevin import annealed_langevin, pc, pc_rule
from sde_diffusion.samplers.march import OneStep
from sde_diffusion.samplers.multistep import (
    deis,
    deis_rule,
    dpmpp_2m,
    dpmpp_2m_rule,
    dpmpp_2m_sde,
    dpmpp_2m_sde_rule,
    dpmpp_3m,
    dpmpp_3m_rule,
    lms,
    lms_rule,
    unipc,
    unipc_rule,
)
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion, reverse_diffusion_row
from sde_diffusion.samplers.singlestep import dpmpp_2s


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
    rule          what the coefficients of its steps are, made from those of its options that it names, for one of one
                  evaluation a step; None for the others
    """

    function: Callable[..., Tensor]
    order: str
    evaluations: str
    noise: str
    source: str
    grid: str = ""
    tolerances: tuple[float, ...] = ()
    rule: Callable[..., OneStep | Scheme] | None = None


SAMPLER_TABLE: dict[str, Entry] = {
    "euler_maruyama": Entry(
        euler_maruyama, "1", "1", "drawn", "Song et al. 2021, eq. 6", rule=lambda: OneStep(euler_maruyama_row)
    ),
    "reverse_diffusion": Entry(
        reverse_diffusion,
        "1",
        "1",
        "drawn",
        "Song et al. 2021, Appendix E",
        rule=lambda: OneStep(reverse_diffusion_row),
    ),
    "ancestral": Entry(ancestral, "1", "1", "drawn", "Song et al. 2021, Appendix F", rule=ancestral_rule),
    "pc": Entry(pc, "1", "1 + corrector_steps", "drawn", "Song et al. 2021, Algorithm 1", rule=pc_rule),
    "annealed_langevin": Entry(annealed_langevin, "-", "langevin_steps", "drawn", "Song and Ermon 2019, Algorithm 1"),
    "ode": Entry(
        ode,
        "adaptive, 5",
        "adaptive",
        "none",
        "Song et al. 2021, eq. 13; Dormand and Prince 1980",
        tolerances=(1e-1, 1e-2, 1e-3, 1e-4),
    ),
    "euler": Entry(euler, "1", "1", "none", "Song et al. 2021, eq. 13", rule=lambda: OneStep(euler_row)),
    "heun": Entry(heun, "2", "2", "with churn", "Karras et al. 2022, Algorithm 2", "logsnr", rule=heun_rule),
    "ito": Entry(ito, "1", "1", "drawn", "Huang et al. 2021", rule=ito_rule),
    "adaptive_sde": Entry(
        adaptive_sde,
        "adaptive, 1",
        "2",
        "drawn",
        "Jolicoeur-Martineau et al. 2021, Algorithm 1",
        tolerances=(0.3, 0.1, 0.03, 0.01),
    ),
    "ddpm": Entry(ddpm, "1", "1", "drawn", "Ho et al. 2020, Algorithm 2", rule=ddpm_rule),
    "ddim": Entry(ddim, "1", "1", "with eta", "Song et al. 2020, eq. 12", rule=ddim_rule),
    "dpmpp_2s": Entry(dpmpp_2s, "2", "2", "with eta", "Lu et al. 2022b, Algorithm 1", "logsnr"),
    "dpmpp_2m": Entry(dpmpp_2m, "2", "1", "none", "Lu et al. 2022b, Algorithm 2", "logsnr", rule=dpmpp_2m_rule),
    "dpmpp_3m": Entry(
        dpmpp_3m, "2; 3 with Runge-Kutta start", "1", "none", "Lu et al. 2022b, eq. 8", "logsnr", rule=dpmpp_3m_rule
    ),
    "dpmpp_2m_sde": Entry(
        dpmpp_2m_sde, "1", "1", "drawn", "Lu et al. 2022b, SDE-DPM-Solver++", "logsnr", rule=dpmpp_2m_sde_rule
    ),
    "unipc": Entry(unipc, "2", "1", "none", "Zhao et al. 2023, Algorithms 1 and 2", "logsnr", rule=unipc_rule),
    "deis": Entry(
        deis, "2; 3 with Runge-Kutta start", "1", "none", "Zhang and Chen 2023, AB-DEIS", "logsnr", rule=deis_rule
    ),
    "lms": Entry(
        lms,
        "2; 4 with Runge-Kutta start",
        "1",
        "none",
        "Adams-Bashforth for Karras et al. 2022, eq. 1",
        "logsnr",
        rule=lms_rule,
    ),
}
"""The samplers; a new one is one line here."""

SAMPLERS: dict[str, Callable[..., Tensor]] = {name: entry.function for name, entry in SAMPLER_TABLE.items()}

_SHARED = ("denoiser", "x", "grid", "noise", "on_step")


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
