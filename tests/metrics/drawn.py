"""Features with known distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.core.noise import randn, seeded
from sde_diffusion.metrics import Features

F64 = torch.float64


def normal(count: int, dims: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> Features:
    """Samples of N(mean, std^2 I)."""
    return Features(mean + std * randn((count, dims), seeded(seed), dtype=F64))


def with_moments(count: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Features:
    """Samples whose own mean and covariance (N - 1 in the denominator) are exactly these."""
    z = normal(count, len(mean), seed).values
    z = z - z.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False)
    return Features((torch.linalg.cholesky(covariance) @ white).T + mean)
