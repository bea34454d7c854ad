"""Which files are pictures: the raster formats that Pillow decodes itself, by their endings and first bytes."""

from __future__ import annotations

from functools import cache
from mimetypes import MimeTypes
from pathlib import PurePosixPath

from sde_diffusion.core.packages import extra

REFUSED = frozenset({"EPS", "MPEG", "WMF"})
"""Formats that Pillow names and does not decode to pixels itself: EPS starts Ghostscript, MPEG has a header only."""
SIGNED = ("GIF", "JPEG", "JPEG2000", "PNG", "QOI", "WEBP")
"""Formats whose first bytes leave no doubt. Not TIFF, as raw files of cameras are; not AVIF, in HEIC's container."""
HEAD = 16  # bytes that Pillow recognises a format by

_KNOWN = MimeTypes()  # the table that comes with Python, without those of the system


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats that are read, in Pillow's order.

    Not those that Pillow leaves to others (stubs), nor those of `REFUSED`.
    """
    with extra("data"):
        from PIL import Image, ImageFile

    Image.init()
    stubs = {
        name
        for name, (opener, _) in Image.OPEN.items()
        if isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
    }
    return tuple(name for name in Image.ID if name not in REFUSED | stubs)


@cache
def endings() -> frozenset[str]:
    """The endings of the formats that are read, in lower case: ".jpg", ".png", ..."""
    with extra("data"):
        from PIL import Image

    own = set(formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in own)


@cache
def marked() -> tuple[str, ...]:
    """The formats that a file is recognised as by its first bytes. The others are tried where its ending says so."""
    with extra("data"):
        from PIL import Image

    return tuple(name for name in formats() if Image.OPEN[name][1] is not None)


def tried(name: str) -> tuple[str, ...]:
    """The formats that a file of this name is opened as: those with a mark, and that of its ending."""
    with extra("data"):
        from PIL import Image

    own = Image.registered_extensions().get(ending(name), "")
    return (*marked(), own) if own in formats() and own not in marked() else marked()


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; "" without one."""
    return PurePosixPath(name).suffix.lower()


def has_other_type(name: str) -> bool:
    """Whether a name's ending is known to be that of something else than a picture, such as ".txt" or ".mp4"."""
    kind, packing = _KNOWN.guess_type(name)
    return packing is not None or (kind is not None and not kind.startswith("image/"))


def begins_as_picture(head: bytes) -> bool:
    """Whether a file whose ending says nothing begins as a picture of one of the formats `SIGNED`."""
    with extra("data"):
        from PIL import Image

    formats()
    openers = (Image.OPEN[name][1] for name in SIGNED if name in Image.OPEN)
    # A text in place of True says that Pillow was built without the format.
    return any(accept is not None and accept(head) is True for accept in openers)
