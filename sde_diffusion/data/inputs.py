"""What a person hands in to be changed: a picture, a folder or an archive of them, or an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataOptions
from sde_diffusion.data.folder import load_whole
from sde_diffusion.data.formats import ending, endings
from sde_diffusion.data.pictures import Unreadable, decode, pixels
from sde_diffusion.data.places import Files


@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples as a person has them: 8-bit images uint8 [N, C, H, W], or vectors float32 [N, D].

    names: of each sample, for people; classes: the name of each sample's class folder, () where there are none.
    """

    samples: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()


def load_inputs(path: str, shape: Sequence[int], like: DataOptions | None = None) -> Inputs:
    """The pictures at a path, brought to a network's shape [C, H, W] and channels; or the arrays of an .npz file.

    path: a picture, a folder or a zip archive of pictures (in class folders or not), or an .npz with "images" uint8
    [N, H, W, C] or "samples" [N, D], as sampling writes them. like: of the set as whose pictures these are read.
    Raises UserError for anything else, and for data of another shape.
    """
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise UserError(f"there is no picture, folder or .npz file {path!r}; --input names what is to be changed")
    if place.suffix == ".npz":
        return _arrays(place, tuple(shape))
    if len(shape) != 3:
        raise UserError(f"the network is one of vectors of shape {list(shape)}: --input takes an .npz file of samples")
    channels, height, width = shape
    reading = (like or DataOptions()).reading_others((height, width))
    if place.is_dir() or place.suffix == ".zip":
        found, names = load_whole(str(place), reading, (channels, height, width))
        classes = () if found.labels is None else tuple(found.classes[int(label)] for label in found.labels)
        return Inputs(found.samples, tuple(names), classes)
    if ending(place.name) not in endings():
        raise UserError(f"{place} is no picture ({', '.join(sorted(endings()))}), folder or .npz file")
    try:
        picture = reading.cut.fitted(decode(Files(place.parent, [place.name]), 0, how=reading.decoding))
    except Unreadable as error:
        raise UserError(f"{place} is not a readable picture ({error.failure[1]})") from error
    return Inputs(torch.from_numpy(pixels(picture, shape, place.name)[None].copy()), (place.name,))


def _arrays(place: Path, shape: tuple[int, ...]) -> Inputs:
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "samples") if name in file.files}
            listed = ", ".join(file.files)
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read as an .npz file: {error}") from error
    if not arrays:
        raise UserError(f"{place} holds neither 'images' nor 'samples' (it has: {listed})")
    (kind, array), *_ = arrays.items()
    samples = torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if kind == "images" and array.ndim == 4 else array)
    wanted = torch.uint8 if kind == "images" else torch.float32
    if tuple(samples.shape[1:]) != shape or (kind == "images") != (samples.dtype == torch.uint8):
        raise UserError(
            f"{place}: {kind!r} of shape {list(array.shape)} and type {array.dtype}, and the network takes samples of "
            f"shape {list(shape)}: images uint8 [N, H, W, C], or samples [N, D]"
        )
    return Inputs(samples.to(wanted), tuple(f"{place.name}[{i}]" for i in range(len(samples))))
