"""The non-leaking augmentation of EDM: random geometry, and nine numbers that tell the network what was done.

A network that is told of the augmentation learns the augmented images without passing them on: it samples with all
nine numbers at zero, which mean that nothing was done. In this order (w are drawn from N(0, 1), angles uniformly):

    number  name              what is done to the picture                                 probability
    0       flip_x            1: left and right change places                             1/2
    1       flip_y            1: top and bottom change places                             p/2
    2       w                 larger by s = 2^(scale_std w)                               p
    3, 4    cos a - 1, sin a  turned by the angle a                                       p
    5, 6    w cos r, w sin r  longer by k = 2^(aniso_std w) along the direction r and     p
                              shorter by k across it; r = 0 with probability
                              1 - aniso_rotate_probability
    7, 8    w_x, w_y          moved right by translate_std w_x widths and down by         p
                              translate_std w_y heights

The changes are made in the order of the table. Angles are anticlockwise as the picture is seen and directions start
from its right; all but the flips leave the centre of the picture where it is, until it is moved at last. The numbers
do not tell all: (w, r) and (-w, r + pi) have the same two numbers 5 and 6, while one lengthens what the other shortens.
With p = 0 nothing is done, not even x-flips (theirs is a fair coin, tossed with probability min(1, 10^8 p)).

Flips permute pixels. Everything else is one affine map, after which a rectangle has the size that it had: what is
turned fills it with the picture and its reflections, whatever the angle. With positions q from the centre in pixels,
right and down,

    y(q) = x(A (q - t)),    A = R(a) K^-1 / s,    R(a) = [[cos a, -sin a], [sin a, cos a]],
    K^-1 = cosh(b) I - sinh(b) [[cos 2r, -sin 2r], [-sin 2r, -cos 2r]],    b = log k,

resampled once: twice as many pixels a side, the picture continued by reflection; linear interpolation at A (q - t) for
q at every half pixel; low-pass and every second of them.

Source: Karras et al. 2022 (EDM), appendix F.2, after Karras et al. 2020 (ADA), section 3 and appendix B. The order and
scale of the numbers are those that the published networks take (NVlabs/edm; `augment_dim` 9).
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.core.errors import UserError

RADIUS = 6  # of the low-pass, in pixels
BETA = 5.0  # of its Kaiser window


@dataclass(frozen=True, eq=False)
class Geometry:
    """What is done to each of B samples, in the units of the table above: each [B]; zeros do nothing."""

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def rows(self, part: slice) -> "Geometry":
        """What is done to some of the samples."""
        return Geometry(*(getattr(self, field.name)[part] for field in fields(self)))

    def labels(self) -> Tensor:
        """The nine numbers of each sample, float32 [B, 9]."""
        numbers = [
            self.flip_x,
            self.flip_y,
            self.scale,
            self.angle.cos() - 1,
            self.angle.sin(),
            self.stretch * self.direction.cos(),
            self.stretch * self.direction.sin(),
            self.shift_x,
            self.shift_y,
        ]
        return torch.stack([number.to(torch.float32) for number in numbers], dim=1)


@dataclass(frozen=True)
class Augmentation:
    """Images [B, C, H, W] to (augmented images, labels float32 [B, 9]), by the table above.

    probability: p of the table. scale_std, aniso_std: of log2 of the factors. translate_std: in widths and heights.
    Raises UserError for a probability outside [0, 1], for a std that is negative or not finite, and for images of
    another shape or kind.
    """

    probability: float = 0.12
    scale_std: float = 0.2
    aniso_std: float = 0.2
    aniso_rotate_probability: float = 0.5
    translate_std: float = 0.125

    dims: ClassVar[int] = 9

    def __post_init__(self) -> None:
        for name in ("probability", "aniso_rotate_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"the {name} of an augmentation must lie in [0, 1], got {getattr(self, name)}")
        for name in ("scale_std", "aniso_std", "translate_std"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"the {name} of an augmentation must be at least 0 and finite, got {getattr(self, name)}"
                )

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment each image by chance; x [B, C, H, W] -> [B, C, H, W], labels [B, 9]; x itself is left alone."""
        geometry = self.draw(len(x), generator)
        return self.apply(x, geometry), geometry.labels().to(x.device)

    def draw(self, count: int, generator: torch.Generator) -> Geometry:
        """The geometry of `count` samples; what is drawn from the generator depends on their number only."""

        def uniform(rows: int) -> Tensor:
            return torch.rand(rows, count, generator=generator, device=generator.device, dtype=torch.float64)

        chosen = uniform(5) < self.probability
        flip_x, flip_y = uniform(2) < 0.5
        rotated = uniform(1)[0] < self.aniso_rotate_probability
        angle, direction = math.pi * (2 * uniform(2) - 1)
        w = torch.randn(4, count, generator=generator, device=generator.device, dtype=torch.float64)
        return Geometry(
            flip_x=flip_x & (self.probability > 0),
            flip_y=flip_y & chosen[0],
            scale=w[0] * chosen[1],
            angle=angle * chosen[2],
            stretch=w[1] * chosen[3],
            direction=direction * rotated,
            shift_x=w[2] * chosen[4],
            shift_y=w[3] * chosen[4],
        )

    def apply(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Images [B, C, H, W], changed; bit for bit those that came where there is nothing to change."""
        if x.ndim != 4 or min(x.shape[2:]) < 2 or not x.is_floating_point():
            raise UserError(
                "augmentation takes floating-point images [B, C, H, W] of at least 2 x 2 pixels, "
                f"got {x.dtype} of shape {list(x.shape)}"
            )
        for axis, flip in ((3, geometry.flip_x), (2, geometry.flip_y)):
            x = torch.where(flip.to(x.device)[:, None, None, None], x.flip(axis), x)
        linear, shift = self.affine(geometry, width=x.shape[3], height=x.shape[2])
        identity = torch.eye(2, dtype=linear.dtype, device=linear.device)
        moved = (linear != identity).flatten(1).any(1) | (shift != 0).any(1)
        if moved.any():  # x is a new tensor since the flips
            x[moved] = resampled(x[moved], linear[moved].to(x), shift[moved].to(x))
        return x

    def affine(self, geometry: Geometry, *, width: int, height: int) -> tuple[Tensor, Tensor]:
        """A [B, 2, 2] and t [B, 2] of y(q) = x(A (q - t)); exactly I and 0 where the geometry is zeros."""
        b = math.log(2) * self.aniso_std * geometry.stretch[:, None, None]
        mirrored = turn(2 * geometry.direction) * torch.tensor([[1.0], [-1.0]]).to(b)
        squeeze = b.cosh() * torch.eye(2).to(b) - b.sinh() * mirrored
        smaller = (-self.scale_std * geometry.scale).exp2()[:, None, None]
        size = torch.tensor([width, height]).to(b)
        shift = self.translate_std * size * torch.stack([geometry.shift_x, geometry.shift_y], dim=1)
        return smaller * turn(geometry.angle) @ squeeze, shift


def turn(angle: Tensor) -> Tensor:
    """R(a) = [[cos a, -sin a], [sin a, cos a]]; [B] -> [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def resampled(x: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """y(q) = x(A (q - t)) at every pixel q, band-limited; x [B, C, H, W], A [B, 2, 2], t [B, 2] -> [B, C, H, W]."""
    height, width = x.shape[2:]
    (up_y, down_y), (up_x, down_x) = filters(height, like=x), filters(width, like=x)
    axes = half_pixels(width, like=x), half_pixels(height, like=x)
    q = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
    source = (q - shift[:, None, None]) @ linear.transpose(1, 2)[:, None]
    grid = source / torch.tensor([(width - 1) / 2, (height - 1) / 2]).to(x)  # centres of the outermost pixels at +-1
    # There the picture is even, and what the low-pass put between its pixels too, so that no distance is too far.
    y = F.grid_sample(up_y @ x @ up_x.T, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return down_y @ y @ down_x.T


def half_pixels(size: int, *, like: Tensor) -> Tensor:
    """Every half pixel, from the centre, that the low-pass of `size` pixels reaches; [2 size + 4 RADIUS - 3]."""
    return (torch.arange(1 - 2 * RADIUS, 2 * size - 2 + 2 * RADIUS).to(like) - (size - 1)) / 2


def filters(size: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """From pixels to the half pixels among them, [2 size - 1, size], and from all `half_pixels` back to pixels.

    Each row is the low-pass around its own position, scaled to leave constants as they are.
    """
    pixels = torch.arange(size).to(like)
    between = torch.arange(2 * size - 1).to(like) / 2
    continued = torch.arange(1 - RADIUS, size - 1 + RADIUS).to(like.device)
    reflected = (size - 1) - ((size - 1) - continued % (2 * size - 2)).abs()
    weights = low_pass(between[:, None] - continued)
    up = like.new_zeros(len(between), size).index_add_(1, reflected, weights)
    down = low_pass(pixels[:, None] - (size - 1) / 2 - half_pixels(size, like=like))
    return up / up.sum(1, keepdim=True), down / down.sum(1, keepdim=True)


def low_pass(distance: Tensor) -> Tensor:
    """sinc under a Kaiser window, which passes up to half a cycle a pixel; the distance is in pixels."""
    inside = (1 - (distance / RADIUS).square()).clamp(min=0)
    window = torch.special.i0(BETA * inside.sqrt()) / torch.special.i0(torch.tensor(BETA).to(distance))
    return torch.sinc(distance) * window * (inside > 0)
