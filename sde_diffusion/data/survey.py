"""What the headers of a place's pictures say, and the settings that suit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sde_diffusion.data.inventory import Inventory
from sde_diffusion.data.pictures import DEFAULT, Pictures, Unreadable, size_of, spread

SIDES = (16, 32, 64)
MOST = 0.9
"""The suggested square has the largest of these sides that this share of the pictures reach by their shorter one."""
FEW_SIZES = 5  # that are named in a sentence
LOOKED_AT = 1000  # pictures that are enough for that


@dataclass(frozen=True)
class Survey:
    """The sizes (height, width) of the pictures that were looked at, upright, and how many have each."""

    sizes: Mapping[tuple[int, int], int]

    @property
    def looked_at(self) -> int:
        return sum(self.sizes.values())

    def side(self) -> int:
        """The side of the square that is suggested."""
        reached = {side: sum(n for size, n in self.sizes.items() if min(size) >= side) for side in SIDES}
        return max((side for side in SIDES if reached[side] >= MOST * self.looked_at), default=SIDES[0])

    def __str__(self) -> str:
        """Such as "32x32 120, 40x30 (height x width) 60 and 12 others, from 16x16 to 4000x3000"."""
        common = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{high}x{wide} {count:,}" for (high, wide), count in common[:FEW_SIZES])
        left = len(common) - FEW_SIZES
        areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
        ends = f", from {'x'.join(map(str, areas[0]))} to {'x'.join(map(str, areas[-1]))}" if len(areas) > 1 else ""
        return f"{named}{f' and {left} others' if left > 0 else ''}{ends} (height x width)"


def surveyed(pictures: Pictures, most: int = 0) -> Survey:
    """The sizes of all pictures whose header can be read, or of `most` of them, here and there."""
    found = Counter[tuple[int, int]]()
    for index, _ in zip(spread(len(pictures)), range(most or len(pictures))):
        try:
            found[size_of(pictures, index, DEFAULT)] += 1
        except Unreadable:
            continue
    return Survey(dict(found))


@dataclass(frozen=True)
class Suggestion:
    """A setting that suits the data, and why."""

    key: str
    value: Any
    reason: str


def suggestions(survey: Survey, inventory: Inventory) -> list[Suggestion]:
    """What the pictures decide: their size, and whether they have classes."""
    side, classes = survey.side(), len(inventory.classes)
    reached = sum(count for size, count in survey.sizes.items() if min(size) >= side)
    some = f"{reached:,} of {survey.looked_at:,} pictures have it"
    told = f"{classes} classes were found" if classes != 1 else "there is one class only"
    return [
        Suggestion("data.image_size", side, some),
        Suggestion("model.class_conditional", classes > 1, told),
    ]
