"""The size of an image as people give it: one number of pixels for a square, or (height, width)."""

from __future__ import annotations

from collections.abc import Sequence

from sde_diffusion.core.errors import UserError

Size = int | Sequence[int]
"""Pixels a side of a square, or (height, width), which JSON has as a list."""


def sides(size: Size, what: str = "image_size") -> tuple[int, int]:
    """(height, width) in pixels. Raises UserError for what is neither a whole number of at least 1 nor two of them."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise UserError(
            f"{what} must be a whole number of pixels, for a square, or (height, width), such as 32 or (24, 32); "
            f"got {size!r}"
        )
    return pair


def size_of(height: int, width: int) -> int | list[int]:
    """The size in its shortest form, as JSON holds it: one number for a square."""
    return height if height == width else [height, width]


def said(size: Size) -> str:
    """The size as it is written in a configuration: 32, or (24, 32)."""
    height, width = sides(size)
    return str(height) if height == width else f"({height}, {width})"


def nearest_multiples(size: Size, factor: int, least: int = 1) -> str:
    """The nearest sizes whose sides are multiples of a factor, from `least` times it on; "" for one that is such.

    In words, such as "24 and 32", or "(24, 40) and (24, 48)" where the height fits.
    """
    pair = sides(size)
    below = [max(side // factor, least) * factor for side in pair]
    above = [low if low == side else low + factor for low, side in zip(below, pair)]
    if below == above:
        return ""
    return " and ".join(str(found[0] if pair[0] == pair[1] else tuple(found)) for found in (below, above))
