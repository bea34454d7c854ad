"""EDM's sampler and its ablations: every evaluation's input and noise level, and the result.

The network there sees x/alpha. Euler's last step to t = 0 under VP and under sigma = sqrt(t) is not our last step, to
x0_hat, so it is taken here, by Euler's row. `abl_edm_midpoint` (alpha = 1/2) is another algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import CLEAN, Kernel, Scalar, as_schedule
from sde_diffusion.samplers.euler_maruyama import euler_row
from tests.golden.reference import (
    DIMS,
    Arrays,
    Recording,
    Replay,
    arrays,
    case_of,
    cases,
    close,
    grid_of,
    mixture,
    step,
)

NAMES = [name for name, case in cases("samplers/edm_2d").items() if case["sampler"] == "edm_sampler"]
both_dims = pytest.mark.parametrize("dims", DIMS)


def load(dims: int, name: str) -> tuple[dict[str, Any], Arrays, Recording]:
    file = f"samplers/edm_{dims}d"
    case, own = case_of(file, name)
    vectors = arrays(file)
    return case, own | {"z": vectors["z"]}, Recording(mixture(vectors, dims).denoiser())


def check_evaluations(recorded: Recording, own: Arrays) -> None:
    inputs = [x / kernel.alpha for x, kernel in zip(recorded.inputs, recorded.kernels)]
    close(torch.stack(inputs), own["model_inputs"])
    close(torch.stack([kernel.sigma / kernel.alpha for kernel in recorded.kernels]), own["model_sigmas"])


@both_dims
@pytest.mark.parametrize("name", NAMES)
def test_sampler(dims: int, name: str) -> None:
    """Its noise for a churned step is that of the step's number."""
    case, own, denoiser = load(dims, name)
    process = sd.EDM(case.get("sigma_min", 0.002), case.get("sigma_max", 80.0))
    grid = sd.make_grid(process, case["num_steps"], "karras", rho=float(case.get("rho", 7)))
    options: dict[str, Any] = {}
    if "S_churn" in case:
        options = {"churn": case["S_churn"], "churn_min": case["S_min"], "churn_max": case["S_max"]}
        options["churn_noise"] = case["S_noise"]
        sigma = grid.levels.kernel.sigma
        churned = (sigma >= case["S_min"]) & (sigma <= case["S_max"])
        assert bool(churned.any()) and not bool(churned[-1])
        options["noise"] = Replay(own["noise"][churned])
    out = sd.sample(denoiser, grid=grid, sampler="heun", x=own["z"] * process.sigma_max, **options)
    assert out.nfe == case["nfe"] and (not options or options["noise"].unused == 0)
    check_evaluations(denoiser, own)
    close(out.x, own["x"])


# --- ablations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RootVE(sd.SDE):
    """sigma = sigma_max sqrt(t): the variance grows linearly, dx = sigma_max dw (Karras et al. 2022, Table 1, VE)."""

    sigma_max: float

    def kernel(self, t: Scalar) -> Kernel:
        return Kernel(1.0, self.sigma_max * as_schedule(t).sqrt())

    def alpha_rate(self, t: Scalar) -> Tensor:
        return torch.zeros_like(as_schedule(t))

    def variance_rate(self, t: Scalar) -> Tensor:
        return torch.full_like(as_schedule(t), self.sigma_max**2)

    def time_of(self, logsnr: Scalar) -> Tensor:
        return (-as_schedule(logsnr)).exp() / self.sigma_max**2


def ablation_grid(case: dict[str, Any], own: Arrays) -> TimeGrid:
    """VP's times are uniform, VE's variances geometric; iDDPM's sigmas are its network's: those of the first stages."""
    steps = case["num_steps"]
    if case["discretization"] == "vp":
        return sd.make_grid(sd.VPSDE(0.1, 20.0), steps, "uniform")
    if case["discretization"] == "ve":
        sigma_min, sigma_max = 0.02, 100.0
        return sd.make_grid(RootVE(sigma_max), steps, "logsnr", t_end=(sigma_min / sigma_max) ** 2)
    assert case["discretization"] == "iddpm"
    sigmas = own["model_sigmas"][::2]
    return grid_of(sd.EDM(float(sigmas[-1]), float(sigmas[0])), sigmas)


@both_dims
@pytest.mark.parametrize("name", ["abl_vp_euler", "abl_vp_heun", "abl_ve_euler", "abl_ve_heun", "abl_iddpm_heun"])
def test_ablation(dims: int, name: str) -> None:
    case, own, denoiser = load(dims, name)
    grid = ablation_grid(case, own)
    first, last = grid.nodes[0], grid.nodes[-1]
    out = sd.sample(denoiser, grid=grid, sampler=case["solver"], x=own["z"] * first.kernel.sigma, finish="none")
    x0_hat = denoiser(out.x, last.kernel)
    assert len(denoiser.inputs) == out.nfe + 1 == case["nfe"]
    check_evaluations(denoiser, own)
    end = step(euler_row, grid.sde, last, Node(torch.zeros_like(last.t), CLEAN), out.x, x0_hat)
    close(end, own["x"])
    if isinstance(grid.sde, sd.EDM):  # there Euler's last step is ours
        close(x0_hat, own["x"])
    else:
        assert float((x0_hat - own["x"]).abs().max()) > 1e-4
