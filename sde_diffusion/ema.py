"""The exponential moving average of a network's weights, with which diffusion models are sampled.

    average <- d average + (1 - d) weights,    d = min(decay, (1 + n)/(10 + n)) at the n-th update, n = 1, 2, ...

The warm-up of d keeps the untrained weights from lingering (the rule of TensorFlow's ExponentialMovingAverage, used by
Song et al. 2021). The average starts at the network's own first weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_decay(update: int, decay: float) -> float:
    """min(decay, (1 + n)/(10 + n)) for the n-th update, counted from 1."""
    return min(decay, (1 + update) / (10 + update))


def averaged(net: nn.Module, decay: float, updates: int = 0) -> AveragedModel:
    """A network whose `update_parameters(net)` averages all weights in one multi-tensor operation.

    updates: how many have been made, when training resumes.
    """

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Tensor | int) -> None:
        torch._foreach_lerp_(averages, weights, 1.0 - ema_decay(int(count), decay))

    model = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    # torch copies the weights at count 0; our average starts from the first weights instead, so count from 1.
    model.n_averaged.fill_(updates + 1)
    return model.requires_grad_(False).eval()
