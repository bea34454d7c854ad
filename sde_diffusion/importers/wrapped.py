"""State dicts inside other dictionaries, and the prefixes that wrappers of networks leave on their keys.

torch.compile adds "_orig_mod", at any depth; DataParallel and DistributedDataParallel add "module". A file may hold the
trained weights, their average, or both, each under a name of its own: {"model": ..., "ema": ...}, {"state_dict": ...}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.core.errors import UserError

Weights = dict[str, Tensor]

_AVERAGE = re.compile(r"(^|_)(ema|avg|averaged?|shadow)(_|$)")
_OTHERS = re.compile(r"^(opt|optim|optimi[sz]er|lr|scheduler|scaler|amp)(_|s?$)|_optimi[sz]er$")
"""Names of averages, and of what is no network."""


@dataclass(frozen=True, eq=False)
class States:
    """The weights of a file.

    averaged    whether `weights` are an average themselves, by their name
    averages    the averaged ones beside them, where the file has both
    """

    weights: Weights
    averaged: bool = False
    averages: Weights | None = None


def states(found: Any, path: Path, source: str) -> States:
    """The weights in what a file holds. Raises UserError where there are none, or where it does not say which."""
    places = dict(_inside(found, ()))
    averages = {place: value for place, value in places.items() if any(map(_AVERAGE.search, place))}
    trained = {place: value for place, value in places.items() if place not in averages}
    if not places:
        raise UserError(f"{path} holds no state dict, as files of {source} do")
    if len(trained) > 1 or len(averages) > 1:
        names = ", ".join(".".join(place) for place in places)
        raise UserError(
            f"{path} holds several state dicts: {names}; save the one that is meant alone, by "
            "torch.save({'model': weights}, FILE), with its average as 'ema' where there is one"
        )
    average = next(iter(averages.values()), None)
    if trained:
        return States(next(iter(trained.values())), averages=average)
    assert average is not None
    return States(average, averaged=True)


def _inside(found: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Weights]]:
    """The state dicts in nested dictionaries, by their place."""
    if not isinstance(found, Mapping) or "param_groups" in found:
        return
    if is_state(found):
        yield place, bare(found)
        return
    for name, value in found.items():
        if isinstance(name, str) and not _OTHERS.search(name):
            yield from _inside(value, (*place, name))


def is_state(found: Any) -> bool:
    """Whether this is a dictionary of tensors by name."""
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())
    )


def bare(weights: Mapping[str, Tensor]) -> Weights:
    """Weights without the prefixes of wrappers. Raises UserError where two of them would have one name then."""
    found: Weights = {}
    for key, value in weights.items():
        parts = [part for part in str(key).split(".") if part != "_orig_mod"]
        while len(parts) > 1 and parts[0] == "module":
            del parts[0]
        name = ".".join(parts)
        if name in found:
            raise UserError(f"the weights have {name!r} twice, with and without the prefix of a wrapper")
        found[name] = value
    return found
