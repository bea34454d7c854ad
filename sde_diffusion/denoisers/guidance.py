"""Guidance: two denoisers, whose difference says which way a condition pulls.

Classifier-free guidance samples from p(x | c) (p(x | c) / p(x))^w at every noise level. Its score is
(1 + w) score(x | c) - w score(x). At a given x score and eps are linear in x0_hat, and the two weights sum to one, so
the same holds for x0_hat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.core.kernel import Kernel
from sde_diffusion.denoisers.base import Denoiser, moments
from sde_diffusion.denoisers.wrappers import Wrapper


class GuidedDenoiser(Wrapper):
    """Classifier-free guidance, x0_hat = (1 + w) x0_hat(x | c) - w x0_hat(x) (Ho and Salimans 2022, equation 6).

    The equation is stated for eps; as eps and x0_hat are linear in one another at a given x, it is the same for x0_hat.
    A learned variance is the conditional one's.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, weight: float) -> None:
        self.denoiser = conditional
        self.unconditional = unconditional
        self.weight = weight

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        with_c, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return torch.lerp(self.unconditional(x, kernel), with_c, 1.0 + self.weight), fraction
