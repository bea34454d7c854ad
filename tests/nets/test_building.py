"""Weights that do not fit a network are named."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets.building import build_network, load_weights


def test_a_mismatch_names_the_keys() -> None:
    net = build_network("mlp", {"shape": [3], "width": 16, "blocks": 1})
    weights = dict(net.state_dict())
    first = sorted(weights)[0]
    value = weights.pop(first)
    weights["other.key"] = torch.zeros(1)
    with pytest.raises(UserError, match=rf"missing: {first} \(1\); not expected: other.key \(1\)"):
        load_weights(net, weights)
    with pytest.raises(UserError, match="of another shape"):
        load_weights(net, {**net.state_dict(), first: torch.zeros(*value.shape, 2)})


def test_a_network_that_is_not_known() -> None:
    """By its name, and by an option that it does not take."""
    with pytest.raises(UserError, match=r"unknown network 'unett'; did you mean 'unet'\?"):
        build_network("unett", {})
    with pytest.raises(UserError, match=r"^network 'mlp': .*unexpected keyword argument 'widht'"):
        build_network("mlp", {"shape": [3], "widht": 16})
