"""How samples are drawn: the sections "sampling" and "edit" of a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.grids import GRIDS, check_ends, fixed_steps, grid_options, make_grid
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.core.noise_sources import NOISES
from sde_diffusion.core.options import checked_options
from sde_diffusion.core.process import SDE
from sde_diffusion.core.settings import Section, at_least, one_of, optional, setting
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.wrappers import AutocastDenoiser, ClippedDenoiser
from sde_diffusion.runtime.engine import PRECISIONS
from sde_diffusion.samplers import SAMPLER_TABLE, SAMPLERS, sample, sampler_options
from sde_diffusion.settings.chosen import Chosen
from sde_diffusion.storage.shards import FORMATS

AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision of a network's passes in sampling -> the dtype of torch.autocast; none for fp32."""


def guidance_weight(key: str, value: Any) -> None:
    """A weight of guidance, or a tuple of them."""
    for weight in value if isinstance(value, tuple) else (value,):
        if not isinstance(weight, (int, float)) or weight < 0.0:
            raise UserError(f"{key}: a guidance weight is 0 (none) or more, got {weight!r}")


def file_name(key: str, value: Any) -> None:
    """A part of a file's name; "" for none."""
    if value and not re.fullmatch(r"[\w-]+", value):
        raise UserError(f"{key} is a name of letters, digits, '_' and '-', without a path or an ending, got {value!r}")


@dataclass(frozen=True)
class SamplingSettings(Section):
    """The sampler, its grid and its noise, and how many samples are drawn and stored."""

    key: ClassVar[str] = "sampling"

    sampler: str = setting("ddim", "a key of SAMPLERS, which --mode samplers lists", one_of("sampler", SAMPLERS))
    steps: int = setting(50, "grid nodes, the step to x0_hat included", at_least(1))
    gallery: tuple[str, ...] = setting(
        ("ddim:50", "pc:200", "ode"), "the bare job's samplers: NAME[:STEPS[:OPTION=VALUE,...]]"
    )
    options: Mapping[str, Any] = setting({}, "named options of the sampler; --sampler.NAME VALUE sets them")
    grid: str = setting(
        "auto", 'a key of GRIDS; "auto" takes the one that suits the sampler', one_of("grid", {"auto": None}, GRIDS)
    )
    grid_options: Mapping[str, Any] = setting({}, "named options of the grid; --grid.NAME VALUE sets them")
    snap: bool = setting(False, "move the nodes to the levels of the network's own process, where it is discrete")
    t_end: float = setting(-1.0, "time of the last node; negative for the process's smallest sampling time")
    t_start: float = setting(1.0, "time at which the grid begins, before the shift; 1 is the prior's")
    shift: float = setting(1.0, "factor of sigma/alpha of the nodes, within the process's range: above 1, more noise")
    guidance: float = setting(
        0.0, "classifier-free: weight w of (1 + w) x0_hat(x | c) - w x0_hat(x); 0 for none", guidance_weight
    )
    clip: bool = setting(False, "clip x0_hat to the range of the data")
    noise: str = setting(
        "white",
        'or "brownian": one path for each sample, which other numbers of steps follow too',
        one_of("noise", NOISES),
    )
    prior: str = setting(
        "",
        '"process" lets a grid start where its SNR is above 0.1, from the noise of its first node',
        one_of("prior", {"": None, "process": None}),
    )
    precision: str = setting(
        "fp32",
        'of the network\'s passes: or "bf16", "fp16"; the state is float32 always',
        one_of("precision", PRECISIONS),
    )
    num_samples: int = setting(64, "how many are drawn, where sampling.classes has no counts", at_least(1))
    classes: tuple[Any, ...] = setting(
        (),
        'numbers or names of the classes that samples take in turn, or counts of each: ("cat:10", "dog:2"); () for all',
    )
    attributes: tuple[str, ...] = setting(
        (), "attributes that all samples have, by name, the others being off; () for those of training samples in turn"
    )
    batch_size: int = setting(500, "samples at once, and stored at once; does not change them", at_least(1))
    format: str = setting(
        "npz", 'one file; or "png", a folder of pictures; or "zip", archives of them', one_of("format", FORMATS)
    )
    weights: str = setting("ema", 'or "raw", or another average of the training or of --mode ema')
    checkpoint: int = setting(0, "step of the checkpoint that is taken; 0 for the newest", optional("the newest"))
    out: str = setting("", 'samples are called samples_<out>.*; "" for the sampler\'s name', file_name)

    def result_name(self, sampler: str, suffix: str = "") -> str:
        """What samples of a sampler are called: samples_<this>.*."""
        step = f"_step{self.checkpoint}" if self.checkpoint else ""
        return self.out or f"{sampler}{suffix}{step}"

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The sampler's named options. Raises UserError for one that it does not have or that has another type."""
        return checked_options("sampler", self.sampler, sampler_options(self.sampler), self.options)

    def grid_kind(self, sampler: str, sde: SDE) -> str:
        """The kind of grid; for "auto" the one that suits the sampler, or where any does, the process."""
        return self.grid if self.grid != "auto" else SAMPLER_TABLE[sampler].grid or sde.grid

    def options_of_grid(self, sampler: str, sde: SDE) -> dict[str, Any]:
        """The grid's named options. Raises UserError for one that it does not have or that has another type."""
        kind = self.grid_kind(sampler, sde)
        return checked_options("grid", kind, grid_options(kind), self.grid_options)

    def given_steps(self, sde: SDE) -> int:
        """The steps of the sampler's grid: those of given noise levels or a respacing, else `steps`."""
        kind = self.grid_kind(self.sampler, sde)
        return fixed_steps(kind, self.options_of_grid(self.sampler, sde)) or self.steps

    def make_grid(self, sde: SDE, steps: int, sampler: str) -> TimeGrid:
        """The grid of a sampler for a network trained under `sde`, with the given number of steps.

        Raises UserError for a grid that the process does not have.
        """
        return make_grid(
            sde,
            steps,
            self.grid_kind(sampler, sde),
            t_start=self.t_start,
            t_end=None if self.t_end < 0 else self.t_end,
            shift=self.shift,
            snap=sde if self.snap else None,
            **self.options_of_grid(sampler, sde),
        )

    def gallery_entries(self) -> list[tuple[str, int, dict[str, Any]]]:
        """The bare job's samplers, steps and options. Raises UserError for an entry that `Chosen` refuses."""
        entries = [Chosen.from_text("sampling.gallery", entry) for entry in self.gallery]
        return [(entry.sampler, entry.steps or self.steps, entry.options) for entry in entries]

    def check(self, sde: SDE) -> None:
        """Raises UserError for options, an entry of the gallery or ends of the grid that cannot be used."""
        self.gallery_entries()
        _ = self.sampler_options
        self.options_of_grid(self.sampler, sde)
        check_ends(self.grid_kind(self.sampler, sde), self.t_start, self.shift)

    def dry_run(self, sde: SDE, learned: bool, sampler: str, steps: int, options: Mapping[str, Any]) -> None:
        """Lay out the grid and take the sampler's first step, with zero for the network's output.

        learned: whether the network learns the variance. Raises UserError for what the grid or the sampler refuses,
        before a network is trained for them.
        """
        start = TimeGrid(sde, self.make_grid(sde, steps, sampler).times[:2])
        sample(_Zero(learned), (1, 1), start, sampler=sampler, generator=torch.Generator().manual_seed(0), **options)

    def at_precision(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with its passes in `precision`."""
        dtype = AUTOCAST.get(self.precision)
        return AutocastDenoiser(denoiser, dtype) if dtype else denoiser

    def clipped(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser as the sampler is to see it: clipped, where the settings say so."""
        return ClippedDenoiser(denoiser) if self.clip else denoiser


@dataclass(frozen=True)
class _Zero:
    """A denoiser that stands in for a network, with a learned variance where the network has one."""

    learned: bool

    def __call__(self, x: Tensor, kernel: Kernel, **conditions: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def moments(self, x: Tensor, kernel: Kernel, **conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the fraction of the learned variance."""
        return torch.zeros_like(x), torch.zeros_like(x) if self.learned else None


@dataclass(frozen=True)
class EditSettings(Section):
    """--mode edit: pictures with noise, and back."""

    key: ClassVar[str] = "edit"

    input: str = setting("", "a picture, a folder or an archive of them, or a .npz of images or samples")
    strength: float = setting(0.0, "share of the steps that are taken, in (0, 1]; 0 for the grid as it is")
