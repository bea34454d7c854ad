"""How close decoded pictures are to the originals they stand for, pair by pair: a of the one, b of the other.

    rmse   sqrt(mean (a - b)^2), in grey levels of 255
    psnr   20 log10(255 / rmse), in dB
    ssim   the mean over windows of
           (2 m_a m_b + c_1)(2 s_ab + c_2) / ((m_a^2 + m_b^2 + c_1)(s_a^2 + s_b^2 + c_2)), c = (2.55^2, 7.65^2),
           with the windows' means m and covariances s: 1 for equal pictures. Wang et al. 2004, eq. 13
    lpips  distances of a network's features, weighted by what people see: 0 for equal pictures. Zhang et al. 2018

Each figure is the mean over pairs, its interval Student's. psnr, ssim and lpips are torchmetrics'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.metrics.extraction import BATCH, channels_first
from sde_diffusion.metrics.packages import contained, torchmetrics
from sde_diffusion.metrics.scores import Score

LEVELS = 255.0
GAUSSIAN_SIDE, UNIFORM_SIDE = 11, 7
LPIPS_SIDE = 32  # what its first layers leave something of


class Window(NamedTuple):
    """The windows of ssim, `side` pixels each way."""

    gaussian: bool
    side: int

    def __str__(self) -> str:
        kind = "Gaussian (std 1.5)" if self.gaussian else "uniform"
        return f"{kind} windows of {self.side} x {self.side}"


def window_of(shape: tuple[int, ...]) -> Window:
    """The windows for pictures of a shape (H, W, C).

    Those of Wang et al. 2004 are Gaussian, of 11 x 11. Smaller pictures would be seen mostly as reflected at their
    edges: theirs are uniform, of 7 x 7 (scikit-image's choice), or of what odd size there is room for.
    """
    side = min(shape[:2])
    if side >= GAUSSIAN_SIDE:
        return Window(True, GAUSSIAN_SIDE)
    return Window(False, min(UNIFORM_SIDE, side - 1 + side % 2))


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """[B, C, H, W] pairs of 0..255 -> [B], as those below."""
    return (a - b).square().mean(dim=(1, 2, 3)).sqrt()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    ratio = torchmetrics("functional.image").peak_signal_noise_ratio
    found: Tensor = ratio(b, a, data_range=LEVELS, reduction="none", dim=(1, 2, 3))
    return found


def ssim(a: Tensor, b: Tensor) -> Tensor:
    window = window_of((*a.shape[2:], a.shape[1]))
    similarity = torchmetrics("functional.image").structural_similarity_index_measure
    found: Tensor = similarity(
        b, a, gaussian_kernel=window.gaussian, kernel_size=window.side, data_range=LEVELS, reduction="none"
    )
    return found.reshape(len(a))


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """By AlexNet. Raises UserError without torchvision or its weights, and for pictures smaller than 32 a side."""
    if min(a.shape[2:]) < LPIPS_SIDE:
        raise UserError(f"lpips needs pictures of {LPIPS_SIDE} pixels a side, not {a.shape[2]} x {a.shape[3]}")
    similarity = torchmetrics("functional.image.lpips").learned_perceptual_image_patch_similarity
    pairs = [(x.expand(-1, 3, -1, -1) / LEVELS).float() for x in (a, b)]
    try:
        with contained(0):  # the network's layers are drawn before they are loaded
            found: Tensor = similarity(*pairs, net_type="alex", reduction="none", normalize=True)
    except (ImportError, OSError) as error:
        raise UserError(
            f'lpips needs torchvision and AlexNet\'s weights ({error}): pip install "sde-diffusion[lpips]", and a '
            f"network or the weights in {torch.hub.get_dir()}/checkpoints"
        ) from error
    return found.reshape(len(a))


RECONSTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rmse": rmse,
    "psnr": psnr,
    "ssim": ssim,
    "lpips": lpips,
}


def reconstruction(
    original: np.ndarray, decoded: np.ndarray, names: Iterable[str] = ("rmse", "psnr", "ssim")
) -> dict[str, Score]:
    """Each figure of pairs of pictures, uint8 [N, H, W, C]. One that is infinite has a reason instead of a value.

    Raises UserError for an unknown name, for what are no pairs of pictures, and as `lpips` does.
    """
    chosen = {name: choose("figure of a reconstruction", name, RECONSTRUCTIONS) for name in names}
    if original.shape != decoded.shape or not len(original):
        raise UserError(f"originals {list(original.shape)} and decoded {list(decoded.shape)} are no pairs of pictures")
    pairs = [torch.split(found, BATCH) for found in (channels_first(original), channels_first(decoded))]
    return {
        name: _mean(name, torch.cat([figure(a.double(), b.double()) for a, b in zip(*pairs, strict=True)]).double())
        for name, figure in chosen.items()
    }


def _mean(name: str, values: Tensor) -> Score:
    from scipy.stats import t

    count = len(values)
    infinite = count - int(values.isfinite().sum())
    if infinite:
        return Score(None, reason=f"{infinite} of {count} pairs are equal, and their {name} is infinite")
    mean = values.mean().item()
    if count == 1:
        return Score(mean)
    reach = float(t.ppf(0.975, count - 1)) * values.std().item() / math.sqrt(count)
    return Score(mean, mean - reach, mean + reach)
