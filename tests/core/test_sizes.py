"""Sizes as people write them: squares by one number, rectangles by (height, width), and the nearest that can be."""

from __future__ import annotations

from typing import Any

import pytest

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.settings import whole_or_size
from sde_diffusion.core.sizes import nearest_multiples, said, sides, size_of


@pytest.mark.parametrize(
    ("given", "pair", "shortest", "text"),
    [
        (32, (32, 32), 32, "32"),
        ((24, 32), (24, 32), [24, 32], "(24, 32)"),
        ([32, 24], (32, 24), [32, 24], "(32, 24)"),
        ((8, 8), (8, 8), 8, "8"),
    ],
)
def test_forms_of_a_size(given: Any, pair: tuple[int, int], shortest: Any, text: str) -> None:
    assert sides(given) == pair and size_of(*pair) == shortest and said(given) == text
    whole_or_size("the set's own")("data.image_size", given)


@pytest.mark.parametrize("wrong", [-1, True, 8.0, "8", "24x32", (8,), (8, 8, 3), (0, 8), (8, 2.5), None, {8, 9}])
def test_what_is_no_size(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"image_size must be a whole number .* such as 32 or \(24, 32\); got"):
        sides(wrong)
    with pytest.raises(UserError, match=r"^data\.image_size, unless it is 0 \(the set's own\), must be a whole number"):
        whole_or_size("the set's own")("data.image_size", wrong)


@pytest.mark.parametrize(
    ("size", "factor", "least", "nearest"),
    [
        (32, 8, 1, ""),
        ((24, 32), 8, 1, ""),
        (25, 8, 1, "24 and 32"),
        ((25, 44), 8, 1, "(24, 40) and (32, 48)"),
        ((24, 44), 8, 1, "(24, 40) and (24, 48)"),
        ((3, 8), 8, 1, "(8, 8) and (16, 8)"),
        ((8, 8), 8, 2, "16 and 24"),
        ((16, 8), 8, 2, "(16, 16) and (16, 24)"),
    ],
)
def test_the_nearest_sizes_that_levels_divide(size: Any, factor: int, least: int, nearest: str) -> None:
    assert nearest_multiples(size, factor, least) == nearest
