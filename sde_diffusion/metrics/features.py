"""The feature networks by name. A new one is a class that has what `Extractor` says, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sde_diffusion.core.errors import choose
from sde_diffusion.data.dataset import Source
from sde_diffusion.metrics.classifier import classifier
from sde_diffusion.metrics.extraction import Extractor, Features, Values, as_samples, sample_shape
from sde_diffusion.metrics.inception import available, inception

__all__ = ["EXTRACTORS", "Extractor", "Features", "as_samples", "extractor"]

Maker = Callable[[Source, Path, torch.device], Extractor]
"""(the training split, the cache folder, where to compute) -> a feature network."""

EXTRACTORS: dict[str, Maker] = {
    "classifier": classifier,
    "inception": lambda _source, _cache, device: inception(None, device),
    "values": lambda source, _cache, _device: Values(sample_shape(source)),
}


def _usual(source: Source, cache: Path, device: torch.device) -> Extractor:
    """What suits a set best: vectors as they are; pictures by their classes, else as photographs, where that can be."""
    if source.levels is None:
        name = "values"
    elif source.classes:
        name = "classifier"
    else:
        name = "inception" if available() else "values"
    return EXTRACTORS[name](source, cache, device)


def extractor(name: str, dataset: Source, cache: Path, device: torch.device | str) -> Extractor:
    """The feature network of that name, or for "auto" the one that suits the set.

    dataset: the training split. cache: the folder of what is worth keeping. Raises UserError for an unknown name, and
    for what a set or an installation does not have.
    """
    return choose("feature network", name, {**EXTRACTORS, "auto": _usual})(dataset, cache, torch.device(device))
