"""sde_diffusion: score-based diffusion through SDEs and ODEs, with every formula checked against closed-form truth."""

from sde_diffusion.core.continuous import EDM, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.core.discrete import DiscreteVE, DiscreteVP
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.grids import GRIDS, make_grid
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.core.noise import sample_generators
from sde_diffusion.core.noise_sources import NOISES, BrownianNoise, GivenNoise, NoiseSource, WhiteNoise
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import PROCESSES
from sde_diffusion.data import DEQUANTIZERS, DataTransform, LogitNormal, Uniform
from sde_diffusion.denoisers.analytic import EmpiricalDenoiser, GaussianMixture
from sde_diffusion.denoisers.base import Denoiser, eps, score, v, velocity
from sde_diffusion.denoisers.guidance import GuidedDenoiser
from sde_diffusion.denoisers.network import PRECONDITIONERS, NetworkDenoiser, NetworkSpec
from sde_diffusion.denoisers.priors import PRIORS, GaussianPrior, Prior, ProcessPrior
from sde_diffusion.denoisers.wrappers import ClippedDenoiser, ConditionedDenoiser, CountingDenoiser, RangeDenoiser
from sde_diffusion.importers import SOURCES, export_diffusers, import_checkpoint
from sde_diffusion.likelihood.bound import Bound
from sde_diffusion.likelihood.codes import RoundTrip, decode, encode, interpolate, round_trip
from sde_diffusion.likelihood.continuous import vlb
from sde_diffusion.likelihood.decoder import discretized_gaussian
from sde_diffusion.likelihood.discrete import elbo
from sde_diffusion.likelihood.flow import LogLikelihood, bits_per_dim, log_likelihood
from sde_diffusion.objectives.losses import denoising_score_matching, hybrid_loss, variational_loss
from sde_diffusion.objectives.times import sample_times, time_sampler
from sde_diffusion.samplers import SAMPLERS, Sample, Transition, Travel, ddim_inversion, edit, sample, transition
from sde_diffusion.solvers.ode import SOLVERS, integrate
from sde_diffusion.storage.trained import load
from sde_diffusion.training.fit import fit
from sde_diffusion.training.settings import TrainingSettings
from sde_diffusion.training.trainer import Trainer

__all__ = [
    "DEQUANTIZERS",
    "EDM",
    "GRIDS",
    "NOISES",
    "PRECONDITIONERS",
    "PRIORS",
    "PROCESSES",
    "SAMPLERS",
    "SDE",
    "SOLVERS",
    "SOURCES",
    "VESDE",
    "VPSDE",
    "Bound",
    "BrownianNoise",
    "ClippedDenoiser",
    "ConditionedDenoiser",
    "CosineVPSDE",
    "CountingDenoiser",
    "DataTransform",
    "Denoiser",
    "DiscreteVE",
    "DiscreteVP",
    "EmpiricalDenoiser",
    "GaussianMixture",
    "GaussianPrior",
    "GivenNoise",
    "GuidedDenoiser",
    "Kernel",
    "LogLikelihood",
    "LogitNormal",
    "NetworkDenoiser",
    "NetworkSpec",
    "NoiseSource",
    "Prior",
    "ProcessPrior",
    "RangeDenoiser",
    "RectifiedFlow",
    "RoundTrip",
    "Sample",
    "SubVPSDE",
    "TimeGrid",
    "Trainer",
    "TrainingSettings",
    "Transition",
    "Travel",
    "Uniform",
    "UserError",
    "WhiteNoise",
    "bits_per_dim",
    "ddim_inversion",
    "decode",
    "denoising_score_matching",
    "discretized_gaussian",
    "edit",
    "elbo",
    "encode",
    "eps",
    "export_diffusers",
    "fit",
    "hybrid_loss",
    "import_checkpoint",
    "integrate",
    "interpolate",
    "load",
    "log_likelihood",
    "make_grid",
    "round_trip",
    "sample",
    "sample_generators",
    "sample_times",
    "score",
    "time_sampler",
    "transition",
    "v",
    "variational_loss",
    "velocity",
    "vlb",
]
