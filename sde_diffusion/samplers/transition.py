"""The law of a sampler's step before anything is drawn: x' ~ N(mean, variance I).

A step of a sampler with one evaluation is x' = a x + b x0_hat + c n, so that

    mean = a x + b x0_hat,        variance = c^2,

and a multistep sampler's mean has a term for each earlier output that it uses. Where a network learns the variance, its
logarithm lies between two of them, at the fraction that the network says (Nichol and Dhariwal 2021, equation 15). A
particle filter weighs its particles by these laws.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.kernel import combine
from sde_diffusion.samplers.adams import Scheme, table_of
from sde_diffusion.samplers.ancestral import learned_std, log_stds
from sde_diffusion.samplers.march import OneStep, Table, as_table, table
from sde_diffusion.samplers.table import SAMPLER_TABLE, check_options, sampler_options


@dataclass(frozen=True, eq=False)
class Transition:
    """The steps of a sampler on a grid, as laws. Step i goes from node i to node i + 1.

    rows: coefficients of (x, x0_hat, *earlier outputs) in each step; variances: of each step, or none where the network
    learns them, between the two of `learned` in logarithms; outputs: coefficients of (x, x0_hat) in the output f that a
    multistep sampler remembers of each node.
    """

    rows: Table
    variances: tuple[float, ...] | None
    learned: Table
    outputs: Table

    def __len__(self) -> int:
        """The number of steps, the last one to x0_hat not among them."""
        return len(self.rows)

    def mean(self, step: int, x: Tensor, x0_hat: Tensor, history: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """E[x'] of a step from x [B, *D], where the denoiser says x0_hat.

        history: (x, x0_hat) at the nodes before, the last one first; memoryless samplers look at none of it. Raises
        UserError for a history that is too short.
        """
        row = self.rows[step]
        needed = len(row) - 2
        if len(history) < needed:
            raise UserError(
                f"step {step} also looks at {needed} node{'s' * (needed > 1)} before: history needs (x, x0_hat) of "
                f"each, the last one first, and has {len(history)}"
            )
        earlier = [combine(self.outputs[step - 1 - back], *history[back]) for back in range(needed)]
        return combine(row, x, x0_hat, *earlier)

    def variance(self, step: int, fraction: Tensor | None = None) -> Tensor:
        """Var[x'] of a step: a number [], 0 for a deterministic sampler, or [B, *D] where the network learns it.

        fraction: what `moments` of the denoiser gives beside x0_hat. Raises UserError where it is needed and missing.
        """
        if self.variances is not None:
            return torch.tensor(self.variances[step], dtype=torch.float64)
        if fraction is None:
            raise UserError("the network learns this variance: give the fraction that its `moments` returns")
        return learned_std(self.learned[step], fraction).square()

    def log_prob(
        self,
        step: int,
        x_next: Tensor,
        x: Tensor,
        x0_hat: Tensor,
        history: Sequence[tuple[Tensor, Tensor]] = (),
        fraction: Tensor | None = None,
    ) -> Tensor:
        """log p(x_next | x, x0_hat) in nats, [B]. Raises UserError for a step without noise, which has no density."""
        variance = self.variance(step, fraction)
        if not bool((variance > 0.0).all()):
            raise UserError(f"step {step} is deterministic: where it leads to is known, and has no density")
        missed = (x_next - self.mean(step, x, x0_hat, history)).square() / variance
        return -0.5 * (missed + (2.0 * math.pi * variance).log()).flatten(1).sum(1)


def transition(sampler: str, grid: TimeGrid, **options: Any) -> Transition:
    """The laws of a sampler's steps on a grid, under its options as `sample` takes them.

    Raises TypeError for an option that the sampler does not have; UserError for an unknown sampler, and for one whose
    step is no Gaussian given x0_hat: of several evaluations a step, with a corrector or steps of its own size.
    """
    check_options(sampler, options)
    entry = SAMPLER_TABLE[sampler]
    if entry.rule is None:
        raise UserError(
            f"{sampler} has no transition given one x0_hat: its evaluations a step are {entry.evaluations}; choose one "
            f"of {', '.join(name for name, own in SAMPLER_TABLE.items() if own.rule)}"
        )
    named = {**sampler_options(sampler), **options}
    rule = entry.rule(**{name: named[name] for name in inspect.signature(entry.rule).parameters})
    return _of_scheme(sampler, rule, grid) if isinstance(rule, Scheme) else _of_step(rule, grid)


def _of_step(rule: OneStep, grid: TimeGrid) -> Transition:
    rows = table(rule.row, grid)
    if rule.learned:
        now, next = grid.levels[:-1].kernel, grid.levels[1:].kernel
        return Transition([row[:2] for row in rows], None, as_table(log_stds(now, next)), [])
    return Transition([row[:2] for row in rows], tuple(row[2] ** 2 if row[2:] else 0.0 for row in rows), [], [])


def _of_scheme(sampler: str, scheme: Scheme, grid: TimeGrid) -> Transition:
    orders, singles = scheme.orders(grid)
    if scheme.correct:
        raise UserError(
            f"{sampler} corrects each step once its end is known: choose corrector=False for its transition"
        )
    if any(singles):
        raise UserError(f"{sampler} starts with steps of four evaluations: choose start='ramp' for its transition")
    rows, noisy = table_of(scheme.method, grid, orders), bool(scheme.method.eta)
    variances = tuple(row[-1] ** 2 if noisy else 0.0 for row in rows)
    outputs = as_table(scheme.method.output.parts(grid.levels.kernel))
    return Transition([row[: len(row) - noisy] for row in rows], variances, [], outputs)
