"""What samplers share: rows of coefficients, and the loop of those that evaluate the network once a step.

Every update is linear in what it is made of. A step of a sampler with one evaluation is

    x_next = a x + b x0_hat + c n,          n ~ N(0, I),

so that a sampler is one row (a, b) or (a, b, c) of coefficients, a pure function of two noise levels. All rows of a
grid are computed at once, in float64, before the first step; the loop has nothing left to do but to evaluate the
network and to add up. A row without c draws no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import combine
from sde_diffusion.core.noise_sources import NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser

OnStep = Callable[[int, Node, Tensor, Tensor], None]
"""Called at each node that is visited, with its number, the node, x there and x0_hat."""

Coefficients = tuple[Tensor, ...]
Table = list[tuple[float, ...]]


class Row(Protocol):
    """The coefficients of x, x0_hat and, where there is any, noise in the step between two nodes: each [] or [n]."""

    def __call__(self, sde: SDE, now: Node, next: Node) -> Coefficients: ...


@dataclass(frozen=True)
class OneStep:
    """A memoryless sampler of one evaluation a step, given by its row; learned: the network says the variance."""

    row: Row
    learned: bool = False


def ignore_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
    """The default of `on_step`."""


def sample_norm(x: Tensor) -> Tensor:
    """|x| of each sample, [B]."""
    return x.flatten(1).norm(dim=1)


def as_table(columns: Coefficients) -> Table:
    """Columns [n] of coefficients as n rows of numbers."""
    return [tuple(row) for row in torch.stack(columns, dim=-1).tolist()]


def table(row: Row, grid: TimeGrid) -> Table:
    """The coefficients of every step of a grid."""
    return as_table(row(grid.sde, grid.levels[:-1], grid.levels[1:]))


def march(
    row: Row, denoiser: Denoiser, x: Tensor, grid: TimeGrid, noise: NoiseSource, on_step: OnStep | None
) -> Tensor:
    """Every update of a sampler with one evaluation a step, [B, *D]."""
    notify = on_step or ignore_step
    for index, ((node, after), coefficients) in enumerate(zip(grid.pairs(), table(row, grid))):
        x0_hat = denoiser(x, node.kernel)
        notify(index, node, x, x0_hat)
        drawn = [noise(index, node, after, x)] if len(coefficients) == 3 else []
        x = combine(coefficients, x, x0_hat, *drawn)
    return x
