"""Change pictures: give them the noise of a level below t = 1, and take them back to data by a sampler (SDEdit)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.data import DataTransform
from sde_diffusion.data.inputs import Inputs, load_inputs
from sde_diffusion.pipelines.batch import samples_of, stored
from sde_diffusion.pipelines.chosen import Turns, attributes_of, class_turns
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import TOLD, Drawing, Model, drawn_into, sampling_protocol, trained_model
from sde_diffusion.report.pictures import Picture, picture
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.records import tensor_digest
from sde_diffusion.storage.shards import Shards

SHOWN = 16
"""Pictures in the sheet that shows what went in above what came out."""


def edit_grid(settings: Settings, model: Model) -> TimeGrid:
    """The grid of the edit: the last edit.strength of the sampler's, which may start below t = 1 itself.

    Raises UserError for a strength that is none, and for a grid that starts from noise alone.
    """
    strength, sampler = settings.edit.strength, settings.sampling.sampler
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"--strength is the share of the grid's steps that are taken, in (0, 1], got {strength:g}")
    grid = settings.sampling.make_grid(model.sde, settings.sampling.steps, sampler)
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


def labels_of(settings: Settings, trained: Checkpoint, inputs: Inputs) -> Tensor | None:
    """The classes of the inputs, by the names of their folders; None for a network that is told none.

    Raises UserError for a network that needs classes, and inputs that have none that it knows.
    """
    if not settings.model.class_conditional:
        return None
    if settings.sampling.classes:
        return class_turns(settings.sampling.classes, trained.classes).exactly(len(inputs.samples))["labels"]
    unknown = sorted(set(inputs.classes) - set(trained.classes))
    if not inputs.classes or unknown:
        raise UserError(
            f"the network is told classes ({', '.join(trained.classes[:8])}{' ...' * (len(trained.classes) > 8)}), and "
            f"--input has {'none' if not inputs.classes else f'the folder {unknown[0]!r}'}: put the pictures into "
            "folders of these names, or say --classes NAME"
        )
    return torch.tensor([trained.classes.index(name) for name in inputs.classes])


def edit(settings: Settings, folder: Path, engine: Engine) -> None:
    """Change the pictures of edit.input by the run's network; write them with what they were."""
    settings, trained = trained_network(settings, folder, engine)
    inputs = load_inputs(settings.edit.input, trained.spec.shape, settings.data.options(settings.seed))
    labels = labels_of(settings, trained, inputs)
    x0 = in_model_space(trained.transform, inputs.samples, labels)
    told = attributes_of(settings.sampling.attributes, trained, len(x0))
    given = told if labels is None else {"labels": labels, **told}
    model = replace(trained_model(settings, trained, engine.device), turns=Turns(given))
    grid, sampler, options = edit_grid(settings, model), settings.sampling.sampler, settings.sampling.sampler_options
    protocol = {
        **sampling_protocol(settings, model, sampler, grid, options),
        "input": tensor_digest({"x0": x0, **given}),
    }
    name = settings.sampling.result_name(sampler, "_edit")
    shards = Shards(folder, name, protocol, settings.sampling.format)
    size = settings.sampling.batch_size
    drawing = Drawing(model, sampler, grid, settings.seed, options, shards, len(x0), size, data=x0)
    before = samples_of(stored(trained.transform, x0, model.turns.of(range(len(x0)))))
    row = drawn_into(
        folder,
        engine,
        drawing,
        {**protocol, "names": inputs.names},
        f"edit by {sampler}",
        entry=settings.sampling.result_name(sampler),
        section="edits",
        sheet=partial(_sheet, before),
    )
    print(table([{name: row[name] for name in (*TOLD, "largest_time")}]))
    print(f"wrote samples_{name}.png (what went in above what came out), .json and the samples, to {folder}")


def _sheet(before: NDArray[np.generic], arrays: Mapping[str, NDArray[Any]]) -> Picture:
    """The first pictures before and after, a row each; of vectors the density of all, side by side."""
    after = samples_of(arrays)
    if before.dtype != np.uint8:
        return np.concatenate([picture(before), picture(after)], axis=1)
    shown = before[:SHOWN]
    return picture(np.concatenate([shown, after[:SHOWN]]), columns=len(shown))
