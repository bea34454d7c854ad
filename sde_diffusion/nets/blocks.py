"""The blocks that the U-Nets of the literature are made of.

Activations stay in the channels_last layout from entry to exit: there a pixel's channels are contiguous, so
attention reads the image as a list of tokens, and returns to an image, without moving memory.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets.initialisation import xavier
from sde_diffusion.nets.resample import Down, Up

Norm = Callable[[int], nn.Module]
"""From a number of channels to a normalisation."""


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the given groups, or the most groups of equal size, at most 32, of at least 4 channels each.

    To train some layers only, freeze the others with requires_grad_(False). Asking autograd.grad, or
    backward(inputs=), for a norm's weight but for nothing before it meets the crash described in forward.
    Shapes: x [B, C, H, W] -> [B, C, H, W]. Raises UserError for groups that do not divide the channels.
    Source: Wu & He 2018 (32 groups); epsilon as in Ho et al. 2020.
    """

    def __init__(self, channels: int, *, groups: int | None = None, eps: float = 1e-6) -> None:
        if groups is None:
            groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
        if channels % groups:
            raise UserError(f"{groups} groups of a normalisation do not divide {channels} channels")
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        # On the CPU in channels_last PyTorch 2.13 crashes when asked for the gradient of the weight but not
        # of the input, as where the layers before are frozen. The affine map apart is safe, but slower.
        if x.requires_grad or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        normal = F.group_norm(x, self.num_groups, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normal, self.weight[:, None, None])


def conv3x3(in_channels: int, out_channels: int, *, gain: float = 1.0) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return xavier(nn.Conv2d(in_channels, out_channels, 3, padding=1), gain)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A linear map of each pixel's channels."""
    return xavier(nn.Conv2d(in_channels, out_channels, 1))


def summed(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, times sqrt(1/2) if it is to keep the variance (Karras et al. 2018; Song et al. 2021, appendix H.1).

    The sum takes the place of h, the output of a convolution or linear layer, which no derivative needs: on a CPU a new
    tensor costs more than the sum.
    """
    h = h.add_(x)
    return h.mul_(math.sqrt(0.5)) if rescale else h


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), in the place of x where no derivative will need it. x is the fresh output of a normalisation."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """y = skip(x) + conv(drop(silu(norm(conv(silu(norm(x))) + W c)))), with the outer conv zero at first.

    With scale_shift c modulates after the norm, (1 + scale) norm(h) + shift, instead (Dhariwal & Nichol 2021, eq. 2).
    A resample, to half or twice the size, acts on both branches, before their convolutions (BigGAN, Brock et al.
    2019). With project the skip of such a block has a 1x1 convolution even where the channels stay.
    Shapes: x [B, C, H, W], c [B, width] -> [B, C', H', W']. Source: Ho et al. 2020, appendix B.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        dropout: float,
        norm: Norm = GroupNorm,
        scale_shift: bool = False,
        rescale: bool = False,
        resample: Down | Up | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = scale_shift
        self.rescale = rescale
        self.norm1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.modulation = xavier(nn.Linear(width, out_channels * (2 if scale_shift else 1)))
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, gain=0.0)
        same = in_channels == out_channels and not (project and resample)
        self.skip = nn.Identity() if same else conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = silu(self.norm1(x))
        h = self.conv1(h) if self.resample is None else self.resample.then(h, self.conv1)
        x = x if self.resample is None else self.resample(x)
        c = self.modulation(c)[:, :, None, None]
        if self.scale_shift:
            scale, shift = c.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(c))
        h = silu(h)
        if self.dropout.p:  # at 0 it would still copy
            h = self.dropout(h)
        return summed(self.skip(x), self.conv2(h), self.rescale)


def attended(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of tokens, their queries, keys and values side by side: [B, N, 3 C] -> [B, N, C].

    d = C / heads. Every step but the products is a view. Source: Vaswani et al. 2017, eq. 1.
    """
    batch, tokens, width = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """y = x + W softmax(Q K^T / sqrt(d)) V over the pixels of norm(x), with W zero at first.

    Shapes: x [B, C, H, W] -> [B, C, H, W], with d = C / heads. Raises UserError if heads does not divide C.
    Second derivatives need PyTorch's own formula: `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    Source: Vaswani et al. 2017, eq. 1; Ho et al. 2020, appendix B.
    """

    def __init__(self, channels: int, *, heads: int, norm: Norm = GroupNorm, rescale: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"heads={heads} does not divide the {channels} channels of an attention layer")
        self.heads = heads
        self.rescale = rescale
        self.norm = norm(channels)
        self.qkv = xavier(nn.Linear(channels, 3 * channels))
        self.out = xavier(nn.Linear(channels, channels), gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # In channels_last the image already is a list of tokens, so every reshape here is a view.
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        out: Tensor = self.out(attended(self.qkv(tokens), self.heads))
        return summed(x, out.view(batch, height, width, channels).permute(0, 3, 1, 2), self.rescale)


class Head(nn.Module):
    """conv(silu(norm(x))), zero at first unless gain is given. Shapes: x [B, C, H, W] -> [B, C', H, W]."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm = GroupNorm, gain: float = 0.0) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.conv = conv3x3(in_channels, out_channels, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(silu(self.norm(x)))
        return out


class Stage(nn.ModuleList):
    """Layers in sequence, of which the residual blocks also see the conditioning vector."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, c) if isinstance(layer, ResidualBlock) else layer(x)
        return x
