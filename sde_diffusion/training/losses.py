"""The losses of a batch's rows, in training and on held-out data.

Whatever is drawn for a row depends on (seed, step, row): the loss of a row is the same whichever process takes it, and
in whatever company.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.core.conditions import Conditions, moved, of_names, rows_of
from sde_diffusion.core.noise import rand, randn, row_generators, seeded
from sde_diffusion.core.process import SDE
from sde_diffusion.data import Dataset, DataTransform, batches
from sde_diffusion.data.dataset import Batch
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec, step_variance
from sde_diffusion.likelihood.decoder import Space
from sde_diffusion.objectives.losses import Objective
from sde_diffusion.objectives.times import TimeSampler
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.training.settings import TrainingSettings
from sde_diffusion.training.trainer import RowLosses

# One stream of random numbers for each purpose, so that none repeats another's; commands/latents.py, metrics/bits.py
# and data/dataset.py have the others.
TRAIN_STREAM, HELD_OUT_STREAM = 2, 3
LOGSNR_SHOWN = 20.0
"""Levels beyond plus and minus this count as such where losses are shown by log-SNR: there may be no noise, or all."""


@dataclass(frozen=True, eq=False)
class Task:
    """What losses are about: the objective under a law of times, on data that a transform brings to model space.

    dequantize: whether the network is trained on dequantised grey levels, or on the levels themselves.
    """

    settings: TrainingSettings
    seed: int
    transform: DataTransform
    dequantize: bool
    objective: Objective
    times: TimeSampler

    @classmethod
    def from_settings(
        cls,
        settings: TrainingSettings,
        seed: int,
        transform: DataTransform,
        dequantize: bool,
        spec: NetworkSpec,
        sde: SDE,
    ) -> Task:
        """The task of a network that is trained under `sde`."""
        objective = settings.objective(sde, step_variance(spec.variance), spec.sigma_data)
        return cls(settings, seed, transform, dequantize, objective, settings.time_sampler(sde))


def some(batch: Batch, start: int, stop: int) -> Batch:
    """The samples start to stop of a batch, with their conditions."""
    samples, conditions = batch
    return samples[start:stop], rows_of(conditions, slice(start, stop))


def row_losses(
    task: Task,
    denoiser: NetworkDenoiser,
    batch: Batch,
    rows: range,
    size: int,
    step: int,
    stream: int = TRAIN_STREAM,
    learn: bool = True,
) -> RowLosses:
    """The losses of some rows of a step's batch of `size`; `batch` holds these rows alone.

    Times, conditions withheld and augmentations are drawn for the whole batch, a few numbers a row, by (seed, step);
    the noise of each row by (seed, step, row). With all conditions withheld from some rows one network learns p(x | y)
    and p(x) (Ho and Salimans 2022). Raises UserError where the batch lacks what the network is told.
    """
    device, part = denoiser.device, slice(rows.start, rows.stop)
    shared = seeded(task.seed, step, stream=stream)
    own = row_generators(task.seed, step, rows, stream=stream, device=device)
    samples, conditions = batch[0].to(device, non_blocking=True), batch[1]
    labels = conditions.get("labels")
    x0 = task.transform.prepared(samples, labels, dequantize=task.dequantize, generator=own)
    t, weight = (drawn[part] for drawn in task.times.draw(size, shared))
    geometry: Conditions = {}
    augment = task.settings.augmentation() if learn else None
    if augment is not None:
        changes = augment.draw(size, shared).rows(part)
        x0, geometry = augment.apply(x0, changes), {"augment_labels": changes.labels()}
    space = Space(None if task.dequantize else task.transform.levels, task.transform.offset(x0, labels))
    conditions = of_names(conditions, denoiser.spec.conditions, "the data")
    if task.settings.label_dropout > 0 and (untold := denoiser.spec.untold(conditions)):
        withheld = (rand((size,), shared) < task.settings.label_dropout)[part]
        for name, value in untold.items():
            conditions[name] = value.where(_rows(withheld, value), conditions[name])
    told = moved({**conditions, **geometry}, device)
    losses = task.objective(denoiser, x0, t, randn(x0.shape, own, like=x0), space, **told)
    return RowLosses(losses, t, weight)


def _rows(chosen: Tensor, value: Tensor) -> Tensor:
    """Which rows of a value [B, ...] are chosen, [B], with axes to broadcast."""
    return chosen.to(value.device).view(-1, *(1,) * (value.ndim - 1))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Losses on held-out data: their mean, and their means by log-SNR, from the least noise to the most."""

    mean: float
    by_level: list[dict[str, float]]


@torch.no_grad()
def held_out_loss(task: Task, denoiser: NetworkDenoiser, dataset: Dataset, engine: Engine) -> HeldOut:
    """The loss on held-out data, at times and with noise that are the same at every call."""
    settings = task.settings
    size = min(settings.batch_size, len(dataset))
    count = min(settings.held_out_batches, math.ceil(len(dataset) / size))
    sde = denoiser.spec.model_process
    # A law that learns would draw other times at every call.
    fixed = replace(task, times=settings.time_sampler(sde))
    most = max(1, settings.batch_size // (engine.count * engine.accumulate))  # as many rows at once as in training
    found: dict[int, tuple[list[float], list[float], list[float]]] = {}
    for first in range(0, count, engine.count):
        # Where processes are left over they repeat the last batch: passes of a divided network are everyone's.
        i = min(first + engine.number, count - 1)
        batch = next(batches(dataset, size, seed=task.seed, start_step=i))
        columns: tuple[list[float], list[float], list[float]] = ([], [], [])
        for start in range(0, size, most):
            rows = range(start, min(start + most, size))
            piece = some(batch, rows.start, rows.stop)
            own = row_losses(fixed, denoiser, piece, rows, size, i, HELD_OUT_STREAM, learn=False)
            for column, values in zip(columns, (own.losses, own.weight, own.t), strict=True):
                column += values.double().tolist()
        found[i] = columns
    everywhere = {i: rows for part in engine.gathered_objects(found) for i, rows in part.items()}
    losses, weight, t = (
        torch.tensor([row for i in range(count) for row in everywhere[i][column]], dtype=torch.float64)
        for column in range(3)
    )
    return HeldOut(float((weight * losses).mean()), by_level(sde, t, losses, settings.held_out_levels))


def by_level(sde: SDE, t: Tensor, losses: Tensor, count: int) -> list[dict[str, float]]:
    """The mean losses, without weights, of `count` parts of equal size, from the least noise to the most."""
    logsnr = sde.kernel(t).logsnr.clamp(-LOGSNR_SHOWN, LOGSNR_SHOWN)
    return [
        {"logsnr": round(float(logsnr[part].mean()), 2), "loss": float(losses[part].mean()), "samples": len(part)}
        for part in logsnr.argsort(descending=True, stable=True).tensor_split(count)
        if len(part)
    ]
