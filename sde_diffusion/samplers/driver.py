"""The driver of all samplers: it draws the start, makes the source of the noise, counts, and takes the last step.

A sampler walks down the nodes of a grid and stops at the last one, which still has noise. The driver takes the last
step to x0_hat for all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import NotFinite, UserError, choose
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.kernel import lifted, lifted_dtype
from sde_diffusion.core.noise import Generators, fresh, randn, rewind, states
from sde_diffusion.core.noise_sources import GivenNoise, Noise, NoiseSource, noise_source
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.priors import Prior, draw
from sde_diffusion.denoisers.wrappers import CheckedDenoiser, CheckpointedDenoiser, CountingDenoiser
from sde_diffusion.samplers.march import OnStep
from sde_diffusion.samplers.table import SAMPLERS, check_options
from sde_diffusion.samplers.travel import Travel, travelled

FINISHES = {"denoise": True, "none": False}


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples x [B, *D] and nfe, the number of network evaluations of the whole batch, the last one included."""

    x: Tensor
    nfe: int


def _differentiable(grad: bool | None, x: Tensor | None) -> bool:
    """Whether a graph is built: where x requires a gradient, unless `grad` says otherwise; never under no_grad."""
    if grad and not torch.is_grad_enabled():
        raise UserError("grad=True asks for a derivative, and the call runs under torch.no_grad")
    wanted = (x is not None and x.requires_grad) if grad is None else grad
    return wanted and torch.is_grad_enabled()


def _check_start(shape: Sequence[int] | None, x: Tensor | None) -> None:
    """Raises UserError unless there is either a shape [B, *D] or a starting point [B, *D] of real numbers."""
    if (x is None) == (shape is None):
        raise UserError("either a shape [B, *D] or a starting point x is needed, and not both")
    if x is not None and not x.is_floating_point():
        raise UserError(f"the starting point x must be floating-point numbers, got {x.dtype}")
    own = tuple(shape if x is None else x.shape)  # type: ignore[arg-type]  # one of the two is there
    if len(own) < 2:
        raise UserError(f"samples are [B, *D], got shape {own}: B single numbers are [B, 1]")


def _start(
    denoiser: Denoiser,
    grid: TimeGrid,
    shape: Sequence[int] | None,
    x: Tensor | None,
    generator: Generators,
    prior: str | Prior | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, torch.Generator | Sequence[torch.Generator]]:
    """The point where sampling starts, given or drawn, in float32 or more, and the generator on its device.

    Raises UserError where it lies on another device than the denoiser, or is not finite.
    """
    home = getattr(denoiser, "device", None)
    if x is None and shape is not None:
        where = device or home
        generator = fresh(generator, where)
        sde, first, wide = grid.sde, grid.nodes[0].kernel, lifted_dtype(dtype or torch.get_default_dtype())
        start = draw(prior, sde, first, shape, generator=generator, dtype=wide, device=where)
    else:
        assert x is not None
        if prior is not None:
            raise UserError("prior= says what x is drawn from, and x is given")
        start = x.to(device=device or x.device, dtype=lifted_dtype(dtype or x.dtype))
    if home is not None and start.device != torch.empty(0, device=home).device:
        raise UserError(f"x is on {start.device} and the denoiser on {home}; bring x there with x.to({str(home)!r})")
    if not bool(start.isfinite().all()):
        raise UserError("the starting point x holds values that are not finite")
    return start, fresh(generator, start.device)


def _walk(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    sampler: Callable[..., Tensor],
    travel: Travel | None,
    denoise: bool,
    source: NoiseSource,
    on_step: OnStep | None,
    *,
    finite: bool,
) -> Tensor:
    """A sampler's way down the grid, back and forth if it travels, and if it is asked for the last step to x0_hat.

    finite: look at every evaluation for values that are not finite, which raise UserError.
    """
    checked = CheckedDenoiser(denoiser, grid.place, finite=finite)
    down = partial(sampler, checked)
    out = travelled(travel, down, x, grid, source, on_step) if travel else down(x, grid, noise=source, on_step=on_step)
    if denoise:
        last = grid.nodes[-1]
        x0_hat = checked(out, last.kernel)
        if on_step is not None:
            on_step(grid.steps - 1, last, out, x0_hat)
        out = x0_hat
    if isinstance(source, GivenNoise):
        source.check_used()
    return out


def sample(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    grid: TimeGrid | None = None,
    *,
    sampler: str = "ddim",
    x: Tensor | None = None,
    generator: Generators = None,
    noise: Noise = "white",
    prior: str | Prior | None = None,
    finish: str = "denoise",
    travel: Travel | None = None,
    on_step: OnStep | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    grad: bool | None = None,
    **options: Any,
) -> Sample:
    """Draw samples: from a prior at the grid's first node (shape [B, *D]) or from a given x there.

    finish="denoise" ends with x0_hat at the last node, one more evaluation; "none" returns x at that node.
    generator: one for the batch, or one for each sample, which makes a sample independent of its batch.
    noise: "white"; "brownian", one path for each generator, which samples at other numbers of steps follow too; a
    function (step, now, next, like) -> normals [B, *D]; or normals [draws, B, *D]. prior: a key of PRIORS or a Prior;
    without one the process's own, where the first node's SNR is 0.1 or less. travel: a `Travel` walks
    back and forth over pieces of the grid.
    The device is that of x, or else `device`, the denoiser's own (where it has one), or the generator's. x in 16 bits,
    or dtype= of 16, is float32 on the way, and 16 bits again at the end.
    grad: keep the graph, for derivatives by x and by the denoiser's parameters; by default where x requires a
    gradient. Evaluations are computed again in the backward pass, so that memory holds the states alone.

    Raises TypeError for an option that the sampler lacks; UserError for other bad arguments, a start that no prior
    stands for, a denoiser that returns another shape, and values that are not finite, with the step of the first.
    """
    if grid is None:
        raise UserError("a grid is needed, such as make_grid(sde, 50)")
    _check_start(shape, x)
    check_options(sampler, options)
    denoise = choose("finish", finish, FINISHES)
    if not isinstance(travel, Travel | None):
        raise UserError(f"travel= takes Travel(length, repeats), got a {type(travel).__name__}")
    differentiable = _differentiable(grad, x)
    start, generator = _start(denoiser, grid, shape, x, generator, prior, dtype, device)
    before, wanted = states(generator), dtype or (torch.get_default_dtype() if x is None else x.dtype)
    if not len(start):
        return Sample(start.to(wanted), 0)
    counted = CountingDenoiser(CheckpointedDenoiser(denoiser) if differentiable else denoiser)
    walk = partial(_walk, counted, start, grid, partial(SAMPLERS[sampler], **options), travel, denoise)
    with torch.set_grad_enabled(differentiable):
        try:
            out = walk(noise_source(noise, generator), on_step, finite=False)
            if bool(out.isfinite().all()):
                return Sample(out.to(wanted), counted.nfe)
            complaint: UserError = NotFinite(f"{sampler} gave samples that are not finite: take more or smaller steps")
        except NotFinite as error:
            complaint = error
    # Looking at every step would cost each sampling a pass over the memory, and a GPU its lead over the host; so the
    # steps are taken once more, with the same noise, to find the first bad one.
    rewind(generator, before)
    with torch.no_grad():
        walk(noise_source(noise, generator), None, finite=True)
    raise complaint


def edit(
    denoiser: Denoiser,
    x0: Tensor,
    grid: TimeGrid,
    *,
    sampler: str = "ddim",
    generator: Generators = None,
    noise: Noise = "white",
    **options: Any,
) -> Sample:
    """Data x0 [B, *D], given the noise of the grid's first node and taken back to data by a sampler.

    The lower the grid starts, the more of x0 stays: make_grid(sde, 20, t_start=0.5), or the last nodes of a grid (Meng
    et al. 2022, SDEdit, Algorithm 1). Options and errors as those of `sample`.
    """
    _check_start(None, x0)
    generator = fresh(generator, x0.device)
    wide = lifted(x0)
    x = grid.nodes[0].kernel.perturb(wide, randn(x0.shape, generator, like=wide))
    return sample(
        denoiser, grid=grid, sampler=sampler, x=x, generator=generator, noise=noise, dtype=x0.dtype, **options
    )
