"""A GPU beside the CPU: samples and densities from the same noise, steps that wait for nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from common import elapsed
from gpu_place import EXACT, SINGLE, Found, NotHere, Place, close, shaken, tf32
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset
from sde_diffusion.samplers import SAMPLER_TABLE
from sde_diffusion.settings.root import Settings, fresh_network

settings_of = Settings.from_config

OPTIONS: dict[str, dict[str, Any]] = {
    "annealed_langevin": {"langevin_steps": 2},
    "ode": {"rtol": 1e-2, "atol": 1e-2},
    "adaptive_sde": {"rtol": 0.5, "atol": 0.1},
}
"""Fewer evaluations than by default."""


@cache
def small(device: torch.device | str, dtype: torch.dtype) -> sd.NetworkDenoiser:
    """A network like that of the digits, but narrow, with weights that are the same everywhere."""
    config = importlib.import_module("configs.vpsde_digits").get_config()
    config.model.class_conditional = False
    config.model.unet.update(channels=8, multipliers=(1, 2))
    blank = Dataset(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), 17, ("a", "b"), "stand-in")
    spec = settings_of(config).spec(blank)
    return sd.NetworkDenoiser(shaken(fresh_network(spec, 0)).to(device=device, dtype=dtype), spec)


def samples(name: str, steps: int, device: torch.device | str, dtype: torch.dtype, count: int = 4) -> Tensor:
    """Samples by some steps of a sampler, with the noise of generators on the CPU, one for each."""
    denoiser = small(device, dtype)
    sde = denoiser.spec.model_process
    grid = sd.make_grid(sde, steps, SAMPLER_TABLE[name].grid or sde.grid)
    generators = sd.sample_generators(0, range(count))
    shape = (count, *denoiser.spec.shape)
    options = OPTIONS.get(name, {})
    return sd.sample(denoiser, shape, grid, sampler=name, generator=generators, device=device, dtype=dtype, **options).x


def densities(method: str, steps: int, device: torch.device | str, dtype: torch.dtype, count: int = 2) -> Tensor:
    """log p of some data, by one probe for each from generators on the CPU; more than a few steps are precise ones."""
    denoiser = small(device, dtype)
    x = 0.5 * torch.randn(count, *denoiser.spec.shape, generator=seeded(1), dtype=torch.float64)
    generators = sd.sample_generators(2, range(count))
    sde, tolerance = denoiser.spec.model_process, 1e-3 if steps > 5 else 1e-1
    x = x.to(device=device, dtype=dtype)
    return sd.log_likelihood(denoiser, x, sde, method=method, rtol=tolerance, generator=generators).nats


Compute = Callable[[int, torch.device | str, torch.dtype], Tensor]


def as_on_the_cpu(compute: Compute, place: Place) -> Found:
    """The largest relative difference of a device's results from the CPU's, in float64 and in float32."""
    steps = 3 if place.toy else 10
    with tf32(False):
        double, single = (
            close(compute(steps, place.device, dtype), compute(steps, "cpu", dtype))
            for dtype in (torch.float64, torch.float32)
        )
    good = double <= EXACT and single <= SINGLE
    return Found(f"{double:.1e} float64, {single:.1e} float32", f"<= {EXACT:.0e}, {SINGLE:.0e}", good)


def without_waiting(name: str, place: Place) -> Found:
    """The steps of a sampler, none of which may wait for the GPU: torch raises an error where one would.

    From the first node to the last; before and after, the driver looks once whether all values are finite.
    """
    if SAMPLER_TABLE[name].tolerances:
        raise NotHere("it looks at its errors to choose its steps")
    denoiser = small(place.device, torch.float32)
    sde = denoiser.spec.model_process
    grid = sd.make_grid(sde, 3 if place.toy else 10, SAMPLER_TABLE[name].grid or sde.grid)
    generator = torch.Generator(place.device).manual_seed(0)
    modes: list[str] = []

    def watch(index: int, *_: Any) -> None:
        if index in (0, grid.steps - 1):
            modes.append("default" if index else "error")
            if place.cuda:
                torch.cuda.set_sync_debug_mode(modes[-1])

    def draw(on_step: Callable[..., None] | None) -> None:
        options = {**OPTIONS.get(name, {}), "generator": generator, "device": place.device}
        sd.sample(denoiser, (4, *denoiser.spec.shape), grid, sampler=name, on_step=on_step, **options)

    if place.cuda:
        elapsed(lambda: draw(None), place.device)  # the first call loads kernels
    try:
        draw(watch)
    finally:
        if place.cuda:
            torch.cuda.set_sync_debug_mode("default")
    if (modes[0], modes[-1]) != ("error", "default"):
        raise RuntimeError(f"the sampler's steps were not seen from the first to the last: {modes}")
    place.gpu_only("waits")
    return Found(f"0 waits in {grid.steps} steps", "0", True)
