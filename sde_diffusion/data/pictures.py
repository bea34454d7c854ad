"""Encoded pictures to pixels: opening, common shape, and the account of those that cannot be read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.formats import tried
from sde_diffusion.data.modes import MAX_PIXELS, Decoding, is_grey, left_in_file

if TYPE_CHECKING:
    from PIL import Image

NAMED = 5  # pictures named in a sentence
_OPENING = Lock()  # filters of warnings are those of all threads
FEW = 1000  # pictures to be read before the share of broken ones means anything

DEFAULT = Decoding()
ORIENTATION, SIDEWAYS = 0x0112, range(5, 9)  # EXIF's tag, and its values for a quarter turn

Failure = tuple[str, str]
"""The name of a picture that cannot be read, and why."""


class Unreadable(Exception):
    """A picture that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.failure: Failure = (name, reason)


class Pictures(Protocol):
    """Encoded pictures, by number. Copies of it in several processes must not disturb each other."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person knows the picture by."""

    def open(self, index: int) -> Path | IO[bytes]:
        """Where its bytes are. May raise OSError and ValueError."""

    def fingerprint(self) -> tuple[str, str]:
        """Where the pictures lie, and a digest of what tells their files from changed ones; "" where nobody knows."""


def decode(pictures: Pictures, index: int, least: int = 0, how: Decoding = DEFAULT) -> Image.Image:
    """One picture, upright, of mode "L" (grey) or "RGB". Raises Unreadable.

    least: a JPEG picture may be unpacked at a smaller size, whose shorter side has so many pixels; 0: it may not.
    """
    return decoded(pictures, index, least, how)[0]


def decoded(
    pictures: Pictures, index: int, least: int = 0, how: Decoding = DEFAULT
) -> tuple[Image.Image, tuple[str, ...]]:
    """The same, and what was done to it, in words as those of `Decoding.eight_bits`."""
    with extra("data"):
        from PIL import ImageOps

    with _opened(pictures, index, how.max_pixels) as file:
        left = left_in_file(file)
        if least:
            file.draft(None, (least, least))  # of all formats, JPEG alone can
        # Cameras store a turned picture as it was shot, with a note of how to turn it.
        image, done = how.eight_bits(ImageOps.exif_transpose(file))
        return image, (*left, *done)


def size_of(pictures: Pictures, index: int, how: Decoding = DEFAULT) -> tuple[int, int]:
    """(height, width) of one picture, upright, by its header. Raises Unreadable."""
    with _opened(pictures, index, how.max_pixels) as file:
        turned = file.getexif().get(ORIENTATION, 1) in SIDEWAYS
        return (file.width, file.height) if turned else (file.height, file.width)


def format_of(pictures: Pictures, index: int) -> str:
    """The format of one picture, such as "JPEG"; "" if it cannot be read."""
    try:
        with _opened(pictures, index) as file:
            return file.format or ""
    except Unreadable:
        return ""


def pixels(image: Image.Image, shape: Sequence[int], name: str) -> np.ndarray:
    """A picture as uint8 [C, H, W], grey if C = 1. Raises UserError, with its name, where it has another size."""
    channels, height, width = shape
    if image.size != (width, height):
        raise UserError(
            f"pictures differ in size (from {width}x{height} to {image.width}x{image.height} of {name}); "
            "set the image size."
        )
    mode = "L" if channels == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def common_shape(parts: Sequence[Pictures], cut: Cut, title: str, how: Decoding = DEFAULT) -> tuple[int, int, int]:
    """(C, H, W) of all pictures: C = 1 if every one is grey, else 3; the size is that of the first, or of the cut.

    Looks for a picture in colour here and there, of grey modes at the header only, and stops at the first one.
    Raises UserError where no picture can be read.
    """
    failed = list[Failure]()
    for part, index in ((pictures, index) for pictures in parts for index in range(len(pictures))):
        try:
            first = cut.fitted(decode(part, index, how=how))
        except Unreadable as error:
            failed.append(error.failure)
            continue
        grey = how.channels == 1 or (not how.channels and all(_are_grey(pictures, how) for pictures in parts))
        return 1 if grey else 3, first.height, first.width
    raise UserError(f"{title}: no picture can be read: {listed(failed)}.")


def _are_grey(pictures: Pictures, how: Decoding) -> bool:
    """Whether every picture that can be read is grey."""
    for index in spread(len(pictures)):
        try:
            with _opened(pictures, index, how.max_pixels) as file:
                known = how.is_grey_by_mode(file)
            if not known and not is_grey(decode(pictures, index, how=how)):
                return False
        except Unreadable:
            continue
    return True


def spread(count: int) -> Iterator[int]:
    """0 .. count - 1, each once, so that the first few lie everywhere: what is alike often lies together."""
    step = max(1, round(0.618 * count))
    while math.gcd(step, count) > 1:
        step += 1
    return (number * step % count for number in range(count))


class Notes:
    """What was done to the pictures of a set as they were decoded: each is counted once, however often it is read."""

    def __init__(self, size: int) -> None:
        self.seen, self.found = np.zeros(size, bool), dict[str, np.ndarray]()

    def mark(self, index: int | np.ndarray, notes: Sequence[str]) -> None:
        """Enter what was done to a picture, or to several."""
        for note in notes:
            self.found.setdefault(note, np.zeros_like(self.seen))[index] = True

    def enter(self, seen: np.ndarray, rows: Mapping[str, Sequence[int]]) -> None:
        """Enter the pictures that were looked at, and those of them to which something was done, as `rows` has them."""
        self.seen[seen] = True
        for note, marked in rows.items():
            self.mark(np.array(marked, int), [note])

    def rows(self) -> dict[str, list[int]]:
        """The numbers of the pictures, by what was done to them."""
        return {note: np.flatnonzero(marks).tolist() for note, marks in sorted(self.found.items())}

    def counts(self) -> dict[str, int]:
        """The number of pictures by what was done to them."""
        return {note: len(rows) for note, rows in self.rows().items()}


class Tally:
    """Counts the pictures that cannot be read, names each of them once, and gives up when they are too many.

    limit: the share of those read that may be broken. least: until so many are read, the share is taken of this number.
    good: how many were read before. state: of the tally that counted them, with which this one goes on.
    """

    def __init__(
        self, title: str, limit: float, least: int = 0, good: int = 0, state: Mapping[str, Any] | None = None
    ) -> None:
        self.title, self.limit, self.least = title, limit, least
        self.failed: int = (state or {}).get("failed", 0)
        self.names: dict[str, str] = dict((state or {}).get("broken", {}))
        self.read = good + self.failed

    def state(self) -> dict[str, Any]:
        """How often a picture could not be read, and which ones; {} while there is none."""
        return {"failed": self.failed, "broken": dict(self.names)} if self.failed else {}

    def add(self, read: int, failures: Sequence[Failure], fate: str) -> None:
        """Enter `read` pictures, of which some failed; `fate`: what became of these.

        Warns of new names. Raises UserError where more than the limit have failed.
        """
        self.read, self.failed = self.read + read, self.failed + len(failures)
        new = [failure for failure in dict(failures).items() if failure[0] not in self.names]
        self.names.update(new)
        if self.failed > self.limit * max(self.read, self.least):
            raise UserError(
                f"{self.title}: {self.failed:,} of {self.read:,} pictures cannot be read, and no more than a share of "
                f"{self.limit:g} may be broken (data.corrupt_limit); repair or remove "
                f"{listed(list(self.names.items()))}."
            )
        if new:
            few = f"{self.failed:,} of {self.read:,} pictures cannot be read and are {fate}"
            found = "" if len(new) == self.failed else f"; {len(new):,} more"
            warnings.warn(f"{self.title}: {few}{found}: {listed(new)}.", stacklevel=2)


@contextmanager
def _opened(pictures: Pictures, index: int, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture with its header read, and whatever goes wrong with it as Unreadable."""
    with extra("data"):
        from PIL import Image, UnidentifiedImageError

    name = pictures.name(index)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow has no other way to be told
    try:
        with _OPENING, warnings.catch_warnings():
            # Pillow warns of half the pixels at which it stops, which harm nothing.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(pictures.open(index), formats=tried(name))
        with file:
            if file.width * file.height > max_pixels:
                raise Unreadable(
                    name,
                    f"it has {file.width * file.height:,} pixels, and data.max_pixels lets {max_pixels:,} be read",
                )
            yield file
    except (Unreadable, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(name, f"it has more than the {max_pixels:,} pixels of data.max_pixels; raise that") from error
    except UnidentifiedImageError as error:
        raise Unreadable(name, "it is no picture of a known format") from error
    # What Pillow raises for a broken file depends on the format, and on where it is broken.
    except Exception as error:
        raise Unreadable(name, str(error) or type(error).__name__) from error


def listed(failures: Sequence[Failure]) -> str:
    """The first of these pictures with their reasons, and the number of the others."""
    named = ", ".join(f"{name} ({reason})" for name, reason in failures[:NAMED])
    return named + (f" and {len(failures) - NAMED:,} more" if len(failures) > NAMED else "")
