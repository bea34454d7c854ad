"""Networks of other code bases: a checkpoint becomes a run folder, a run becomes a folder of diffusers."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from sde_diffusion import settings as build
from sde_diffusion.core.errors import UserError
from sde_diffusion.importers import check_empty, export_diffusers, imported
from sde_diffusion.pipelines.run_folder import plain, trained_network, write_json
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.storage.checkpoint import save_checkpoint
from sde_diffusion.storage.trained import denoiser_of
from sde_diffusion.training.trainer import RAW


def import_network(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Turn a checkpoint of another code base into a run folder, from which it can be sampled and evaluated."""
    settings = config.importing
    if not engine.main:
        return
    if not settings.path:
        raise UserError("--path is needed: the file to import, or the folder of diffusers")
    check_empty(folder)
    found = imported(settings.path, settings.source, settings.config or None)
    adopted = build.as_trained(config, found.spec)
    adopted.sampling.update(found.config.get("sampling", {}))
    origin = {"imported": {"source": settings.source, "file": Path(settings.path).name}}
    save_checkpoint(folder, found, keep=1)
    write_json(folder / "config.json", {**plain(adopted), **origin})
    spec = found.spec
    count = sum(value.numel() for value in found.weights[RAW].values())
    print(
        table(
            [
                {
                    "network": spec.network,
                    "numbers": f"{count:,}",
                    "process": type(spec.process).__name__,
                    "prediction": spec.prediction,
                    "label": spec.label,
                    "data range": f"{spec.data_range[0]:g} .. {spec.data_range[1]:g}",
                    "shape": "x".join(map(str, spec.shape)),
                    "step": found.step,
                }
            ]
        )
    )
    print(f"wrote {folder}: sample it with --mode sample --workdir {folder}")


def export_network(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Write the run's network as a folder of diffusers."""
    if not config.importing.path:
        raise everyones(UserError("--path is needed: the folder of diffusers to write"))
    config, trained = trained_network(config, folder, engine)  # which all processes read together
    if not engine.main:
        return
    denoiser = denoiser_of(trained, config.sampling.weights)
    export_diffusers(denoiser, config.importing.path, shift=config.sampling.shift)
    print(f"wrote {config.importing.path}: diffusers' DDPMPipeline.from_pretrained reads it")
