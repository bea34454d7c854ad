"""Synthetic points in the plane, for runs whose whole distribution can be drawn.

The scale of each shape is fixed by its formula and never by the points drawn, so the density is known.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data.dataset import Dataset, Splits

# The mixture's parameters, for building its closed-form denoiser. Its variance is not 1 on purpose: a
# sampler that assumes unit variance shows on it.
MIXTURE_MEANS = ((-1.5, -0.5), (0.5, 1.5), (1.5, -1.0))
MIXTURE_STDS = (0.5, 0.3, 0.7)
MIXTURE_WEIGHTS = (0.3, 0.2, 0.5)

DEFAULT_SIZE = 20_000
_MOON_NOISE = 0.05
_Points = tuple[np.ndarray, np.ndarray]


def load(shape: str = "moons", size: int = DEFAULT_SIZE, seed: int = 0) -> Splits:
    """`size` training points and a tenth as many test points, float32 [N, 2], with labels.

    shape: "moons" and "checkerboard" (unit variance on each axis), or "mixture" (three Gaussians).
    Raises UserError for an unknown shape, a size below 1, or a negative seed.
    """
    draw, classes = choose("toy2d shape", shape, _SHAPES)
    if size < 1 or seed < 0:
        raise UserError(f"toy2d needs a size of at least 1 and a seed of at least 0, not {size} and {seed}.")

    def part(count: int, stream: int) -> Dataset:
        points, labels = draw(np.random.default_rng([seed, stream]), count)
        samples = torch.as_tensor(points, dtype=torch.float32)
        return Dataset(samples, torch.as_tensor(labels, dtype=torch.int64), None, classes, shape)

    return Splits(train=part(size, 0), test=part(max(1, size // 10), 1))


def _moons(rng: np.random.Generator, count: int) -> _Points:
    labels = rng.integers(2, size=count)
    angle = rng.uniform(0.0, math.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, lower) + _MOON_NOISE * rng.standard_normal((count, 2))
    # Exact moments of the two half circles: E x = 1/2, E x^2 = 1, E y = 1/4, E y^2 = 5/8 - 1/pi.
    variance = np.array([3 / 4, 5 / 8 - 1 / math.pi - 1 / 16]) + _MOON_NOISE**2
    return (points - [0.5, 0.25]) / np.sqrt(variance), labels


def _checkerboard(rng: np.random.Generator, count: int) -> _Points:
    column, half = rng.integers(4, size=count), rng.integers(2, size=count)
    row = 2 * half + column % 2
    points = np.stack([column, row], axis=1) + rng.uniform(size=(count, 2))
    # Each axis is uniform on 0..4: variance 16/12.
    return (points - 2.0) / math.sqrt(4 / 3), 2 * column + half


def _mixture(rng: np.random.Generator, count: int) -> _Points:
    labels = rng.choice(len(MIXTURE_WEIGHTS), size=count, p=MIXTURE_WEIGHTS)
    noise = rng.standard_normal((count, 2)) * np.array(MIXTURE_STDS)[labels, None]
    return np.array(MIXTURE_MEANS)[labels] + noise, labels


_SHAPES: dict[str, tuple[Callable[[np.random.Generator, int], _Points], tuple[str, ...]]] = {
    "moons": (_moons, ("upper", "lower")),
    "checkerboard": (_checkerboard, tuple(f"square {index}" for index in range(8))),
    "mixture": (_mixture, tuple(f"component {index}" for index in range(3))),
}
