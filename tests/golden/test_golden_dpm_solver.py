"""DPM-Solver's own code, on the continuous VP-SDE: multistep and singlestep, whole trajectories where it has them.

`dpmsolver++` predicts x0 and its multistep forms are samplers of ours; `dpmsolver` predicts eps, and its forms are
Adams methods of adams.py with that output. Singlestep of order 2 is our dpmpp_2s where its intermediate level is half
way in log-SNR; otherwise, and with the type "taylor", it is an Adams step through the node between. Singlestep of
order 3 and the adaptive method are other algorithms.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.samplers.adams import OUTPUTS, VARIABLES, Adams, Moments, Scheme, exact, multistep
from sde_diffusion.samplers.multistep import midpoint, published_3m
from tests.golden.reference import (
    ATOL,
    DIMS,
    Arrays,
    Recording,
    Trajectory,
    arrays,
    case_of,
    cases,
    close,
    document,
    exact_then_published,
    mixture,
    singlestep,
)

PROCESS = sd.VPSDE(0.1, 20.0)
SPACINGS = {"time_uniform": "uniform", "time_quadratic": "quadratic", "logSNR": "logsnr"}
PREDICTED = {"dpmsolver": "eps", "dpmsolver++": "x0"}
CASES = {name: case for name, case in cases("samplers/dpm_solver_2d").items() if "solver_type" in case}


MOMENTS: dict[tuple[int, str], Moments] = {
    (1, "dpmsolver"): exact,
    (2, "dpmsolver"): midpoint,
    (2, "taylor"): exact,
    (3, "dpmsolver"): published_3m,
    (3, "taylor"): exact_then_published,
}


def listed(method: str, orders: tuple[int, ...]) -> list[str]:
    return [name for name, case in CASES.items() if case["method"].startswith(method) and case["order"] in orders]


def load(dims: int, name: str) -> tuple[dict[str, Any], Arrays, Recording]:
    """The case, its arrays without its name in front, and the denoiser."""
    file = f"samplers/dpm_solver_{dims}d"
    case, own = case_of(file, name)
    vectors = arrays(file)
    return case, own | {"x_T": vectors["x_T"], "exact": vectors["exact"]}, Recording(mixture(vectors, dims).denoiser())


def grid_for(case: dict[str, Any]) -> TimeGrid:
    """Its time steps are ours, one step being the last one's way to t_end."""
    return sd.make_grid(PROCESS, case["steps"] + 1, SPACINGS[case["skip_type"]], t_end=case.get("t_end", 1e-3))


def method_of(case: dict[str, Any]) -> Adams:
    moments = MOMENTS[case["order"], case["solver_type"]]
    return Adams(OUTPUTS[PREDICTED[case["algorithm"]]], VARIABLES["logsnr"], moments)


def check(own: Arrays, x: Tensor, visited: list[Tensor]) -> None:
    """The end and, where they are stored, all states."""
    close(x, own["x"])
    if "trajectory" in own:
        close(torch.stack([*visited, x]), own["trajectory"])


both_dims = pytest.mark.parametrize("dims", DIMS)


@both_dims
def test_schedule(dims: int) -> None:
    vectors = arrays(f"samplers/dpm_solver_{dims}d")
    kernel = PROCESS.kernel(vectors["t"])
    close(kernel.alpha.log(), vectors["log_mean"])
    close(kernel.sigma, vectors["std"])
    close(0.5 * kernel.logsnr, vectors["lambda"])
    close(PROCESS.time_of(2.0 * vectors["lambda"]), vectors["inverse_lambda"])


@both_dims
@pytest.mark.parametrize("name", listed("multistep", (1, 2, 3)))
def test_multistep(dims: int, name: str) -> None:
    case, own, denoiser = load(dims, name)
    grid, visited = grid_for(case), Trajectory()
    close(grid.times[:-1], own["model_t"])
    x = multistep(Scheme(method_of(case), case["order"]), denoiser, own["x_T"], grid, None, visited)
    assert len(denoiser.inputs) == case["nfe"]
    check(own, x, visited.x)


# Of dpmsolver++, our samplers by name.
NAMED: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "ddim", {}) for name in CASES if CASES[name]["order"] == 1),
    *((name, "dpmpp_2m", {"order": 1}) for name in CASES if CASES[name]["order"] == 1),
    *(
        (name, "dpmpp_2m", {"solver": {"dpmsolver": "midpoint", "taylor": "exact"}[CASES[name]["solver_type"]]})
        for name in listed("multistep", (2,))
        if name.startswith("dpmsolver++")
    ),
    *(
        (name, "dpmpp_3m", {"solver": "published"})
        for name in listed("multistep", (3,))
        if name.startswith("dpmsolver++") and CASES[name]["solver_type"] == "dpmsolver"
    ),
]


@both_dims
@pytest.mark.parametrize(("name", "sampler", "options"), NAMED)
def test_named_sampler(dims: int, name: str, sampler: str, options: dict[str, Any]) -> None:
    """Order 1 of both algorithms and all methods is DDIM."""
    case, own, denoiser = load(dims, name)
    visited = Trajectory()
    out = sd.sample(
        denoiser, grid=grid_for(case), sampler=sampler, x=own["x_T"], finish="none", on_step=visited, **options
    )
    assert out.nfe == case["nfe"]
    check(own, out.x, visited.x)


@both_dims
def test_dpmpp_2m_to_x0_hat(dims: int) -> None:
    """Its denoise_to_zero is our last step."""
    case, own, denoiser = load(dims, "pp2m_denoise_nolof")
    out = sd.sample(denoiser, grid=grid_for(case), sampler="dpmpp_2m", x=own["x_T"])
    close(out.x, own["x"])
    assert out.nfe == case["steps"] + 1


# --- singlestep -----------------------------------------------------------------------------------------------


@both_dims
@pytest.mark.parametrize("name", listed("singlestep", (2,)))
def test_singlestep(dims: int, name: str) -> None:
    case, own, denoiser = load(dims, name)
    grid = grid_for(case)
    close(grid.times[:-1], own["model_t"])
    visited = singlestep(method_of(case), denoiser, own["x_T"], grid)
    assert len(denoiser.inputs) == case["nfe"]
    close(visited, own["trajectory"])
    close(visited[-1], own["x"])


@both_dims
@pytest.mark.parametrize(
    "name", ["dpmsolver++.singlestep.o2.logSNR.dpmsolver", "dpmsolver++.singlestep_fixed.o2.logSNR.dpmsolver"]
)
def test_dpmpp_2s(dims: int, name: str) -> None:
    """Two steps of its grid are one of ours."""
    case, own, denoiser = load(dims, name)
    grid, visited = TimeGrid(PROCESS, grid_for(case).times[::2]), Trajectory()
    out = sd.sample(denoiser, grid=grid, sampler="dpmpp_2s", x=own["x_T"], finish="none", on_step=visited)
    assert out.nfe == case["nfe"]
    close(torch.stack([*visited.x[1:], out.x]), own["trajectory"])


@both_dims
@pytest.mark.parametrize("spacing", ["time_uniform", "time_quadratic"])
def test_dpmpp_2s_differs_on_purpose(dims: int, spacing: str) -> None:
    """On grids that are not uniform in log-SNR its intermediate level is a grid node, ours always half way."""
    case, own, denoiser = load(dims, f"dpmsolver++.singlestep.o2.{spacing}.dpmsolver")
    grid = TimeGrid(PROCESS, grid_for(case).times[::2])
    out = sd.sample(denoiser, grid=grid, sampler="dpmpp_2s", x=own["x_T"], finish="none")
    for (now, next), middle in zip(pairwise(grid.nodes), denoiser.kernels[1::2]):
        close(middle.logsnr, 0.5 * (now.kernel.logsnr + next.kernel.logsnr))
    assert float((out.x - own["x"]).abs().max()) > 1e-3


# --- against the exact solution ------------------------------------------------------------------------------


@both_dims
def test_exact_solution(dims: int) -> None:
    _, own, denoiser = load(dims, next(iter(CASES)))
    grid = sd.make_grid(PROCESS, 2, t_end=1e-3)
    tolerances: dict[str, Any] = {"method": "dop853", "rtol": 1e-12, "atol": 1e-12}
    close(sd.sample(denoiser, grid=grid, sampler="ode", x=own["x_T"], finish="none", **tolerances).x, own["exact"])


@cache
def table(dims: int) -> dict[str, dict[str, float]]:
    """Its greatest errors in 120 and 240 steps that are uniform in log-SNR, and the order that they show."""
    errors: dict[str, dict[str, float]] = document(f"samplers/dpm_solver_{dims}d")["convergence_vs_exact"]
    return errors


def error(dims: int, name: str, steps: int, *, moments: Moments | None = None, start: str = "ramp") -> float:
    """The greatest error of a method, by default its own."""
    algorithm, kind, order = name.split(".")
    case, own, denoiser = load(dims, f"{algorithm}.{kind}.{order}.logSNR.dpmsolver")
    method, grid = method_of(case), grid_for(case | {"steps": steps})
    if kind == "multistep" or case["order"] == 1:
        method = replace(method, moments=moments or method.moments)
        x = multistep(Scheme(method, case["order"], start), denoiser, own["x_T"], grid, None, None)
    else:
        x = singlestep(method, denoiser, own["x_T"], grid)[-1]
    return float((x - own["exact"]).abs().max())


@both_dims
@pytest.mark.parametrize("name", [name for name in table(2) if "singlestep_fixed.o3" not in name])
def test_errors(dims: int, name: str) -> None:
    """Its own table of convergence: errors as small as its solution is exact."""
    errors = [error(dims, name, steps) for steps in (120, 240)]
    expected = [table(dims)[name][f"error_{steps}"] for steps in (120, 240)]
    assert errors == pytest.approx(expected, rel=0.0, abs=ATOL)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(table(dims)[name]["slope"], abs=1e-4)


@both_dims
def test_third_order_is_closer_than_the_published_formula(dims: int) -> None:
    """The published multistep method of order 3 shows order 2 to 2.3, ours 3: beyond some 100 steps it is closer."""
    name = "dpmsolver++.multistep.o3"
    assert table(dims)[name]["slope"] < 2.3
    errors = [error(dims, name, steps, moments=exact, start="runge_kutta") for steps in (120, 240)]
    assert math.log2(errors[0] / errors[1]) > 2.9
    assert errors[0] < 0.8 * table(dims)[name]["error_120"] and errors[1] < 0.4 * table(dims)[name]["error_240"]
