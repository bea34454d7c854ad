"""A network of any home under any sampler and any process: mean and covariance within the sampler's error.

A closed-form network stands in for a trained one. From (x, label) alone, as a trained one does, it computes the output
of its home for a Gaussian mixture: the label gives t by the inverse of its table, t gives the kernel, and the kernel
the exact prediction. So each deviation from the closed-form denoiser is that of NetworkDenoiser.

The labels of a discrete home are fractional between its levels, where its log alpha is linear in the label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.prediction import EDM_SIGMA_DATA
from tests.proofs.cases import PROCESSES, SAMPLERS, Denoise, generator, quick_denoiser, run
from tests.proofs.test_moments import deviation

MIXTURE = sd.GaussianMixture(
    [[-0.4, 0.3], [0.5, 0.1], [0.1, -0.6]], [[0.2, 0.3], [0.35, 0.15], [0.25, 0.2]], [1.0, 1.5, 2.0]
)
"""Data in model space, at the scale of images in [-1, 1]."""


# --- networks in closed form --------------------------------------------------------------------------------

LOG_SIGMA_TO_T: Callable[[sd.SDE, Tensor], Tensor] = lambda sde, label: sde.time_of(-2.0 * label)  # noqa: E731
