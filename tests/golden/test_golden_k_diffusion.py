"""k-diffusion: whole trajectories of our samplers under EDM's process, alpha = 1, on its tables of sigma.

Its last sigma is 0: our last step to x0_hat (finish="denoise") in all of its samplers but lms, which continues its
polynomial to sigma = 0. It draws noise at every step, with churn or without; we at those that use it. dpm_2,
dpm_2_ancestral, dpm_fast and dpm_adaptive are other algorithms.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.noise_sources import FRESH_NOISE
from sde_diffusion.samplers.adams import OUTPUTS, VARIABLES, Adams, Scheme, multistep
from tests.golden.reference import (
    DIMS,
    Arrays,
    Replay,
    Trajectory,
    arrays,
    cases,
    close,
    exact_then_published,
    grid_of,
    mixture,
    under,
)

# Not in the file: recovered from the churned states and their noise.
CHURN = {"churn": 3.0, "churn_min": 0.05, "churn_max": 10.0, "churn_noise": 1.003}
PROCESS = sd.EDM(0.01, 20.0)
STEPS = 10

# Its name of a sampler, ours, and our options. Under EDM's process Euler's method has several names.
DETERMINISTIC: list[tuple[str, str, dict[str, Any]]] = [
    ("euler", "euler", {}),
    ("euler", "ddim", {}),
    ("euler", "lms", {"order": 1}),
    ("heun", "heun", {}),
    ("dpmpp_2m", "dpmpp_2m", {"solver": "midpoint"}),
    ("dpmpp_2s_eta0", "dpmpp_2s", {"eta": 0.0}),
    ("dpmpp_2m_sde_midpoint_eta0", "dpmpp_2m_sde", {"eta": 0.0, "solver": "midpoint"}),
    ("dpmpp_2m_sde_heun_eta0", "dpmpp_2m_sde", {"eta": 0.0, "solver": "exact"}),
]
STOCHASTIC: list[tuple[str, str, dict[str, Any]]] = [
    ("euler_ancestral", "ddim", {"eta": 1.0}),
    ("euler_ancestral", "ddpm", {}),
    ("dpmpp_2s_eta1", "dpmpp_2s", {"eta": 1.0}),
    ("euler_churn", "heun", {"stages": 1, **CHURN}),
    ("heun_churn", "heun", CHURN),
]

both_dims = pytest.mark.parametrize("dims", DIMS)
both_grids = pytest.mark.parametrize("spacing", ["karras", "exponential"])


def load(dims: int, name: str, spacing: str) -> tuple[Arrays, sd.TimeGrid, sd.Denoiser]:
    """The case's arrays without its name in front, our grid of its table, and the denoiser."""
    file = f"samplers/k_diffusion_{dims}d"
    vectors, case = arrays(file), f"{name}.{spacing}"
    assert (cases(file)[case]["sampler"], cases(file)[case]["sigmas"]) == (name, spacing)
    own = under(vectors, f"{case}.") | {"z": vectors["z"]}
    return own, grid_of(PROCESS, vectors[f"sigmas_{spacing}"][:-1]), mixture(vectors, dims).denoiser()


def run(own: Arrays, grid: sd.TimeGrid, denoiser: sd.Denoiser, sampler: str, options: dict[str, Any]) -> Tensor:
    """Our trajectory, x0_hat at its end."""
    visited = Trajectory()
    start = own["z"] * grid.levels.kernel.sigma[0]
    out = sd.sample(denoiser, grid=grid, sampler=sampler, x=start, on_step=visited, **options)
    return visited.stacked(out.x)


@both_dims
@both_grids
@pytest.mark.parametrize(("name", "sampler", "options"), DETERMINISTIC)
def test_deterministic(dims: int, spacing: str, name: str, sampler: str, options: dict[str, Any]) -> None:
    own, grid, denoiser = load(dims, name, spacing)
    trajectory = run(own, grid, denoiser, sampler, options)
    close(trajectory, own["trajectory"])
    close(trajectory[-1], own["x"])


@both_dims
@both_grids
@pytest.mark.parametrize(("name", "sampler", "options"), STOCHASTIC)
def test_stochastic(dims: int, spacing: str, name: str, sampler: str, options: dict[str, Any]) -> None:
    """Its noise for a churned step is that of the step's number; on_step sees the state after it is added."""
    own, grid, denoiser = load(dims, name, spacing)
    sigma, stored = grid.levels.kernel.sigma, own["noise"]
    if "churn" in options:
        assert len(stored) == STEPS
        stored = stored[(sigma >= options["churn_min"]) & (sigma <= options["churn_max"])]
        assert 0 < len(stored) < STEPS and sigma[-1] < options["churn_min"]  # its last step is not churned either
    noise = Replay(stored)
    close(run(own, grid, denoiser, sampler, {**options, "noise": noise}), own["trajectory"])
    assert noise.unused == 0


@both_dims
@both_grids
def test_dpmpp_3m(dims: int, spacing: str) -> None:
    own, grid, denoiser = load(dims, "dpmpp_3m_sde_eta0", spacing)
    method, visited = Adams(OUTPUTS["x0"], VARIABLES["logsnr"], exact_then_published), Trajectory()
    start = own["z"] * grid.levels.kernel.sigma[0]
    last = multistep(Scheme(method, 3), denoiser, start, grid, FRESH_NOISE, visited)
    close(torch.stack([*visited.x, last, denoiser(last, grid.nodes[-1].kernel)]), own["trajectory"])


@both_dims
@both_grids
@pytest.mark.parametrize("order", [2, 4])
def test_lms(dims: int, spacing: str, order: int) -> None:
    """sigma = 0 as a limit; its coefficients are integrals by adaptive quadrature, hence the tolerance."""
    own, grid, denoiser = load(dims, f"lms{order}", spacing)
    to_zero = grid_of(PROCESS, torch.cat([grid.levels.kernel.sigma, torch.tensor([1e-12], dtype=torch.float64)]))
    visited = Trajectory()
    out = sd.sample(
        denoiser,
        grid=to_zero,
        sampler="lms",
        x=own["z"] * to_zero.levels.kernel.sigma[0],
        finish="none",
        on_step=visited,
        order=order,
    )
    close(visited.stacked(out.x), own["trajectory"], rtol=1e-7)
    ends_in_x0_hat = denoiser(visited.x[-1], grid.nodes[-1].kernel)
    assert float((ends_in_x0_hat - own["x"]).abs().max()) > 1e-6


@both_dims
def test_exact_solution(dims: int) -> None:
    """An independent solution of the flow down to sigma_min, and x0_hat there."""
    vectors = arrays(f"samplers/k_diffusion_{dims}d")
    solve = partial(
        sd.sample,
        mixture(vectors, dims).denoiser(),
        grid=sd.make_grid(PROCESS, 2),
        sampler="ode",
        x=vectors["z"] * PROCESS.sigma_max,
        method="dop853",
        rtol=1e-12,
        atol=1e-12,
    )
    close(solve(finish="none").x, vectors["exact_at_sigma_min"])
    close(solve(finish="denoise").x, vectors["exact_denoised_at_sigma_min"])


TABLES: dict[str, sd.TimeGrid] = {
    "karras": sd.make_grid(PROCESS, STEPS, "karras"),
    "exponential": sd.make_grid(PROCESS, STEPS, "logsnr"),
    "vp": sd.make_grid(sd.VPSDE(0.1, 20.0), STEPS, "uniform"),
}


@both_dims
@pytest.mark.parametrize("name", TABLES)
def test_sigma_table(dims: int, name: str) -> None:
    kernel, table = TABLES[name].levels.kernel, arrays(f"samplers/k_diffusion_{dims}d")[f"sigmas_{name}"]
    close(kernel.sigma / kernel.alpha, table[:-1])
    assert float(table[-1]) == 0.0
