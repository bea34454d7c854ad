"""Figures of reconstructions against numpy, their intervals, and pictures that they cannot be had of."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import correlate1d

from sde_diffusion.core.errors import UserError
from sde_diffusion.metrics import RECONSTRUCTIONS, Score, reconstruction, window_of


def pairs(shape: tuple[int, ...], count: int = 6, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """Waves, and the same under noise, more of it for each next pair."""
    draw = np.random.default_rng(0)
    steps = np.indices(shape).sum(0) / 3 + np.arange(count)[:, None, None, None]
    original = (127.5 + 100 * np.sin(steps)).round().astype(np.uint8)
    noisy = original + noise * np.arange(1, count + 1)[:, None, None, None] / count * draw.normal(size=original.shape)
    return original, noisy.round().clip(0, 255).astype(np.uint8)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, of pictures [H, W, C]: windows all over, pictures reflected at their edges."""
    if min(a.shape[:2]) >= 11:
        weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    else:
        weights = np.ones(min(7, min(a.shape[:2]) - 1 + min(a.shape[:2]) % 2))
    weights = weights / weights.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, weights, axis=0, mode="mirror"), weights, axis=1, mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return float(np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (11, 16, 2), (9, 20, 1), (4, 4, 1), (3, 5, 1)])
def test_figures_are_their_formulas(shape: tuple[int, ...]) -> None:
    original, decoded = pairs(shape)
    a, b = original.astype(float), decoded.astype(float)
    errors = np.sqrt(((a - b) ** 2).mean(axis=(1, 2, 3)))
    expected = {
        "rmse": errors,
        "psnr": 20 * np.log10(255 / errors),
        "ssim": np.array([similarity(p, q) for p, q in zip(a, b, strict=True)]),
    }
    found = reconstruction(original, decoded)
    assert list(found) == list(expected)
    for name, numbers in expected.items():
        assert found[name].value == pytest.approx(numbers.mean(), rel=1e-6), name
        interval = scipy.stats.ttest_1samp(numbers, 0.0).confidence_interval(0.95)
        assert (found[name].low, found[name].high) == pytest.approx((interval.low, interval.high), rel=1e-5), name


def test_many_pairs_are_taken_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    original, decoded = pairs((8, 8, 1), 11)
    whole = reconstruction(original, decoded)
    monkeypatch.setattr(sys.modules["sde_diffusion.metrics.reconstruction"], "BATCH", 4)
    for name, score in reconstruction(original, decoded).items():
        assert score.value == pytest.approx(whole[name].value, rel=1e-12)


def test_equal_pairs() -> None:
    """No error, full similarity, and a ratio that is infinite, of which there is no mean."""
    original, decoded = pairs((8, 8, 1))
    decoded[2] = original[2]
    found = reconstruction(original, original)
    assert found["rmse"] == Score(0.0, 0.0, 0.0) and found["ssim"].value == pytest.approx(1.0, abs=1e-12)
    assert found["psnr"] == Score(None, reason="6 of 6 pairs are equal, and their psnr is infinite")
    assert reconstruction(original, decoded)["psnr"].reason.startswith("1 of 6 pairs are equal")


def test_one_pair_has_no_interval() -> None:
    original, decoded = pairs((8, 8, 1), 1)
    for score in reconstruction(original, decoded).values():
        assert score.value is not None and score.low is None and score.high is None


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((32, 32, 3), "Gaussian (std 1.5) windows of 11 x 11"),
        ((11, 40, 1), "Gaussian (std 1.5) windows of 11 x 11"),
        ((10, 40, 1), "uniform windows of 7 x 7"),
        ((8, 8, 1), "uniform windows of 7 x 7"),
        ((6, 6, 1), "uniform windows of 5 x 5"),
        ((5, 6, 1), "uniform windows of 5 x 5"),
    ],
)
def test_the_windows_are_said(shape: tuple[int, ...], says: str) -> None:
    assert str(window_of(shape)) == says


def test_what_are_no_pairs_is_refused() -> None:
    original, decoded = pairs((8, 8, 1))
    with pytest.raises(
        UserError, match=r"originals \[6, 8, 8, 1\] and decoded \[5, 8, 8, 1\] are no pairs of pictures"
    ):
        reconstruction(original, decoded[:5])
    with pytest.raises(UserError, match="no pairs of pictures"):
        reconstruction(original[:0], decoded[:0])
    with pytest.raises(UserError, match=r"must be uint8 \[N, H, W, C\], not float64"):
        reconstruction(original / 255, decoded / 255)
    with pytest.raises(UserError, match=r"unknown figure of a reconstruction 'ssmi'; did you mean 'ssim'\?"):
        reconstruction(original, decoded, ["ssmi"])


def test_lpips_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        UserError, match=r"lpips needs torchvision and AlexNet's weights \(.*\): pip install .sde-diffusion"
    ):
        reconstruction(*pairs((32, 32, 1)), ["lpips"])
    with pytest.raises(UserError, match=r"lpips needs pictures of 32 pixels a side, not 8 x 8"):
        reconstruction(*pairs((8, 8, 1)), ["lpips"])
    assert list(RECONSTRUCTIONS) == ["rmse", "psnr", "ssim", "lpips"]
