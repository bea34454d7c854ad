"""What a batch of samples is on its way out of a network: arrays to store, with the conditions they were drawn for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, moved
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.network import NetworkDenoiser


def taken_by(network: NetworkDenoiser, conditions: Mapping[str, Tensor]) -> Conditions:
    """Those of the conditions that the network is told, on its device; it says itself which of them it needs."""
    known = {name: conditions[name] for name in network.spec.conditions if name in conditions}
    return moved(known, network.device)


def stored(transform: DataTransform, x: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Samples as they are stored: images uint8 [N, H, W, C], or vectors; and the conditions they were drawn for."""
    labels, beside = conditions.get("labels"), {name: value.cpu().numpy() for name, value in conditions.items()}
    if transform.levels is None:
        return {"samples": transform.decode(x, labels).numpy(), **beside}
    return {"images": transform.to_uint8(x, labels).permute(0, 2, 3, 1).numpy(), **beside}


def samples_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images or vectors of `stored`."""
    return arrays["images" if "images" in arrays else "samples"]
