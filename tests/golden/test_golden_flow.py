"""score_sde's adaptive sampling of the probability flow, and an independent solution of the same ODE."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from tests.golden.reference import DIMS, Arrays, SongProcess, arrays, cases, close, mixture

LIST = [(dims, name) for dims in DIMS for name in cases(f"samplers/score_sde_pf_ode_{dims}d")]
every_case = pytest.mark.parametrize(("dims", "name"), LIST)
ADAPTIVE_ATOL = 5e-4
"""RK45 at tolerances of 1e-5, against the exact solution."""


@cache
def solved(
    dims: int,
    name: str,
    method: str,
    tolerance: float,
    dtype: torch.dtype = torch.float64,
) -> sd.Sample:
    vectors, process = load(dims, name)
    return sd.sample(
        mixture(vectors, dims).denoiser(),
        grid=sd.make_grid(process.sde, 2),
        sampler="ode",
        x=vectors[f"{name}_z"].to(dtype),
        finish="none",
        method=method,
        variable="t",
        rtol=tolerance,
        atol=tolerance,
    )


def load(dims: int, name: str) -> tuple[Arrays, SongProcess]:
    file = f"samplers/score_sde_pf_ode_{dims}d"
    return arrays(file), SongProcess.of(cases(file)[name])


def denoised(dims: int, name: str, x: Tensor) -> Tensor:
    """score_sde's last step: reverse diffusion at eps without noise."""
    vectors, process = load(dims, name)
    t = torch.tensor(process.sde.t_sample, dtype=torch.float64)
    score = sd.score(mixture(vectors, dims).denoiser(), x, process.sde.kernel(t))
    return process.predict("reverse_diffusion", x, score, t)


@every_case
def test_smallest_time(dims: int, name: str) -> None:
    case = cases(f"samplers/score_sde_pf_ode_{dims}d")[name]
    assert SongProcess.of(case).sde.t_sample == case["eps"]


@every_case
def test_rk45(dims: int, name: str) -> None:
    """The same solver takes the same steps: as many evaluations, and a result closer than its tolerance."""
    case, out = cases(f"samplers/score_sde_pf_ode_{dims}d")[name], solved(dims, name, "rk45", 1e-5)
    close(out.x, load(dims, name)[0][f"{name}_rk45_denoise0"])
    assert out.nfe == case["nfe64_denoise0"]


@every_case
def test_rk45_denoised(dims: int, name: str) -> None:
    out = solved(dims, name, "rk45", 1e-5)
    close(denoised(dims, name, out.x), load(dims, name)[0][f"{name}_rk45_denoise1"])


@every_case
def test_rk45_float32(dims: int, name: str) -> None:
    """In float32 the two take other steps: each is within ADAPTIVE_ATOL of the exact solution."""
    vectors, out = load(dims, name)[0], solved(dims, name, "rk45", 1e-5, torch.float32)
    assert out.x.dtype == torch.float32
    close(out.x.double(), vectors[f"{name}_exact"], rtol=0.0, atol=ADAPTIVE_ATOL)
    for suffix, x in (("0", out.x), ("1", denoised(dims, name, out.x))):
        expected = vectors[f"{name}_rk45_float32_denoise{suffix}"].double()
        close(x.double(), expected, rtol=0.0, atol=2.0 * ADAPTIVE_ATOL)


@every_case
@pytest.mark.parametrize(("method", "tolerance"), [("rk45", 1e-5), ("per_sample", 1e-6), ("dopri5", 1e-6)])
def test_adaptive_against_exact(dims: int, name: str, method: str, tolerance: float) -> None:
    expected = load(dims, name)[0][f"{name}_exact"]
    close(solved(dims, name, method, tolerance).x, expected, rtol=0.0, atol=ADAPTIVE_ATOL)


@every_case
def test_tight_tolerances_against_exact(dims: int, name: str) -> None:
    close(solved(dims, name, "dop853", 1e-11).x, load(dims, name)[0][f"{name}_exact"])
