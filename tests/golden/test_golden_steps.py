"""Single updates of score_sde's predictors and correctors, with the exact score and stored noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.samplers.langevin import CORRECTORS, NORMS, langevin_step
from tests.golden.reference import DIMS, SongProcess, arrays, cases, close, mixture, x0_from_score


def file_of(dims: int) -> str:
    return f"samplers/score_sde_steps_{dims}d"


def listed(kind: str) -> list[tuple[int, str]]:
    return [(dims, name) for dims in DIMS for name, case in cases(file_of(dims)).items() if kind in case]


def corrector_step(
    corrector: str, x: Tensor, x0_hat: Tensor, noise: Tensor, kernel: Kernel, transition: Kernel, snr: float
) -> tuple[Tensor, Tensor]:
    """The next x and its mean."""
    name = {"langevin": "langevin", "ald": "annealed"}[corrector]
    size = CORRECTORS[name](x, x0_hat, noise, kernel, transition, snr, NORMS["batch"])
    drawn, still = (langevin_step(x, x0_hat, n, kernel, size) for n in (noise, torch.zeros_like(noise)))
    return drawn, still


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_score(dims: int, kind: str) -> None:
    vectors = arrays(file_of(dims))
    process = SongProcess.of(cases(file_of(dims))[f"{kind}_euler_maruyama"])
    kernel = process.sde.kernel(vectors["t"])
    score = sd.score(mixture(vectors, dims).denoiser(), vectors[f"{kind}_x"], kernel)
    close(score, vectors[f"{kind}_score"])


@pytest.mark.parametrize(("dims", "name"), listed("predictor"))
def test_predictor(dims: int, name: str) -> None:
    case, vectors = cases(file_of(dims))[name], arrays(file_of(dims))
    process, t = SongProcess.of(case), vectors["t"]
    x, score = vectors[f"{process.kind}_x"], vectors[f"{process.kind}_score"]
    noise = vectors[f"{name}_z"]
    close(process.predict(case["predictor"], x, score, t, noise), vectors[f"{name}_x"])
    close(process.predict(case["predictor"], x, score, t), vectors[f"{name}_x_mean"])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_probability_flow_reverse_diffusion(dims: int, kind: str) -> None:
    """A step of reverse diffusion with half the score and no noise."""
    vectors, name = arrays(file_of(dims)), f"{kind}_reverse_diffusion"
    process, x = SongProcess.of(cases(file_of(dims))[name]), vectors[f"{kind}_x"]
    half = 0.5 * vectors[f"{kind}_score"]
    close(process.predict("reverse_diffusion", x, half, vectors["t"]), vectors[f"{name}_pf_x"])


@pytest.mark.parametrize(("dims", "name"), listed("corrector"))
def test_corrector(dims: int, name: str) -> None:
    case, vectors = cases(file_of(dims))[name], arrays(file_of(dims))
    process, t = SongProcess.of(case), vectors["t"]
    now, lower = process.level_pair(t)
    kernel, transition = process.sde.kernel(t), now.kernel.after(lower.kernel)
    denoiser, x = mixture(vectors, dims).denoiser(), vectors[f"{process.kind}_x"]
    assert len(vectors[f"{name}_z"]) == case["n_steps"]
    # A mean over samples at several levels is one of their scores, which are x0_hat - x at the kernel (1, 1).
    at = Kernel(1.0, 1.0) if case["corrector"] == "langevin" else kernel
    for noise in vectors[f"{name}_z"]:
        x0_hat = x0_from_score(sd.score(denoiser, x, kernel), x, at)
        x, mean = corrector_step(case["corrector"], x, x0_hat, noise, at, transition, case["snr"])
    close(x, vectors[f"{name}_x"])
    close(mean, vectors[f"{name}_x_mean"])
