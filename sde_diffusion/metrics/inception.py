"""The Inception network that most published Frechet distances were measured with, by torch-fidelity.

Its weights are those of the graph of December 2015, converted; the features are the 2048 of its last pooling, and the
logits those without a bias, of 1008 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.metrics.extraction import Features, channels_first, in_batches
from sde_diffusion.metrics.packages import contained, fidelity
from sde_diffusion.storage.records import tensor_digest

# The same file under the names that torch-fidelity and pytorch-fid give it; the number begins its SHA-256.
SHA256 = "6726825d"
FILES = tuple(f"{kind}inception-2015-12-05-{SHA256}.pth" for kind in ("pt_", "weights-"))
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILES[1]}"
OUTPUTS = ("2048", "logits_unbiased")


@dataclass(frozen=True, eq=False)
class Inception:
    """The network with its weights, as a feature network."""

    network: Any  # torch-fidelity's, which has no types
    digest: str
    device: torch.device

    name: ClassVar[str] = "inception"
    preprocessing: ClassVar[str] = (
        "grey pictures repeated to three channels; resized to 299 x 299 as TensorFlow 1 does it, bilinearly, not "
        "smoothed; (x - 128) / 128"
    )
    dims: ClassVar[int] = 2048

    def __call__(self, samples: np.ndarray) -> Features:
        pictures = channels_first(samples)
        if pictures.shape[1] not in (1, 3):
            raise UserError(f"the Inception network takes grey or RGB pictures, not {pictures.shape[1]} channels")
        return in_batches(lambda part: self.network(part.expand(-1, 3, -1, -1).to(self.device)), pictures, batch=64)


def inception(weights: Path | None = None, device: torch.device | str = "cpu") -> Inception:
    """The network with the weights of a file, or of that in torch's hub folder, where it is downloaded to if need be.

    Raises UserError where torch-fidelity is not installed, or the file is missing or is not what it should be.
    """
    try:
        network = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            f"the features 'inception' need torch-fidelity ({error}): pip install \"sde-diffusion[fid]\", or choose "
            "'classifier' or 'values'"
        ) from error
    path = weights or stored() or _downloaded()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        with contained(0):  # its layers are drawn before they are loaded
            found = network("inception-v3-compat", list(OUTPUTS), feature_extractor_weights_path=str(path))
    except Exception as error:  # of pickles, zip archives, names, shapes: whatever is wrong with it
        raise UserError(f"{path} does not hold the Inception network's weights: {_first_line(error)}") from error
    return Inception(found.to(device), tensor_digest(tensors), torch.device(device))


def stored() -> Path | None:
    """The weights in torch's hub folder."""
    return next((path for path in _places() if path.is_file()), None)


def available() -> bool:
    """Whether the network can be used without a download."""
    try:
        fidelity("feature_extractor_inceptionv3")
    except ImportError:
        return False
    return stored() is not None


def _places() -> Sequence[Path]:
    return [Path(torch.hub.get_dir()) / "checkpoints" / name for name in FILES]


def _downloaded() -> Path:
    place = _places()[1]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(place), hash_prefix=SHA256)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the Inception network's weights could not be downloaded ({_first_line(error)}): put {FILES[0]} or "
            f"{FILES[1]} into {place.parent}, or give its path; the features 'classifier' and 'values' need none"
        ) from error
    return place


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
