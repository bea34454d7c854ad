"""Networks by name, and weights that must fit them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.nets import NETWORKS


def arguments(network: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of a network's constructor. Raises UserError for an unknown network."""
    found = choose("network", network, NETWORKS)
    return {name: given for name, given in inspect.signature(found).parameters.items() if name != "self"}


def build_network(network: str, options: Mapping[str, Any]) -> nn.Module:
    """A network of NETWORKS with its options, its weights fresh.

    Raises UserError for an unknown network or for arguments that it does not take.
    """
    if not network:
        raise UserError(
            "the checkpoint is of a network of a person's own, which cannot be built from here: give it to sd.fit with "
            "the same folder and as many steps, which loads the weights"
        )
    found = choose("network", network, NETWORKS)
    try:
        return found(**options)
    except TypeError as error:
        raise UserError(f"network {network!r}: {error}") from error


def outline(network: str, options: Mapping[str, Any]) -> nn.Module:
    """The same on the meta device: nothing is drawn, and no weight takes memory."""
    with torch.device("meta"):
        return build_network(network, options)


def refuse_misfits(what: str, missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> None:
    """Raises UserError that names the first three keys of each kind and how many there are, unless there are none."""
    kinds = {"missing": missing, "not expected": extra, "of another shape": shapes}
    found = [
        f"{kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({len(keys)})"
        for kind, keys in kinds.items()
        if keys
    ]
    if found:
        raise UserError(f"{what}; {'; '.join(found)}")


def load_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights strictly. Raises UserError that names the first keys and shapes that differ."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{key}: {tuple(weights[key].shape)} where {tuple(own[key].shape)} is expected"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    refuse_misfits("the weights do not fit the network", missing, extra, shapes)
    net.load_state_dict(weights)
