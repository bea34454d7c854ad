"""Time grids: the noise levels that a sampler visits, from the prior's down to the sampling time.

A grid of n steps has n nodes t_0 > t_1 > ... > t_{n-1}. A sampler moves from node to node in n - 1 updates, and the
driver's last step (finish="denoise") takes the last node to x0_hat: n steps in all, the count of DDPM, DDIM and EDM,
where the last step goes to sigma = 0. No node ever has sigma = 0.

Builders are functions (sde, steps, t_end, named options) -> times [steps]. With u_i = i/(n - 1),

    uniform    t = 1 + u (t_end - 1)
    quadratic  sqrt(t) uniform: finer near the data (the "quad" spacing of Song et al. 2020, DDIM, Appendix D.3)
    karras     (sigma/alpha)^(1/rho) uniform, rho = 7 (Karras et al. 2022, equation 5)
    logsnr     log(alpha^2/sigma^2) uniform (Lu et al. 2022)
    strided    a subset of the levels of a discrete process, both ends included, evenly spaced
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.errors import UserError, choose, nearest
from sde_diffusion.kernel import Kernel
from sde_diffusion.sde import SDE


@dataclass(frozen=True, eq=False)
class Node:
    """One time of a grid: t as a float64 tensor [], and its kernel."""

    t: Tensor
    kernel: Kernel


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Strictly descending times [n] of a process, as float64 tensors on the CPU.

    Raises UserError where the times do not descend or a node has no noise.
    """

    sde: SDE
    times: Tensor

    def __post_init__(self) -> None:
        times = self.times.detach().to(device="cpu", dtype=torch.float64)
        if times.ndim != 1 or len(times) < 1:
            raise UserError("a grid needs at least one time")
        if not bool((times.diff() < 0).all()):
            raise UserError(f"the times of a grid must descend strictly, got {times.tolist()[:5]} ...")
        if not bool((self.sde.kernel(times).sigma > 0).all()):
            raise UserError("a grid never holds a node without noise; the step to x0_hat is finish='denoise'")
        object.__setattr__(self, "times", times)

    @property
    def steps(self) -> int:
        """Number of steps, the final one to x0_hat included."""
        return len(self.times)

    @property
    def nodes(self) -> list[Node]:
        """All nodes, from noise to data."""
        kernels = self.sde.kernel(self.times)
        return [Node(t, kernels[i]) for i, t in enumerate(self.times)]

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        """The updates: explicit (now, next) pairs."""
        return pairwise(self.nodes)


def _spaced(start: Tensor, end: Tensor, steps: int) -> Tensor:
    return torch.lerp(start, end, torch.linspace(0.0, 1.0, steps, dtype=torch.float64))


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def uniform(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in t."""
    return _spaced(_scalar(1.0), _scalar(t_end), steps)


def quadratic(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in sqrt(t)."""
    return _spaced(_scalar(1.0), _scalar(t_end).sqrt(), steps) ** 2


def _from_logsnr(sde: SDE, logsnr: Tensor, t_end: float) -> Tensor:
    times = sde.time_of(logsnr)
    times[0] = 1.0
    if len(times) > 1:
        times[-1] = t_end
    return times


def _ends(sde: SDE, t_end: float) -> Tensor:
    """Log-SNR at t = 1 and at t_end. Where alpha = 0 at t = 1, the level just before it stands in."""
    logsnr = sde.kernel(torch.tensor([1.0, t_end], dtype=torch.float64)).logsnr
    if torch.isinf(logsnr[0]):
        logsnr[0] = sde.kernel(1.0 - 1e-3).logsnr
    return logsnr


def karras(sde: SDE, steps: int, t_end: float, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho)."""
    if rho <= 0:
        raise UserError(f"rho must be positive, got {rho}")
    start, end = torch.exp(-0.5 * _ends(sde, t_end) / rho)
    return _from_logsnr(sde, -2.0 * rho * _spaced(start, end, steps).log(), t_end)


def logsnr(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in log-SNR."""
    start, end = _ends(sde, t_end)
    return _from_logsnr(sde, _spaced(start, end, steps), t_end)


def strided(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Levels of a discrete process, from the last one to the first, as evenly spaced as integers allow."""
    if sde.times is None:
        raise UserError(
            f"a strided grid visits the levels of a discrete process, which {type(sde).__name__} does not have; "
            "choose uniform, quadratic, karras or logsnr"
        )
    if steps > len(sde.times):
        raise UserError(f"{steps} steps of a process of {len(sde.times)} levels; choose 1 to {len(sde.times)}")
    last = len(sde.times) - 1
    index = _spaced(_scalar(float(last)), _scalar(0.0), steps).round().long()
    return sde.times[index]


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "logsnr": logsnr,
    "strided": strided,
}


def make_grid(sde: SDE, steps: int, kind: str = "uniform", *, t_end: float | None = None, **options: float) -> TimeGrid:
    """A grid of `steps` nodes from the prior's time 1 to t_end (default: the process's smallest sampling time).

    Options are those of the builder (karras: rho). Raises UserError for an unknown kind or option and for steps < 1.
    """
    builder = choose("grid", kind, GRIDS)
    valid = list(inspect.signature(builder).parameters)[3:]
    for name in options:
        if name not in valid:
            known = nearest(name, valid) if valid else "It takes none."
            raise UserError(f"grid {kind!r} has no option {name!r}; {known}")
    if steps < 1:
        raise UserError(f"at least 1 step is needed, got {steps}")
    end = sde.t_sample if t_end is None else t_end
    if not 0.0 <= end < 1.0:
        raise UserError(f"t_end must lie in [0, 1), got {end}")
    return TimeGrid(sde, builder(sde, int(steps), end, **options))
