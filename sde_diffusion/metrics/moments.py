"""How far the moments of samples are from exact ones, where these are known.

    mean_error        |m - mu|_2
    covariance_error  |S - Sigma|_F, with N - 1 in the denominator of S

Both are above zero for exact samples too: E |m - mu|^2 = tr(Sigma) / N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.metrics.scores import Judging, Score, bootstrapped

MOMENTS = {"covariance_error": "error of the covariance", "mean_error": "error of the mean"}
"""Their names and titles."""


def moment_errors(samples: Tensor, mean: Tensor, covariance: Tensor, judging: Judging) -> dict[str, Score]:
    """Both errors of samples [N, d] against the exact mean [d] and covariance [d, d]; N of at least 2."""

    def of_mean(rows: Tensor) -> float:
        return float((rows.mean(0) - mean).norm())

    def of_covariance(rows: Tensor) -> float:
        return float((torch.cov(rows.T) - covariance).norm())

    count, dims = samples.shape
    return {
        "covariance_error": bootstrapped(of_covariance, samples, judging, count * dims**2, 0.0),
        "mean_error": bootstrapped(of_mean, samples, judging, count * dims, 0.0),
    }
