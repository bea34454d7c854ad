"""What a batch is on its way into the network and out of it: samples in model space, labels, arrays to store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data import DataTransform
from sde_diffusion.settings.root import Settings


def encoded(
    transform: DataTransform,
    samples: Tensor,
    labels: Tensor | None,
    dequantize: bool,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Stored samples in model space, dequantised or at their grey levels."""
    if dequantize:
        return transform.dequantize(samples, labels, generator=generator)
    return transform.encode(samples, labels)


def conditioning(settings: Settings, labels: Tensor | None, device: torch.device) -> dict[str, Tensor]:
    """What the network is told beside the noise level."""
    return {"labels": labels.to(device)} if settings.model.class_conditional and labels is not None else {}


def some(batch: tuple[Tensor, Tensor | None], start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """The samples start to stop of a batch, with their labels."""
    samples, labels = batch
    return samples[start:stop], None if labels is None else labels[start:stop]


def stored(transform: DataTransform, x: Tensor, labels: Tensor | None) -> dict[str, np.ndarray]:
    """Samples as they are stored: images uint8 [N, H, W, C], or vectors; and the labels they were drawn for."""
    told = {} if labels is None else {"labels": labels.numpy()}
    if transform.levels is None:
        return {"samples": transform.decode(x, labels).numpy(), **told}
    return {"images": transform.to_uint8(x, labels).permute(0, 2, 3, 1).numpy(), **told}


def samples_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images or vectors of `stored`."""
    return arrays["images" if "images" in arrays else "samples"]
