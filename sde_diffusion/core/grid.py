"""A time grid: the noise levels that a sampler visits, from the prior's down to the sampling time.

A grid of n steps has n nodes t_0 > t_1 > ... > t_{n-1}. A sampler moves from node to node in n - 1 updates, and the
driver's last step (finish="denoise") takes the last node to x0_hat: n steps in all, the count of DDPM, DDIM and EDM,
where the last step goes to sigma = 0. No node ever has sigma = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.core.process import SDE


@dataclass(frozen=True, eq=False)
class Node:
    """One time of a grid, or several: t as a float64 tensor [] or [n], and its kernel."""

    t: Tensor
    kernel: Kernel

    def __getitem__(self, index: int | slice | Tensor) -> Node:
        """Some of several nodes."""
        return Node(self.t[index], self.kernel[index])

    def unbind(self) -> list[Node]:
        """Several nodes [n] one by one."""
        return [Node(t, kernel) for t, kernel in zip(self.t.unbind(), self.kernel.unbind())]


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Strictly descending times [n] of a process, as float64 tensors on the CPU.

    Raises UserError where the times do not descend or a node has no noise.
    """

    sde: SDE
    times: Tensor
    levels: Node = field(init=False, repr=False)
    """All nodes as one, [n]."""

    def __post_init__(self) -> None:
        times = self.times.detach().to(device="cpu", dtype=torch.float64)
        if times.ndim != 1 or len(times) < 1:
            raise UserError("a grid needs at least one time")
        if not bool((times.diff() < 0).all()):
            raise UserError(f"the times of a grid must descend strictly, got {times.tolist()[:5]} ...")
        kernel = self.sde.kernel(times)
        if not bool((kernel.sigma > 0).all()):
            raise UserError("a grid never holds a node without noise; the step to x0_hat is finish='denoise'")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "levels", Node(times, kernel))

    @property
    def steps(self) -> int:
        """Number of steps, the final one to x0_hat included."""
        return len(self.times)

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes, from noise to data."""
        return self.levels.unbind()

    def place(self, kernel: Kernel) -> str:
        """Where a noise level lies on the grid, in words: the step that it belongs to, counted from 1."""
        logsnr = float(kernel.logsnr.min())
        passed = int((self.levels.kernel.logsnr <= logsnr + 1e-9 * abs(logsnr)).sum())
        alpha, sigma = float(kernel.alpha.min()), float(kernel.sigma.max())
        return f"step {max(1, passed)} of {self.steps} (alpha = {alpha:.4g}, sigma = {sigma:.4g})"

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        """The updates: explicit (now, next) pairs."""
        return pairwise(self.nodes)
