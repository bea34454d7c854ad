"""A zip archive of pictures, read in place: nothing is extracted, and nothing unpacks to more than it declares."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.places import in_order, passed_over, stamps

MOST_BYTES = 256 << 20  # of one picture, unpacked
MOST_RATIO = 1000  # unpacked to packed; deflate itself ends at 1032, which pictures never reach

MEMBER = np.dtype([("start", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("deflated", "?")])
SLACK = 4096  # bytes that are enough for a block's table of codes, which comes before its content
HEADER = struct.Struct("<4s22xHH")  # of a member: its signature, and the lengths of its name and of what follows that


@dataclass(frozen=True)
class Archive:
    """A zip archive as a folder. Raises UserError for one that is damaged, encrypted, or made to do harm.

    base: the folder that all members are in, where it is one, as in most archives of a folder; names begin below it.
    """

    root: Path
    names: Sequence[str]
    folders: Sequence[str]
    hidden: Sequence[str]
    base: str
    members: Mapping[str, zipfile.ZipInfo]

    @classmethod
    def at(cls, root: Path) -> Archive:
        """The archive in a file."""
        try:
            with zipfile.ZipFile(root) as file:
                members = file.infolist()
        # NotImplementedError: zip's own versions; ValueError and struct.error: numbers that make no sense.
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            hint = " choose data.dataset=webdataset" if root.suffix == ".tar" else " pack it as .zip, or make it anew"
            raise UserError(f"{root} is not a readable zip archive ({error});{hint}.") from error
        for info in members:
            if wrong := _misplaced(info):
                raise UserError(f"{root} is refused: its member {info.orig_filename!r} {wrong}.")
        over = {info.filename: _passed_over(info.filename) for info in members}
        names = [name for name in over if not over[name]]
        tops = {name.partition("/")[0] for name in names}
        inside = len(tops) == 1 and "/" in names[0] and {top.lower() for top in tops} != {"train"}
        base = f"{tops.pop()}/" if inside else ""
        below = [name.removeprefix(base) for name in names]
        folders = {above for name in below for above in _above(name)}
        return cls(
            root,
            in_order([name for name in below if name and not name.endswith("/")]),
            in_order(list(folders)),
            in_order(list(set(over.values()) - {""})),
            base,
            {info.filename.removeprefix(base): info for info in members},
        )

    @property
    def title(self) -> str:
        return self.root.stem

    def said(self, name: str) -> str:
        return str(self.root / self.base / name)

    def read(self, name: str, most: int | None = None) -> bytes:
        return self.pictures([name]).read(0, most)

    def size(self, name: str) -> int:
        return self.members[name].file_size

    def pictures(self, names: Sequence[str]) -> Members:
        """Those of these names. Raises UserError for one that is packed in a way that is not read."""
        members = [self.members[name] for name in names]
        for info in members:
            if wrong := _unread(info):
                raise UserError(f"{self.root} is refused: its member {info.orig_filename!r} {wrong}.")
        return Members(self.root, [info.filename for info in members], members)


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

    def fingerprint(self) -> tuple[str, str]:
        return str(self.root.resolve()), stamps([self.root])

    def open(self, index: int) -> io.BytesIO:
        """Its bytes, unpacked. Raises ValueError where they are not those that the archive declares."""
        return io.BytesIO(self.read(index))

    def read(self, index: int, most: int | None = None) -> bytes:
        """The bytes of a member, or the first `most` of them, which are not checked. Raises ValueError as `open`."""
        start, packed, size, crc, deflated = self.members[index].tolist()
        with self.root.open("rb") as file:
            file.seek(start)
            signature, name, extra = HEADER.unpack(file.read(HEADER.size))
            if signature != b"PK\x03\x04":
                raise ValueError("the archive is damaged: there is no member where one is declared")
            file.seek(name + extra, os.SEEK_CUR)
            content = file.read(packed if most is None else min(packed, 2 * most + SLACK))
        limit = size + 1 if most is None else most
        if deflated:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, limit)
        if most is not None:
            return content[:most]
        if len(content) != size:
            more = "more" if len(content) > size else "less"
            raise ValueError(f"it unpacks to {more} than the {size:,} bytes that the archive declares")
        if zlib.crc32(content) != crc:
            raise ValueError("its checksum is not the one that the archive declares")
        return content


def _passed_over(name: str) -> str:
    """The outermost of a member and its folders that is passed over; "" for none."""
    parts = PurePosixPath(name).parts
    first = next((number for number, part in enumerate(parts) if passed_over(part)), len(parts))
    inside = "/" if first + 1 < len(parts) or name.endswith("/") else ""
    return "/".join(parts[: first + 1]) + inside if first < len(parts) else ""


def _above(name: str) -> Iterator[str]:
    """The folders that a member is in; a folder's own name ends in "/"."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _misplaced(info: zipfile.ZipInfo) -> str | None:
    """What speaks against the name of a member, in words."""
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "has a path that leads out of the archive"
    if "\\" in name or "\0" in name:
        return "has a backslash or a null character in its name"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    return None


def _unread(info: zipfile.ZipInfo) -> str | None:
    """What speaks against reading a member, in words."""
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed by another method than deflate; pack the archive anew"
    if max(info.file_size, info.compress_size) > MOST_BYTES:
        return f"declares {info.file_size:,} bytes, and a picture may have {MOST_BYTES:,}"
    if info.file_size > MOST_RATIO * info.compress_size:
        return f"declares {info.file_size:,} bytes in {info.compress_size:,}, as decompression bombs do"
    return None
