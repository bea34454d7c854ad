"""Samplers: the table of them, and the driver `sample`. A sampler's module derives its step in its header."""

from sde_diffusion.samplers.ancestral import ddim_inversion
from sde_diffusion.samplers.driver import Sample, edit, sample
from sde_diffusion.samplers.table import SAMPLER_TABLE, SAMPLERS, Entry, check_options, sampler_options
from sde_diffusion.samplers.transition import Transition, transition
from sde_diffusion.samplers.travel import Travel

__all__ = [
    "SAMPLERS",
    "SAMPLER_TABLE",
    "Entry",
    "Sample",
    "Transition",
    "Travel",
    "check_options",
    "ddim_inversion",
    "edit",
    "sample",
    "sampler_options",
    "transition",
]
