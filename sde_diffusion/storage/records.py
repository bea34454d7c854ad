"""Rows of a long computation, kept one by one in a file that survives a kill.

The file holds a line of JSON for its protocol and one for each row, and is only ever appended to. Rows are flushed to
the disk before the next ones are computed. A kill can leave the last line torn, which is then cut off; whatever comes
before it is whole. Files of different protocols have different names, so that one never overwrites another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage.files import HoldsFile, locked


def digest(value: bytes | Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell one value from another (of SHA-256)."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of names, types, shapes and values, in whatever order they come."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        whole.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:12]


class Records(HoldsFile):
    """Rows by their "index", in a file of a protocol; to be used as a context, which locks the file.

    Raises UserError where another process has it locked, or it is not such a file.
    """

    def __init__(self, folder: Path, name: str, protocol: Mapping[str, Any]) -> None:
        self.protocol = json.loads(json.dumps(dict(protocol), default=str))
        self.path = folder / f"{name}-{digest(self.protocol)}.jsonl"
        self.rows: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Records:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            if not locked(self._file, self.path.parent):
                raise UserError(f"{self.path} is being written by another process")
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                index = int(row["index"]) if number else -1
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged in line {number + 1}; remove it to start again") from error
            if number:
                self.rows[index] = row
            elif row != self.protocol:
                raise UserError(f"{self.path} holds rows of another protocol; remove it to start again")
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write([self.protocol])

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, each with its "index", and flush them to the disk."""
        added = [dict(row) for row in rows]
        self._write(added)
        self.rows.update({int(row["index"]): row for row in added})
