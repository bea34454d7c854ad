"""Which of a place's files are pictures to train on or to hold out, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.formats import HEAD, begins_as_picture, ending, endings, has_other_type
from sde_diffusion.data.inventory import Skipped
from sde_diffusion.data.layouts import belonging
from sde_diffusion.data.places import Place

HELD_OUT = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Part:
    """The pictures of a part of a set, at any depth below a folder of the place: "", "train", "test", ..."""

    base: str
    names: Sequence[str]

    def below(self, name: str) -> str:
        """The path of one of its pictures from the part's own folder."""
        return name.removeprefix(f"{self.base}/") if self.base else name


@dataclass(frozen=True)
class Left:
    """Files that are no pictures of a part. reason, expected: as in `Skipped`."""

    reason: str
    names: Sequence[str]
    expected: bool = False

    def without(self, names: Collection[str]) -> Skipped:
        """An account of them, but for files that are read after all."""
        return Skipped.of(self.reason, [name for name in self.names if name not in names], self.expected)


@dataclass(frozen=True)
class Listing:
    """The parts of a set, what is trained on first; what is held out where a folder says so. left: all else."""

    parts: tuple[Part, ...]
    left: tuple[Left, ...]

    @property
    def names(self) -> list[str]:
        """The pictures of all parts, one part after the other."""
        return [name for part in self.parts for name in part.names]

    def skipped(self, read: Collection[str] = ()) -> tuple[Skipped, ...]:
        """An account of the files that are not read; read: those among them that are, for what they say."""
        return tuple(each for left in self.left if (each := left.without(read)).count)


def whole(place: Place) -> Listing:
    """All pictures of a place as one part. Raises UserError where there are none."""
    pictures, others = _pictures(place, place.names)
    return Listing((_part(place, "", pictures),), _left(place, others))


def parted(place: Place) -> Listing:
    """The pictures of train/ and of the first of `HELD_OUT` that is there; of all folders where these are not all.

    Raises UserError where there are no pictures, or none of a part.
    """
    tops = {folder for folder in place.folders if "/" not in folder}
    # A folder "train" among other names is a class of trains.
    known = {folder.lower(): folder for folder in tops}
    if "train" not in known or len(known) < len(tops) or not set(known) <= {"train", *HELD_OUT}:
        return whole(place)
    bases = [known[name] for name in ("train", *HELD_OUT) if name in known][:2]
    pictures, others = _pictures(place, place.names)
    parts = [_part(place, base, [name for name in pictures if name.startswith(f"{base}/")]) for base in bases]
    beside = [name for name in pictures if name.partition("/")[0] not in bases]
    return Listing(tuple(parts), (*_left(place, others), Left(f"beside the folders {' and '.join(bases)}", beside)))


def _part(place: Place, base: str, names: Sequence[str]) -> Part:
    if not names:
        packed = next((name for name in place.names if ending(name) == ".zip"), "")
        hint = f"It holds {packed}: give the archive itself, data.root={place.said(packed)}." if packed else ""
        hint = hint or belonging(place.names, "folder")
        raise UserError(f"{place.said(base)} holds no pictures, of any type that is read: {_types()}. {hint}".strip())
    return Part(base, names)


def _types() -> str:
    """The endings of pictures, the usual ones first."""
    usual = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
    return f"{', '.join(name for name in usual if name in endings())} and {len(endings() - set(usual))} others"


def _pictures(place: Place, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the names that are pictures by their ending, or where that says nothing by their content; the others."""
    pictures, others = list[str](), list[str]()
    known = endings()
    for name in names:
        is_picture = ending(name) in known or (not has_other_type(name) and _looks_like_picture(place, name))
        (pictures if is_picture else others).append(name)
    return pictures, others


def _looks_like_picture(place: Place, name: str) -> bool:
    try:
        return begins_as_picture(place.read(name, HEAD))
    except (OSError, ValueError, UserError):  # it is named with the other files that are not read
        return False


def _left(place: Place, others: Sequence[str]) -> tuple[Left, ...]:
    return Left("", others), Left("hidden, or of the system", place.hidden, expected=True)
