"""Pictures of any size brought to one size: cut, padded or stretched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.core.sizes import Size, sides

if TYPE_CHECKING:
    from PIL import Image

DRAFT = 3  # times the size that a picture is unpacked at, at least


@dataclass(frozen=True)
class Cut:
    """How a picture of any size becomes one of `size` pixels: a side of a square, or (height, width). 0 leaves it.

    fit         "crop": resized until it covers the size, and its middle cut out; "pad": resized until all of it fits,
                in the middle of the background; "stretch": resized to the size, whatever its own proportions
    crop        "centre", or "random", in training: a part of the size's proportions anywhere in the picture, u times
                as large as fits, u uniform in [min_crop, 1], resized
    draft       whether a JPEG picture that is much larger than the size may be unpacked at a half, a quarter or an
                eighth of its own, never at less than three times the size. Pixels differ by about 0.6 grey levels
    background  a colour by a name that Pillow knows, or "#rrggbb"
    All resizing is Lanczos's, antialiased. Raises UserError for another choice, for min_crop outside (0, 1], for random
    crops of pictures that are not cropped, and for a fit or random crops without a size.
    """

    size: Size = 0
    crop: str = "centre"
    min_crop: float = 0.8
    fit: str = "crop"
    background: str = "white"
    draft: bool = False

    def __post_init__(self) -> None:
        choose("crop", self.crop, dict.fromkeys(("centre", "random")))
        choose("fit", self.fit, FITS)
        if self.size != 0:
            sides(self.size, "the image size")
        if not 0.0 < self.min_crop <= 1.0:
            raise UserError(f"data.min_crop is a share of the largest crop's side, in (0, 1], not {self.min_crop}.")
        if self.random and self.fit != "crop":
            raise UserError(f"random crops are cut out of pictures: choose the fit 'crop', not {self.fit!r}.")
        if not self.size and self.random:
            raise UserError("random crops are resized to one size: set the image size, which is 0.")
        if not self.size and self.fit != "crop":
            raise UserError(f"the fit {self.fit!r} brings pictures to one size: set the image size, which is 0.")

    @property
    def random(self) -> bool:
        return self.crop == "random"

    @property
    def least(self) -> int:
        """Pixels that the shorter side of a picture must have when it is cut; 0 for all that it has."""
        if not self.draft or not self.size:
            return 0
        share = self.min_crop if self.random else 1.0
        return math.ceil(DRAFT * max(sides(self.size)) / share)

    def fitted(self, image: Image.Image) -> Image.Image:
        """The picture in its size, without chance, as it is evaluated."""
        return FITS[self.fit](image, *sides(self.size), self.background) if self.size else image

    def at(self, image: Image.Image, draw: Sequence[float]) -> Image.Image:
        """The random part that three uniform numbers in [0, 1) stand for: its size, and its place across and down."""
        height, width = sides(self.size)
        share = self.min_crop + (1.0 - self.min_crop) * draw[0]
        wide = share * min(image.width, image.height * width / height)
        high = share * min(image.height, image.width * height / width)
        left, top = draw[1] * (image.width - wide), draw[2] * (image.height - high)
        box = (left, top, min(left + wide, image.width), min(top + high, image.height))
        return _resized(image, height, width, box)


def _resized(
    image: Image.Image, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    with extra("data"):
        from PIL import Image

    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _cropped(image: Image.Image, height: int, width: int, background: str) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    return _resized(image, high, wide).crop((left, top, left + width, top + height))


def _padded(image: Image.Image, height: int, width: int, background: str) -> Image.Image:
    with extra("data"):
        from PIL import Image

    scale = min(width / image.width, height / image.height)
    wide, high = (min(most, max(1, round(own * scale))) for most, own in ((width, image.width), (height, image.height)))
    whole = Image.new(image.mode, (width, height), background)
    whole.paste(_resized(image, high, wide), ((width - wide) // 2, (height - high) // 2))
    return whole


def _stretched(image: Image.Image, height: int, width: int, background: str) -> Image.Image:
    return _resized(image, height, width)


FITS: dict[str, Callable[[Image.Image, int, int, str], Image.Image]] = {
    "crop": _cropped,
    "pad": _padded,
    "stretch": _stretched,
}
"""(picture, height, width, background) -> the picture in that size."""
