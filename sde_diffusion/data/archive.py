"""A zip archive of pictures, read in place: nothing is extracted, and nothing unpacks to more than it declares."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sde_diffusion.core.errors import UserError

MOST_BYTES = 256 << 20  # of one picture, unpacked
MOST_RATIO = 1000  # unpacked to packed; deflate itself ends at 1032, which pictures never reach

MEMBER = np.dtype([("start", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("deflated", "?")])
HEADER = struct.Struct("<4s22xHH")  # of a member: its signature, and the lengths of its name and of what follows that


@dataclass(frozen=True)
class Archive:
    """A zip archive as a folder. Raises UserError for one that is damaged, encrypted, or made to do harm.

    base: the folder that all members are in, where it is one, as in most archives of a folder.
    """

    root: Path
    listing: Mapping[str, Sequence[str]]
    members: Mapping[str, zipfile.ZipInfo]
    base: str

    @classmethod
    def at(cls, root: Path, suffixes: Collection[str]) -> Archive:
        """The archive in a file, of which the members with these suffixes are read."""
        try:
            with zipfile.ZipFile(root) as file:
                members = [info for info in file.infolist() if not info.is_dir()]
        # NotImplementedError: zip's own versions; ValueError and struct.error: numbers that make no sense.
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise UserError(f"{root} is not a readable zip archive ({error}).") from error
        listing: dict[str, list[str]] = {"": []}
        for info in members:
            wrong = _wrong(info, PurePosixPath(info.filename).suffix.lower() in suffixes)
            if wrong:
                raise UserError(f"{root} is refused: its member {info.orig_filename!r} {wrong}.")
            folder, _, name = info.filename.rpartition("/")
            for above in (folder, *map(str, PurePosixPath(folder).parents)):
                listing.setdefault("" if above == "." else above, [])
            listing[folder].append(name)
        tops = {path.partition("/")[0] for path in listing} - {"", "__MACOSX"}
        base = tops.pop() if len(tops) == 1 and not listing[""] else ""
        return cls(root, listing, {info.filename: info for info in members}, "" if base == "train" else base)

    @property
    def title(self) -> str:
        return self.root.stem

    def said(self, path: str) -> str:
        """A path in the archive as a person knows it."""
        return str(self.root / path)

    def pictures(self, names: Sequence[str]) -> Members:
        return Members(self.root, names, [self.members[name] for name in names])


class Members:
    """Pictures in an archive, which is opened anew for each, so that processes never share a place in the file."""

    def __init__(self, root: Path, names: Sequence[str], members: Sequence[zipfile.ZipInfo]) -> None:
        self.root, self.names = root, np.array([os.fsencode(name) for name in names])
        rows = [
            (
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type == zipfile.ZIP_DEFLATED,
            )
            for info in members
        ]
        self.members = np.array(rows, MEMBER)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.names[index]))

    def open(self, index: int) -> io.BytesIO:
        """Its bytes, unpacked. Raises ValueError where they are not those that the archive declares."""
        start, packed, size, crc, deflated = self.members[index].tolist()
        with self.root.open("rb") as file:
            file.seek(start)
            signature, name, extra = HEADER.unpack(file.read(HEADER.size))
            if signature != b"PK\x03\x04":
                raise ValueError("the archive is damaged: there is no member where one is declared")
            file.seek(name + extra, os.SEEK_CUR)
            content = file.read(packed)
        if deflated:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        if len(content) != size:
            more = "more" if len(content) > size else "less"
            raise ValueError(f"it unpacks to {more} than the {size:,} bytes that the archive declares")
        if zlib.crc32(content) != crc:
            raise ValueError("its checksum is not the one that the archive declares")
        return io.BytesIO(content)


def _wrong(info: zipfile.ZipInfo, read: bool) -> str | None:
    """What speaks against a member, in words; its size and packing only where it will be read."""
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "has a path that leads out of the archive"
    if "\\" in name or "\0" in name:
        return "has a backslash or a null character in its name"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if not read:
        return None
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed by another method than deflate; pack the archive anew"
    if max(info.file_size, info.compress_size) > MOST_BYTES:
        return f"declares {info.file_size:,} bytes, and a picture may have {MOST_BYTES:,}"
    if info.file_size > MOST_RATIO * info.compress_size:
        return f"declares {info.file_size:,} bytes in {info.compress_size:,}, as decompression bombs do"
    return None
