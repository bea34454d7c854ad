"""The embeddings against their formulas, and the random features against the kernel that they estimate."""

import math

import pytest
import torch

from sde_diffusion.nets.embedding import FourierFeatures, positional
from tests.nets.contract import randn


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cosine_first", [False, True])
@pytest.mark.parametrize("dim", [4, 7, 64])
def test_positional_equals_its_formula(dim: int, cosine_first: bool, shift: int) -> None:
    labels, half = [0.0, 1.0, 17.5, 999.0], dim // 2
    features = positional(torch.tensor(labels, dtype=torch.float64), dim, shift=shift, cosine_first=cosine_first)
    assert features.shape == (4, dim)
    for row, label in zip(features.tolist(), labels, strict=True):
        angles = [label * 10000 ** (-i / (half - shift)) for i in range(half)]
        waves = (math.cos, math.sin) if cosine_first else (math.sin, math.cos)
        expected = [wave(angle) for wave in waves for angle in angles]
        assert row == pytest.approx(expected + [0.0] * (dim - 2 * half), abs=1e-12)


def test_positional_tells_all_steps_apart() -> None:
    features = positional(torch.arange(1001), 32)
    gaps = torch.cdist(features, features) + 10 * torch.eye(1001)
    assert gaps.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float32])
def test_positional_computes_in_float32(dtype: torch.dtype) -> None:
    label = torch.tensor([0, 3, 250], dtype=dtype)
    expected = positional(label.double(), 16)
    assert positional(label, 16).dtype == torch.float32
    torch.testing.assert_close(positional(label, 16).double(), expected, rtol=0, atol=5e-5)


def test_fourier_features_estimate_the_gaussian_kernel() -> None:
    """By Bochner's theorem E[cos(2 pi f (a - b))] = exp(-2 (pi scale (a - b))^2) for f ~ N(0, scale^2)."""
    scale, half = 0.7, 20000
    label = randn(6, seed=3) / 2
    features = FourierFeatures(2 * half, scale)(label)
    expected = torch.exp(-2 * (math.pi * scale * (label[:, None] - label)) ** 2)
    # A mean of `half` cosines, each of variance at most 1: five standard errors.
    torch.testing.assert_close(features @ features.T / half, expected, rtol=0, atol=5 / math.sqrt(half))


def test_fourier_features_are_fixed_and_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, two = FourierFeatures(9, 16.0), FourierFeatures(9, 16.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.state_dict()["frequencies"], two.state_dict()["frequencies"])
    assert not list(one.parameters())
    assert one(torch.zeros(2)).shape == (2, 9)


def test_fourier_features_are_computed_in_float32_at_least() -> None:
    label = torch.tensor([0.3, -4.0])
    assert FourierFeatures(8).bfloat16()(label.bfloat16()).dtype == torch.float32
    assert FourierFeatures(8).double()(label).dtype == torch.float64


def test_fourier_features_follow_the_device_context() -> None:
    with torch.device("meta"):
        assert FourierFeatures(8).frequencies.is_meta
