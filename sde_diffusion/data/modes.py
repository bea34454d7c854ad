"""Any picture that Pillow opens as one of 8 bits, grey or in colour, and what was done to it for that.

    transparent         laid on a background: c = alpha c + (1 - alpha) b, in 8 bits
    16-bit integers     k -> k / 257, to the nearest, so that 65535 becomes 255; 32-bit integers in 0..65535 likewise
    16 bits a channel, in colour    the upper 8 of them, by Pillow
    floating point      v in [0, 1] -> 255 v, to the nearest
    several frames      the first

Grey is what has equal channels everywhere, in whatever form a file has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # beyond which Pillow takes a picture for a decompression bomb
MANY = frozenset({"MPO", "PSD"})
"""Formats whose first frame is the picture itself, and the others are what cameras and programs keep beside it."""


@dataclass(frozen=True)
class Decoding:
    """How a file becomes pixels.

    background: a colour by a name that Pillow knows, or "#rrggbb", on which transparent pictures are laid.
    max_pixels: larger pictures count as broken. channels: 1, 3, or 0 for 1 where all are grey.
    Raises UserError for values that make none.
    """

    background: str = "white"
    max_pixels: int = MAX_PIXELS
    channels: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (0, 1, 3):
            raise UserError(f"data.channels is 1 (grey), 3 (colour) or 0 (as found), not {self.channels}.")
        if self.max_pixels < 1:
            raise UserError(f"data.max_pixels must be at least 1, not {self.max_pixels}.")
        if self.background != "white":  # which needs no library
            self.colour()

    def colour(self) -> tuple[int, int, int]:
        """The background as red, green and blue."""
        with extra("data"):
            from PIL import ImageColor

        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise UserError(
                f"data.background must be a colour by its name or as #rrggbb, such as white or #808080, not "
                f"{self.background!r}."
            ) from error

    def eight_bits(self, image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
        """A picture of mode "L" or "RGB", and what was done to it, in words that follow "are".

        Raises ValueError for numbers that no rule brings to 8 bits.
        """
        if image.mode.startswith("I"):
            return _from_integers(image), (DEEP_GREY,)
        if image.mode == "F":
            return _from_floats(image), (FLOATS,)
        grey = image.mode in GREYS
        if not image.has_transparency_data:
            return (image if image.mode in ("L", "RGB") else image.convert("L" if grey else "RGB")), ()
        layers = image.convert("LA" if grey else "RGBA")
        flat, alpha = layers.convert("L" if grey else "RGB"), layers.getchannel("A")
        if alpha.getextrema()[0] == 255:
            return flat, ()
        return self._laid(flat, alpha), (f"transparent, and laid on {self.background} (data.background)",)

    def is_grey_by_mode(self, image: Image.Image) -> bool:
        """Whether a picture is grey whatever its pixels are, which its header says."""
        if image.mode not in GREYS and not image.mode.startswith(("I", "F")):
            return False
        return not image.has_transparency_data or len(set(self.colour())) == 1

    def _laid(self, flat: Image.Image, alpha: Image.Image) -> Image.Image:
        with extra("data"):
            from PIL import Image

        red, green, blue = self.colour()
        if red == green == blue and flat.mode == "L":
            return Image.composite(flat, Image.new("L", flat.size, red), alpha)
        return Image.composite(flat.convert("RGB"), Image.new("RGB", flat.size, (red, green, blue)), alpha)


GREYS = ("1", "L", "LA", "La")
SEVERAL = "one of several frames in a file, the first of which is read"
DEEP_GREY = "of 16 bits, and divided by 257"
DEEP_COLOUR = "of 16 bits a channel in colour, of which the upper 8 are read"
FLOATS = "of floating-point numbers in [0, 1], and multiplied by 255"


def left_in_file(file: Image.Image) -> tuple[str, ...]:
    """What of an opened file does not come into its pixels: other frames, and bits that Pillow drops."""
    several = bool(getattr(file, "is_animated", False)) and file.format not in MANY
    deep = not file.mode.startswith(("I", "F")) and any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
    return (*((DEEP_COLOUR,) if deep else ()), *((SEVERAL,) if several else ()))


def is_grey(image: Image.Image) -> bool:
    """Whether a picture of mode "L" or "RGB" has equal channels everywhere."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def _from_integers(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"its integers run from {levels.min()} to {levels.max()}, and those of 0 to 65535 are read; bring it to "
            "8 or 16 bits"
        )
    return _grey((levels + 128) // 257)


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
        raise ValueError(
            f"its numbers run from {values.min():g} to {values.max():g}, and floating-point ones of 0 to 1 are read; "
            "bring them there, or to 8 bits"
        )
    return _grey(np.rint(255.0 * values.astype(np.float64)))


def _grey(levels: np.ndarray) -> Image.Image:
    with extra("data"):
        from PIL import Image

    return Image.fromarray(levels.astype(np.uint8))
