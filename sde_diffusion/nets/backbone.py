"""The U-Net that the convolutional score networks of the literature share, and what they differ in.

    h = stem(x)                                                     level 0 has the size of the image
    on each level:       [h = down(h), joined by the input pyramid]   h = blocks(h), every output kept as a skip
    h = middle(h)
    on each level, back: h = blocks([h, skip])   [the output pyramid takes h]   [h = up(h)]
    out = head(h), or the output pyramid

Level l works at size / 2^l. The pyramids of NCSN++ (Song et al. 2021, appendix H.1) carry the image itself beside the
network: that of the input, halved from level to level, enters each level; that of the output collects a picture from
each level and is doubled from level to level.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.sizes import Size, nearest_multiples, said, sides
from sde_diffusion.nets.blocks import (
    GroupNorm,
    Head,
    Norm,
    ResidualBlock,
    SelfAttention,
    Stage,
    conv1x1,
    conv3x3,
    summed,
)
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.resample import BOX, Down, DownConv, Up, UpConv

M = TypeVar("M", bound=nn.Module)
Heads = Callable[[int], int]
"""From a number of channels to a number of attention heads, 0 for no attention."""


@dataclass(frozen=True)
class Design:
    """What U-Nets differ in beside their size.

    norm                normalisation of a number of channels
    scale_shift         the conditioning scales and shifts after the norm, instead of being added before it
    rescale             sums of branches are multiplied by sqrt(1/2)
    resampling          a key of RESAMPLINGS: a "conv", a residual "block", or the filter alone ("pool")
    taps                of the resampling filter; None for the nearest neighbour and the mean of four pixels
    same_padding        a strided convolution has its zeros at the right and bottom only
    project             the skip of a resampling block always has a convolution
    last_attention      on the way up attention follows the last block of a level only, instead of each
    middle_attention    attention between the two blocks of the middle
    input_pyramid       a key of INPUT_PYRAMIDS: "none", "skip" or "residual"
    output_pyramid      a key of OUTPUT_PYRAMIDS: the same
    combine             "sum" or "cat": how the skipping input pyramid joins a level
    """

    norm: Norm = GroupNorm
    scale_shift: bool = False
    rescale: bool = False
    resampling: str = "conv"
    taps: tuple[float, ...] | None = None
    same_padding: bool = False
    project: bool = False
    last_attention: bool = False
    middle_attention: bool = True
    input_pyramid: str = "none"
    output_pyramid: str = "none"
    combine: str = "sum"


# --- changes of size ------------------------------------------------------------------------------------------

Block = Callable[..., ResidualBlock]
Resampling = tuple[Callable[[Design, int, Block], nn.Module], Callable[[Design, int, Block], nn.Module]]

RESAMPLINGS: dict[str, Resampling] = {
    "conv": (
        lambda design, channels, block: DownConv(
            channels, channels, taps=design.taps, same_padding=design.same_padding
        ),
        lambda design, channels, block: UpConv(channels, channels, taps=design.taps),
    ),
    "block": (
        lambda design, channels, block: block(channels, channels, Down(design.taps or BOX)),
        lambda design, channels, block: block(channels, channels, Up(design.taps or BOX)),
    ),
    "pool": (
        lambda design, channels, block: Down(design.taps or BOX),
        lambda design, channels, block: Up(design.taps or BOX),
    ),
}
"""To half and to twice the size of a number of channels."""


# --- pyramids -------------------------------------------------------------------------------------------------


class InputSkip(nn.Module):
    """The image, halved, joins the level through a 1x1 convolution: its sum with h, or the two side by side."""

    def __init__(self, design: Design, image_channels: int, channels: int) -> None:
        super().__init__()
        self.down = Down(design.taps or BOX)
        self.conv = conv1x1(image_channels, channels)
        self.side_by_side = design.combine == "cat"
        self.pyramid_channels = image_channels
        self.out_channels = 2 * channels if self.side_by_side else channels

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.down(pyramid)
        joining = self.conv(pyramid)
        return torch.cat([joining, h], dim=1) if self.side_by_side else joining + h, pyramid


class InputResidual(nn.Module):
    """The pyramid, halved by a convolution, is added to h, and the sum is the next pyramid."""

    def __init__(self, design: Design, pyramid_channels: int, channels: int) -> None:
        super().__init__()
        self.down = DownConv(pyramid_channels, channels, taps=design.taps, same_padding=design.same_padding)
        self.rescale = design.rescale
        self.pyramid_channels = self.out_channels = channels

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = summed(h, self.down(pyramid), self.rescale)
        return h, h


class OutputSkip(nn.Module):
    """A picture is made from h and added to the pyramid, doubled."""

    def __init__(self, design: Design, channels: int, image_channels: int, pyramid_channels: int | None) -> None:
        super().__init__()
        self.picture = Head(channels, image_channels, norm=design.norm)
        self.up = None if pyramid_channels is None else Up(design.taps or BOX)
        self.pyramid_channels = image_channels

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        picture = self.picture(h)
        return h, picture if self.up is None else picture + self.up(pyramid)


class OutputResidual(nn.Module):
    """The pyramid, doubled by a convolution, is added to h, and the sum is the next pyramid."""

    def __init__(self, design: Design, channels: int, image_channels: int, pyramid_channels: int | None) -> None:
        super().__init__()
        first = pyramid_channels is None
        self.first = Head(channels, channels, norm=design.norm, gain=1.0) if first else None
        self.up = None if pyramid_channels is None else UpConv(pyramid_channels, channels, taps=design.taps)
        self.rescale = design.rescale
        self.pyramid_channels = channels

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.up is None:
            assert self.first is not None
            return h, self.first(h)
        h = summed(h, self.up(pyramid), self.rescale)
        return h, h


INPUT_PYRAMIDS: dict[str, type[InputSkip | InputResidual] | None] = {
    "none": None,
    "skip": InputSkip,
    "residual": InputResidual,
}
OUTPUT_PYRAMIDS: dict[str, type[OutputSkip | OutputResidual] | None] = {
    "none": None,
    "skip": OutputSkip,
    "residual": OutputResidual,
}
COMBINATIONS = {"sum": None, "cat": None}


# --- the network ----------------------------------------------------------------------------------------------


class Levels(nn.ModuleList, Generic[M]):
    """A list of modules of one class."""

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())


class DownLevel(nn.Module):
    """One level of the way down: what leads to it, and its blocks."""

    down: Stage | None
    join: InputSkip | InputResidual | None
    stages: Levels[Stage]

    def __init__(self, down: Stage | None, join: InputSkip | InputResidual | None, stages: list[Stage]) -> None:
        super().__init__()
        self.down, self.join, self.stages = down, join, Levels(stages)


class UpLevel(nn.Module):
    """One level of the way up: its blocks, what the output pyramid takes, and what leads on."""

    stages: Levels[Stage]
    emit: OutputSkip | OutputResidual | None
    up: Stage | None

    def __init__(self, stages: list[Stage], emit: OutputSkip | OutputResidual | None, up: Stage | None) -> None:
        super().__init__()
        self.stages, self.emit, self.up = Levels(stages), emit, up


@dataclass(frozen=True)
class Layers:
    """What makes the residual blocks and the attention of a network; width: that of the conditioning."""

    design: Design
    width: int
    dropout: float
    heads: Heads

    def block(self, into: int, out: int, resample: Down | Up | None = None) -> ResidualBlock:
        return ResidualBlock(
            into,
            out,
            width=self.width,
            dropout=self.dropout,
            norm=self.design.norm,
            scale_shift=self.design.scale_shift,
            rescale=self.design.rescale,
            resample=resample,
            project=self.design.project,
        )

    def attention(self, out: int, wanted: bool) -> list[nn.Module]:
        """One layer of attention, or none."""
        heads = self.heads(out) if wanted else 0
        return [SelfAttention(out, heads=heads, norm=self.design.norm, rescale=self.design.rescale)] if heads else []


class Backbone(nn.Module):
    """A convolutional network of (x, c_noise, class) whose output starts at exactly zero.

    channels: of the stem and of each level. attention: for each level, whether attention follows its blocks.
    image_size: pixels a side of a square, or (height, width).
    Shapes: x [B, in_channels, H, W], c_noise [B], labels int64 [B] or None, augment_labels [B, n] or None ->
    [B, out_channels, H, W] in channels_last. H and W are multiples of 2^(levels - 1), image_size or others.
    Raises UserError for a size that the levels do not divide, heads that do not divide the channels, an unknown
    choice in the design, and in forward for x, c_noise or labels of another shape.
    """

    def __init__(
        self,
        conditioning: Conditioning,
        *,
        in_channels: int,
        out_channels: int | None,
        image_size: Size,
        stem: int,
        channels: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        heads: Heads,
        dropout: float,
        design: Design,
        up_attention: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self.design, self.factor = design, 2 ** (len(channels) - 1)
        check_size(image_size, self.factor)
        to_half, to_twice = choose("resampling", design.resampling, RESAMPLINGS)
        joins = choose("input pyramid", design.input_pyramid, INPUT_PYRAMIDS)
        emits = choose("output pyramid", design.output_pyramid, OUTPUT_PYRAMIDS)
        choose("combination", design.combine, COMBINATIONS)
        self.shape = (in_channels, *sides(image_size))
        self.conditioning = conditioning
        image_channels = in_channels if out_channels is None else out_channels
        layers = Layers(design, conditioning.out.out_features, dropout, heads)
        levels = list(enumerate(channels))
        self.stem = conv3x3(in_channels, stem)
        self.encoder, self.decoder = Levels[DownLevel](), Levels[UpLevel]()
        skips, pyramid = [stem], in_channels
        for level, out in levels:
            down = Stage([to_half(design, skips[-1], layers.block)]) if level else None
            join = joins(design, pyramid, skips[-1]) if level and joins else None
            if join:
                pyramid = join.pyramid_channels
            if level:
                skips.append(join.out_channels if join else skips[-1])
            stages = []
            for _ in range(blocks):
                stages.append(Stage([layers.block(skips[-1], out), *layers.attention(out, attention[level])]))
                skips.append(out)
            self.encoder.append(DownLevel(down, join, stages))

        into, collected = skips[-1], None
        middle = [layers.block(into, into), *layers.attention(into, design.middle_attention), layers.block(into, into)]
        self.middle = Stage(middle)
        for level, out in reversed(levels):
            stages = []
            for remaining in reversed(range(blocks + 1)):
                wanted = (up_attention or attention)[level] and not (design.last_attention and remaining)
                stages.append(Stage([layers.block(into + skips.pop(), out), *layers.attention(out, wanted)]))
                into = out
            emit = emits(design, out, image_channels, collected) if emits else None
            collected = emit.pyramid_channels if emit else None
            up = Stage([to_twice(design, out, layers.block)]) if level else None
            self.decoder.append(UpLevel(stages, emit, up))

        self.head = None if emits is OutputSkip else Head(into, image_channels, norm=design.norm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from its stub

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        **vectors: Tensor,
    ) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.shape[0] or x.shape[2] % self.factor or x.shape[3] % self.factor:
            sizes = f"height and width multiples of {self.factor}" if self.factor > 1 else "any height and width"
            raise UserError(f"x must have shape [B, {self.shape[0]}, H, W], {sizes}; got {list(x.shape)}")
        c = self.conditioning(c_noise, labels, len(x), augment_labels, vectors)
        x = x.to(memory_format=torch.channels_last)
        h: Tensor = self.stem(x)
        skips, pyramid = [h], x
        for level in self.encoder:
            if level.down is not None:
                h = level.down(h, c)
                if level.join is not None:
                    h, pyramid = level.join(h, pyramid)
                skips.append(h)
            for stage in level.stages:
                h = stage(h, c)
                skips.append(h)
        h = self.middle(h, c)
        picture: Tensor | None = None
        for back in self.decoder:
            for stage in back.stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), c)
            if back.emit is not None:
                h, picture = back.emit(h, picture)
            if back.up is not None:
                h = back.up(h, c)
        out: Tensor | None = picture if self.head is None else self.head(h)
        assert out is not None
        return out


def check_size(image_size: Size, factor: int) -> None:
    """Raises UserError, with the nearest that can, for a size that cannot be halved into so many parts a side."""
    valid = nearest_multiples(image_size, factor)
    if valid:
        raise UserError(
            f"image_size={said(image_size)} cannot be halved {int(math.log2(factor))} times; "
            f"valid are the multiples of {factor}, such as {valid}"
        )


def at_resolutions(image_size: Size, levels: int, resolutions: Sequence[int]) -> list[bool]:
    """For each level, whether its size, or the shorter side of a rectangle, is among the resolutions."""
    return [min(sides(image_size)) // 2**level in resolutions for level in range(levels)]


def heads_of(head_channels: int, heads: int = 1) -> Heads:
    """Heads of so many channels each, or where that is 0 always so many heads.

    The result raises UserError where head_channels does not divide the channels.
    """

    def number(width: int) -> int:
        if head_channels and width % head_channels:
            raise UserError(f"head_channels={head_channels} does not divide the {width} channels of attention")
        return width // head_channels if head_channels else heads

    return number
