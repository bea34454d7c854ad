"""The average of the weights against its recursion, and against score_sde's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from sde_diffusion.ema import averaged, ema_decay

VECTORS = Path(__file__).parents[1] / "data" / "reference" / "score_sde_ema.npz"


class Weights(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())


def test_score_sde_shadow_parameters() -> None:
    """12 updates of 5 weights with decay min(0.999, (1 + n)/(10 + n)), n = 1, 2, ..."""
    with np.load(VECTORS) as arrays:
        first, weights, shadow = (torch.from_numpy(arrays[f"ema_{name}"]) for name in ("init", "params", "shadow"))
    net = Weights(first)
    ema = averaged(net, 0.999)
    for row, expected in zip(weights, shadow, strict=True):
        net.values.data.copy_(row)
        ema.update_parameters(net)
        torch.testing.assert_close(ema.module.values.data, expected, rtol=1e-12, atol=1e-14)


def test_resuming_continues_the_warm_up() -> None:
    torch.testing.assert_close([ema_decay(n, 0.9) for n in (1, 10, 1000)], [2 / 11, 11 / 20, 0.9])
    net = Weights(torch.zeros(3, dtype=torch.float64))
    whole, resumed = averaged(net, 0.99), averaged(net, 0.99)
    for n in range(1, 9):
        net.values.data.fill_(float(n))
        whole.update_parameters(net)
        if n == 4:
            values = resumed.module.values.data.clone()
            resumed = averaged(Weights(values), 0.99, updates=3)
        resumed.update_parameters(net)
    torch.testing.assert_close(whole.module.values, resumed.module.values, rtol=0, atol=0)


def test_the_average_is_frozen() -> None:
    ema = averaged(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), 0.9)
    assert not ema.training and not any(p.requires_grad for p in ema.parameters())
