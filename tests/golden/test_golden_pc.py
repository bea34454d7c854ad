"""score_sde's complete predictor-corrector loops, with its noise.

Its times are linspace(1, eps, N); at each it takes the corrector's steps and then the predictor's, and it
ends with the mean of the last predictor step. Euler's steps are 1/N long although the times are
(1 - eps)/(N - 1) apart, and the other predictors step on the N levels although the score is taken at the
continuous time: so the ten loops with a continuous model are replayed here over the library's steps. Where
our own samplers take the same steps, they are run too, on the grid of all levels with a denoiser that has
score_sde's score at each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.kernel import Kernel
from tests.golden.reference import (
    DIMS,
    Arrays,
    Replay,
    SongProcess,
    Trajectory,
    arrays,
    cases,
    close,
    mixture,
    x0_from_score,
)
from tests.golden.test_golden_steps import corrector_step

both_dims = pytest.mark.parametrize("dims", DIMS)


def load(dims: int, name: str) -> tuple[dict[str, Any], Arrays]:
    file = f"samplers/score_sde_pc_{dims}d"
    return cases(file)[name], arrays(file)


def song_times(case: dict[str, Any]) -> Tensor:
    return torch.linspace(1.0, case["eps"], case["N"], dtype=torch.float64)


def start(process: SongProcess, vectors: Arrays, name: str) -> Tensor:
    return vectors[f"{name}_prior_z"] * process.sde.prior_std


Score = Callable[[Tensor, Tensor], Tensor]


def pc_loop(case: dict[str, Any], process: SongProcess, score: Score, x: Tensor, stored: Tensor) -> Tensor:
    """The loop of score_sde over the library's steps."""
    noises = iter(stored)
    correctors = 0 if case["corrector"] == "none" else case["n_steps"]
    for t in song_times(case):
        for _ in range(correctors):
            now, lower = process.level_pair(t)
            transition, kernel = now.kernel.after(lower.kernel), process.sde.kernel(t)
            noise = next(noises)
            x0_hat = x0_from_score(score(x, t), x, kernel)
            x, mean = corrector_step(case["corrector"], x, x0_hat, noise, kernel, transition, case["snr"])
        if case["predictor"] == "none":
            mean = x
        else:
            slope, noise = score(x, t), next(noises)
            mean = process.predict(case["predictor"], x, slope, t)
            x = process.predict(case["predictor"], x, slope, t, noise)
    assert next(noises, None) is None
    return mean if case["denoise"] else x


@both_dims
@pytest.mark.parametrize("name", [f"case{i}" for i in range(10)])
def test_loop_over_steps(dims: int, name: str) -> None:
    case, vectors = load(dims, name)
    process, denoiser = SongProcess.of(case), mixture(vectors, dims).denoiser()
    inputs = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        inputs.append(x)
        return sd.score(denoiser, x, process.sde.kernel(t))

    x = pc_loop(case, process, score, start(process, vectors, name), vectors[f"{name}_z"])
    close(torch.stack(inputs), vectors[f"{name}_model_inputs"])
    close(x, vectors[f"{name}_x"])
    assert len(inputs) == case["true_model_calls"]


# --- the library's own samplers ---------------------------------------------------------------------


def all_levels(process: SongProcess) -> sd.TimeGrid:
    return sd.make_grid(process.discrete, process.n, "strided")


class ScoreAtSongTimes:
    """A denoiser of the levels with score_sde's score: that of the continuous process at a time near by."""

    def __init__(self, denoiser: sd.Denoiser, process: SongProcess, times: Tensor) -> None:
        self.denoiser, self.sde, self.times = denoiser, process.sde, times
        self.logsnr = process.discrete.levels.logsnr.flip(0)
        self.inputs: list[Tensor] = []

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        self.inputs.append(x)
        t = self.times[(self.logsnr - kernel.logsnr).abs().argmin()]
        return x0_from_score(sd.score(self.denoiser, x, self.sde.kernel(t)), x, kernel)


@both_dims
@pytest.mark.parametrize("name", ["case0", "case4", "case9"])
def test_pc(dims: int, name: str) -> None:
    """Langevin with the batch's norms; the last predictor step, to clean data, is taken by hand."""
    case, vectors = load(dims, name)
    process = SongProcess.of(case)
    denoiser = ScoreAtSongTimes(mixture(vectors, dims).denoiser(), process, song_times(case))
    noise = Replay(vectors[f"{name}_z"])
    out = sd.sample(
        denoiser,
        grid=all_levels(process),
        sampler="pc",
        x=start(process, vectors, name),
        finish="none",
        predictor=case["predictor"],
        corrector=case["corrector"],
        corrector_steps=case["n_steps"],
        snr_target=case["snr"],
        norm="batch",
        noise=noise,
    )
    last = 0 if case["predictor"] == "none" else 1
    assert noise.unused == last and out.nfe == case["true_model_calls"] - last
    inputs = torch.stack([*denoiser.inputs, out.x] if last else denoiser.inputs)
    close(inputs, vectors[f"{name}_model_inputs"])
    t = song_times(case)[-1]
    score = sd.score(denoiser.denoiser, out.x, process.sde.kernel(t))
    close(process.predict(case["predictor"], out.x, score, t), vectors[f"{name}_x"])


@both_dims
def test_ancestral(dims: int) -> None:
    """Ancestral sampling's mean on the last step, to clean data, is x0_hat: finish="denoise"."""
    name = "case5"
    case, vectors = load(dims, name)
    process = SongProcess.of(case)
    denoiser = ScoreAtSongTimes(mixture(vectors, dims).denoiser(), process, song_times(case))
    noise = Replay(vectors[f"{name}_z"])
    x = start(process, vectors, name)
    out = sd.sample(denoiser, grid=all_levels(process), sampler="ancestral", x=x, variance="beta", noise=noise)
    assert noise.unused == 1 and out.nfe == case["true_model_calls"]
    close(torch.stack(denoiser.inputs), vectors[f"{name}_model_inputs"])
    close(out.x, vectors[f"{name}_x"])


@both_dims
@pytest.mark.parametrize(("name", "variance"), [("discrete0", "beta"), ("discrete1", "posterior")])
def test_discrete_model(dims: int, name: str, variance: str) -> None:
    """With discrete labels the scores are those of the levels themselves: nothing is left to adapt."""
    case, vectors = load(dims, name)
    process = SongProcess.of(case)
    visited, noise = Trajectory(), Replay(vectors[f"{name}_z"])
    out = sd.sample(
        mixture(vectors, dims).denoiser(),
        grid=all_levels(process),
        sampler="ancestral",
        x=start(process, vectors, name),
        on_step=visited,
        variance=variance,
        noise=noise,
    )
    assert noise.unused == 1 and out.nfe == case["N"]
    close(torch.stack(visited.x), vectors[f"{name}_model_inputs"])
    close(out.x, vectors[f"{name}_x"])
