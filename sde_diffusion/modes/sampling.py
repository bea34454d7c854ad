"""Draw samples of a trained network: the same for every batch size and number of processes, stored as they come."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from sde_diffusion import build
from sde_diffusion.checkpoint import Checkpoint
from sde_diffusion.data import DataTransform
from sde_diffusion.denoiser import ConditionedDenoiser, Denoiser, NetworkDenoiser
from sde_diffusion.engine import Engine
from sde_diffusion.files import write_aside
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.modes.batch import conditioning, samples_of, stored
from sde_diffusion.modes.folder import network_of, set_result, trained_network
from sde_diffusion.noise import sample_generators
from sde_diffusion.progress import progress
from sde_diffusion.records import tensor_digest
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.samplers import sample as draw_samples
from sde_diffusion.sde import process_state
from sde_diffusion.shards import Shards

PICTURE_SAMPLES = 100


def draw(
    config: ConfigDict,
    denoiser: NetworkDenoiser,
    transform: DataTransform,
    classes: tuple[str, ...],
    sampler: str,
    grid: TimeGrid,
    indices: range,
    options: Mapping[str, Any],
    on_step: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, np.ndarray], int]:
    """Some samples as arrays to store, and the evaluations of the network that they took.

    Sample i starts from noise that depends on (seed, i) only: the same for every sampler, batch and process.
    """
    # Without a request the classes take turns.
    labels = torch.tensor([i % len(classes) for i in indices]) if classes else None
    told = conditioning(config, labels, denoiser.device)
    model: Denoiser = build.sampling_denoiser(config, ConditionedDenoiser(denoiser, **told))

    def advance(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        on_step()

    out = draw_samples(
        model,
        (len(indices), *denoiser.spec.shape),
        grid,
        sampler=sampler,
        generator=sample_generators(config.seed, indices),
        device=denoiser.device,
        on_step=advance,
        **options,
    )
    return stored(transform, out.x.cpu(), labels if told else None), out.nfe


def sampling_protocol(
    config: ConfigDict, trained: Checkpoint, sampler: str, grid: TimeGrid, options: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a sample depends on beside its index."""
    weights = config.sampling.weights
    return {
        "sampler": sampler,
        "options": dict(options),
        "steps": grid.steps,
        "grid": build.grid_kind(config, sampler, grid.sde),
        "grid_options": build.grid_options(config, sampler, grid.sde),
        "snap": config.sampling.snap,
        "smallest_time": float(grid.times[-1]),
        "process": {key: value for key, value in process_state(grid.sde).items() if not isinstance(value, list)},
        "clip": config.sampling.clip,
        "seed": config.seed,
        "data": trained.title,
        "checkpoint_step": trained.step,
        "weights": weights,
        "weights_digest": tensor_digest(trained.weights[weights]),
    }


def sample_into(
    folder: Path,
    config: ConfigDict,
    engine: Engine,
    trained: Checkpoint,
    sampler: str,
    steps: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw the samples of one sampler, write its picture, arrays and manifest; the row for the table.

    Each batch is stored as it is drawn, by the process that drew it; a sampling that was killed goes on where it was.
    """
    denoiser = network_of(config, trained, engine.device)
    settings, count = config.sampling, config.sampling.num_samples
    grid = build.grid(config, denoiser.spec.model_process, steps, sampler)
    protocol = sampling_protocol(config, trained, sampler, grid, options)
    shards = Shards(folder, sampler, protocol, settings.format)
    size = min(settings.batch_size, math.ceil(count / engine.count))
    missing = engine.on_main(lambda: shards.missing(count, size))
    left = sum(map(len, missing))
    if left < count:
        print(f"{count - left:,} of {count:,} samples are in {shards.work} already")
    mine, started = engine.mine(missing), time.perf_counter()

    def draw_mine() -> None:
        for indices in mine:
            arrays, nfe = draw(
                config, denoiser, trained.transform, trained.classes, sampler, grid, indices, options, bar.update
            )
            shards.write(indices, arrays, {"nfe": nfe})

    with progress(len(mine) * grid.steps, "step", f"sample {sampler}", visible=engine.main) as bar:
        engine.each(draw_mine)
    seconds = round(time.perf_counter() - started, 3)
    row = {**protocol, "samples": count, "seconds": seconds, "samples_of_last_session": left}
    return engine.on_main(lambda: finish_sampling(folder, shards, row, engine))


def finish_sampling(folder: Path, shards: Shards, row: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """The picture, the arrays and the manifest of samples that are all drawn; the row for the table."""
    sampler, count = row["sampler"], row["samples"]
    row = {**row, "nfe": max(note["nfe"] for note in shards.notes(count))}
    arrays = shards.first(min(count, PICTURE_SAMPLES))
    if "samples" in arrays:  # points in the plane are drawn as their density, of which more is more
        arrays = shards.first(count)
    write_aside(folder / f"samples_{sampler}.png", png(picture(samples_of(arrays))))
    manifest = {
        **row,
        "device": str(engine.device),
        "processes": engine.count,
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "numpy": version("numpy"),
        },
    }
    shards.finish(count, manifest)
    set_result(folder, "samples", manifest, sampler)
    return {name: row[name] for name in ("sampler", "steps", "nfe", "samples", "seconds", "smallest_time")}


def sample(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Sample the run's network with sampling.sampler."""
    config, trained = trained_network(config, folder, engine)
    sampler, steps = config.sampling.sampler, config.sampling.steps
    row = sample_into(folder, config, engine, trained, sampler, steps, build.sampler_options(config))
    print(table([row]))
    made = f"samples_{sampler}.npz" if config.sampling.format == "npz" else f"the folder samples_{sampler}"
    print(f"wrote {folder}/samples_{sampler}.png, samples_{sampler}.json and {made}")
