"""NCSNv2 (Song & Ermon 2020): a RefineNet that is not told the noise level, for images of up to 256 pixels a side.

A way down of dilated residual blocks, then a way up (Lin et al. 2017) that refines the coarsest features with those
of each finer level. Details that the papers leave open follow the published code: yang-song/score_sde_pytorch,
models/ncsnv2.py, with the evident intent where that does not run (padding equal to the dilation).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.sizes import Size, nearest_multiples, said, sides

# Widths of the levels in units of `channels`, by the longest side of an image. The first level keeps the size, the
# last two dilate their convolutions by 2 and 4 instead of halving it, and all between halve it.
MULTIPLIERS = {95: (1, 2, 2, 2), 128: (1, 2, 2, 4, 4), 256: (1, 2, 2, 2, 4, 4)}
EPSILON = 1e-5


class InstanceNormPlusPlus(nn.Module):
    """InstanceNorm++: y = gamma (norm(x) + alpha (mu - m) / sqrt(v + eps)) + beta.

    norm(x) = (x - mu) / sqrt(var + eps) over the pixels of each channel; mu is the mean of each channel, m and v the
    mean and unbiased variance of mu over the channels. So the means, which instance normalisation removes, return on
    a common scale. At first alpha, gamma ~ N(1, 0.02^2), beta = 0.
    Shapes: x [B, C, H, W] -> [B, C, H, W], of C >= 2 channels (else v is undefined) and H W >= 2 pixels.
    Source: Song & Ermon 2019, appendix A, in the form of the published code (gamma scales alpha's term too).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(nn.init.normal_(torch.empty(channels), 1.0, 0.02))
        self.gamma = nn.Parameter(nn.init.normal_(torch.empty(channels), 1.0, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mu = x.mean(dim=(2, 3))
        v, m = torch.var_mean(mu, dim=1, keepdim=True)
        means = self.alpha * (mu - m) / (v + EPSILON).sqrt()
        h = F.instance_norm(x, eps=EPSILON) + means[:, :, None, None]
        return self.gamma[:, None, None] * h + self.beta[:, None, None]


def conv3x3(in_channels: int, out_channels: int, *, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size, initialised as PyTorch does (so does the published code)."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)


class ResidualBlock(nn.Module):
    """y = skip(x) + conv(elu(norm(conv(elu(norm(x)))))), both convolutions dilated.

    Shapes: x [B, C, H, W] -> [B, C', H, W]. Source: He et al. 2016, figure 4e, with the norm above.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, skip: nn.Module) -> None:
        super().__init__()
        self.norm1 = InstanceNormPlusPlus(in_channels)
        self.conv1 = conv3x3(in_channels, in_channels, dilation=dilation)
        self.norm2 = InstanceNormPlusPlus(in_channels)
        self.conv2 = conv3x3(in_channels, out_channels, dilation=dilation)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.elu(self.norm1(x)))
        out: Tensor = self.skip(x) + self.conv2(F.elu(self.norm2(h)))
        return out


class Level(nn.Module):
    """Two residual blocks; the first changes the channels, and 2x2 means after it the size if `halve`.

    The first skip is a 1x1 convolution where the level halves, a 3x3 one where it is dilated, else the identity.
    Shapes: x [B, C, H, W] -> [B, C', H, W], or [B, C', H/2, W/2]. Source: Song & Ermon 2020, appendix B.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, halve: bool) -> None:
        super().__init__()
        skip: nn.Module = nn.Identity()
        if halve:
            skip = nn.Conv2d(in_channels, out_channels, 1)
        elif dilation > 1:
            skip = conv3x3(in_channels, out_channels, dilation=dilation)
        self.enter = ResidualBlock(in_channels, out_channels, dilation=dilation, skip=skip)
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.stay = ResidualBlock(out_channels, out_channels, dilation=dilation, skip=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stay(self.pool(self.enter(x)))
        return out


class ResidualUnit(nn.Module):
    """y = x + W2 elu(W1 elu(x)), with 3x3 convolutions free of bias.

    Shapes: x [B, C, H, W] -> [B, C, H, W]. Source: Lin et al. 2017, section 3.2 (residual convolution unit).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, bias=False)
        self.conv2 = conv3x3(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.elu(self.conv1(F.elu(x))))
        return out


class ChainedPooling(nn.Module):
    """y = p_0 + p_1 + p_2 with p_0 = elu(x) and p_k = W_k max5x5(p_{k-1}), the maximum about each pixel.

    Shapes: x [B, C, H, W] -> [B, C, H, W]. Source: Lin et al. 2017, section 3.2 (chained residual pooling).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = path = F.elu(x)
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            total = total + path
        return total


class Refine(nn.Module):
    """Features of a level and, but for the deepest, those refined below it, to the refined features.

    Each path through two residual units; their sum after a convolution and bilinear growth to the size of the first;
    chained pooling; residual units.
    Shapes: paths [B, C, H, W] and [B, C, h, w] -> [B, C', H, W]; a single path needs C' = C.
    Source: Lin et al. 2017, figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, paths: int, units: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(
            nn.Sequential(ResidualUnit(in_channels), ResidualUnit(in_channels)) for _ in range(paths)
        )
        self.fuse = nn.ModuleList(
            conv3x3(in_channels, out_channels) if paths > 1 else nn.Identity() for _ in range(paths)
        )
        self.pool = ChainedPooling(out_channels)
        self.out = nn.Sequential(*(ResidualUnit(out_channels) for _ in range(units)))

    def forward(self, *paths: Tensor) -> Tensor:
        grown = [
            F.interpolate(fuse(adapt(path)), size=paths[0].shape[2:], mode="bilinear", align_corners=True)
            for path, adapt, fuse in zip(paths, self.adapt, self.fuse, strict=True)
        ]
        out: Tensor = self.out(self.pool(sum(grown)))
        return out


class NCSNv2(nn.Module):
    """A RefineNet of x alone, which predicts sigma times the score at a noise level sigma it is not told.

    The score is net(x) / sigma (technique 3 of the paper), a division that belongs to the caller. The number of
    levels follows from the image's longer side: 4 below 96 pixels, 5 up to 128, 6 up to 256, of which 1, 2 and 3 halve
    it. The defaults are the paper's for CIFAR-10.

    Shapes: x [B, in_channels, H, W], centred on zero, with image_size = H = W or (H, W), c_noise of any shape (ignored)
    -> [B, out_channels, H, W], with out_channels = in_channels unless given.
    Raises UserError for a size above 256 or that does not halve so often (into 2 pixels or more), for fewer than 2
    channels, and in forward for x of another shape or for class labels.
    Source: Song & Ermon 2020, section 3.3 and appendix B.
    """

    def __init__(
        self, *, in_channels: int, image_size: Size, out_channels: int | None = None, channels: int = 128
    ) -> None:
        super().__init__()
        if channels < 2:
            raise UserError(f"channels={channels} is too few for InstanceNorm++; it needs at least 2")
        largest = max(MULTIPLIERS)
        longer = max(sides(image_size))
        if longer > largest:
            raise UserError(f"image_size={said(image_size)} is too large for NCSNv2; it takes at most {largest}")
        multipliers = next(m for bound, m in MULTIPLIERS.items() if longer <= bound)
        halvings = len(multipliers) - 3
        valid = nearest_multiples(image_size, 2**halvings, least=2)
        if valid:
            raise UserError(
                f"image_size={said(image_size)} does not halve {halvings} times into 2 whole pixels or more; "
                f"the nearest valid sizes are {valid}"
            )
        self.shape = (in_channels, *sides(image_size))
        self.stem = conv3x3(in_channels, channels)
        self.levels, self.refines = nn.ModuleList(), nn.ModuleList()  # from the top down, and from the bottom up
        widths = [channels, *(channels * multiple for multiple in multipliers)]
        for depth, (above, width) in enumerate(pairwise(widths)):
            dilation = 2 ** max(depth - halvings, 0)
            self.levels.append(Level(above, width, dilation=dilation, halve=1 <= depth <= halvings))
            deepest = depth == len(multipliers) - 1
            self.refines.insert(0, Refine(width, above, paths=1 if deepest else 2, units=3 if depth == 0 else 1))
        last = conv3x3(channels, in_channels if out_channels is None else out_channels)
        self.head = nn.Sequential(InstanceNormPlusPlus(channels), nn.ELU(), last)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.shape[1:] != self.shape:
            raise UserError(f"x must have shape [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        if labels is not None:
            raise UserError("this network takes no class labels: NCSNv2 has no class conditioning")
        features: list[Tensor] = [self.stem(x)]
        for level in self.levels:
            features.append(level(features[-1]))
        deepest, *others = self.refines
        h: Tensor = deepest(features.pop())
        for refine in others:
            h = refine(features.pop(), h)
        out: Tensor = self.head(h)
        return out
