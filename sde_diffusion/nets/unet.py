"""The U-Net of Ho et al. 2020 (DDPM), for square images of any size and channel count.

Activations stay in the channels_last layout from entry to exit: there a pixel's channels are contiguous, so
attention reads the image as a list of tokens, and returns to an image, without moving memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.initialisation import xavier


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the most groups of equal size, at most 32, of at least 4 channels each.

    To train some layers only, freeze the others with requires_grad_(False). Asking autograd.grad, or
    backward(inputs=), for a norm's weight but for nothing before it meets the crash described in forward.
    Shapes: x [B, C, H, W] -> [B, C, H, W]. Source: Wu & He 2018 (32 groups); epsilon as in Ho et al. 2020.
    """

    def __init__(self, channels: int) -> None:
        groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # On the CPU in channels_last PyTorch 2.13 crashes when asked for the gradient of the weight but not
        # of the input, as where the layers before are frozen. The affine map apart is safe, but slower.
        if x.requires_grad or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        normal = F.group_norm(x, self.num_groups, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normal, self.weight[:, None, None])


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (divided by the stride)."""
    return xavier(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), gain)


class ResidualBlock(nn.Module):
    """y = skip(x) + conv(drop(silu(norm(conv(silu(norm(x))) + W c)))), with the outer conv zero at first.

    Shapes: x [B, C, H, W], c [B, width] -> [B, C', H, W]. Source: Ho et al. 2020, appendix B.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.modulation = xavier(nn.Linear(width, out_channels))
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, gain=0.0)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else xavier(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x))) + self.modulation(c)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.skip(x) + h
        return out


class SelfAttention(nn.Module):
    """y = x + W softmax(Q K^T / sqrt(d)) V over the pixels of norm(x), with W zero at first.

    Shapes: x [B, C, H, W] -> [B, C, H, W], with d = C / heads. Raises UserError if heads does not divide C.
    Second derivatives need PyTorch's own formula: `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    Source: Vaswani et al. 2017, eq. 1; Ho et al. 2020, appendix B.
    """

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"heads={heads} does not divide the {channels} channels of an attention layer")
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = xavier(nn.Linear(channels, 3 * channels))
        self.out = xavier(nn.Linear(channels, channels), gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # In channels_last the image already is a list of tokens, so every reshape here is a view.
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, H W, d]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        out: Tensor = self.out(mixed)
        return x + out.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Stage(nn.ModuleList):
    """Layers in sequence, of which the residual blocks also see the conditioning vector."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, c) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class UNet(nn.Module):
    """A convolutional network of (x, noise label, class) whose output starts at exactly zero.

    Level l works at image_size / 2^l with channels * multipliers[l] channels and `blocks` residual blocks on
    the way down, one more on the way up. Self-attention follows each block at the attention resolutions
    (those that no level has are ignored) and sits in the middle. Skips are concatenated. With in_channels=3,
    image_size=32 and dropout=0.1 the defaults are DDPM's for CIFAR-10.

    Shapes: x [B, in_channels, S, S], label [B], labels int64 [B] (num_classes, or None for all, means "no
    class") -> [B, out_channels, S, S] in channels_last, with out_channels = in_channels unless given.
    Raises UserError for a size that the levels do not divide, heads that do not divide the channels, an
    unknown embedding, and in forward for x, label or labels of another shape.
    Source: Ho et al. 2020, appendix B.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        heads: int = 1,
        dropout: float = 0.0,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if image_size < factor or image_size % factor:
            below = max(image_size // factor, 1) * factor
            raise UserError(
                f"image_size={image_size} cannot be halved {len(multipliers) - 1} times; "
                f"valid are the multiples of {factor}, such as {below} and {below + factor}"
            )
        self.shape = (in_channels, image_size, image_size)
        width = 4 * channels
        self.conditioning = Conditioning(
            channels, width, embedding=embedding, fourier_scale=fourier_scale, num_classes=num_classes
        )

        def block(into: int, out: int) -> ResidualBlock:
            return ResidualBlock(into, out, width=width, dropout=dropout)

        def attention(out: int, resolution: int) -> list[nn.Module]:
            return [SelfAttention(out, heads=heads)] if resolution in attention_resolutions else []

        levels = [(channels * multiple, image_size // 2**level) for level, multiple in enumerate(multipliers)]
        self.stem = conv3x3(in_channels, channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [channels]  # of the stem and of each stage of the way down
        for out, resolution in levels:
            if resolution < image_size:
                self.down.append(Stage([conv3x3(skips[-1], skips[-1], stride=2)]))
                skips.append(skips[-1])
            for _ in range(blocks):
                self.down.append(Stage([block(skips[-1], out), *attention(out, resolution)]))
                skips.append(out)

        into = skips[-1]
        self.middle = Stage([block(into, into), SelfAttention(into, heads=heads), block(into, into)])

        for out, resolution in reversed(levels):
            for remaining in reversed(range(blocks + 1)):
                stage = Stage([block(into + skips.pop(), out), *attention(out, resolution)])
                if remaining == 0 and resolution < image_size:
                    stage.extend([nn.Upsample(scale_factor=2), conv3x3(out, out)])
                self.up.append(stage)
                into = out

        last = conv3x3(into, in_channels if out_channels is None else out_channels, gain=0.0)
        self.head = nn.Sequential(GroupNorm(into), nn.SiLU(), last)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from its stub

    def forward(self, x: Tensor, label: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.shape[1:] != self.shape:
            raise UserError(f"x must have shape [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        c = self.conditioning(label, labels, len(x))
        h: Tensor = self.stem(x.to(memory_format=torch.channels_last))
        skips = [h]
        for stage in self.down:
            h = stage(h, c)
            skips.append(h)
        h = self.middle(h, c)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), c)
        out: Tensor = self.head(h)
        return out
