"""Networks of other code bases: a checkpoint becomes a run folder, a run becomes a folder of diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sde_diffusion.core.errors import UserError
from sde_diffusion.importers import check_empty, export_diffusers, imported
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import save_checkpoint
from sde_diffusion.storage.results import write_json
from sde_diffusion.storage.trained import denoiser_of, usual_weights


def import_network(settings: Settings, folder: Path, engine: Engine) -> None:
    """Turn a checkpoint of another code base into a run folder, from which it can be sampled and evaluated."""
    own = settings.importing
    if not engine.main:
        return
    if not own.path:
        raise UserError("--path is needed: the file to import, or the folder of diffusers")
    check_empty(folder)
    found = imported(own.path, own.source, own.config or None)
    adopted = settings.as_trained(found.spec)
    sampling = {"weights": usual_weights(found), **found.config.get("sampling", {})}
    adopted = replace(adopted, sampling=replace(adopted.sampling, **sampling))
    origin = {"imported": {"source": own.source, "file": Path(own.path).name}}
    save_checkpoint(folder, found, keep=1)
    write_json(folder / "config.json", {**adopted.plain(), **origin})
    spec = found.spec
    count = sum(value.numel() for value in found.weights[usual_weights(found)].values())
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
                    "weights": ", ".join(found.weights),
                }
            ]
        )
    )
    if "ema" not in found.weights:
        print("the file holds one set of weights and does not call it an average: it is stored as 'raw'")
    print(f"wrote {folder}: sample it with --mode sample --workdir {folder}")


def export_network(settings: Settings, folder: Path, engine: Engine) -> None:
    """Write the run's network as a folder of diffusers."""
    if not settings.importing.path:
        raise everyones(UserError("--path is needed: the folder of diffusers to write"))
    settings, trained = trained_network(settings, folder, engine)  # which all processes read together
    if not engine.main:
        return
    denoiser = denoiser_of(trained, settings.sampling.weights)
    export_diffusers(denoiser, settings.importing.path, shift=settings.sampling.shift)
    print(f"wrote {settings.importing.path}: diffusers' DDPMPipeline.from_pretrained reads it")
