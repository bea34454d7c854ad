"""Denoising score matching against score_sde: continuous, NCSN and DDPM losses of an exact denoiser.

Our loss is the mean over the dimensions of weight * error^2 of each sample. score_sde's is the same with
reduce_mean, and half the sum without; both then take the mean over the batch.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import sde_diffusion as sd
from tests.golden.reference import DIMS, SongProcess, arrays, cases, close, mixture

LIST = [(dims, name) for dims in DIMS for name in cases(f"losses/score_sde_losses_{dims}d")]


def times(case: dict[str, Any], name: str, vectors: dict[str, Tensor]) -> tuple[sd.SDE, Tensor]:
    """The process and the training times of a case."""
    process = SongProcess.of(case)
    if name.startswith("sde_"):
        return process.sde, vectors["u"] * (1.0 - case["eps"]) + case["eps"]
    labels = vectors["labels"]
    if name.startswith("smld_"):  # its labels count the noise levels from the largest
        labels = process.n - 1 - labels
    return process.discrete, process.discrete.times[labels]


@pytest.mark.parametrize(("dims", "name"), LIST, ids=lambda value: str(value))
def test_loss(dims: int, name: str) -> None:
    file = f"losses/score_sde_losses_{dims}d"
    case, vectors = cases(file)[name], arrays(file)
    sde, t = times(case, name, vectors)
    weighting = "likelihood" if case.get("likelihood_weighting") else "simple"
    denoiser = mixture(vectors, dims).denoiser()
    each = sd.denoising_score_matching(denoiser, sde, vectors["batch"], t, vectors["z"], weighting=weighting)
    close((each if case["reduce_mean"] else 0.5 * dims * each).mean(), vectors[name])
