"""The features of the real samples, which are computed once and kept."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from sde_diffusion.metrics.extraction import Extractor, Features
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.records import digest


def reference(extractor: Extractor, samples: np.ndarray, cache: Path, title: str) -> Features:
    """The features of real samples, from the cache folder or computed now.

    The file's name depends on the samples, the network and what it does to them, so that it is never another's. title:
    how a warning that the file is damaged, and the features computed again, names the samples.
    """
    of_what = {
        "samples": digest(samples.tobytes()),
        "shape": samples.shape,
        "dtype": str(samples.dtype),
        "network": extractor.name,
        "weights": extractor.digest,
        "preprocessing": extractor.preprocessing,
    }
    path = cache / f"reference-{digest(of_what)}.npz"
    found = _read(path, (len(samples), extractor.dims), title)
    if found is None:
        found = extractor(samples)
        _write(path, found)
    return found


def _write(path: Path, features: Features) -> None:
    arrays = {"values": features.values.numpy()}
    if features.logits is not None:
        arrays["logits"] = features.logits.numpy()
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    write_aside(path, file.getvalue())


def _read(path: Path, shape: tuple[int, int], title: str) -> Features | None:
    """None where there is no file, or, with a warning, none that is sound; the archive has checksums."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if found["values"].shape == shape:
            return Features(found["values"], found.get("logits"))
        wrong: object = f"it holds features {list(found['values'].shape)} and not {list(shape)}"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        wrong = error
    warnings.warn(f"{path} is damaged and the features of {title} are computed again: {wrong}", stacklevel=3)
    return None
