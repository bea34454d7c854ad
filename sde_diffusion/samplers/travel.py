"""Time travel: a sampler walks down a piece of the grid, goes back up by the forward process, and walks down again.

The nodes are cut into pieces of `length` steps. From the lower end s of a piece to its upper end t the way back is the
forward transition of the process,

    x_t = a x_s + sqrt(v) n,        a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2,

which leaves the law p_t where x_s has the law p_s. So travelling changes nothing for a perfect sampler, and gives one
whose steps are pulled elsewhere (by a measurement, by guidance) time to bring its parts into agreement (Lugmayr et al.
2022, RePaint, Algorithm 1; Wang et al. 2023, DDNM, Algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import combine
from sde_diffusion.core.noise_sources import BrownianNoise, NoiseSource
from sde_diffusion.samplers.march import OnStep


@dataclass(frozen=True)
class Travel:
    """Each piece of `length` steps is walked `repeats` times, 1 being once, as without travelling.

    The last piece has the steps that are left; the step to x0_hat, the driver's, is in none. A sampler knows of its
    piece only: a multistep one begins anew, an amount for all steps, such as churn, is one for those of the piece, and
    correctors work at both of its ends. Raises UserError for numbers below 1.
    """

    length: int = 10
    repeats: int = 2

    def __post_init__(self) -> None:
        for name, value in (("length", self.length), ("repeats", self.repeats)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} of Travel must be a whole number of at least 1, got {value!r}")


def travelled(
    travel: Travel,
    walk: Callable[..., Tensor],
    x: Tensor,
    grid: TimeGrid,
    noise: NoiseSource,
    on_step: OnStep | None,
) -> Tensor:
    """Every piece of the grid, walked as often as `travel` says, [B, *D].

    walk(x, grid, noise=..., on_step=...) is a sampler. Steps and nodes have their numbers in the whole grid; a step up
    has that of the node where it begins. Raises UserError for a Brownian path, which is known downwards only.
    """
    if travel.repeats > 1 and isinstance(noise, BrownianNoise):
        raise UserError(
            "travel goes back up with noise of its own, and a Brownian path has one value at each level: "
            "choose noise='white'"
        )
    if grid.steps == 1:
        return walk(x, grid, noise=noise, on_step=on_step)
    for first in range(0, grid.steps - 1, travel.length):
        piece = TimeGrid(grid.sde, grid.times[first : first + travel.length + 1])
        top, bottom = piece.nodes[0], piece.nodes[-1]
        back = top.kernel.after(bottom.kernel)
        for again in range(travel.repeats):
            if again:
                x = combine((back.alpha, back.sigma), x, noise(first + piece.steps - 1, bottom, top, x))
            x = walk(x, piece, noise=_drawn_from(first, noise), on_step=_counted_from(first, on_step))
    return x


def _drawn_from(first: int, noise: NoiseSource) -> NoiseSource:
    """The source for a piece whose first step has that number in the whole grid."""

    def draw(step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        return noise(first + step, now, next, like)

    return draw


def _counted_from(first: int, on_step: OnStep | None) -> OnStep | None:
    """on_step for a piece whose first node has that number in the whole grid."""
    if on_step is None:
        return None

    def notify(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        on_step(first + index, node, x, x0_hat)

    return notify
