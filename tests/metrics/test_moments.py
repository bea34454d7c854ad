"""Errors of moments against exact ones."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.metrics.moments import moment_errors
from sde_diffusion.metrics.scores import Judging

MEAN, ROOT = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([[2.0, 0.0], [0.5, 0.3]], dtype=torch.float64)


def test_errors_are_their_formulas() -> None:
    """Three points have mean (1, 1) and covariance ((3, 0), (0, 1)), against the mean (0, 0) and the unit matrix."""
    rows = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    rows = rows + torch.tensor([[-1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]], dtype=torch.float64)
    found = moment_errors(rows, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), Judging())
    assert found["mean_error"].value == pytest.approx(math.sqrt(2.0))
    assert found["covariance_error"].value == pytest.approx(2.0)


def test_exact_samples_are_as_far_off_as_their_number_says() -> None:
    """E |m - mu|^2 = tr(Sigma) / N, and the interval reaches down to about the samples' own noise."""
    covariance, generator = ROOT @ ROOT.T, torch.Generator().manual_seed(0)
    squares, errors = [], []
    for seed in range(200):
        rows = MEAN + torch.randn(400, 2, generator=generator, dtype=torch.float64) @ ROOT.T
        found = moment_errors(rows, MEAN, covariance, Judging(bootstraps=20, seed=seed))["mean_error"]
        assert found.value is not None and found.high is not None
        squares.append(found.value**2)
        errors.append((found.high - found.value) / 1.96)
    assert sum(squares) / 200 == pytest.approx(float(covariance.trace()) / 400, rel=0.25)
    assert sum(errors) / 200 == pytest.approx(math.sqrt(4.0 / 400), rel=0.35)  # mostly along the long axis


def test_a_shift_and_a_scale_are_seen() -> None:
    rows = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = moment_errors(1.5 * rows + 3.0, torch.zeros(2).double(), torch.eye(2).double(), Judging(bootstraps=50))
    assert found["mean_error"].value == pytest.approx(3.0 * math.sqrt(2.0), rel=0.02)
    assert found["covariance_error"].value == pytest.approx(1.25 * math.sqrt(2.0), rel=0.1)
