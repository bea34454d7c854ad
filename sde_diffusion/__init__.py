"""sde_diffusion: score-based diffusion through SDEs and ODEs, with every formula checked against closed-form truth."""

from sde_diffusion.checkpoint import load
from sde_diffusion.denoiser import (
    ClippedDenoiser,
    ConditionedDenoiser,
    CountingDenoiser,
    Denoiser,
    GuidedDenoiser,
    NetworkDenoiser,
    NetworkSpec,
    RangeDenoiser,
    eps,
    score,
    v,
)
from sde_diffusion.errors import UserError
from sde_diffusion.grids import GRIDS, TimeGrid, make_grid
from sde_diffusion.kernel import Kernel
from sde_diffusion.likelihood import LogLikelihood, bits_per_dim, log_likelihood
from sde_diffusion.losses import denoising_score_matching, sample_times
from sde_diffusion.noise import sample_generators
from sde_diffusion.ode import SOLVERS, integrate
from sde_diffusion.oracles import EmpiricalDenoiser, GaussianMixture
from sde_diffusion.samplers import SAMPLERS, Sample, ddim_inversion, sample
from sde_diffusion.sde import (
    EDM,
    PROCESSES,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVE,
    DiscreteVP,
    RectifiedFlow,
    SubVPSDE,
)

__all__ = [
    "EDM",
    "GRIDS",
    "PROCESSES",
    "SAMPLERS",
    "SDE",
    "SOLVERS",
    "VESDE",
    "VPSDE",
    "ClippedDenoiser",
    "ConditionedDenoiser",
    "CosineVPSDE",
    "CountingDenoiser",
    "Denoiser",
    "DiscreteVE",
    "DiscreteVP",
    "EmpiricalDenoiser",
    "GaussianMixture",
    "GuidedDenoiser",
    "Kernel",
    "LogLikelihood",
    "NetworkDenoiser",
    "NetworkSpec",
    "RangeDenoiser",
    "RectifiedFlow",
    "Sample",
    "SubVPSDE",
    "TimeGrid",
    "UserError",
    "bits_per_dim",
    "ddim_inversion",
    "denoising_score_matching",
    "eps",
    "integrate",
    "load",
    "log_likelihood",
    "make_grid",
    "sample",
    "sample_generators",
    "sample_times",
    "score",
    "v",
]
