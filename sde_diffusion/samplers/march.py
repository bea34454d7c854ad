"""What samplers share: the types of their parts, and the loop of those that evaluate the network once a step.

A sampler's formula is a pure function, its step: (sde, now, next, x, x0_hat, noise) -> x at the next node. The
noise is passed in, so that a step can be tested, replayed and composed; deterministic steps are given none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.noise import Generators, fresh, randn
from sde_diffusion.sde import SDE

OnStep = Callable[[int, Node, Tensor, Tensor], None]
"""Called at each node that is visited, with its number, the node, x there and x0_hat."""


class Step(Protocol):
    """One update from a node to the next."""

    def __call__(self, sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor) -> Tensor: ...


class FlowStep(Protocol):
    """One deterministic update from a node to the next."""

    def __call__(self, sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor: ...


def ignore_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
    """The default of `on_step`."""


def march(
    step: Step, denoiser: Denoiser, x: Tensor, grid: TimeGrid, generator: Generators, on_step: OnStep | None
) -> Tensor:
    """Every update of a stochastic sampler with one evaluation a step, [B, *D]."""
    generator = fresh(generator)

    def with_noise(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
        return step(sde, now, next, x, x0_hat, randn(x.shape, generator, like=x))

    return march_flow(with_noise, denoiser, x, grid, on_step)


def march_flow(step: FlowStep, denoiser: Denoiser, x: Tensor, grid: TimeGrid, on_step: OnStep | None) -> Tensor:
    """Every update of a deterministic sampler with one evaluation a step, [B, *D]."""
    notify = on_step or ignore_step
    for index, (now, next) in enumerate(grid.pairs()):
        x0_hat = denoiser(x, now.kernel)
        notify(index, now, x, x0_hat)
        x = step(grid.sde, now, next, x, x0_hat)
    return x
