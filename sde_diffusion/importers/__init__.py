"""Networks of other code bases, with the numbers that they give at home, and the way back to diffusers.

A source is a module with a reader (path, configuration) -> Foreign and a table of published configurations: one file
and one line in SOURCES. No file is read in a way that could run code in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.importers import ddim, diffusers, edm, lucidrains, openai, score_sde
from sde_diffusion.importers.export import export_diffusers
from sde_diffusion.importers.foreign import Foreign, Settings, read_settings
from sde_diffusion.importers.rules import converted
from sde_diffusion.storage.checkpoint import Checkpoint, checkpoint_files, save_checkpoint
from sde_diffusion.storage.trained import denoiser_of

__all__ = ["SOURCES", "Source", "check_empty", "export_diffusers", "import_checkpoint", "imported"]

GREY_LEVELS = 256


@dataclass(frozen=True)
class Source:
    """A code base: how its checkpoints are read, and the configurations of its published models."""

    read: Callable[[Path, Settings | None], Foreign]
    published: Mapping[str, Settings]


SOURCES: dict[str, Source] = {
    "score_sde": Source(score_sde.read, score_sde.PUBLISHED),
    "edm": Source(edm.read, edm.PUBLISHED),
    "openai": Source(openai.read, openai.PUBLISHED),
    "diffusers": Source(diffusers.read, diffusers.PUBLISHED),
    "ddim": Source(ddim.read, ddim.PUBLISHED),
    "lucidrains": Source(lucidrains.read, lucidrains.PUBLISHED),
}


def imported(path: str | Path, source: str, config: Mapping[str, Any] | str | Path | None = None) -> Checkpoint:
    """A checkpoint of ours from one of another code base; arguments and errors as those of `import_checkpoint`."""
    reader = choose("source", source, SOURCES)
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"there is no file or folder {place} to import")
    settings = read_settings(config, reader.published, place)
    try:
        found = reader.read(place, settings)
    except UserError:
        raise
    # A value of the wrong kind may fail anywhere between the configuration and the network.
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(f"a value in the {source} configuration cannot be used: {error}") from error
    weights = {"ema" if found.averaged else "raw": converted(found.weights, found.rules, found.net, found.ignored)}
    if found.averages is not None:
        weights["ema"] = converted(found.averages, found.rules, found.net, found.ignored)
    return Checkpoint(
        step=found.step,
        spec=found.spec,
        transform=DataTransform(GREY_LEVELS),
        weights=weights,
        optimizer={},
        random={},
        config={"sampling": found.sampling} if found.sampling else {},
        title=f"the data of {place.name}",
        classes=tuple(map(str, range(found.spec.options.get("num_classes", 0)))),
    )


def check_empty(folder: Path) -> None:
    """Raises UserError for a run folder that holds checkpoints already."""
    if checkpoint_files(folder):
        raise UserError(f"{folder} holds checkpoints already; choose another folder")


def import_checkpoint(
    path: str | Path,
    source: str,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    folder: str | Path | None = None,
    weights: str | None = None,
    device: torch.device | str = "cpu",
) -> NetworkDenoiser:
    """The network of another code base as a denoiser, its spec found from its configuration.

    source: a key of SOURCES: "score_sde" (.pth), "edm" (.pkl), "openai" (.pt), "ddim" (.pth, .ckpt), "lucidrains"
        (.pt) or "diffusers" (a folder)
    config: where the file does not carry it, the configuration under the source's own keys: a mapping, a JSON file,
        or the name of a published model
    folder: a run folder in which to store it, for `load` and the command line
    weights: "ema", the averaged ones, or "raw"; by default the averaged ones where the file has such
    Raises UserError for an unknown source, a file that cannot be read or would need code to be run, and weights that do
    not fit the configuration, with the first keys and shapes that differ. Nothing is written before all of it fits.
    """
    if folder is not None:
        check_empty(Path(folder))
    checkpoint = imported(path, source, config)
    if folder is not None:
        save_checkpoint(Path(folder), checkpoint, keep=1)
    return denoiser_of(checkpoint, weights, device)
