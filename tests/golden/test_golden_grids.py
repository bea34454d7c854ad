"""Grids against diffusers' time steps, improved-diffusion's respacing and k-diffusion's noise levels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.levels import respacing_count
from tests.golden.reference import DATA, arrays, close

TIMESTEPS = arrays("samplers/diffusers_timesteps")
IDDPM = arrays("iddpm/tables")
K_DIFFUSION = arrays("samplers/k_diffusion_2d")
LINEAR = sd.DiscreteVP.linear(1000)

SPACED = [name.removeprefix("spaced.") for name in IDDPM if name.startswith("spaced.")]
RESPACING: dict[str, int | str] = json.loads((DATA / "iddpm/tables.json").read_text())["respacing"]
REJECTED = [name for name, result in RESPACING.items() if "error ValueError" in str(result)]
OTHERWISE = {
    "DPMSolverMultistepScheduler": ("leading", "linspace"),
    "EulerDiscreteScheduler": ("linspace",),
}
"""Schedulers of diffusers -> the spacings for which they return other time steps than DDPMScheduler."""
AGREEING = [name for name in TIMESTEPS if name.split("_")[2] not in OTHERWISE.get(name.split("_")[1], ())]


def levels(grid: sd.TimeGrid) -> Tensor:
    """The nodes' levels in a discrete process, [n]."""
    times = grid.sde.times
    assert times is not None and bool(torch.isin(grid.times, times).all())
    return torch.searchsorted(times, grid.times)


@pytest.mark.parametrize("name", AGREEING)
def test_diffusers_spacings(name: str) -> None:
    _, _, spacing, steps = name.split("_")
    ours = levels(sd.make_grid(LINEAR, int(steps), "strided", spacing=spacing))
    assert TIMESTEPS[name].double().tolist() == ours.double().tolist()


@pytest.mark.parametrize("spacing", OTHERWISE["DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("steps", [7, 10, 20, 50, 999])
def test_dpm_solver_leaves_out_the_lowest_of_one_more_level(steps: int, spacing: str) -> None:
    ours = levels(sd.make_grid(LINEAR, steps + 1, "strided", spacing=spacing))
    assert TIMESTEPS[f"timesteps_DPMSolverMultistepScheduler_{spacing}_{steps}"].tolist() == ours[:-1].tolist()


@pytest.mark.parametrize("steps", [7, 10, 20, 50, 999])
def test_euler_does_not_round(steps: int) -> None:
    theirs = TIMESTEPS[f"timesteps_EulerDiscreteScheduler_linspace_{steps}"].double()
    ours = levels(sd.make_grid(LINEAR, steps, "strided")).double()
    assert float((theirs - ours).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("spec", SPACED)
def test_iddpm_respacing(spec: str) -> None:
    total, sections = spec.split(".")
    retained = IDDPM[f"spaced.{spec}"]
    assert respacing_count(sections) == len(retained)
    # The stride does not depend on the betas, which linear() does not have for 7 levels.
    process = sd.DiscreteVE.geometric(n=int(total))
    grid = sd.make_grid(process, len(retained), "respaced", sections=sections)
    assert levels(grid).flip(0).tolist() == retained.tolist()
    if sections == str(len(retained)) and len(retained) > 1:
        assert torch.equal(sd.make_grid(process, len(retained), "respaced").times, grid.times)


@pytest.mark.parametrize("case", REJECTED)
def test_iddpm_rejections(case: str) -> None:
    """Each names the number of levels and the nearest valid choice."""
    total, sections = case.split()
    nearest = {"1000 ddim300": "of 1000 levels; the nearest is 'ddim334'", "1000 2000": "1000 levels; choose 1 to 1000"}
    with pytest.raises(sd.UserError, match=nearest[case]):
        sd.make_grid(sd.DiscreteVP.linear(int(total)), respacing_count(sections), "respaced", sections=sections)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("karras", "karras", {}),
        ("exponential", "logsnr", {}),
        ("exponential", "polyexponential", {}),
        ("polyexp2", "polyexponential", {"rho": 2.0}),
    ],
)
def test_k_diffusion_noise_levels(name: str, kind: str, options: dict[str, Any]) -> None:
    """10 levels from 20 to 0.01; the 0 that k-diffusion appends is our last step."""
    sigmas = K_DIFFUSION[f"sigmas_{name}"]
    grid = sd.make_grid(sd.EDM(sigma_min=0.01, sigma_max=20.0), 10, kind, **options)
    close(grid.levels.kernel.sigma, sigmas[:-1])
    assert len(sigmas) == 11 and float(sigmas[-1]) == 0.0


def test_k_diffusion_vp_noise_levels() -> None:
    """sigma/alpha of the VP-SDE at equal steps from 1 to 1e-3."""
    kernel = sd.make_grid(sd.VPSDE(), 10).levels.kernel
    close(kernel.sigma / kernel.alpha, K_DIFFUSION["sigmas_vp"][:-1])
