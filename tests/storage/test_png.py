"""PNG files of our own, read by the library that others would take."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.storage.png import png


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (5, 4, 1), (9, 16, 3), (64, 33, 3)])
def test_a_file_holds_the_pixels(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(png(image))) as file:
        assert file.mode == ("L" if shape[-1] == 1 else "RGB")
        assert np.array_equal(np.asarray(file).reshape(shape), image)
    with Image.open(io.BytesIO(png(image))) as file:
        file.verify()  # every chunk's checksum
