"""From the keys of a foreign state dict to ours, by rules that are checked key by key and shape by shape.

A rule makes one of our tensors from one or more of theirs by a linear map, so that it can be turned round for export
where it is a permutation, and so that gradients flow through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.blocks import ResidualBlock, SelfAttention
from sde_diffusion.nets.building import refuse_misfits

Join = Callable[[Sequence[Tensor]], Tensor]
Split = Callable[[Tensor], Sequence[Tensor]]


def _only(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _alone(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Rule:
    """ours = join(theirs), and for export theirs = split(ours)."""

    ours: str
    theirs: tuple[str, ...]
    join: Join = _only
    split: Split = _alone


def pair(ours: str, theirs: str) -> list[Rule]:
    """The rules of a layer whose weight and bias are the same."""
    return [Rule(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in ("weight", "bias")]


def matrix(ours: str, theirs: str) -> list[Rule]:
    """The rules of a linear layer of ours that is a convolution of one pixel there."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].flatten(1)

    return [Rule(f"{ours}.weight", (f"{theirs}.weight",), join), Rule(f"{ours}.bias", (f"{theirs}.bias",))]


def stacked(ours: str, theirs: Sequence[str]) -> list[Rule]:
    """The rules of a linear layer of ours whose rows are those of several layers there, or of 1x1 convolutions."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten(1) if tensor.ndim > 2 else tensor for tensor in tensors])

    def split(tensor: Tensor) -> Sequence[Tensor]:
        return tensor.chunk(len(theirs))

    names = {kind: tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")}
    return [Rule(f"{ours}.{kind}", keys, join, split) for kind, keys in names.items()]


def interleaved(heads: int, order: str) -> Join:
    """To (q/k/v, head, channel), our order of the rows of qkv, from "head channel part", "head part channel", ..."""
    names = order.split()
    there = ["part", "head", "channel"]

    def join(tensors: Sequence[Tensor]) -> Tensor:
        rows = tensors[0].flatten(1) if tensors[0].ndim > 1 else tensors[0]
        sizes = {"part": 3, "head": heads, "channel": len(rows) // (3 * heads)}
        split = rows.view(*(sizes[name] for name in names), *rows.shape[1:])
        axes = [names.index(name) for name in there]
        return split.permute(*axes, *range(3, split.ndim)).reshape(rows.shape)

    return join


def qkv(ours: str, theirs: str, heads: int, order: str) -> list[Rule]:
    """The rules of the one layer that makes queries, keys and values."""
    join = interleaved(heads, order)
    return [Rule(f"{ours}.{name}", (f"{theirs}.{name}",), join) for name in ("weight", "bias")]


# --- the layers of a U-Net, in the order in which they act --------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A module of a Backbone and where it stands.

    where   "stem", "down", "join", "block", "attention", "middle", "up_block", "up_attention", "emit", "up" or "head"
    level   0 at the image's size; index: which block of the level or the middle, -1 where there is only one
    """

    ours: str
    module: Any  # whose class is a key of a source's table
    where: str
    level: int = 0
    index: int = -1


def parts(net: Backbone) -> Iterator[Part]:
    """The modules of a U-Net in the order in which they act."""
    yield Part("stem", net.stem, "stem")
    for level, down in enumerate(net.encoder):
        if down.down is not None:
            yield Part(f"encoder.{level}.down.0", down.down[0], "down", level)
        if down.join is not None:
            yield Part(f"encoder.{level}.join", down.join, "join", level)
        for index, stage in enumerate(down.stages):
            for place, layer in enumerate(stage):
                where = "attention" if isinstance(layer, SelfAttention) else "block"
                yield Part(f"encoder.{level}.stages.{index}.{place}", layer, where, level, index)
    for place, layer in enumerate(net.middle):
        yield Part(f"middle.{place}", layer, "middle", len(net.encoder) - 1, place)
    for number, up in enumerate(net.decoder):
        level = len(net.decoder) - 1 - number
        for index, stage in enumerate(up.stages):
            for place, layer in enumerate(stage):
                where = "up_attention" if isinstance(layer, SelfAttention) else "up_block"
                yield Part(f"decoder.{number}.stages.{index}.{place}", layer, where, level, index)
        if up.emit is not None:
            yield Part(f"decoder.{number}.emit", up.emit, "emit", level)
        if up.up is not None:
            yield Part(f"decoder.{number}.up.0", up.up[0], "up", level)
    if net.head is not None:
        yield Part("head", net.head, "head")


@dataclass(frozen=True)
class BlockNames:
    """What the layers of a residual block are called, in the order in which the source registers them."""

    norm1: str
    conv1: str
    modulation: str
    norm2: str
    conv2: str
    skip: str

    def rules(self, ours: str, block: ResidualBlock, theirs: str) -> list[Rule]:
        """The rules of a block, but for its skip where that is the identity."""
        names = [name for name in vars(self) if name != "skip" or not isinstance(block.skip, nn.Identity)]
        return [rule for name in names for rule in pair(f"{ours}.{name}", f"{theirs}.{getattr(self, name)}")]


def by_class(net: Backbone, table: Mapping[type[nn.Module], Callable[[Part], list[Rule]]]) -> list[Rule]:
    """The rules of all modules of a U-Net, each by the entry of its class."""
    return [rule for part in parts(net) for rule in table[type(part.module)](part)]


# --- applying them ------------------------------------------------------------------------------------------------


def converted(
    weights: Mapping[str, Tensor], rules: Sequence[Rule], net: nn.Module, ignored: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Our state dict from theirs, every key used once and every shape checked.

    ignored: keys of theirs that carry nothing. Raises UserError that names the first keys that are missing, not
    expected or of another shape, with the shape that was expected and the one found.
    """
    own = net.state_dict()
    wanted = {key for rule in rules for key in rule.theirs}
    missing = [key for rule in rules for key in rule.theirs if key not in weights]
    extra = [key for key in weights if key not in wanted and key not in ignored]
    found: dict[str, Tensor] = {}
    shapes: list[str] = []
    for rule in rules:
        tensors = [weights[key] for key in rule.theirs if key in weights]
        if len(tensors) < len(rule.theirs):
            continue
        expected = tuple(own[rule.ours].shape)
        try:
            found[rule.ours] = rule.join(tensors)
        except (RuntimeError, IndexError, TypeError):
            found[rule.ours] = torch.empty(0)
        if found[rule.ours].shape != expected:
            there = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            shapes.append(f"{rule.theirs[0]} is {there} where it should make {expected} of {rule.ours}")
    refuse_misfits("the weights do not fit the configuration", missing, extra, shapes)
    uncovered = sorted(own.keys() - found.keys())
    assert not uncovered, uncovered
    return {key: value.to(own[key].dtype) for key, value in found.items()}


def exported(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Their state dict from ours: the rules turned round."""
    found: dict[str, Tensor] = {}
    for rule in rules:
        found.update(zip(rule.theirs, rule.split(state[rule.ours]), strict=True))
    return {key: value.detach().cpu().contiguous() for key, value in found.items()}
