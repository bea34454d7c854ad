"""The kinds of time grids, and how one is made.

A builder is a function (sde, steps, t_end, ..., named options) -> times [steps]. Those of spacings.py run between two
times, those of levels.py visit levels of a discrete process, and one takes a person's own nodes, as many as there are
steps, without a t_end:

    given           sigmas, of sigma/alpha, or times, descending: sigmas=(80, 20, 5, 1, 0.2)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose, no_option
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.levels import respaced, respacing_count, snapped, strided
from sde_diffusion.core.process import SDE
from sde_diffusion.core.spacings import check_shift, karras, logsnr, polyexponential, quadratic, shifted, uniform


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
    grid = TimeGrid(sde, shifted(sde, times, shift))
    return grid if snap is None else snapped(grid, snap)
