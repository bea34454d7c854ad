"""Halving and doubling the size of an image, with a finite impulse response against aliasing.

A signal is doubled by setting zeros between its samples and smoothing, and halved by smoothing and taking every
second sample. With taps k, of which the two-dimensional filter is the outer product, normalised to sum 1,

    up(x)   = 4 k * (x with zeros between)          down(x) = (k * x) at every second pixel

Taps (1, 1) are the nearest neighbour and the mean of four pixels; (1, 3, 3, 1) are those of StyleGAN2 and NCSN++
(Karras et al. 2020; Song et al. 2021, appendix H.1; the method: Zhang 2019). Outside the image there are zeros. A
convolution beside the filter sees the filtered signal beyond the border too, as if the two were one filter.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets.initialisation import xavier

BOX = (1.0, 1.0)
BINOMIAL = (1.0, 3.0, 3.0, 1.0)


def outer_filter(taps: Sequence[float]) -> Tensor:
    """The two-dimensional filter of taps [n], their outer product with sum 1, [n, n]."""
    line = torch.tensor(taps, dtype=torch.float32, device="cpu")
    return line.outer(line) / line.sum().square()


def upfirdn(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros set between the pixels, padding, convolution with the kernel, every `down`-th pixel.

    x [B, C, H, W], kernel [h, w]; pad: zeros before and after each axis, or negative to crop.
    Source: the operation of Karras et al. 2019 (StyleGAN); here in plain tensor operations.
    """
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height * up, width * up)
    spread[..., ::up, ::up] = x
    spread = F.pad(spread, (*pad, *pad))
    weight = kernel.to(x).flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(spread, weight, stride=down, groups=channels)


class _Filter(nn.Module):
    """The filter of some taps, applied to each channel alone. Raises UserError for fewer than two taps."""

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        if len(taps) < 2:
            raise UserError(f"a resampling filter needs at least two taps, such as {BINOMIAL}; got {tuple(taps)}")
        self.box = tuple(taps) == BOX
        self.taps = len(taps)
        self.register_buffer("kernel", outer_filter(taps).to(torch.get_default_device()), persistent=False)

    def _weight(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, *self.kernel.shape)

    def then(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """conv of the image in its new size."""
        out: Tensor = conv(self(x))
        return out


class Down(_Filter):
    """Half the size. Shapes: x [B, C, H, W] -> [B, C, H/2, W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.box else self.smooth(x, self.taps - 2, stride=2)

    def smooth(self, x: Tensor, border: int, stride: int = 1) -> Tensor:
        """The filter applied inside a border of zeros, of which the larger half comes first."""
        before, after = (border + 1) // 2, border // 2
        if before != after:
            x = F.pad(x, (before, after) * 2)
        padding = before if before == after else 0
        return F.conv2d(x, self._weight(x).flip(2, 3), stride=stride, padding=padding, groups=x.shape[1])


class Up(_Filter):
    """Twice the size, and with a margin that many pixels more a side.

    Shapes: x [B, C, H, W] -> [B, C, 2 (H + margin), 2 (W + margin)].
    """

    def forward(self, x: Tensor, margin: int = 0) -> Tensor:
        if self.box and not margin:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        weight, before = 4.0 * self._weight(x), self.taps - 2 - (self.taps - 1) // 2 - margin
        after = self.taps - 2 - before - 2 * margin
        if before == after >= 0:
            return F.conv_transpose2d(x, weight, stride=2, padding=before, groups=x.shape[1])
        whole = F.conv_transpose2d(x, weight, stride=2, groups=x.shape[1])  # zero beyond its border
        return F.pad(whole, (-before, -after) * 2)

    def then(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """conv of the image in its new size.

        A 3x3 convolution w of the nearest neighbours is a transposed convolution of the image itself: in each axis
        its kernel is the reversed (w_2, w_1, w_0) smoothed by (1, 1), four taps of which two meet a pixel. That takes
        4 products for a pixel instead of 9.
        """
        if not self.box or conv.kernel_size != (3, 3) or conv.padding != (1, 1):
            return super().then(x, conv)
        reverse = conv.weight.transpose(0, 1).flip(2, 3)
        wide = F.pad(reverse, (0, 1)) + F.pad(reverse, (1, 0))
        kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
        return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


class DownConv(nn.Module):
    """A 3x3 convolution of stride 2, after the filter where there are taps.

    Without taps the border is one pixel of zeros a side, or with same_padding all of it at the right and bottom, as
    TensorFlow has it for images of even size (Ho et al. 2020). Shapes: x [B, C, H, W] -> [B, C', H/2, W/2].
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, taps: Sequence[float] | None = None, same_padding: bool = False
    ) -> None:
        super().__init__()
        self.filter = None if taps is None else Down(taps)
        self.same_padding = same_padding
        padding = 1 if self.filter is None and not same_padding else 0
        self.conv = xavier(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        if self.filter is not None:
            x = self.filter.smooth(x, self.filter.taps)
        elif self.same_padding:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class UpConv(nn.Module):
    """Twice the size, then a 3x3 convolution. Shapes: x [B, C, H, W] -> [B, C', 2 H, 2 W]."""

    def __init__(self, in_channels: int, out_channels: int, *, taps: Sequence[float] | None = None) -> None:
        super().__init__()
        self.filter = Up(BOX if taps is None else taps)
        self.margin = 0 if self.filter.box else 1
        self.conv = xavier(nn.Conv2d(in_channels, out_channels, 3, padding=1 - self.margin))

    def forward(self, x: Tensor) -> Tensor:
        if self.filter.box:
            return self.filter.then(x, self.conv)
        out: Tensor = self.conv(self.filter(x, self.margin))
        return out
