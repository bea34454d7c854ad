"""Samples that were drawn before under the same name: those of another request are kept, under a name of their own.

Files that belong together, samples_<name>.json and what it is the manifest of, are given their new names one by one,
the manifest last. So after a kill in between the manifest still tells that there is something to keep.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.storage.files import flush_folder, write_aside, written


def former_of(manifest: Path) -> dict[str, Any] | None:
    """What a manifest says: {} where it cannot be read, None where there is none."""
    if not manifest.exists():
        return None
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def of_another(manifest: Path, request: str) -> bool:
    """Whether there are samples of another request than the one of that digest."""
    former = former_of(manifest)
    return former is not None and former.get("request") != request


def keep_former(manifest: Path, results: Sequence[Path], request: str, count: int) -> str:
    """Rename what `count` samples of a request would replace, unless they have all of it: what is said of it, or "".

    results: the files and folders beside the manifest.
    """
    former = former_of(manifest)
    if former is None or (former.get("request") == request and former.get("samples", 0) <= count):
        return ""
    with written(manifest):
        number = next(n for n in itertools.count(1) if _is_free(n, manifest, results))
        for path in results:
            if path.exists():
                os.replace(path, _kept(path, number))
        if files := former.get("files"):
            named = {path.name: _kept(path, number).name for path in results}
            files = {named.get(name, name): about for name, about in files.items()}
            write_aside(manifest, (json.dumps({**former, "files": files}, indent=2) + "\n").encode())
        os.replace(manifest, _kept(manifest, number))
        flush_folder(manifest.parent)
    what = f"{former['samples']:,} samples" if "samples" in former else "samples"
    return f"the {what} that were there are kept: {_kept(manifest, number).stem}.*"


def _kept(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem if path.suffix else path.name}_{number}{path.suffix}")


def _is_free(number: int, manifest: Path, results: Sequence[Path]) -> bool:
    """Whether a number is nobody's, or that of what a kill left renamed in part."""
    return not _kept(manifest, number).exists() and not any(
        path.exists() and _kept(path, number).exists() for path in results
    )
