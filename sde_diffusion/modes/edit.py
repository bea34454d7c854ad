"""Change pictures: give them the noise of a level below t = 1, and take them back to data by a sampler (SDEdit)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from sde_diffusion import build
from sde_diffusion.checkpoint import Checkpoint
from sde_diffusion.data import DataTransform
from sde_diffusion.data.inputs import Inputs, load_inputs
from sde_diffusion.engine import Engine
from sde_diffusion.errors import UserError
from sde_diffusion.files import write_aside
from sde_diffusion.grids import TimeGrid
from sde_diffusion.modes.batch import samples_of, stored
from sde_diffusion.modes.folder import set_result, trained_network
from sde_diffusion.modes.sampling import Drawing, Model, made_by, sampling_protocol, trained_model
from sde_diffusion.records import tensor_digest
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.shards import Shards

SHOWN = 16
"""Pictures in the sheet that shows what went in above what came out."""


def edit_grid(config: ConfigDict, model: Model) -> TimeGrid:
    """The grid of the edit: the last edit.strength of the sampler's, which may start below t = 1 itself.

    Raises UserError for a strength that is none, and for a grid that starts from noise alone.
    """
    strength, sampler = config.edit.strength, config.sampling.sampler
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"--strength is the share of the grid's steps that are taken, in (0, 1], got {strength:g}")
    grid = build.grid(config, model.sde, config.sampling.steps, sampler)
    if strength:
        kept = max(1, math.ceil(strength * grid.steps - 1e-9))
        grid = TimeGrid(grid.sde, grid.times[grid.steps - kept :])
    elif float(grid.times[0]) == 1.0:
        raise UserError("--mode edit needs --strength, the share of the grid's steps that are taken, such as 0.5")
    return grid


def in_model_space(transform: DataTransform, samples: Tensor, labels: Tensor | None) -> Tensor:
    """8-bit images, whatever the grey levels of the training, or vectors, in model space, [N, *D]."""
    if transform.levels is None:
        return transform.encode(samples, labels)
    scaled = DataTransform(256).encode(samples)
    return scaled - transform.offset(scaled, labels)


def labels_of(config: ConfigDict, trained: Checkpoint, inputs: Inputs) -> Tensor | None:
    """The classes of the inputs, by the names of their folders; None for a network that is told none.

    Raises UserError for a network that needs classes, and inputs that have none that it knows.
    """
    if not config.model.class_conditional:
        return None
    unknown = sorted(set(inputs.classes) - set(trained.classes))
    if not inputs.classes or unknown:
        raise UserError(
            f"the network is told classes ({', '.join(trained.classes[:8])}{' ...' * (len(trained.classes) > 8)}), and "
            f"--input has {'none' if not inputs.classes else f'the folder {unknown[0]!r}'}: put the pictures into "
            "folders of these names"
        )
    return torch.tensor([trained.classes.index(name) for name in inputs.classes])


def edit(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Change the pictures of edit.input by the run's network; write them with what they were."""
    config, trained = trained_network(config, folder, engine)
    inputs = load_inputs(config.edit.input, trained.spec.shape)
    labels = labels_of(config, trained, inputs)
    x0 = in_model_space(trained.transform, inputs.samples, labels)
    model = replace(trained_model(config, trained, engine.device), given=labels)
    grid, sampler, options = edit_grid(config, model), config.sampling.sampler, build.sampler_options(config)
    protocol = {
        **sampling_protocol(config, model, sampler, grid, options),
        "largest_time": float(grid.times[0]),
        "input": tensor_digest({"x0": x0}),
    }
    shards = Shards(folder, f"{sampler}_edit", protocol, config.sampling.format)
    count, started = len(x0), time.perf_counter()
    drawing = Drawing(model, sampler, grid, config.seed, options, shards, count, config.sampling.batch_size, data=x0)
    drawing.carry_out(engine, f"edit by {sampler}")
    row = {**protocol, "samples": count, "seconds": round(time.perf_counter() - started, 3), "names": inputs.names}
    before = samples_of(stored(trained.transform, x0, labels))
    told = engine.on_main(lambda: _finish(folder, shards, row, before, engine))
    print(table([told]))
    print(f"wrote samples_{sampler}_edit.png (what went in above what came out), .json and the samples, to {folder}")


def _finish(folder: Path, shards: Shards, row: Mapping[str, Any], before: np.ndarray, engine: Engine) -> dict[str, Any]:
    """The sheet, the arrays and the manifest; the row for the table."""
    count, name = row["samples"], f"{row['sampler']}_edit"
    row = {**row, "nfe": max(note["nfe"] for note in shards.notes(count))}
    write_aside(folder / f"samples_{name}.png", png(_sheet(before, samples_of(shards.first(count)))))
    manifest = {**row, **made_by(engine)}
    shards.finish(count, manifest)
    set_result(folder, "edits", manifest, row["sampler"])
    return {key: row[key] for key in ("sampler", "steps", "nfe", "samples", "seconds", "largest_time")}


def _sheet(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The first pictures before and after, a row each; of vectors the density of all, side by side."""
    if before.dtype != np.uint8:
        return np.concatenate([picture(before), picture(after)], axis=1)
    shown: Sequence[np.ndarray] = (before[:SHOWN], after[:SHOWN])
    return picture(np.concatenate(shown), columns=len(shown[0]))
