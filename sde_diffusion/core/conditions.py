"""Conditions: what a network is told beside x and its noise level, tensors [B, ...] by name.

From the data set to the network's keyword arguments they travel as one dict, and nothing on the way knows their names:
"labels" (class indices, int64 [B]; "class" is a word of Python), "context" (embedding vectors [B, L, E]), ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, nearest

Conditions = dict[str, Tensor]


def rows_of(conditions: Mapping[str, Tensor], index: slice | Tensor) -> Conditions:
    """The conditions of some samples."""
    return {name: value[index] for name, value in conditions.items()}


def moved(conditions: Mapping[str, Tensor], device: torch.device | str) -> Conditions:
    """The conditions on a device."""
    return {name: value.to(device, non_blocking=True) for name, value in conditions.items()}


def of_names(conditions: Mapping[str, Tensor], names: Iterable[str], holder: str) -> Conditions:
    """The conditions of these names. Raises UserError for one that the holder, named in words, lacks."""
    for name in names:
        if name not in conditions:
            raise UserError(f"the network is told {name!r}, which {holder} lacks; it has {listed(conditions)}")
    return {name: conditions[name] for name in names}


def check_taken(names: Iterable[str], takes: Iterable[str], owner: str) -> None:
    """Raises UserError for a condition that the network, its owner named in words, does not take."""
    for name in names:
        if name not in (valid := list(takes)):
            hint = nearest(name, valid) if valid else "It takes none."
            raise UserError(f"{owner} does not take the condition {name!r}. {hint[0].upper()}{hint[1:]}")


def listed(names: Iterable[str]) -> str:
    """Names in words."""
    return ", ".join(map(repr, names)) or "none"
