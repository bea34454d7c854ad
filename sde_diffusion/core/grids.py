"""Time grids: the noise levels that a sampler visits, from the prior's down to the sampling time.

A grid of n steps has n nodes t_0 > t_1 > ... > t_{n-1}. A sampler moves from node to node in n - 1 updates, and the
driver's last step (finish="denoise") takes the last node to x0_hat: n steps in all, the count of DDPM, DDIM and EDM,
where the last step goes to sigma = 0. No node ever has sigma = 0.

Builders are functions (sde, steps, t_end, t_start, named options) -> times [steps]. With u_i = i/(n - 1) these
run from t_start, 1 unless it is given, to t_end exactly, and a grid of one step is t_start:

    uniform         t = t_start + u (t_end - t_start)
    quadratic       sqrt(t) uniform: finer near the data (the "quad" spacing of Song et al. 2020, DDIM, Appendix D.3)
    karras          (sigma/alpha)^(1/rho) uniform, rho = 7 (Karras et al. 2022, equation 5)
    logsnr          log(alpha^2/sigma^2) uniform (Lu et al. 2022)
    polyexponential log(sigma/alpha) = end + (start - end) (1 - u)^rho (k-diffusion's get_sigmas_polyexponential);
                    rho = 1 is logsnr, and a larger rho is finer near the data

A shift s moves every node of such a grid by -2 log s in log-SNR, so that sigma/alpha is multiplied by s: more of the
steps are spent on noise for s > 1, which larger images need (Hoogeboom et al. 2023; Esser et al. 2024, section 5.3.2).
For rectified flow this is t -> s t/(1 + (s - 1) t). t_start and t_end are those before the shift. Nodes that would
leave the process's range, from t = 1 to the least noise that it knows, stay at its ends. A grid has distinct times: of
several nodes beyond an end the outermost lies at it, and the others between it and the nearest node inside, evenly in
log-SNR.

These visit levels 0 .. T-1 of a discrete process, whose last level is the prior's, and take no t_start, t_end or shift:

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

These are a person's own nodes, as many as there are steps, and take no t_end:

    given           sigmas, of sigma/alpha, or times, descending: sigmas=(80, 20, 5, 1, 0.2)

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

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice, pairwise, repeat

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose, no_option
from sde_diffusion.core.kernel import Kernel, as_schedule
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


def _spaced(start: Tensor, end: Tensor, steps: int) -> Tensor:
    return torch.lerp(start, end, torch.linspace(0.0, 1.0, steps, dtype=torch.float64))


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def uniform(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in t."""
    return _spaced(_scalar(t_start), _scalar(t_end), steps)


def quadratic(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in sqrt(t)."""
    return _between(t_start, t_end, _spaced(_scalar(t_start).sqrt(), _scalar(t_end).sqrt(), steps) ** 2)


def _between(t_start: float, t_end: float, times: Tensor) -> Tensor:
    """Times [n] with their ends to the last bit."""
    times[0] = t_start
    if len(times) > 1:
        times[-1] = t_end
    return times


def nearest_level(times: Tensor, t: Tensor) -> Tensor:
    """Indices [B] of the ascending times [N] nearest to t [B]."""
    t = as_schedule(t).contiguous()
    return torch.searchsorted(0.5 * (times[1:] + times[:-1]), t)


def logsnr_ends(sde: SDE, t_end: float, t_start: float = 1.0) -> Tensor:
    """Log-SNR at t_start and at t_end. Where alpha = 0 at t_start, the last level with a signal stands in."""
    start = t_start if float(sde.kernel(t_start).alpha) > 0.0 else sde.t_signal
    return sde.kernel(torch.tensor([start, t_end], dtype=torch.float64)).logsnr


def _require_positive(rho: float) -> None:
    if rho <= 0:
        raise UserError(f"rho must be positive, got {rho}")


def karras(sde: SDE, steps: int, t_end: float, t_start: float = 1.0, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho)."""
    _require_positive(rho)
    start, end = torch.exp(-0.5 * logsnr_ends(sde, t_end, t_start) / rho)
    return _between(t_start, t_end, sde.time_of(-2.0 * rho * _spaced(start, end, steps).log()))


def logsnr(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in log-SNR."""
    start, end = logsnr_ends(sde, t_end, t_start)
    return _between(t_start, t_end, sde.time_of(_spaced(start, end, steps)))


def polyexponential(sde: SDE, steps: int, t_end: float, t_start: float = 1.0, *, rho: float = 1.0) -> Tensor:
    """log(sigma/alpha) a power of the steps that remain: equal steps in log-SNR for rho = 1."""
    _require_positive(rho)
    start, end = logsnr_ends(sde, t_end, t_start)
    remaining = _spaced(_scalar(1.0), _scalar(0.0), steps) ** rho
    return _between(t_start, t_end, sde.time_of(torch.lerp(end, start, remaining)))


# --- shift ------------------------------------------------------------------------------------------------------


def check_shift(shift: float) -> None:
    """Raises UserError for a shift that is none."""
    if not (shift > 0.0 and math.isfinite(shift)):
        raise UserError(f"a shift is a factor of sigma/alpha above 0, 1 for none, got {shift}")


def shifted_logsnr(logsnr: Tensor, shift: float) -> Tensor:
    """log-SNR - 2 log shift: sigma/alpha times the shift."""
    return logsnr - 2.0 * math.log(shift)


def _distinct(logsnr: Tensor, end: Tensor) -> Tensor:
    """Ascending log-SNRs [n], of which those at or below the end lie evenly between it and the first one above it."""
    beyond = int((logsnr <= end).sum())
    if beyond < 2:
        return logsnr.clamp_min(end)
    if beyond == len(logsnr):
        raise UserError("the shift moves every node of the grid out of the process's range: choose one nearer to 1")
    return torch.cat([_spaced(end, logsnr[beyond], beyond + 1)[:-1], logsnr[beyond:]])


def _shifted(sde: SDE, times: Tensor, shift: float) -> Tensor:
    """The times [n] of a grid with sigma/alpha times the shift, within the process's range."""
    if shift == 1.0:
        return times
    ends = torch.stack([_scalar(1.0), times[-1].clamp_max(sde.known_times[0])])
    least, most = sde.kernel(ends).logsnr
    moved = _distinct(shifted_logsnr(sde.kernel(times).logsnr, shift), least)
    moved = -_distinct(-moved.flip(0), -most).flip(0)
    # The ends themselves, to the last bit.
    return torch.where(moved == least, ends[0], torch.where(moved == most, ends[1], sde.time_of(moved)))


# --- levels of a discrete process -------------------------------------------------------------------------------


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


def _one_by_one(name: str, values: Sequence[float], steps: int) -> Tensor:
    """A person's own values [steps], which must be positive and descend."""
    found = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if not bool((found > 0.0).all() and found.isfinite().all() and (found.diff() < 0.0).all()):
        raise UserError(f"{name} of a given grid are numbers above 0 that descend, such as 80,20,5,1,0.2; got {values}")
    if len(found) != steps:
        raise UserError(f"{len(found)} {name} are given, and the steps are {steps}: they must be as many")
    return found


def given(
    sde: SDE, steps: int, t_end: float, *, sigmas: tuple[float, ...] = (), times: tuple[float, ...] = ()
) -> Tensor:
    """Nodes that a person gives, by sigma/alpha or by time. UserError for those that the process does not reach."""
    if bool(sigmas) == bool(times):
        raise UserError("a given grid needs its sigmas (sigma/alpha), such as 80,20,5,1,0.2, or its times, not both")
    if times:
        found = _one_by_one("times", times, steps)
    else:
        found = sde.time_of(-2.0 * _one_by_one("sigmas", sigmas, steps).log())
    if float(found[0]) > 1.0 + 1e-9 or float(found[-1]) < 0.0:
        kernel = sde.kernel(torch.tensor([0.0, 1.0], dtype=torch.float64))
        least, most = (kernel.sigma / kernel.alpha).tolist()
        raise UserError(
            f"the given grid runs over t = {float(found[0]):.4g} to {float(found[-1]):.4g}, and {type(sde).__name__} "
            f"over 1 to 0: sigma/alpha from {most:.4g} to {least:.4g}"
        )
    return found.clamp_max(1.0)


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


def _snapped(grid: TimeGrid, home: SDE) -> TimeGrid:
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


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "logsnr": logsnr,
    "polyexponential": polyexponential,
    "strided": strided,
    "respaced": respaced,
    "given": given,
}


GridOption = float | str | tuple[float, ...]


def fixed_steps(kind: str, options: Mapping[str, GridOption]) -> int | None:
    """The number of steps that a grid's own options fix; None where any will do."""
    if kind == "given":
        return len(options.get("sigmas") or options.get("times") or ()) or None  # type: ignore[arg-type]  # tuples
    sections = options.get("sections") if kind == "respaced" else ""
    return respacing_count(str(sections)) if sections else None


def grid_options(kind: str) -> dict[str, GridOption]:
    """The named options of a kind of grid and their defaults. Raises UserError for an unknown kind."""
    parameters = inspect.signature(choose("grid", kind, GRIDS)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check_options(kind: str, options: Mapping[str, GridOption]) -> None:
    valid = grid_options(kind)
    for name, value in options.items():
        if name not in valid:
            raise UserError(no_option("grid", kind, name, valid))
        wanted = _KINDS[type(valid[name])]
        if _KINDS.get(type(value)) != wanted:
            raise UserError(f"{name} of grid {kind!r} is {wanted}, such as {valid[name]!r}, not {value!r}")


_KINDS: dict[type, str] = {str: "a string", float: "a number", int: "a number", tuple: "numbers", list: "numbers"}
"""The type of a grid's option -> what it is, in words."""


def has_ends(kind: str) -> bool:
    """Whether a kind of grid runs between two times, and not through levels or nodes that are given."""
    return "t_start" in inspect.signature(choose("grid", kind, GRIDS)).parameters


def check_ends(kind: str, t_start: float, shift: float) -> None:
    """Raises UserError for a start or a shift that is none, and for either of a kind of grid without ends."""
    if not 0.0 < t_start <= 1.0:
        raise UserError(f"t_start must lie in (0, 1], got {t_start}")
    check_shift(shift)
    if not has_ends(kind) and not t_start == shift == 1.0:
        raise UserError(
            f"a {kind} grid has the nodes that it says, which no t_start or shift moves: choose one of "
            f"{', '.join(filter(has_ends, GRIDS))}, with snap for the levels of a discrete process"
        )


def make_grid(
    sde: SDE,
    steps: int,
    kind: str = "uniform",
    *,
    t_start: float = 1.0,
    t_end: float | None = None,
    shift: float = 1.0,
    snap: SDE | None = None,
    **options: GridOption,
) -> TimeGrid:
    """A grid of `steps` nodes from t_start to t_end (default: the process's smallest sampling time).

    `sde.grid` names the kind that suits the process: uniform for all but EDM, whose time is sigma. Samplers of higher
    order do better on "logsnr".

    t_start: where the grid begins, the prior's time unless it is less than 1. shift: what sigma/alpha of every node
    from t_start to t_end is then multiplied by, within the process's range.

    snap: a discrete process, such as a network's home, to whose levels the nodes are moved, after the shift. strided
    and respaced grids are levels of `sde` whatever t_end is. Options are those of the builder, listed by
    `grid_options(kind)`.

    Raises UserError for an unknown kind or option, for steps < 1, for more steps than there are levels, for times that
    do not descend from t_start to t_end, for a shift that leaves no node in the process's range, and for t_start or
    shift of a grid of levels.
    """
    _check_options(kind, options)
    if steps < 1:
        raise UserError(f"at least 1 step is needed, got {steps}")
    end = sde.t_sample if t_end is None else t_end
    if not 0.0 <= end < 1.0:
        raise UserError(f"t_end must lie in [0, 1), got {end}")
    check_ends(kind, t_start, shift)
    if not end < t_start:
        raise UserError(f"a grid descends from t_start to t_end, and {t_start:g} is not above {end:g}")
    ends = (end, t_start) if has_ends(kind) else (end,)
    times = GRIDS[kind](sde, int(steps), *ends, **options)
    grid = TimeGrid(sde, _shifted(sde, times, shift))
    return grid if snap is None else _snapped(grid, snap)
