"""Decoded sets that are kept for the next time, in the user's cache folder.

An array lies in NAME.npy, and NAME.json says what it was made of and its SHA-256. Both are written aside and renamed,
the second one last. What is damaged, or was made of other files, is told of and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.core.packages import extra

Array = np.ndarray[Any, np.dtype[np.uint8]]

LIMIT = 8 << 30  # bytes of all that is kept; what was not used for longest is removed
LEAST = 2000  # pictures of a set that is worth keeping


def digest(*parts: object) -> str:
    """A short name for plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def recalled(
    title: str, name: str, made_of: str, make: Callable[[], tuple[Array, dict[str, Any]]]
) -> tuple[Array, dict[str, Any]]:
    """What `make` gives, an array and plain values; from the cache where that has it, and else kept there.

    name: of the set and how it is decoded; made_of: a digest of its files. A kept array is mapped from the disk, so
    that processes share it. Warns where what is kept is damaged, stale, or cannot be written.
    """
    with extra("data"):
        import pooch

    place = Path(pooch.os_cache("sde_diffusion")) / "decoded" / name
    found = _read(title, place, made_of)
    if found is not None:
        return found
    array, about = make()
    if array.nbytes <= LIMIT:
        try:
            _write(place, made_of, array, about)
            _limit(place)
        except OSError as error:
            warnings.warn(
                f"{title}: the decoded pictures cannot be kept in {place.parent} ({error.strerror}); with "
                "data.cache=False nothing is",
                stacklevel=4,
            )
    return array, about


def _read(title: str, place: Path, made_of: str) -> tuple[Array, dict[str, Any]] | None:
    try:
        told = json.loads(place.with_suffix(".json").read_bytes())
    except OSError:  # not there, or in a place that cannot be read or written
        return None
    except ValueError:
        told = {}
    if told and told.get("made_of") != made_of:
        warnings.warn(f"{title}: its files have changed since they were decoded: they are decoded again", stacklevel=5)
        return None
    try:
        # Copied where it is written to: a tensor of what may not be written to would be undefined.
        array = np.load(place.with_suffix(".npy"), mmap_mode="c", allow_pickle=False)
        if hashlib.sha256(array.data).hexdigest() == told["sha256"]:
            os.utime(place.with_suffix(".npy"))
            return array, told["about"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    warnings.warn(f"{place}.npy is damaged: the pictures of {title} are decoded again", stacklevel=5)
    return None


def _write(place: Path, made_of: str, array: Array, about: dict[str, Any]) -> None:
    told = {"made_of": made_of, "sha256": hashlib.sha256(array.data).hexdigest(), "about": about}
    place.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".npy", ".json"):
        aside = place.with_name(f".{place.name}{suffix}.{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                if suffix == ".npy":
                    np.save(file, array)
                else:
                    file.write(json.dumps(told).encode())
            os.replace(aside, place.with_suffix(suffix))
        finally:
            aside.unlink(missing_ok=True)


def _limit(kept: Path) -> None:
    """Remove what was not used for longest until the rest is within the limit; never what was kept just now."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in kept.parent.glob("*.npy"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total > LIMIT and path.stem != kept.name:
            with suppress(FileNotFoundError):
                path.with_suffix(".json").unlink()
                path.unlink()
            total -= size
