"""Classes as the names of folders: the first folder below a part of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.listing import Part
from sde_diffusion.data.places import Place


@dataclass(frozen=True)
class Labels:
    """What the pictures of each part show. parts: int64 [N] each, or None without classes; classes: their names.

    others: the vectors of each part, by name, and columns: the names of their values. files: the files that say so,
    which are no pictures; said: what they say, in words.
    """

    parts: tuple[Tensor | None, ...]
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    others: tuple[Mapping[str, Tensor], ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: str = ""

    def counts(self) -> dict[str, int]:
        """The number of pictures of each class in all parts."""
        found = Counter(label for part in self.parts if part is not None for label in part.tolist())
        return {name: found[index] for index, name in enumerate(self.classes)}


def class_folders(place: Place, parts: Sequence[Part]) -> Labels:
    """The class of each picture is the first of its folders below its part; without folders there are no classes.

    Raises UserError for parts with other classes, for pictures beside class folders, and for a folder without any.
    """
    classes = [_classes(place, part) for part in parts]
    for part, own in zip(parts[1:], classes[1:]):
        if not set(own) <= set(classes[0]) or bool(own) != bool(classes[0]):
            raise UserError(
                f"{place.said(part.base)} and {place.said(parts[0].base)} must hold the same class folders: "
                f"{', '.join(classes[0]) or 'none'}, and not {', '.join(sorted(set(own) - set(classes[0]))) or 'none'}."
            )
    if not classes[0]:
        return Labels((None,) * len(parts))
    number = {name: index for index, name in enumerate(classes[0])}
    shown = [[number[part.below(name).partition("/")[0]] for name in part.names] for part in parts]
    return Labels(tuple(map(torch.tensor, shown)), classes[0], said=_one_folder(place, parts, classes[0]))


def _one_folder(place: Place, parts: Sequence[Part], classes: Sequence[str]) -> str:
    """What to do where all pictures lie in one folder, whose own folders may be the classes; "" where they do not."""
    paths = {tuple(part.below(name).split("/")[:-1]) for part in parts for name in part.names}
    inner = sorted({path[1] for path in paths if len(path) > 1})
    if len(parts) > 1 or len(classes) > 1 or len(inner) < 2:
        return ""
    return (
        f"all pictures lie in {place.said(classes[0])}, which is taken for their class: where its folders "
        f"({', '.join(inner[:2])}, ...) are the classes, that is data.root"
    )


def _classes(place: Place, part: Part) -> tuple[str, ...]:
    below = [part.below(name) for name in part.names]
    loose = [name for name in below if "/" not in name]
    inside = {part.below(folder) for folder in place.folders if not part.base or folder.startswith(f"{part.base}/")}
    folders = sorted(name for name in inside if "/" not in name)
    if loose and folders:
        raise UserError(
            f"{place.said(part.base)} holds both pictures ({loose[0]}) and folders ({folders[0]}): "
            "put every picture into a class folder, or none."
        )
    filled = {name.partition("/")[0] for name in below}
    for name in folders:
        if name not in filled:
            path = f"{part.base}/{name}" if part.base else name
            raise UserError(f"{place.said(path)} holds no pictures: fill this class folder, or remove it.")
    return tuple(folders)
