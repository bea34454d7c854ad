"""Grids of levels: those that visit levels of a discrete process, and any grid moved to such levels.

The levels 0 .. T-1 of a discrete process end at the prior's. Builders are functions (sde, steps, t_end, named options)
-> times [steps], and take no t_start or shift:

    strided         evenly spaced, by the spacings of diffusers (Lin et al. 2023, Table 2). For i = 0 .. n-1
                      linspace   round(i (T-1)/(n-1)), both ends included
                      leading    i floor(T/n): starts at the first level, and never visits the last one unless n = T
                      trailing   round(T - i T/n) - 1: visits the last level, and ends at round(T/n) - 1, above the
                                 first one unless T/n <= 1.5
    respaced        iDDPM's respacing strings (Nichol and Dhariwal 2021, section 4, and its code's space_timesteps):
                      "ddimN"    0, s, 2s, .. for the smallest integer stride s that gives exactly N levels
                      "a,b,c"    the T levels in as many equal sections as there are counts, the first few of them
                                 one level longer where T does not divide evenly; in a section of m levels,
                                 round(i (m-1)/(a-1)) for i = 0 .. a-1, or its first level where a = 1
                      "N"        one section: N levels, both ends included

So leading and "ddimN" start below the prior's level, though sampling starts from the prior, and trailing ends above
the first level: these are the published spacings. One step of strided, or of respaced without a string, is the last
level, where linspace and leading in diffusers and iDDPM's "1" have the first.

A grid of any kind can be snapped to the levels of a discrete process, a network's home. With lam the log-SNR, node i
goes to the level k_i that minimises

    sum_i (lam_i - lam(k_i))^2    subject to    k_0 > k_1 > ... > k_{n-1},

which is the nearest level of every node where these are distinct. In k_i + i the constraint is that of a non-increasing
sequence, and dynamic programming over i finds the minimum in O(n (T - n + 1)) operations.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, islice, repeat

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.kernel import as_schedule
from sde_diffusion.core.process import SDE


def _levels(process: SDE, steps: int, purpose: str, otherwise: str = "") -> Tensor:
    """The times [T] of a discrete process, ascending. UserError if it is none, or has fewer levels than steps."""
    if process.times is None:
        raise UserError(
            f"{purpose} the levels of a discrete process, which {type(process).__name__} does not have; "
            f"give one such as DiscreteVP{otherwise}"
        )
    count = len(process.times)
    if steps > count:
        raise UserError(f"{steps} steps of a process of {count} levels; choose 1 to {count}")
    return process.times


def nearest_level(times: Tensor, t: Tensor) -> Tensor:
    """Indices [B] of the ascending times [N] nearest to t [B]."""
    t = as_schedule(t).contiguous()
    return torch.searchsorted(0.5 * (times[1:] + times[:-1]), t)


_OTHERWISE = " or choose uniform, quadratic, karras, logsnr or polyexponential"


SPACINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "linspace": lambda i, levels: (i * ((levels - 1) / max(len(i) - 1, 1))).round().flip(0),
    "leading": lambda i, levels: (i * (levels // len(i))).flip(0),
    "trailing": lambda i, levels: (levels - i * levels / len(i)).round() - 1.0,
}
"""Spacing -> function (i = 0 .. n-1, T) -> the levels of a strided grid [n], descending."""


def strided(sde: SDE, steps: int, t_end: float, *, spacing: str = "linspace") -> Tensor:
    """Evenly spaced levels of a discrete process: those of diffusers' DDPMScheduler and DDIMScheduler.

    DPMSolverMultistepScheduler and EulerDiscreteScheduler agree but for these: the former spaces n + 1 levels for
    "linspace" and "leading" and leaves out the lowest, the end of its n-th step; the latter does not round "linspace".
    steps_offset, which Stable Diffusion sets to 1 and which moves "leading" up, is 0 here. For "trailing", diffusers
    accumulates T/n in floating point: a half may round the other way there, and for some n (61 of 1000) it returns
    n + 1 levels, the last of them -1.
    """
    times = _levels(sde, steps, "a strided grid visits", _OTHERWISE)
    levels = choose("spacing", spacing, SPACINGS)
    if steps == 1:
        return times[-1:]
    return times[levels(torch.arange(steps, dtype=torch.float64), len(times)).long()]


def _parsed(sections: str) -> tuple[bool, list[int]]:
    """Whether a respacing string asks for an integer stride, and its counts."""
    integer = sections.startswith("ddim")
    try:
        counts = [int(count) for count in sections.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if sum(counts) < 1 or min(counts) < 0 or (integer and len(counts) > 1):
        raise UserError(f"a respacing is 'ddimN', a count such as '250' or counts such as '10,10,5', not {sections!r}")
    return integer, counts


def respacing_count(sections: str) -> int:
    """The number of levels, which is that of steps, that a respacing string asks for. UserError if it is malformed."""
    return sum(_parsed(sections)[1])


def _integer_stride(count: int, total: int) -> list[int]:
    """`count` levels of `total`, ascending, at the smallest integer stride that gives so many."""
    stride = -(-total // count)
    fewer, more = range(0, total, stride), range(0, total, max(stride - 1, 1))
    if len(fewer) != count:
        near = min(len(fewer), len(more), key=lambda n: abs(n - count))
        raise UserError(f"no integer stride gives exactly {count} of {total} levels; the nearest is 'ddim{near}'")
    return list(fewer)


def _sectioned(counts: list[int], total: int) -> list[int]:
    """`counts` levels of the consecutive sections of `total`, ascending."""
    size, longer = divmod(total, len(counts))
    levels: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if count > length:
            raise UserError(
                f"section {i + 1} of {len(counts)} has {length} of the {total} levels, fewer than the {count} that are "
                f"asked of it; choose at most {length}"
            )
        # The stride is summed, as it is in the source, so that halves round as they do there.
        stride = (length - 1) / max(count - 1, 1)
        levels += [start + round(offset) for offset in islice(accumulate(repeat(stride), initial=0.0), count)]
        start += length
    return levels


def respaced(sde: SDE, steps: int, t_end: float, *, sections: str = "") -> Tensor:
    """The levels that a respacing string retains, which must be as many as steps; without one, str(steps)."""
    times = _levels(sde, steps, "a respaced grid visits", _OTHERWISE)
    if not sections and steps == 1:
        return times[-1:]
    integer, counts = _parsed(sections or str(steps))
    if sum(counts) != steps:
        raise UserError(
            f"the respacing {sections!r} gives {sum(counts)} levels, which must be the number of steps, got {steps}"
        )
    levels = _integer_stride(counts[0], len(times)) if integer else _sectioned(counts, len(times))
    return times[levels].flip(0)


# --- snapping -------------------------------------------------------------------------------------------------


def snapped(grid: TimeGrid, home: SDE) -> TimeGrid:
    """The grid moved to distinct levels of a discrete process, the nearest in log-SNR.

    A first node at the prior's time goes to the home's last level, which on another process may lie a little beyond
    t = 1. Raises UserError where the noise there is not that of the prior, from which sampling starts.
    """
    sde = grid.sde
    times = _levels(home, grid.steps, "snap needs").flip(0)
    logsnr = home.kernel(times).logsnr
    at_prior = float(grid.times[0]) == 1.0
    index = _nearest_distinct(_countable(logsnr), grid.levels.kernel.logsnr, first=at_prior)
    if home is not sde and not bool(logsnr[index[0]].isfinite()) and float(grid.levels.kernel.alpha[0]) > 0.0:
        raise UserError(
            f"the last level of the home has no signal, alpha = 0, which {type(sde).__name__} always has: snap a grid "
            "of the home's own process, or one that begins at a t_start below 1"
        )
    snapped = TimeGrid(sde, times[index] if home is sde else sde.time_of(logsnr[index]))
    sigma = float(snapped.levels.kernel.sigma[0])
    if at_prior and abs(sigma / sde.prior_std - 1.0) > 0.05:
        raise UserError(
            f"the last level of the home has sigma = {sigma:.4g} in {type(sde).__name__}, whose prior has "
            f"{sde.prior_std:.4g}; choose parameters of {type(sde).__name__} that end at the home's last level"
        )
    return snapped


def _nearest_distinct(values: Tensor, targets: Tensor, *, first: bool) -> Tensor:
    """Ascending indices k [n] that minimise sum_i (values[k_i] - targets[i])^2, for ascending values [T].

    first: whether k_0 is 0. In m_i = k_i - i the constraint is 0 <= m_0 <= m_1 <= ... <= T - n, and the least sum for
    nodes 0 .. i with m_i = m is that node's own square plus the least sum for nodes 0 .. i-1 with m_{i-1} <= m.
    """
    n = len(targets)
    squares = (values.unfold(0, len(values) - n + 1, 1) - targets.clamp(values[0], values[-1])[:, None]) ** 2
    if first:
        squares[0, 1:] = torch.inf
    least, before = squares[0], []
    for square in squares[1:]:
        least, choice = least.cummin(0)
        least = least + square
        before.append(choice)
    m = [least.argmin()]
    for choice in reversed(before):
        m.append(choice[m[-1]])
    return torch.stack(m).flip(0) + torch.arange(n)


def _countable(logsnr: Tensor) -> Tensor:
    """Log-SNRs [T], ascending, with a finite first one: where alpha = 0 it counts as one step below the second."""
    below = 2.0 * logsnr[1] - logsnr[min(2, len(logsnr) - 1)]
    return torch.cat([logsnr[:1] if bool(logsnr[0].isfinite()) else below[None], logsnr[1:]])
