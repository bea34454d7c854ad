"""Encoded pictures to tensors: opening, cropping to a square, stacking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


def open_picture(source: Path | IO[bytes], title: str, size: int = 0) -> Image.Image:
    """Decode one picture to mode "L" (grey) or "RGB"; with a size, to a size x size square.

    The shorter side is resized to `size` (Lanczos, antialiased) and the middle is cut out.
    Raises UserError, naming `title`, for a broken picture and for more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as file:
            # Cameras store a turned picture as it was shot, with a note of how to turn it.
            image: Image.Image = ImageOps.exif_transpose(file)
    # What Pillow raises for a broken file depends on the format.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{title} is not a readable picture ({error}); repair or remove it.") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{title} has more than 8 bits a channel; convert it to 8 bits.")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return _square(image, size) if size else image


def stack_pictures(images: Sequence[Image.Image], title: str) -> Tensor:
    """Pictures of one size to uint8 [N, C, H, W]: C = 1 if all are grey, else 3.

    Raises UserError, naming `title`, where the sizes differ.
    """
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise UserError(
            f"{title}: pictures differ in size (from {_by(sizes[0])} to {_by(sizes[-1])}); set the image size."
        )
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = np.stack([np.asarray(image if image.mode == mode else image.convert(mode)) for image in images])
    samples = torch.from_numpy(arrays)
    return samples[:, None] if mode == "L" else samples.permute(0, 3, 1, 2).contiguous()


def _square(image: Image.Image, size: int) -> Image.Image:
    from PIL import Image

    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + size, top + size))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
