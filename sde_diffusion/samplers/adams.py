"""Exponential Adams methods: steps of the flow that reuse the evaluations of earlier steps.

With lam = log(alpha/sigma), half the log-SNR, the flow of every process solves exactly to

    x' = (sigma'/sigma) x + alpha' int_lam^lam' exp(l - lam') x0_hat(l) dl      "x0"   (Lu et al. 2022b, eq. 8)
    x' = (alpha'/alpha) x - sigma' int_lam^lam' exp(lam' - l) eps_hat(l) dl     "eps"  (Lu et al. 2022a, eq. 3.4)

and a method is a choice of how to continue the network's output f (x0_hat or eps_hat) over the step. Let u be a
variable along the path and r_j = (u_j - u)/(u' - u) the nodes at which f is known, in units of the step: r_0 = 0 here,
r_1 < 0 one step earlier, and so on. A polynomial through those values gives the integral as sum_j w_j f_j, with weights
that are right for each of its powers:

    sum_j w_j r_j^k = m_k,            m_k = int exp(..) r^k dl,     k = 0 .. order - 1.

That is the exponential Adams-Bashforth method of that order. With the new evaluation, r = 1, among the nodes it is an
Adams-Moulton method, which corrects a step once the network has been evaluated at its end. Order 1 is DDIM.

The reverse SDE with eta times the variance (eta = 1 is the time reversal) has the same solution with the weight
(1 + eta) exp((1 + eta)(l - lam')) under the integral of x0_hat; x keeps (sigma'/sigma) exp(-eta h), h = lam' - lam, and
gains sigma' sqrt(1 - exp(-2 eta h)) n (Lu et al. 2022b, SDE-DPM-Solver++).

The first steps have fewer values than the order needs. They take a lower order ("ramp"), which costs the methods of
order 3 and more their order, because the first step's error is never repaired; or the classical Runge-Kutta step on
d(x/sigma)/d(alpha/sigma) = x0_hat, at three evaluations more each ("runge_kutta").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import Kernel, combine
from sde_diffusion.core.noise_sources import NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.march import Coefficients, OnStep, Table, as_table, ignore_step

STARTS = ("ramp", "runge_kutta")


def half_logsnr(kernel: Kernel) -> Tensor:
    """lam = log(alpha/sigma), [] or [n]."""
    return 0.5 * kernel.logsnr


# --- what the polynomial continues, and in which variable -----------------------------------------------------


@dataclass(frozen=True)
class Output:
    """A network output f = x_part x + x0_part x0_hat, its scale in x' and the sign of its exponent."""

    parts: Callable[[Kernel], tuple[Tensor, Tensor]]
    scale: Callable[[Kernel], Tensor]
    sign: float


OUTPUTS: dict[str, Output] = {
    "x0": Output(lambda k: (0.0 * k.alpha, 1.0 + 0.0 * k.alpha), lambda k: k.alpha, -1.0),
    "eps": Output(lambda k: (1.0 / k.sigma, -k.alpha / k.sigma), lambda k: -k.sigma, 1.0),
}

VARIABLES: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "logsnr": lambda sde, lam: lam,
    "t": lambda sde, lam: sde.time_of(2.0 * lam),
    "sigma": lambda sde, lam: torch.exp(-lam),
}
"""Variables along the path in which f is a polynomial, as functions of lam; "sigma" is sigma/alpha."""


@cache
def _quadrature(points: int = 32) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]: exact to rounding for steps of lam up to 30."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(0.5 * (nodes + 1.0)), torch.from_numpy(0.5 * weights)


Moments = Callable[[Tensor, Tensor], Tensor]
"""A method's moments [n, order] from the steps h [n] and the exact moments [n, order]."""


def exact(h: Tensor, moments: Tensor) -> Tensor:
    """The moments as they are."""
    return moments


@dataclass(frozen=True)
class Adams:
    """An exponential Adams method: what it continues, in which variable, and its moments at each order."""

    output: Output
    variable: Callable[[SDE, Tensor], Tensor]
    moments: Moments = exact
    eta: float = 0.0

    def base(self, now: Kernel, next: Kernel) -> Coefficients:
        """Order 1, f constant over the step: coefficients of x, x0_hat and, with eta, noise."""
        shrink = (now.alpha * next.sigma) / (now.sigma * next.alpha)  # exp(-h), 0 where alpha = 0
        keep = next.sigma / now.sigma * shrink**self.eta
        columns = keep, next.alpha * (1.0 - shrink ** (1.0 + self.eta))
        return (*columns, next.sigma * (1.0 - shrink ** (2.0 * self.eta)).sqrt()) if self.eta else columns

    def rows(self, sde: SDE, now: Node, next: Node, others: list[Node]) -> Coefficients:
        """Coefficients of (x, x0_hat, *f at the other nodes) and, with eta, noise; each [n]."""
        start, end = half_logsnr(now.kernel), half_logsnr(next.kernel)
        h, (points, weights) = end - start, _quadrature()
        path = start[:, None] + h[:, None] * points
        u, first, last = (self.variable(sde, lam) for lam in (path, start, end))
        offsets = torch.stack([first, *(self.variable(sde, half_logsnr(node.kernel)) for node in others)], dim=1)
        order = torch.arange(offsets.shape[1], dtype=torch.float64)
        rate = self.output.sign * (1.0 + self.eta)
        density = (1.0 + self.eta) * h[:, None] * torch.exp(rate * (end[:, None] - path)) * weights
        span = (last - first)[:, None]
        powers = ((u - first[:, None]) / span)[:, None, :] ** order[:, None]
        moments = self.moments(h, (density[:, None, :] * powers).sum(2))
        vandermonde = ((offsets - first[:, None]) / span)[:, None, :] ** order[:, None]
        added = self.output.scale(next.kernel)[:, None] * torch.linalg.solve(vandermonde, moments)[:, 1:]
        # The weights add up to m_0, which the base has: each f_j comes in as its difference from f_0.
        x_part, x0_part = self.output.parts(now.kernel)
        keep, pull, *noise = self.base(now.kernel, next.kernel)
        total = added.sum(1)
        return keep - total * x_part, pull - total * x0_part, *added.unbind(1), *noise


# --- rows of a whole grid -------------------------------------------------------------------------------------


def orders_of(grid: TimeGrid, order: int, final_order: int | None) -> tuple[list[int], list[int]]:
    """For each step the order that is wanted, and the number of values that there are for it.

    final_order lowers the last steps: the last one to it, the one before to one more, and so on. A node without
    signal (alpha = 0) has no lam, and serves its own step only.
    """
    count = grid.steps - 1
    first = int(grid.levels.kernel.alpha[0] == 0.0)
    wanted = [min(order, (final_order or order) + count - 1 - i) for i in range(count)]
    return wanted, [max(1, i + 1 - first) for i in range(count)]


def table_of(method: Adams, grid: TimeGrid, orders: list[int], *, correct: bool = False) -> Table:
    """The coefficients of (x, x0_hat, *earlier f) and, with eta, noise in every step.

    With correct, those of (x, x0_hat, f at the next node, *earlier f): the step taken again. There is none for a step
    from a node without signal.
    """
    rows: Table = [()] * len(orders)
    levels = grid.levels
    silent = levels.kernel.alpha == 0.0
    for order in set(orders):
        steps = torch.tensor([i for i, own in enumerate(orders) if own == order and not (correct and silent[i])])
        if not len(steps):
            continue
        now, next = levels[steps], levels[steps + 1]
        others = [next] * correct + [levels[steps - j] for j in range(1, order)]
        columns = method.rows(grid.sde, now, next, others) if others else method.base(now.kernel, next.kernel)
        for step, row in zip(steps.tolist(), as_table(columns)):
            rows[step] = row
    return rows


# --- the loop -------------------------------------------------------------------------------------------------


def runge_kutta_step(denoiser: Denoiser, sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
    """The classical Runge-Kutta step of order 4 on d(x/sigma)/d(alpha/sigma) = x0_hat, [B, *D].

    Three evaluations, two of them at the level half way in alpha/sigma.
    """
    a, b = now.kernel, next.kernel
    start, end = a.alpha / a.sigma, b.alpha / b.sigma
    middle = sde.kernel(sde.time_of(2.0 * (0.5 * (start + end)).log()))
    step = end - start
    at_middle = middle.sigma / a.sigma, 0.5 * step * middle.sigma
    second = denoiser(combine(at_middle, x, x0_hat), middle)
    third = denoiser(combine(at_middle, x, second), middle)
    keep, pull = b.sigma / a.sigma, step * b.sigma
    fourth = denoiser(combine((keep, pull), x, third), b)
    return combine((keep, pull / 6, pull / 3, pull / 3, pull / 6), x, x0_hat, second, third, fourth)


def check_orders(name: str, order: int, most: int, final_order: int | None) -> None:
    """Raises UserError for an order that a method does not have."""
    for what, value in (("order", order), ("final_order", final_order)):
        if value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"{what} of {name} must be a whole number from 1 to {most}, got {value}")


@dataclass(frozen=True)
class Scheme:
    """An Adams method with its order, how it starts and ends, and whether it corrects a step once its end is known."""

    method: Adams
    order: int
    start: str = "ramp"
    final_order: int | None = None
    correct: bool = False

    def __post_init__(self) -> None:
        choose("start", self.start, dict.fromkeys(STARTS))

    def orders(self, grid: TimeGrid) -> tuple[list[int], list[bool]]:
        """The order of each step, and whether the Runge-Kutta start takes it."""
        wanted, values = orders_of(grid, self.order, self.final_order)
        singles = [self.start == "runge_kutta" and have < want for want, have in zip(wanted, values)]
        return [min(pair) for pair in zip(wanted, values)], singles


def multistep(
    scheme: Scheme, denoiser: Denoiser, x: Tensor, grid: TimeGrid, noise: NoiseSource, on_step: OnStep | None
) -> Tensor:
    """Every step of a scheme, [B, *D]; a corrector finds x at a node again once x0_hat is known there."""
    notify, method, order, correct = on_step or ignore_step, scheme.method, scheme.order, scheme.correct
    orders, singles = scheme.orders(grid)
    predictor = table_of(method, grid, orders)
    corrector = table_of(method, grid, orders, correct=True) if correct else []
    nodes = grid.nodes
    parts = as_table(method.output.parts(grid.levels.kernel))
    history: deque[Tensor] = deque(maxlen=order)  # f at this node and at earlier ones
    before = x0_before = x  # the state and its x0_hat from which the last step was taken
    for index, row in enumerate(predictor):
        x0_hat = denoiser(x, nodes[index].kernel)
        notify(index, nodes[index], x, x0_hat)
        f = x0_hat if parts[index] == (0.0, 1.0) else combine(parts[index], x, x0_hat)
        if correct and index and corrector[index - 1] and not singles[index - 1]:
            old = corrector[index - 1]
            x = combine(old, before, x0_before, f, *islice(history, 1, len(old) - 2))
            x_part, x0_part = parts[index]
            x0_hat = f if x_part == 0.0 else combine((1.0 / x0_part, -x_part / x0_part), f, x)
        history.appendleft(f)
        before, x0_before = x, x0_hat
        if singles[index]:
            x = runge_kutta_step(denoiser, grid.sde, nodes[index], nodes[index + 1], x, x0_hat)
            continue
        earlier = list(islice(history, 1, orders[index]))
        drawn = [noise(index, nodes[index], nodes[index + 1], x)] if method.eta else []
        x = combine(row, x, x0_hat, *earlier, *drawn)
    return x
