"""The U-Nets of score_sde_pytorch, `ddpm` and `ncsnpp`: which of their weights are which of ours.

The source's networks are lists of modules, all_modules, numbered in the order in which they act. A layer without
weights has its number too.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.importers.rules import BlockNames, Part, Rule, by_class, pair
from sde_diffusion.nets.backbone import Backbone, InputResidual, InputSkip, OutputResidual, OutputSkip
from sde_diffusion.nets.blocks import Head, ResidualBlock, SelfAttention
from sde_diffusion.nets.embedding import FourierFeatures
from sde_diffusion.nets.resample import Down, DownConv, Up, UpConv


def _transposed(tensors: Any) -> Tensor:
    return torch.cat([tensor.T if tensor.ndim == 2 else tensor for tensor in tensors])


def _attention(ours: str, theirs: str) -> list[Rule]:
    """NIN_0 to NIN_3 are matrices [in, out] of the queries, keys, values and of what leaves."""
    parts_of_qkv = [
        Rule(f"{ours}.qkv.{name}", tuple(f"{theirs}.NIN_{i}.{letter}" for i in range(3)), _transposed)
        for name, letter in (("weight", "W"), ("bias", "b"))
    ]
    out = [
        Rule(f"{ours}.out.{name}", (f"{theirs}.NIN_3.{letter}",), _transposed)
        for name, letter in (("weight", "W"), ("bias", "b"))
    ]
    return [*pair(f"{ours}.norm", f"{theirs}.GroupNorm_0"), *parts_of_qkv, *out]


def _pixelwise(ours: str, theirs: str) -> list[Rule]:
    """A convolution of one pixel of ours that is a matrix [in, out] there."""
    return [
        Rule(f"{ours}.weight", (f"{theirs}.W",), lambda tensors: tensors[0].T[:, :, None, None]),
        Rule(f"{ours}.bias", (f"{theirs}.b",)),
    ]


_BLOCK = BlockNames("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2")


def _block(ours: str, block: ResidualBlock, theirs: str, big: bool) -> list[Rule]:
    rules = _BLOCK.rules(ours, block, theirs)
    if big or isinstance(block.skip, nn.Identity):
        return rules
    return [*rules[:-2], *_pixelwise(f"{ours}.skip", f"{theirs}.NIN_0")]


def unet_rules(net: Backbone, big_blocks: bool) -> list[Rule]:
    """The rules of `ddpm` and `ncsnpp`, in the order of the source's parameters."""
    numbers = count()

    def prefix() -> str:
        return f"all_modules.{next(numbers)}"

    def head(ours: str) -> list[Rule]:
        return [*pair(f"{ours}.norm", prefix()), *pair(f"{ours}.conv", prefix())]

    def halved(ours: str, module: DownConv) -> list[Rule]:
        return pair(f"{ours}.conv", f"{prefix()}.{'Conv_0' if module.filter is None else 'Conv2d_0'}")

    def doubled(ours: str, module: UpConv) -> list[Rule]:
        return pair(f"{ours}.conv", f"{prefix()}.{'Conv_0' if module.filter.box else 'Conv2d_0'}")

    def collected(part: Part) -> list[Rule]:
        first = part.module.first is not None
        return head(f"{part.ours}.first") if first else doubled(f"{part.ours}.up", part.module.up)

    def without_weights(part: Part) -> list[Rule]:
        prefix()
        return []

    rules: list[Rule] = []
    if isinstance(net.conditioning.features, FourierFeatures):
        rules.append(Rule("conditioning.features.frequencies", (f"{prefix()}.W",)))
    rules += pair("conditioning.hidden", prefix())
    rules += pair("conditioning.out", prefix())
    return rules + by_class(
        net,
        {
            nn.Conv2d: lambda part: pair(part.ours, prefix()),
            ResidualBlock: lambda part: _block(part.ours, part.module, prefix(), big_blocks),
            SelfAttention: lambda part: _attention(part.ours, prefix()),
            DownConv: lambda part: halved(part.ours, part.module),
            UpConv: lambda part: doubled(part.ours, part.module),
            Down: without_weights,
            Up: without_weights,
            InputSkip: lambda part: pair(f"{part.ours}.conv", f"{prefix()}.Conv_0"),
            InputResidual: lambda part: halved(f"{part.ours}.down", part.module.down),
            OutputSkip: lambda part: head(f"{part.ours}.picture"),
            OutputResidual: collected,
            Head: lambda part: head(part.ours),
        },
    )


def in_order(keys: Iterable[str]) -> list[str]:
    """The keys with those of a layer together, as the source registers them."""
    layers: dict[str, list[str]] = {}
    for key in keys:
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    return [key for layer in layers.values() for key in layer]
