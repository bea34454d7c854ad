"""Grids of levels: those that visit levels of a discrete process, and grids snapped to them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.core.levels import SPACINGS, _nearest_distinct, respacing_count
from tests.core.test_grids import CONTINUOUS
from tests.proofs.cases import PROCESSES

DISCRETE = [name for name, sde in PROCESSES.items() if sde.times is not None]
LEVELS = 64
SMALL: dict[str, sd.SDE] = {
    "DiscreteVP": sd.DiscreteVP.linear(LEVELS),
    "cosine": sd.DiscreteVP.cosine(LEVELS),
    "DiscreteVE": sd.DiscreteVE.geometric(0.01, 50.0, LEVELS),
}
"""Discrete processes so small that a test can take every number of steps."""
OF_LEVELS: list[tuple[str, dict[str, Any]]] = [
    ("strided", {"spacing": "linspace"}),
    ("strided", {"spacing": "leading"}),
    ("strided", {"spacing": "trailing"}),
    ("respaced", {}),
]
HOMES = [("VPSDE", "DiscreteVP"), ("CosineVPSDE", "cosine"), ("VESDE", "DiscreteVE"), ("RectifiedFlow", "DiscreteVP")]
HOMES += [(name, name) for name in SMALL]
"""Process of the grid, process whose levels it is snapped to."""


def times_of(sde: sd.SDE) -> torch.Tensor:
    assert sde.times is not None
    return sde.times


def levels_of(grid: sd.TimeGrid, home: sd.SDE) -> torch.Tensor:
    """The level of every node, [n], which must be one to within 1e-6 in log-SNR."""
    levels, nodes = home.kernel(times_of(home)).logsnr, grid.levels.kernel.logsnr
    distance, index = (nodes[:, None] - levels).abs().min(1)
    assert float(distance.max()) < 1e-6
    return index


@pytest.mark.parametrize("process", DISCRETE)
def test_strided_grids_of_any_length_visit_levels(process: str) -> None:
    """1 to 1000 steps: distinct levels of the table, the first and the last among them, strides within one of
    another."""
    sde = PROCESSES[process]
    assert sde.times is not None
    for steps in [*range(1, 60), 97, 128, 250, 333, 499, 500, 501, 750, 998, 999, 1000]:
        times = sd.make_grid(sde, steps, "strided").times
        assert len(times) == steps and bool(torch.isin(times, sde.times).all())
        assert float(times[0]) == 1.0 and (steps == 1 or float(times[-1]) == float(sde.times[0]))
        index = torch.searchsorted(sde.times, times)
        if steps > 1:
            strides = -index.diff()
            assert int(strides.min()) >= 1 and int(strides.max() - strides.min()) <= 1
    assert torch.equal(sd.make_grid(sde, 1000, "strided").times, sde.times.flip(0))


@pytest.mark.parametrize("kind", ["strided", "respaced"])
def test_levels_are_not_moved(kind: str) -> None:
    """They are refused by name, and the remedy is right: another kind, snapped."""
    sde = SMALL["DiscreteVP"]
    for options in ({"shift": 2.0}, {"t_start": 0.5}):
        with pytest.raises(
            sd.UserError, match=f"a {kind} grid has the nodes that it says.* choose one of uniform, .*snap"
        ):
            sd.make_grid(sde, 8, kind, **options)
    snapped = sd.make_grid(sde, 8, "logsnr", shift=2.0, t_start=0.9, snap=sde)
    nodes = levels_of(snapped, sde)
    wanted = sd.make_grid(sde, 8, "logsnr", shift=2.0, t_start=0.9).levels.kernel.logsnr
    nearest = (wanted[:, None] - sde.kernel(times_of(sde)).logsnr).abs().argmin(1)
    assert torch.equal(nodes, nearest)


@pytest.mark.parametrize("process", SMALL)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_continuous_grids_of_every_length_on_a_discrete_process(kind: str, process: str) -> None:
    sde = SMALL[process]
    for steps in range(1, LEVELS + 1):
        times = sd.make_grid(sde, steps, kind).times
        assert len(times) == steps and float(times[0]) == 1.0 and bool((times.diff() < 0).all())
        assert steps == 1 or float(times[-1]) == sde.t_sample


@pytest.mark.parametrize("process", SMALL)
@pytest.mark.parametrize(("kind", "options"), OF_LEVELS)
def test_grids_of_levels_of_every_length(kind: str, options: dict[str, Any], process: str) -> None:
    sde = SMALL[process]
    for steps in range(1, LEVELS + 1):
        grid = sd.make_grid(sde, steps, kind, **options)
        levels = levels_of(grid, sde)
        assert grid.steps == steps and torch.equal(grid.times, times_of(sde)[levels])
        first, last = {
            "leading": (LEVELS - 1 if steps == 1 else (steps - 1) * (LEVELS // steps), 0),
            "trailing": (LEVELS - 1, round(LEVELS / steps) - 1),
        }.get(options.get("spacing", ""), (LEVELS - 1, 0))
        assert int(levels[0]) == first and (steps == 1 or int(levels[-1]) == last)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 40, 64])
def test_spacings(steps: int) -> None:
    sde = SMALL["DiscreteVP"]
    last = LEVELS - 1
    expected = {
        "linspace": [round((steps - 1 - i) * last / (steps - 1)) for i in range(steps)],
        "leading": [i * (LEVELS // steps) for i in reversed(range(steps))],
        "trailing": [round(LEVELS - i * LEVELS / steps) - 1 for i in range(steps)],
    }
    assert expected.keys() == SPACINGS.keys()
    for spacing, levels in expected.items():
        assert levels_of(sd.make_grid(sde, steps, "strided", spacing=spacing), sde).tolist() == levels


@pytest.mark.parametrize(
    ("sections", "levels"),
    [
        ("ddim64", list(range(64))),
        ("ddim16", list(range(0, 64, 4))),
        ("ddim13", list(range(0, 64, 5))),
        ("ddim1", [0]),
        ("3", [0, 32, 63]),  # 31.5 rounds to even
        ("1", [0]),
        ("2,1,0,3", [0, 15, 16, 48, 56, 63]),  # sections of 16; 7.5 rounds to even
        ("2,2,2", [0, 21, 22, 42, 43, 63]),  # sections of 22, 21 and 21
    ],
)
def test_respacing_strings(sections: str, levels: list[int]) -> None:
    sde = SMALL["DiscreteVP"]
    assert respacing_count(sections) == len(levels)
    grid = sd.make_grid(sde, len(levels), "respaced", sections=sections)
    assert levels_of(grid, sde).tolist() == levels[::-1]


def test_an_integer_stride_or_the_nearest_that_exists() -> None:
    """Every count that some stride gives is accepted, with the smallest; any other names the nearest such count."""
    sde = SMALL["DiscreteVP"]
    strides = {len(range(0, LEVELS, s)): s for s in range(LEVELS, 0, -1)}
    for count in range(1, LEVELS + 1):
        if count in strides:
            grid = sd.make_grid(sde, count, "respaced", sections=f"ddim{count}")
            assert levels_of(grid, sde).tolist() == list(range(0, LEVELS, strides[count]))[::-1]
        else:
            with pytest.raises(sd.UserError, match=f"{count} of {LEVELS} levels.*'ddim") as refusal:
                sd.make_grid(sde, count, "respaced", sections=f"ddim{count}")
            named = int(str(refusal.value).rpartition("ddim")[2].rstrip("'"))
            assert abs(named - count) == min(abs(n - count) for n in strides)


@pytest.mark.parametrize("sections", ["ddim", "ddim0", "ddim-5", "ddim5,5", "abc", "10,,5", "10,", "0", "0,0", "-1,5"])
def test_malformed_respacing(sections: str) -> None:
    for ask in (
        lambda: respacing_count(sections),
        lambda: sd.make_grid(SMALL["DiscreteVP"], 10, "respaced", sections=sections),
    ):
        with pytest.raises(sd.UserError, match="'10,10,5'"):
            ask()


def test_respacing_refusals() -> None:
    sde = SMALL["DiscreteVP"]
    with pytest.raises(sd.UserError, match=r"'10,10,5' gives 25 levels.* got 20"):
        sd.make_grid(sde, 20, "respaced", sections="10,10,5")
    with pytest.raises(sd.UserError, match=r"section 2 of 2 has 32 of the 64 levels.*at most 32"):
        sd.make_grid(sde, 43, "respaced", sections="10,33")
    with pytest.raises(sd.UserError, match="1 to 64"):
        sd.make_grid(sde, 65, "respaced", sections="65")
    with pytest.raises(sd.UserError, match="discrete process, which VPSDE"):
        sd.make_grid(sd.VPSDE(), 10, "respaced")


# --- snap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize(("process", "home"), HOMES)
def test_snapped_grids_of_every_length(process: str, home: str, kind: str) -> None:
    """Distinct levels, the last one first; without a collision each node's own nearest level."""
    target = SMALL[home]
    sde = target if process == home else PROCESSES[process]
    logsnr = target.kernel(times_of(target)).logsnr
    for steps in range(1, LEVELS + 1):
        free, grid = sd.make_grid(sde, steps, kind), sd.make_grid(sde, steps, kind, snap=target)
        assert grid.sde is sde and grid.steps == steps
        levels = levels_of(grid, target)
        assert int(levels[0]) == LEVELS - 1 and bool((levels.diff() < 0).all())
        if sde is target:
            assert torch.equal(grid.times, times_of(target)[levels])
        nearest = (free.levels.kernel.logsnr[:, None] - logsnr).abs().argmin(1)
        nearest[0] = LEVELS - 1
        if bool((nearest.diff() < 0).all()):
            assert torch.equal(levels, nearest)
        if steps == LEVELS:
            assert torch.equal(levels, torch.arange(LEVELS).flip(0))


def test_a_node_moves_by_half_a_gap_at_most() -> None:
    home, sde = sd.DiscreteVP.linear(1000), sd.VPSDE()
    free, grid = (sd.make_grid(sde, 20, "logsnr", t_end=0.02, snap=snap) for snap in (None, home))
    levels, logsnr = levels_of(grid, home), home.kernel(home.times).logsnr
    gaps = torch.stack([logsnr[levels[1:] - 1] - logsnr[levels[1:]], logsnr[levels[1:]] - logsnr[levels[1:] + 1]])
    moved = (grid.levels.kernel.logsnr - free.levels.kernel.logsnr).abs()[1:]
    assert bool((moved <= 0.5 * gaps.max(0).values + 1e-9).all())


@pytest.mark.parametrize("seed", range(20))
def test_snapping_is_the_least_squares_choice(seed: int) -> None:
    """Against every choice of n of 9 levels."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(9, generator=g, dtype=torch.float64).cumsum(0).sort().values
    targets = (2.0 * torch.randn(1 + seed % 9, generator=g, dtype=torch.float64)).sort().values
    for first in (False, True):
        choices = torch.tensor([c for c in combinations(range(9), len(targets)) if not first or c[0] == 0])
        sums = ((values[choices] - targets.clamp(values[0], values[-1])) ** 2).sum(1)
        index = _nearest_distinct(values, targets, first=first)
        assert index.tolist() in choices.tolist()
        found = ((values[index] - targets.clamp(values[0], values[-1])) ** 2).sum()
        torch.testing.assert_close(found, sums.min())


@pytest.mark.parametrize(("kind", "options"), OF_LEVELS)
def test_levels_stay_where_they_are(kind: str, options: dict[str, Any]) -> None:
    sde = SMALL["DiscreteVP"]
    for steps in (1, 2, 7, 40, LEVELS):
        plain = sd.make_grid(sde, steps, kind, **options).times
        assert torch.equal(sd.make_grid(sde, steps, kind, snap=sde, **options).times, plain)


def test_snap_refusals() -> None:
    with pytest.raises(sd.UserError, match=r"snap needs .*VESDE does not have"):
        sd.make_grid(sd.VPSDE(), 10, snap=sd.VESDE())
    with pytest.raises(sd.UserError, match="1 to 64"):
        sd.make_grid(sd.VPSDE(), 65, snap=SMALL["DiscreteVP"])
    with pytest.raises(sd.UserError, match="sigma = 50 in EDM, whose prior has 80"):
        sd.make_grid(sd.EDM(), 10, snap=SMALL["DiscreteVE"])
    assert sd.make_grid(sd.EDM(sigma_max=50.0), 10, snap=SMALL["DiscreteVE"]).steps == 10
