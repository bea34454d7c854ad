"""The U-Net of lucidrains/denoising-diffusion-pytorch, in the layers that its releases have had since November 2022.

    block(x)   = silu((1 + scale) norm(conv(x)) + shift)          the norm follows the convolution
    y          = block(block(x), scale, shift) + skip(x), whose first block alone is modulated
    on each level:       h = y(h), kept;  h = y(h);  h = h + attention(h), kept;  h = half of h, 2x2 pixels as channels
    in the middle:       h = y(h);  h = h + attention(h);  h = y(h)
    on each level, back: h = y([h, kept]);  h = y([h, kept]);  h = h + attention(h);  h = twice h
    out                  = conv(y([h, stem(x)]))

Attention is linear in the number of pixels (Shen et al. 2021) but on the levels that are named, and both kinds may have
keys and values of their own beside those of the pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Levels, check_size
from sde_diffusion.nets.blocks import conv1x1, conv3x3
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.initialisation import xavier
from sde_diffusion.nets.resample import UpConv


class PixelNorm(nn.Module):
    """The channels of a pixel over their root mean square, or with `centred` over their deviation, times a gain.

    Shapes: x [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, channels: int, *, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain[:, None, None]
        if self.centred:
            variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
            return (x - mean) * (variance + 1e-5).rsqrt() * gain
        return F.normalize(x, dim=1) * (gain * len(self.gain) ** 0.5)


class StandardConv(nn.Conv2d):
    """A convolution whose weights for each output have mean 0 and variance 1 (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-5).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ConvBlock(nn.Module):
    """silu((1 + scale) norm(conv(x)) + shift). groups: of the norm, 0 for one over the channels of each pixel."""

    def __init__(self, into: int, out: int, *, groups: int, former: bool, dropout: float) -> None:
        super().__init__()
        self.conv = StandardConv(into, out, 3, padding=1) if former else conv3x3(into, out)
        self.norm = nn.GroupNorm(groups, out) if groups else PixelNorm(out, centred=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        h: Tensor = self.norm(self.conv(x))
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        out: Tensor = self.dropout(F.silu(h))
        return out


class PostNormBlock(nn.Module):
    """y = block(block(x), c) + skip(x). Shapes: x [B, C, H, W], c [B, width] -> [B, C', H, W]."""

    def __init__(self, into: int, out: int, *, width: int, groups: int, former: bool, dropout: float) -> None:
        super().__init__()
        self.modulation = xavier(nn.Linear(width, 2 * out))
        self.block1 = ConvBlock(into, out, groups=groups, former=former, dropout=dropout)
        self.block2 = ConvBlock(out, out, groups=groups, former=former, dropout=0.0)
        self.skip = nn.Identity() if into == out else conv1x1(into, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.block2(self.block1(x, self.modulation(c))) + self.skip(x)
        return out


class PixelAttention(nn.Module):
    """x + W attention(Q, K, V) over the pixels of norm(x), each head with `head_channels` channels.

    linear      softmax(K) over the pixels and softmax(Q) over the channels take the place of softmax(Q K^T), and a norm
                follows W
    memory      keys and values beside those of the pixels
    Shapes: x [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(
        self, channels: int, *, heads: int, head_channels: int, memory: int, linear: bool, former: bool
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads, self.linear, self.former = heads, linear, former
        self.norm = PixelNorm(channels, centred=former)
        self.memory = nn.Parameter(torch.zeros(2, heads, memory, head_channels)) if memory else None
        self.qkv = xavier(nn.Conv2d(channels, 3 * inner, 1, bias=False))
        self.out = conv1x1(inner, channels)
        self.out_norm = PixelNorm(channels, centred=former) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        rows = self.qkv(self.norm(x)).view(batch, 3, self.heads, -1, height * width).transpose(3, 4)
        q, k, v = (row.contiguous() for row in rows.unbind(1))  # each [B, heads, pixels, head_channels]
        if self.memory is not None:
            own = self.memory.to(k)[:, None].expand(-1, batch, -1, -1, -1)
            k, v = (torch.cat([beside, row], dim=2) for beside, row in zip(own, (k, v)))
        h = self._linear(q, k, v, height * width) if self.linear else F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_norm(self.out(h.transpose(2, 3).reshape(batch, -1, height, width)))
        return out + x

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, pixels: int) -> Tensor:
        """softmax(Q) (softmax(K)^T V) / sqrt(d), and where `former` over the number of pixels."""
        q = q.softmax(dim=3) * q.shape[3] ** -0.5
        return q @ (k.softmax(dim=2).transpose(2, 3) @ (v / pixels if self.former else v))


class Level(nn.Module):
    """Two blocks, attention, and what leads to the next level."""

    def __init__(
        self, block1: PostNormBlock, block2: PostNormBlock, attention: PixelAttention, change: nn.Module
    ) -> None:
        super().__init__()
        self.block1, self.block2, self.attention, self.change = block1, block2, attention, change

    def forward(
        self, x: Tensor, c: Tensor, beside1: Tensor | None = None, beside2: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the next level gets, and the two that this one keeps; on the way back each block takes a kept one."""
        first = self.block1(_beside(x, beside1), c)
        second = self.attention(self.block2(_beside(first, beside2), c))
        return self.change(second), first, second


def _beside(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else torch.cat([x, kept], dim=1)


class Unshuffled(nn.Module):
    """Half the size: a linear map of the channels of 2x2 pixels. Shapes: x [B, C, H, W] -> [B, C', H/2, W/2]."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = conv1x1(4 * into, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pixel_unshuffle(x, 2))
        return out


class LucidUNet(nn.Module):
    """A convolutional network of (x, c_noise, class) whose output starts at exactly zero.

    channels, stem      at full resolution, and of the first convolution (0: the same)
    full_attention      for each level, whether attention there is that of every pair of pixels; () for the last only
    heads, head_channels: of attention; memory: its own keys and values
    groups              of the norms of the blocks; 0 for norms over the channels of each pixel, as since release 2.0
    former              the layers before release 1.7: standardised convolutions, centred norms, means of values
    Shapes: x [B, in_channels, H, W], c_noise [B], labels int64 [B] (num_classes, or None for all, means "no class") ->
    [B, out_channels, H, W]; H and W are multiples of 2^(levels - 1), image_size or others.
    Raises UserError for a size that the levels do not divide, and in forward for x, c_noise or labels of another shape.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: Size,
        out_channels: int | None = None,
        channels: int = 64,
        stem: int = 0,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        full_attention: Sequence[bool] = (),
        heads: int = 4,
        head_channels: int = 32,
        memory: int = 4,
        groups: int = 0,
        former: bool = False,
        dropout: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        stem, last = stem or channels, len(multipliers) - 1
        self.in_channels, self.factor = in_channels, 2**last
        check_size(image_size, self.factor)
        self.conditioning = Conditioning(channels, 4 * channels, shift=1, num_classes=num_classes, activation=F.gelu)
        full = list(full_attention) or [level == last for level in range(len(multipliers))]
        widths = [stem, *(channels * multiple for multiple in multipliers)]

        def block(into: int, out: int) -> PostNormBlock:
            return PostNormBlock(into, out, width=4 * channels, groups=groups, former=former, dropout=dropout)

        def attention(width: int, linear: bool) -> PixelAttention:
            return PixelAttention(
                width, heads=heads, head_channels=head_channels, memory=memory, linear=linear, former=former
            )

        self.stem = xavier(nn.Conv2d(in_channels, stem, 7, padding=3))
        self.encoder, self.decoder = Levels[Level](), Levels[Level]()
        levels = list(enumerate(zip(widths[:-1], widths[1:], full, strict=True)))
        for level, (into, out, pairs) in levels:
            change: nn.Module = conv3x3(into, out) if level == last else Unshuffled(into, out)
            self.encoder.append(Level(block(into, into), block(into, into), attention(into, not pairs), change))
        self.middle_block1, self.middle_block2 = block(widths[-1], widths[-1]), block(widths[-1], widths[-1])
        self.middle_attention = attention(widths[-1], linear=False)
        for level, (into, out, pairs) in reversed(levels):
            back = UpConv(out, into) if level else conv3x3(out, into)
            self.decoder.append(Level(block(into + out, out), block(into + out, out), attention(out, not pairs), back))
        self.final = block(2 * stem, stem)
        image_channels = in_channels if out_channels is None else out_channels
        self.head = xavier(nn.Conv2d(stem, image_channels, 1), gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            sizes = f"height and width multiples of {self.factor}" if self.factor > 1 else "any height and width"
            raise UserError(f"x must have shape [B, {self.in_channels}, H, W], {sizes}; got {list(x.shape)}")
        c = self.conditioning(c_noise, labels, len(x))
        h = first = self.stem(x)
        kept: list[Tensor] = []
        for level in self.encoder:
            h, *both = level(h, c)
            kept += both
        h = self.middle_block2(self.middle_attention(self.middle_block1(h, c)), c)
        for level in self.decoder:
            h = level(h, c, kept.pop(), kept.pop())[0]
        out: Tensor = self.head(self.final(torch.cat([h, first], dim=1), c))
        return out
