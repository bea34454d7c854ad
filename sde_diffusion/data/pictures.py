"""Encoded pictures to pixels: opening, common shape, and the account of those that cannot be read."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from PIL import Image

NAMED = 5  # pictures named in a sentence
_OPENING = Lock()  # filters of warnings are those of all threads
FEW = 1000  # pictures to be read before the share of broken ones means anything

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


def decode(pictures: Pictures, index: int, least: int = 0) -> Image.Image:
    """One picture, upright, of mode "L" (grey) or "RGB". Raises Unreadable, also for more than 8 bits a channel.

    least: a JPEG picture may be unpacked at a smaller size, whose shorter side has so many pixels; 0: it may not.
    """
    with extra("data"):
        from PIL import ImageOps

    with _opened(pictures, index) as file:
        if least:
            file.draft(None, (least, least))  # of all formats, JPEG alone can
        # Cameras store a turned picture as it was shot, with a note of how to turn it.
        image: Image.Image = ImageOps.exif_transpose(file)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")


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


def common_shape(parts: Sequence[Pictures], cut: Cut, title: str) -> tuple[int, int, int]:
    """(C, H, W) of all pictures: C = 1 if every one is grey, else 3; the size is that of the first, or of the cut.

    Reads on until it meets a picture in colour, and of grey ones their headers only.
    Raises UserError where no picture can be read.
    """
    first, failed = None, []
    for pictures in parts:
        for index in range(len(pictures)):
            try:
                if first is None:
                    first = cut.fitted(decode(pictures, index))
                    grey = first.mode == "L"
                else:
                    with _opened(pictures, index) as file:
                        grey = file.mode == "L"
            except Unreadable as error:
                failed.append(error.failure)
                continue
            if not grey:
                return 3, first.height, first.width
    if first is None:
        raise UserError(f"{title}: no picture can be read: {listed(failed)}.")
    return 1, first.height, first.width


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
def _opened(pictures: Pictures, index: int) -> Iterator[Image.Image]:
    """The picture with its header read, and whatever goes wrong with it as Unreadable."""
    with extra("data"):
        from PIL import Image, UnidentifiedImageError

    name = pictures.name(index)
    try:
        with _OPENING, warnings.catch_warnings():
            # Small files that unpack to billions of pixels; Pillow itself stops at twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(pictures.open(index), formats=tried(name))
        with file:
            if file.mode.startswith(("I", "F")):
                raise Unreadable(name, "it has more than 8 bits a channel; convert it to 8 bits")
            yield file
    except (Unreadable, UserError):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(name, "it is no picture of a known format") from error
    # What Pillow raises for a broken file depends on the format, and on where it is broken.
    except Exception as error:
        raise Unreadable(name, str(error) or type(error).__name__) from error


def listed(failures: Sequence[Failure]) -> str:
    """The first of these pictures with their reasons, and the number of the others."""
    named = ", ".join(f"{name} ({reason})" for name, reason in failures[:NAMED])
    return named + (f" and {len(failures) - NAMED:,} more" if len(failures) > NAMED else "")
