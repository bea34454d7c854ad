"""Dequantisers: noise on the bins of grey levels, and what it costs.

A model of continuous x gives no probability to integers. With u in (-1/2, 1/2)^D drawn from q(u | k), k + u is
continuous, and by Jensen's inequality (Theis et al. 2016; Ho et al. 2019, Flow++, equation 12)

    log P(k) >= E_q [ log p(k + u) - log q(u | k) ].

Uniform noise has log q = 0, and its average of p over the bin is what the model itself says of the integer.
Logit-normal noise, u + 1/2 = sigmoid(mean + std n), n ~ N(0, 1), can be narrow around the level or fill the bin; with

    log q(u) = log N(n; 0, 1) - log std - log(v (1 - v)),    v = u + 1/2.

Grey level k lies at x = w k - 1 - mean in model space, bins w = 2/(levels - 1) apart, so that a density of x becomes
one of k + u by the Jacobian w^D: log P(k) is estimated by log p(x) + D log w - log q(u).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import rand, randn

Drawing = torch.Generator | Sequence[torch.Generator]


class Dequantizer(Protocol):
    """Noise on the bins of grey levels."""

    @property
    def title(self) -> str:
        """How figures name it."""

    def noise(self, like: Tensor, generator: Drawing) -> tuple[Tensor, Tensor]:
        """u in (-1/2, 1/2) [B, *D] in units of a level, and log q(u) of each sample, float64 [B]."""


@dataclass(frozen=True)
class Uniform:
    """Uniform noise."""

    @property
    def title(self) -> str:
        return "uniformly dequantised"

    def noise(self, like: Tensor, generator: Drawing) -> tuple[Tensor, Tensor]:
        u = rand(like.shape, generator, like=like) - 0.5
        return u, torch.zeros(len(like), dtype=torch.float64, device=like.device)


@dataclass(frozen=True)
class LogitNormal:
    """Logit-normal noise; raises UserError for a std that is not positive."""

    mean: float = 0.0
    std: float = 1.5

    def __post_init__(self) -> None:
        if not self.std > 0.0:
            raise UserError(f"the std of logit-normal noise must be positive, got {self.std}")

    @property
    def title(self) -> str:
        return f"dequantised by logit-normal noise ({self.mean:g}, {self.std:g})"

    def noise(self, like: Tensor, generator: Drawing) -> tuple[Tensor, Tensor]:
        n = randn(like.shape, generator, like=like).double()
        z = self.mean + self.std * n
        log_bin = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)
        log_q = -0.5 * (n.square() + math.log(2.0 * math.pi)) - math.log(self.std) - log_bin
        # Rounding must not carry a number over the edge of its bin.
        u = (z.sigmoid() - 0.5).to(like.dtype).clamp(-0.499999, 0.499999)
        return u, log_q.flatten(1).sum(1)


@dataclass(frozen=True)
class NoNoise:
    """For continuous data, which need none; raises UserError where grey levels ask for it."""

    @property
    def title(self) -> str:
        return "not dequantised"

    def noise(self, like: Tensor, generator: Drawing) -> tuple[Tensor, Tensor]:
        raise UserError(
            "grey levels need noise on their bins before a density can be about them: take the dequantizer 'uniform' "
            "or 'logit_normal'"
        )


DEQUANTIZERS: dict[str, Dequantizer] = {"uniform": Uniform(), "logit_normal": LogitNormal(), "none": NoNoise()}


@dataclass(frozen=True, eq=False)
class Dequantized:
    """x [B, *D] in model space, and log_volume [B], nats to add to log p(x) for log P of the stored samples."""

    x: Tensor
    log_volume: Tensor
