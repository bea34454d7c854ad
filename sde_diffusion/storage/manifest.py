"""Folders of safetensors files with a manifest, in which every damaged byte is found and named.

manifest.json says of each file its size and SHA-256, manifest.sha256 has the sums of all of them and of the manifest
as `sha256sum -c` reads them, and its last line is the sum of those above, which tells a damaged manifest from a damaged
line of sums. No file is ever loaded in a way that runs code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage.files import flush_folder, write_flushed

FORMAT = 3
MANIFEST, CHECKSUMS = "manifest.json", "manifest.sha256"
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a part of a checkpoint may be called: a plain file name, of no other folder."""
SUFFIX = ".safetensors"


class Damaged(UserError):
    """A checkpoint that is not whole; the sentence begins with the file."""


# --- writing --------------------------------------------------------------------------------------------------


def write_parts(aside: Path, manifest: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a new folder: a file for each part's tensors, and a manifest of these values that describes the files."""
    aside.mkdir()
    files = {}
    for name, tensors in parts.items():
        data = to_safetensors(packed(tensors), metadata={"format": "pt"})
        write_flushed(aside / name, data)
        files[name] = _described(data)
    content = (json.dumps({"format": FORMAT, **manifest, "files": files}, indent=2) + "\n").encode()
    write_flushed(aside / MANIFEST, content)
    write_flushed(aside / CHECKSUMS, _checksums(content, files))
    flush_folder(aside)


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each contiguous and in memory of its own, as safetensors needs them."""
    found: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        found[name] = value.clone() if memory in taken else value
        taken.add(memory)
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _described(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"sha256": _sha256(data), "bytes": len(data)}


def _checksums(manifest: bytes, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The lines of `sha256sum`, and as a comment their own sum, to tell a damaged manifest from a damaged line."""
    sums = {MANIFEST: _sha256(manifest), **{name: entry["sha256"] for name, entry in files.items()}}
    lines = "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()
    return lines + f"# {_sha256(lines)}\n".encode()


# --- reading --------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, verified. Raises Damaged, and UserError for a format that is not known here."""
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; formats 1 and 2 are no longer read, and one of format {FORMAT} is a folder"
        )
    path = folder / MANIFEST
    content, listed = _bytes(path), _bytes(folder / CHECKSUMS)
    lines, _, seal = listed.rpartition(b"# ")
    if seal != f"{_sha256(lines)}\n".encode():
        raise Damaged(f"{folder / CHECKSUMS} is damaged: its last line is not the sum of the others")
    if not lines.startswith(f"{_sha256(content)}  {MANIFEST}\n".encode()):
        raise Damaged(f"{path} is damaged: its sum is not that in {CHECKSUMS}")
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise UserError(f"{path} is of format {found['format']!r}; this release reads format {FORMAT}")
        for name in dict(found["files"]):
            if not PART.fullmatch(name):
                raise Damaged(f"{path} names the file {name!r}, which is not one of its folder")
    except (LookupError, TypeError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"{path} is no manifest of a checkpoint ({first_line(error)})") from error
    return dict(found)


def contents(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The files that a manifest names, verified one after another. Raises Damaged."""
    for name, entry in manifest["files"].items():
        data = _bytes(folder / name)
        if _described(data) != entry:
            raise Damaged(
                f"{folder / name} is damaged: its {len(data):,} bytes are not those that {MANIFEST} describes"
            )
        yield name, data


def tensors_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors of all files that a manifest names, by the name of their part. Raises Damaged."""
    tensors = {}
    for name, data in contents(folder, manifest):
        try:
            # In one order everywhere: the reader's is another in each process.
            tensors[name.removesuffix(SUFFIX)] = dict(sorted(from_safetensors(data).items()))
        # What is no safetensors file may fail anywhere in the reader: SafetensorError, KeyError, AssertionError, ...
        except Exception as error:
            raise Damaged(f"{folder / name} is no file of safetensors ({first_line(error)})") from error
    return tensors


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
