"""The rows of `benchmarks/gpu.py`: what a GPU must do as the CPU does, and how fast it is.

A row is a function of a place (the device, toy size or not, a folder) and its own arguments. It gives a figure, what is
wanted of it, and whether that is met; a figure without a wish is a measurement. What a device cannot do is `NotHere`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_agreement import as_on_the_cpu, densities, samples, without_waiting
from gpu_place import Found, Place
from gpu_speed import layouts, sampling, training
from gpu_trainings import fp16, resumed, two_processes

import sde_diffusion as sd
from sde_diffusion.runtime.engine import usable_device

NETWORKS = ("ddpm_cifar", "ddpmpp_cifar")


@dataclass(frozen=True)
class Row:
    """A line of the table. seconds: what it takes on a GPU, about; it is not begun where less is left."""

    name: str
    measure: Callable[[Place], Found]
    seconds: float = 1.0


def rows() -> list[Row]:
    """All rows, what must be right before what is only slow; compilers, which take longest, last."""
    return [
        *(Row(f"`{name}` as on the CPU", partial(as_on_the_cpu, partial(samples, name))) for name in sd.SAMPLERS),
        *(
            Row(f"likelihood, `{method}`, as on the CPU", partial(as_on_the_cpu, partial(densities, method)))
            for method in ("rk45", "per_sample")
        ),
        *(Row(f"`{name}` waits for nothing", partial(without_waiting, name)) for name in sd.SAMPLERS),
        Row("fp16's scale", fp16, 8.0),
        Row("a training resumes", resumed, 40.0),
        Row("two processes", two_processes, 20.0),
        Row("channels_last", layouts),
        *(
            Row(f"training, {name}, {precision}", partial(training, name, precision, False), 12.0)
            for name in NETWORKS
            for precision in ("fp32", "tf32", "bf16")
        ),
        *(Row(f"sampling, DDPM++, {how}", partial(sampling, how), 12.0) for how in ("fp32", "bf16", "bf16, graphs")),
        *(Row(f"training, {name}, bf16, compiled", partial(training, name, "bf16", True), 80.0) for name in NETWORKS),
        Row("sampling, DDPM++, bf16, compiled", partial(sampling, "bf16, compiled"), 40.0),
    ]


def place_of(name: str, toy: bool, folder: Path) -> Place:
    """The device of that name, at toy size or not. Raises UserError for one that is not there."""
    return Place(usable_device(name), toy, folder)
