"""What the commands do, readable from top to bottom: train, sample, likelihood, evaluate, and all of them in a row.

Every mode is a function (config, folder, engine) that reads and writes one run folder:

    config.json  checkpoints/  ema_snapshots/  ema/  tensorboard/  metrics.jsonl  results.json  likelihood/
    samples_<sampler>.{png,npz,json}

Whatever is random depends on (seed, index of the sample or step) only, so that neither the batch size, nor the number
of processes, nor an interruption changes a result.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from sde_diffusion import build
from sde_diffusion.build import NamedFigure
from sde_diffusion.checkpoint import (
    AVERAGES,
    Checkpoint,
    checkpoint_files,
    denoiser_of,
    newest_whole,
    read_checkpoint,
    save_average,
    save_checkpoint,
    with_average,
)
from sde_diffusion.data import Dataset, DataTransform, Source, Splits, batches, load_pictures
from sde_diffusion.denoiser import ConditionedDenoiser, Denoiser, NetworkDenoiser, NetworkSpec
from sde_diffusion.elbo import Space
from sde_diffusion.ema import drop_snapshots, reconstruct, save_snapshot, snapshot_index
from sde_diffusion.engine import Engine, everyones
from sde_diffusion.errors import NotFinite, UserError
from sde_diffusion.figures import Batch
from sde_diffusion.files import FolderLock, write_aside
from sde_diffusion.grids import GRIDS, Node, TimeGrid, grid_options, make_grid
from sde_diffusion.guard import Preempted, listening
from sde_diffusion.importers import check_empty, export_diffusers, imported
from sde_diffusion.latents import decode, interpolate, round_trip
from sde_diffusion.losses import Objective
from sde_diffusion.metrics_log import Board, journal
from sde_diffusion.noise import rand, randn, row_generators, sample_generators, seeded
from sde_diffusion.progress import Phases, Progress, memory, progress
from sde_diffusion.records import Records, digest, tensor_digest
from sde_diffusion.report.likelihood import captioned, histogram, summary
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.samplers import SAMPLER_TABLE, sampler_options
from sde_diffusion.samplers import sample as draw_samples
from sde_diffusion.sde import SDE, process_state
from sde_diffusion.shards import Shards
from sde_diffusion.times import TimeSampler
from sde_diffusion.trainer import RAW, Outcome, RowLosses, Trainer, fresh_weights

# One stream of random numbers for each purpose, so that none repeats another's; figures.py has the others.
TRAIN_STREAM, HELD_OUT_STREAM, DROPOUT_STREAM, LATENT_STREAM = 2, 3, 4, 8
PICTURE_SAMPLES, LIKELIEST = 100, 16
NUMERICS = 1
"""Raised when the bits/dim of one request become others, so that stored rows are not mixed with new ones."""
PREVIEW_STEPS, PREVIEW_SAMPLES = 20, 36
LOGSNR_SHOWN = 20.0
"""Levels beyond plus and minus this count as such where losses are told by log-SNR: there may be no noise, or all."""


# --- the run folder -------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_aside(path, (json.dumps(content, indent=2) + "\n").encode())


def plain(config: ConfigDict) -> dict[str, Any]:
    """A configuration as plain values."""
    found: dict[str, Any] = json.loads(config.to_json_best_effort())
    return found


def set_result(folder: Path, section: str, row: Mapping[str, Any], entry: str | None = None) -> None:
    """Replace one section of results.json, or one entry of that section; what else it holds stays."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[section] = dict(row) if entry is None else {**results.get(section, {}), entry: row}
    write_json(path, results)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


FREE = ("data.root", "data.workers", "data.prefetch", "data.corrupt_limit", "data.held_out")
"""Keys of the data that may differ from those of a training: where and how they are read, not what they are."""
STORAGE = "data.storage"
KEPT = (
    "batch_size",
    "loss",
    "vlb_weight",
    "weighting",
    "times",
    "p_mean",
    "p_std",
    "augment",
    "label_dropout",
    "ema_decay",
    "ema_decays",
    "ema_lengths",
)
"""Keys of a training that it cannot go on without: what it minimises, the order of its data, what it averages."""


def differing(folder: Path, config: ConfigDict) -> dict[str, str]:
    """The keys in which a configuration differs from that of the folder's training, with both values in words."""
    path = folder / "config.json"
    if not (path.exists() and checkpoint_files(folder)):
        return {}
    stored = json.loads(path.read_text())
    if "imported" in stored:  # its network, process and data are those of its source, whatever a configuration says
        return {}
    here = plain(config)
    sections = ("seed", "data", "process", "model", "training")
    old, new = (_flat({name: c[name] for name in sections if name in c}) for c in (stored, here))
    # A key that the older folder does not know has its default there.
    return {
        key: f"{key} ({old[key]!r} there, {new.get(key)!r} here)" for key in sorted(old) if old[key] != new.get(key)
    }


def check_folder(folder: Path, config: ConfigDict, training: bool = False) -> None:
    """Raises UserError if the folder holds a training of another data set, process or model.

    To go on training, the seed and what decides the course of a training must be the same too; the keys that differ
    and may do so are printed.
    """
    found = differing(folder, config)
    # Only a stream has another order, and may hold out other samples.
    free = FREE if "streaming" in found.get(STORAGE, "") else (*FREE, STORAGE)
    kept = {"seed", *(f"training.{name}" for name in KEPT)} if training else set()
    harm = [
        words
        for key, words in found.items()
        if key in kept or (key.startswith(("data.", "process.", "model.")) and key not in free)
    ]
    if harm:
        raise UserError(
            f"{folder} holds a training with another configuration: {'; '.join(harm[:4])}"
            f"{' ...' if len(harm) > 4 else ''}; choose another --workdir, or its own configuration"
        )
    if training and found:
        print(f"going on with other values: {'; '.join(found.values())}")


def shared_checkpoint(folder: Path, engine: Engine) -> Checkpoint:
    """The newest whole checkpoint of a run folder, the same in every process."""
    if engine.count == 1:
        return read_checkpoint(folder)
    path, found = engine.on_main(lambda: newest_whole(folder)), []
    engine.each(lambda: found.append(read_checkpoint(path)))
    return found[0]


def trained_network(config: ConfigDict, folder: Path, engine: Engine) -> tuple[ConfigDict, Checkpoint]:
    """The newest checkpoint of the run folder, which must be this configuration's, or an imported one.

    With it the configuration whose process and model are those of the network. An average that was made after the
    training is among its weights if it is asked for.
    """
    engine.on_main(lambda: check_folder(folder, config))
    trained = with_average(shared_checkpoint(folder, engine), folder, config.sampling.weights)
    return build.as_trained(config, trained.spec), trained


def network_of(config: ConfigDict, trained: Checkpoint, device: torch.device) -> NetworkDenoiser:
    """The network of a checkpoint on a device: the weights and the compiler are those of the configuration."""
    denoiser = denoiser_of(trained, config.sampling.weights, device)
    return NetworkDenoiser(build.compiled(config, denoiser.net), denoiser.spec)


# --- networks of other code bases -----------------------------------------------------------------------------


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
    export_diffusers(denoiser_of(trained, config.sampling.weights), config.importing.path)
    print(f"wrote {config.importing.path}: diffusers' DDPMPipeline.from_pretrained reads it")


# --- training -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """What losses are about: the configuration, the data's transform, the objective and the law of the times."""

    config: ConfigDict
    transform: DataTransform
    objective: Objective
    times: TimeSampler

    @classmethod
    def of(cls, config: ConfigDict, transform: DataTransform, sde: SDE) -> Task:
        """The task of a configuration for a network trained under `sde`."""
        return cls(config, transform, build.objective(config, sde), build.times(config, sde))


def encoded(
    transform: DataTransform,
    samples: Tensor,
    labels: Tensor | None,
    dequantize: bool,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Stored samples in model space, dequantised or at their grey levels."""
    if dequantize:
        return transform.dequantize(samples, labels, generator=generator)
    return transform.encode(samples, labels)


def conditioning(config: ConfigDict, labels: Tensor | None, device: torch.device) -> dict[str, Tensor]:
    """What the network is told beside the noise level."""
    return {"labels": labels.to(device)} if config.model.class_conditional and labels is not None else {}


def some(batch: tuple[Tensor, Tensor | None], start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """The samples start to stop of a batch, with their labels."""
    samples, labels = batch
    return samples[start:stop], None if labels is None else labels[start:stop]


def row_losses(
    task: Task,
    denoiser: NetworkDenoiser,
    batch: tuple[Tensor, Tensor | None],
    rows: range,
    size: int,
    step: int,
    stream: int = TRAIN_STREAM,
    learn: bool = True,
) -> RowLosses:
    """The losses of some rows of a step's batch of `size`; `batch` holds these rows alone.

    Times, classes withheld and augmentations are drawn for the whole batch, a few numbers a row, by (seed, step); the
    noise of each row by (seed, step, row). So a row's loss is the same whichever process takes it, in whatever company.
    """
    config, settings, device = task.config, task.config.training, denoiser.device
    shared, part = seeded(config.seed, step, stream=stream), slice(rows.start, rows.stop)
    own = row_generators(config.seed, step, rows, stream=stream, device=device)
    samples, labels = batch[0].to(device, non_blocking=True), batch[1]
    x0 = encoded(task.transform, samples, labels, config.data.dequantize, own)
    t, weight = (drawn[part] for drawn in task.times.draw(size, shared))
    geometry: dict[str, Tensor] = {}
    augment = build.augmentation(config) if learn else None
    if augment is not None:
        changes = augment.draw(size, shared).rows(part)
        x0, geometry = augment.apply(x0, changes), {"augment_labels": changes.labels().to(device)}
    space = Space(None if config.data.dequantize else task.transform.levels, task.transform.offset(x0, labels))
    if labels is not None and settings.label_dropout > 0:
        # The class after the last one means "no class": one network learns p(x | y) and p(x) (Ho and Salimans 2022).
        withheld = (rand((size,), shared) < settings.label_dropout)[part]
        labels = labels.where(~withheld, denoiser.spec.options["num_classes"])
    told = {**conditioning(config, labels, device), **geometry}
    losses = task.objective(denoiser, x0, t, randn(x0.shape, own, like=x0), space, **told)
    return RowLosses(losses, t, weight)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Losses on held-out data: their mean, and their means by log-SNR, from the least noise to the most."""

    mean: float
    by_level: list[dict[str, float]]


@torch.no_grad()
def held_out_loss(task: Task, denoiser: NetworkDenoiser, dataset: Dataset, engine: Engine) -> HeldOut:
    """The loss on held-out data, at times and with noise that are the same at every call."""
    config, settings = task.config, task.config.training
    size = min(settings.batch_size, len(dataset))
    count = min(settings.held_out_batches, math.ceil(len(dataset) / size))
    sde = denoiser.spec.model_process
    # A law that learns would draw other times at every call.
    fixed = replace(task, times=build.times(config, sde))
    most = max(1, settings.batch_size // (engine.count * engine.accumulate))  # as many rows at once as in training
    found: dict[int, tuple[list[float], list[float], list[float]]] = {}
    for first in range(0, count, engine.count):
        # Where processes are left over they repeat the last batch: passes of a divided network are everyone's.
        i = min(first + engine.number, count - 1)
        batch = next(batches(dataset, size, seed=config.seed, start_step=i))
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


@dataclass(eq=False)
class Run:
    """A training in progress: what is trained and on what, where it is written, and where the time goes."""

    config: ConfigDict
    folder: Path
    engine: Engine
    splits: Splits
    task: Task
    trainer: Trainer
    seconds_before: float = 0.0
    phases: Phases = field(default_factory=Phases)
    started: float = field(default_factory=time.perf_counter)
    held_out: HeldOut | None = None

    @property
    def session(self) -> float:
        """Seconds since this session began to train."""
        return time.perf_counter() - self.started


def train(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Train to training.steps, from the newest whole checkpoint where there is one; one trainer at a time."""
    splits = None if folder.exists() else build.data(config)  # no folder is begun for data that cannot be read
    with ExitStack() as held:

        def lock() -> None:
            engine.part(config.training.batch_size)
            held.enter_context(FolderLock(folder, "trained"))
            check_folder(folder, config, training=True)

        engine.on_main(lock)
        resumed = shared_checkpoint(folder, engine) if engine.on_main(lambda: bool(checkpoint_files(folder))) else None
        if resumed and not resumed.optimizer:
            raise UserError(f"{folder} holds an imported network, which is sampled and evaluated, not trained on")
        splits = splits or build.data(config)
        spec = build.spec(config, splits.train)
        task = Task.of(config, DataTransform.fit(splits.train, config.data.subtract_mean), spec.process)
        engine.on_main(partial(write_json, folder / "config.json", plain(config)))
        if resumed and resumed.step >= config.training.steps:
            print(f"{folder} is trained to step {resumed.step}")
            return
        run, rows = begin(task, folder, engine, splits, spec, resumed), engine.part(config.training.batch_size)
        go_on(run, rows, resumed.progress.get("data") if resumed else None)


def begin(
    task: Task, folder: Path, engine: Engine, splits: Splits, spec: NetworkSpec, resumed: Checkpoint | None
) -> Run:
    """A training with its network, at the step of a checkpoint where there is one."""
    config = task.config
    net = engine.sharded_network(fresh_weights(build.network(spec, config.seed), resumed))
    trainer = Trainer(
        engine,
        spec,
        net,
        build.compiled(config, net),
        build.optimizer(config, net),
        build.profiles(config),
        task.times,
        build.guard(config),
        build.learning_rate(config),
        config.training.grad_clip,
    )
    if resumed:
        trainer.resume(resumed)
    # Of a session that went further, perhaps in another way.
    engine.on_main(lambda: drop_snapshots(folder, trainer.step))
    net.train()
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"{'resuming' if resumed else 'training'} {folder}: {spec.network} of {parameters:,} parameters under "
        f"{config.process.name} on {splits.train.title}, {size_of(splits.train)} samples, step {trainer.step:,} to "
        f"{config.training.steps:,}, {engine.device}{f' x {engine.count} processes' * (engine.count > 1)}, "
        f"{engine.precision}, smallest training time {spec.process.t_train:g}"
    )
    return Run(config, folder, engine, splits, task, trainer, resumed.progress.get("seconds", 0.0) if resumed else 0.0)


def go_on(run: Run, rows: range, position: Mapping[str, Any] | None) -> None:
    """Train to the last step. rows: those of each batch that are this process's; position: in a stream of data."""
    config, settings, engine, trainer = run.config, run.config.training, run.engine, run.trainer
    first = trainer.step
    with (
        torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []),
        build.training_batches(config, run.splits.train, rows, first, position) as stream,
        journal(run.folder, first, visible=engine.main) as tell,
        progress(settings.steps, "step", "train", done=first, leave=True, visible=engine.main) as bar,
        listening() as signals,
    ):
        told = (run.session, first)
        while trainer.step < settings.steps:
            # Dropout draws from the global state; seeded by the step, a resumed training draws the same.
            torch.manual_seed(seeded(config.seed, trainer.step, engine.number, stream=DROPOUT_STREAM).initial_seed())
            with run.phases("data"):
                batch = next(stream)
            with run.phases("step"):
                losses_of = partial(part_losses, run.task, batch, rows, trainer.step)
                outcome = trainer.update(losses_of, rows, bool(signals.name))
            step, final = trainer.step, trainer.step == settings.steps
            bar.update()
            if outcome.objection:
                note_skipped(run, outcome)
            if step % settings.log_every == 0 or final:
                speed = (step - told[1]) * settings.batch_size / (run.session - told[0])
                told = (run.session, step)
                bar.note(loss=f"{outcome.loss:.4f}", images=f"{speed:.0f}/s")
                tell.scalars(step, {"images_per_second": speed, **step_figures(run, outcome)})
            if step % settings.evaluate_every == 0 or final:
                tell.scalars(step, held_out_figures(run))
            # The passes of a divided network are everyone's.
            if settings.sample_every and step % settings.sample_every == 0 and (engine.main or engine.sharded):
                with run.phases("samples"), trainer.averages.within(trainer.net, "ema"):
                    tell.image("samples", preview(run), step)
            if settings.ema_snapshots and (step % settings.ema_snapshots == 0 or final) and outcome.sound:
                write_snapshot(run)
            if final:  # before the last checkpoint, with which the training counts as done
                result = write_training_result(run, first, outcome, stream.corrupt)
            if (step % settings.checkpoint_every == 0 or final or outcome.stop) and outcome.sound:
                write_checkpoint(run, stream.state)
            if outcome.stop and not final:
                raise Preempted(
                    f"{signals.name or 'a signal'} came: stopped at step {step:,} of {settings.steps:,}; "
                    f"{last_checkpoint(run.folder)}, from which the same command goes on"
                )
    print(training_summary(run.folder, result))


def part_losses(
    task: Task, batch: tuple[Tensor, Tensor | None], rows: range, step: int, denoiser: NetworkDenoiser, wanted: range
) -> RowLosses:
    """The losses of the wanted ones of a process's rows."""
    own = some(batch, wanted.start - rows.start, wanted.stop - rows.start)
    return row_losses(task, denoiser, own, wanted, task.config.training.batch_size, step)


def last_checkpoint(folder: Path) -> str:
    """Where the newest whole checkpoint lies, in words."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return f"the last good checkpoint is {newest_whole(folder)}"
        except UserError:
            return "there is no good checkpoint yet"


def note_skipped(run: Run, outcome: Outcome) -> None:
    """Warn of a skipped update. Raises UserError if it is one too many."""
    step, settings, row = run.trainer.step, run.config.training, run.trainer.guard.in_a_row
    if row > settings.skip_limit or (step == settings.steps and not outcome.sound):
        # Every process has the same losses, and comes to this.
        raise everyones(
            UserError(
                f"{outcome.objection} at step {step}, and {row} update{'s' * (row > 1)} in a row had to be skipped; "
                f"{last_checkpoint(run.folder)}. A lower training.learning_rate or training.grad_clip usually helps"
            )
        )
    warnings.warn(f"step {step}: {outcome.objection}; this update is skipped", stacklevel=2)


def step_figures(run: Run, outcome: Outcome) -> dict[str, float]:
    """What is told of a step: its loss, where the time went, how much memory is in use."""
    return {
        "loss/train": outcome.loss,
        "gradient_norm": outcome.norm,
        "learning_rate": run.trainer.learning_rate(run.trainer.step - 1),
        "skipped_updates": run.trainer.guard.skipped,
        **{f"seconds/{name}": round(spent, 3) for name, spent in run.phases.seconds.items()},
        **{f"memory/{name}": round(mebibytes, 1) for name, mebibytes in memory().items()},
    }


def held_out_figures(run: Run) -> dict[str, float]:
    """The held-out loss of the average, and by noise level."""
    trainer = run.trainer
    with run.phases("evaluate"), trainer.averages.within(trainer.net, "ema"):
        run.held_out = held_out_loss(run.task, trainer.alone, run.splits.test, run.engine)
    parts = enumerate(run.held_out.by_level)
    levels = {f"loss/held_out_by_level/{i:02d}_logsnr_{at['logsnr']:+.2f}": at["loss"] for i, at in parts}
    return {"loss/held_out": run.held_out.mean, **levels}


def write_snapshot(run: Run) -> None:
    """Store the averages of which --mode ema makes those of other lengths."""
    with run.phases("checkpoint"):
        names = {build.power_name(length): length for length in run.config.training.ema_lengths}
        powers = {names[name]: weights for name, weights in run.trainer.weights(*names).items()}
        run.engine.on_main(partial(save_snapshot, run.folder, run.trainer.step, powers))


def write_checkpoint(run: Run, position: Mapping[str, Any]) -> None:
    """Store all that the training needs to go on."""
    settings, train = run.config.training, run.splits.train
    with run.phases("checkpoint"):
        checkpoint = Checkpoint(
            **run.trainer.state(),
            transform=run.task.transform,
            random={"seed": run.config.seed},
            title=train.title,
            classes=train.classes,
            config=plain(run.config),
            progress={
                **run.trainer.progress(),
                "data": dict(position),
                "seconds": round(run.seconds_before + run.session, 2),
            },
        )
        run.engine.on_main(
            partial(save_checkpoint, run.folder, checkpoint, settings.keep_checkpoints, settings.milestone_every)
        )


def write_training_result(run: Run, first: int, outcome: Outcome, corrupt: Sequence[str]) -> dict[str, Any]:
    """What the training came to, which is stored."""
    step, session = run.trainer.step, run.session
    result = {
        "steps": step,
        "parameters": sum(p.numel() for p in run.trainer.net.parameters()),
        "seconds": round(run.seconds_before + session, 2),
        "seconds_of_last_session": round(session, 2),
        "images_per_second": round((step - first) * run.config.training.batch_size / session, 1),
        "phases": {name: round(spent, 2) for name, spent in run.phases.seconds.items()},
        "shares": {name: round(share, 4) for name, share in run.phases.share().items()},
        "loss": outcome.loss,
        "held_out_loss": run.held_out.mean if run.held_out else None,
        "held_out_by_level": run.held_out.by_level if run.held_out else [],
        "skipped_updates": run.trainer.guard.skipped,
        "corrupt_files": sorted({name for part in run.engine.gathered_objects(list(corrupt)) for name in part}),
        "memory": memory(),
        "processes": run.engine.count,
        "precision": run.engine.precision,
        "device": str(run.engine.device),
    }
    run.engine.on_main(partial(set_result, run.folder, "training", result))
    return result


def preview(run: Run) -> np.ndarray:
    """A picture of a few samples by a few steps, in the midst of a training."""
    denoiser = run.trainer.alone
    # A grid that every process has at any number of steps, whatever sampling.grid is.
    grid = make_grid(denoiser.spec.model_process, PREVIEW_STEPS, "logsnr")
    indices, classes = range(PREVIEW_SAMPLES), run.splits.train.classes
    arrays, _ = draw(run.config, denoiser, run.task.transform, classes, "ddim", grid, indices, {})
    return picture(samples_of(arrays))


def size_of(dataset: Source) -> str:
    """How many samples a set has, in words."""
    return "a stream of" if dataset.size is None else f"{dataset.size:,}"


def training_summary(folder: Path, result: Mapping[str, Any]) -> str:
    """What a training came to, in a few lines."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items())
    levels = table(
        [
            {"log-SNR": f"{at['logsnr']:+.1f}", "held-out loss": f"{at['loss']:.4f}", "samples": at["samples"]}
            for at in result["held_out_by_level"]
        ]
    )
    lines = [
        f"trained {folder} to step {result['steps']:,}: {result['seconds']:.0f} s in all, "
        f"{result['images_per_second']:,.0f} images/s; {shares}; {result['memory']['resident_peak']:.0f} MiB at most",
        f"loss {result['loss']:.4f}, held-out {result['held_out_loss']:.4f}, by noise level:",
        levels,
    ]
    if result["skipped_updates"]:
        lines.append(f"{result['skipped_updates']} updates were skipped, their losses being out of bounds")
    if result["corrupt_files"]:
        shown = ", ".join(result["corrupt_files"][:5])
        lines.append(f"files that could not be read ({len(result['corrupt_files'])}): {shown}")
    return "\n".join(lines)


# --- sampling -------------------------------------------------------------------------------------------------


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


def stored(transform: DataTransform, x: Tensor, labels: Tensor | None) -> dict[str, np.ndarray]:
    """Samples as they are stored: images uint8 [N, H, W, C], or vectors; and the labels they were drawn for."""
    told = {} if labels is None else {"labels": labels.numpy()}
    if transform.levels is None:
        return {"samples": transform.decode(x, labels).numpy(), **told}
    return {"images": transform.to_uint8(x, labels).permute(0, 2, 3, 1).numpy(), **told}


def samples_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images or vectors of `stored`."""
    return arrays["images" if "images" in arrays else "samples"]


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


# --- likelihood ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Data whose likelihood is asked for: its name in files, and the names of its images where they have any."""

    dataset: Dataset
    name: str
    files: list[str]


def evaluated_data(config: ConfigDict, trained: Checkpoint, splits: Splits | None = None) -> Evaluated:
    """The pictures of likelihood.folder, or a split of the data set.

    Raises UserError for data that the network cannot know: of other grey levels or another shape.
    """
    settings = config.likelihood
    if settings.folder:
        place = Path(settings.folder).expanduser().resolve()
        dataset, files = load_pictures(settings.folder, settings.image_size)
        # Folders of one name, and a folder named as a split, have files of their own.
        name = f"{place.name}-{digest(str(place).encode())[:6]}"
    else:
        source, files, name = getattr(splits or build.data(config), settings.split), [], settings.split
        if not isinstance(source, Dataset):
            raise UserError(
                f"likelihood.split={settings.split!r} is not in memory (data.storage={config.data.storage!r}), where "
                "bits/dim are computed of; choose data.storage='memory', the split 'test', or likelihood.folder"
            )
        dataset = source
    levels = trained.transform.levels
    if dataset.levels != levels:
        raise UserError(
            f"{dataset.title} has {dataset.levels or 'no'} grey levels, and the network was trained on "
            f"{levels or 'continuous vectors'}: bits/dim would not be about the same data"
        )
    if dataset.shape != trained.spec.shape:
        raise UserError(
            f"{dataset.title} has samples of shape {list(dataset.shape)}, and the network takes "
            f"{list(trained.spec.shape)}; --config.likelihood.image_size cuts the pictures of a folder to a size"
        )
    return Evaluated(_in_classes_of(trained, dataset), name, files)


def _in_classes_of(trained: Checkpoint, dataset: Dataset) -> Dataset:
    """The data with the labels of the trained classes, without labels where the classes are others."""
    numbered = trained.classes == tuple(map(str, range(len(dataset.classes))))  # an imported network's, without names
    if dataset.labels is None or dataset.classes == trained.classes or numbered:
        return replace(dataset, classes=trained.classes) if numbered and dataset.labels is not None else dataset
    if not set(dataset.classes) <= set(trained.classes):
        return replace(dataset, labels=None, classes=())
    order = torch.tensor([trained.classes.index(name) for name in dataset.classes])
    return replace(dataset, labels=order[dataset.labels], classes=trained.classes)


def asked_for(config: ConfigDict, dataset: Dataset) -> int:
    """How many samples likelihood.num_samples comes to."""
    return min(config.likelihood.num_samples or len(dataset), len(dataset))


def likelihood_protocol(
    config: ConfigDict, trained: Checkpoint, data: Evaluated, figures: Mapping[str, NamedFigure]
) -> dict[str, Any]:
    """All that the bits/dim of a sample depend on."""
    weights = trained.weights[config.sampling.weights]
    dataset = data.dataset
    count = asked_for(config, dataset)
    return {
        "data": dataset.title,
        "data_digest": tensor_digest(
            {"samples": dataset.samples} | ({} if dataset.labels is None else {"labels": dataset.labels})
        ),
        "given": "its class" if config.model.class_conditional and dataset.labels is not None else "nothing",
        "checkpoint_step": trained.step,
        "weights": config.sampling.weights,
        "weights_digest": tensor_digest(weights),
        "process": process_state(trained.spec.model_process),
        "seed": config.seed,
        "numerics": NUMERICS,
        # Only a solver with step sizes for each sample makes a row independent of its batch.
        "batches": None if config.likelihood.method == "per_sample" else [config.likelihood.batch_size, count],
        "figures": {name: {"space": figure.space, **figure.protocol} for name, figure in figures.items()},
    }


def likelihood_rows(
    config: ConfigDict,
    engine: Engine,
    trained: Checkpoint,
    data: Evaluated,
    folder: Path,
    figures: Mapping[str, NamedFigure],
    protocol: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row of bits/dim for each sample; those that an earlier run has stored are not computed again.

    Each process takes a batch of every round, and the main one stores the rows of all before the next round.
    """
    denoiser = network_of(config, trained, engine.device)
    dataset, size = data.dataset, config.likelihood.batch_size
    count = asked_for(config, dataset)
    records = Records(folder, data.name, protocol)
    with ExitStack() as held:

        def absent() -> list[int]:
            held.enter_context(records)
            return [index for index in range(count) if index not in records.rows]

        missing = engine.on_main(absent)
        if len(missing) < count:
            print(f"{count - len(missing)} of {count} samples are in {records.path} already")
        chunks = [missing[first : first + size] for first in range(0, len(missing), size)]
        done = count - len(missing)
        with progress(count, "sample", "likelihood", done=done, visible=engine.main) as bar:

            def rows_of(chunks: list[list[int]]) -> list[dict[str, Any]]:
                mine = engine.mine(chunks)
                return row_figures(config, denoiser, dataset, mine[0], figures, bar) if mine else []

            for first in range(0, len(chunks), engine.count):
                everywhere = engine.each(partial(rows_of, chunks[first : first + engine.count]))
                rows = [row for part in everywhere for row in part]
                engine.on_main(partial(records.append, rows))
                bar.update(len(rows))
        found = engine.on_main(lambda: [records.rows[index] for index in range(count)])
    names = [] if dataset.labels is None else [dataset.classes[int(label)] for label in dataset.labels[:count]]
    return [
        {
            "index": row["index"],
            **({"file": data.files[row["index"]]} if data.files else {}),
            **({"class": names[row["index"]]} if names else {}),
            **row,
        }
        for row in found
    ]


def row_figures(
    config: ConfigDict,
    denoiser: NetworkDenoiser,
    dataset: Dataset,
    indices: Sequence[int],
    figures: Mapping[str, NamedFigure],
    bar: Progress,
) -> list[dict[str, Any]]:
    """A row for each of some samples: every figure with its parts, the evaluations it took and the seconds."""
    samples, labels = dataset.read(torch.tensor(indices))
    batch = Batch(samples, labels, indices, config.seed)
    model = ConditionedDenoiser(denoiser, **conditioning(config, labels, denoiser.device))
    rows: list[dict[str, Any]] = [{"index": index} for index in indices]
    for name, figure in figures.items():

        def told(done: int, total: int, name: str = name) -> None:
            if done % 20 == 0:
                bar.note(**{name: f"{done}/{total}"})

        started = time.perf_counter()
        columns, nfe = figure.compute(model, batch, told)
        seconds = (time.perf_counter() - started) / len(indices)
        _check_finite(columns, indices)
        for i, row in enumerate(rows):
            row.update({column: float(values[i]) for column, values in columns.items()})
            row.update({f"{name}_nfe": nfe, f"{name}_seconds": round(seconds, 5)})
    return rows


def _check_finite(columns: Mapping[str, torch.Tensor], indices: Sequence[int]) -> None:
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            wrong = indices[int(values.isfinite().logical_not().nonzero()[0])]
            raise NotFinite(f"{name} is not finite for sample {wrong}: check the model's output")


def figure_summary(name: str, figure: NamedFigure, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard error and interval of a figure's bits/dim, the means of its parts, and how it was computed."""
    own = summary(np.array([row[name] for row in rows]))
    parts = [column for column in rows[0] if column.startswith(f"{name}_")]
    means = {
        column.removeprefix(f"{name}_"): float(np.mean([row[column] for row in rows]))
        for column in parts
        if not column.endswith(("_nfe", "_seconds"))
    }
    return {
        "bits_per_dim": own.mean,
        "standard_error": own.standard_error,
        "interval": own.interval,
        "space": figure.space,
        "nfe": max(row[f"{name}_nfe"] for row in rows),
        "seconds": round(sum(row[f"{name}_seconds"] for row in rows), 2),
        **means,
        **figure.protocol,
    }


def report_likelihood(
    config: ConfigDict, folder: Path, engine: Engine, trained: Checkpoint, splits: Splits | None = None
) -> None:
    """Compute, store, print and draw the bits/dim of a split or a folder of images."""
    data = evaluated_data(config, trained, splits)
    figures = build.figures(config, trained.spec.model_process, trained.transform, engine.device)
    place = folder / "likelihood"
    protocol = likelihood_protocol(config, trained, data, figures)
    rows = likelihood_rows(config, engine, trained, data, place, figures, protocol)
    if engine.main:
        write_likelihood(config, folder, trained, data, figures, protocol, rows)


def write_likelihood(
    config: ConfigDict,
    folder: Path,
    trained: Checkpoint,
    data: Evaluated,
    figures: Mapping[str, NamedFigure],
    protocol: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Store, print and draw the rows of bits/dim."""
    place = folder / "likelihood"
    summaries = {name: figure_summary(name, figure, rows) for name, figure in figures.items()}
    first = next(iter(summaries.values()))
    result = {
        **first,
        "figure": next(iter(summaries)),
        "samples": len(rows),
        "split": data.name,
        "bin_width": trained.transform.bin_width or 1.0,
        **{key: value for key, value in protocol.items() if key not in ("figures", "process")},
        "figures": summaries,
    }
    set_result(folder, "likelihood", result)
    write_json(place / f"{data.name}.json", result)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_aside(place / f"{data.name}.csv", text.getvalue().encode())
    draw_likelihood(config, folder, trained, data, rows, list(figures))
    print(likelihood_text(result, rows))
    print(f"wrote {place / data.name}.csv, .json, _histogram.png, _most_likely.png and _least_likely.png")


def draw_likelihood(
    config: ConfigDict,
    folder: Path,
    trained: Checkpoint,
    data: Evaluated,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    """The histogram, the most and the least likely samples, and all of it in TensorBoard."""
    place, step = folder / "likelihood", trained.step
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    title = f"{data.name} of {trained.title}" if not data.files else data.name
    write_aside(place / f"{data.name}_histogram.png", histogram(columns, "bits/dim", f"{title}, {len(rows)} samples"))
    order = np.argsort(columns[names[0]], kind="stable")
    extremes = {"most_likely": order[:LIKELIEST], "least_likely": order[::-1][:LIKELIEST]}
    with Board(folder / "tensorboard") as board:
        for name, values in columns.items():
            board.add_scalar(f"bits_per_dim/{data.name}/{name}", float(values.mean()), step)
            board.add_histogram(f"bits_per_dim/{data.name}/{name}", values, step)
        for which, picked in extremes.items():
            index = torch.from_numpy(picked.copy())
            labels = None if data.dataset.labels is None else data.dataset.labels[index]
            shown = stored(trained.transform, trained.transform.encode(data.dataset.samples[index], labels), labels)
            captions = [f"{value:.3f}" for value in columns[names[0]][picked]]
            drawn = captioned(shown["images"], captions) if "images" in shown else picture(shown["samples"])
            write_aside(place / f"{data.name}_{which}.png", png(drawn))
            board.add_image(f"{data.name}/{which}", drawn, step, dataformats="HWC")


def likelihood_text(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Bits/dim by every figure side by side, what they are made of, and how they were computed."""
    summaries: Mapping[str, Mapping[str, Any]] = result["figures"]

    def interval(row: Mapping[str, Any]) -> str:
        return "-" if row["interval"] is None else f"{row['interval'][0]:.4f} .. {row['interval'][1]:.4f}"

    lines = [
        f"bits/dim of {result['samples']} samples of {result['data']} ({result['split']}) given {result['given']}",
        table(
            [
                {
                    "figure": name,
                    "bits/dim": f"{row['bits_per_dim']:.4f}",
                    "std. error": "-" if row["standard_error"] is None else f"{row['standard_error']:.4f}",
                    "95% interval": interval(row),
                    "smallest time": f"{row['smallest_time']:g}",
                    "nfe": row["nfe"],
                    "seconds": row["seconds"],
                    "space": row["space"],
                }
                for name, row in summaries.items()
            ]
        ),
    ]
    for name, row in summaries.items():
        if "method" in row:
            probes = f", {row['probes']} {row['probe']} probe{'s' * (row['probes'] > 1)}" if "probes" in row else ""
            steps = f"at rtol {row['rtol']:g}" if "rtol" in row else f"in {row['steps']} steps"
            lines.append(f"{name}: {row['divergence']} trace{probes}, {row['method']} {steps}")
        if "probe_error" in row:
            lines.append(f"{name}: the probes give each sample a standard error of {row['probe_error']:.4f} bits/dim")
        if "t_min_change" in row:
            lines.append(f"{name}: twice the smallest time changes bits/dim by {row['t_min_change']:+.1e}")
        if "prior" in row:
            terms = f", {row['terms']} of them for each sample" if row.get("terms") else ""
            how = f"{row['steps']} levels{terms}, variance {row['variance']}" if "steps" in row else "continuous time"
            lines.append(
                f"{name}: prior {row['prior']:.2e}, denoising {row['denoising']:.4f}, reconstruction "
                f"{row['reconstruction']:.4f}; {how}"
            )
    base, *others = summaries
    for name in others:
        gap = summary(np.array([row[name] - row[base] for row in rows]))
        lines.append(f"{name} - {base}, sample by sample: {gap}")
    return "\n".join(lines)


def likelihood(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Bits/dim of the held-out (or training) split, or of a folder of images."""
    config, trained = trained_network(config, folder, engine)
    report_likelihood(config, folder, engine, trained)


# --- latents ---------------------------------------------------------------------------------------------------


def pairs_of(dataset: Dataset, count: int, same_class: bool) -> Tensor:
    """Indices [2, count] of samples to interpolate between; those of a pair share a class if they must.

    Raises UserError where there is no such pair.
    """
    if not same_class or dataset.labels is None:
        count = min(count, len(dataset) // 2)
        return torch.arange(2 * count).view(count, 2).T
    found = [torch.nonzero(dataset.labels == label)[:2, 0] for label in range(len(dataset.classes))]
    pairs = [pair for pair in found if len(pair) == 2][:count]
    if not pairs:
        raise UserError("no class has two held-out samples to interpolate between")
    return torch.stack(pairs, dim=1)


def latents(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Encode held-out samples, decode them again, interpolate between them, and change the latents' temperature.

    The work of a moment, which the main process does alone.
    """
    config, trained = trained_network(config, folder, engine)  # which all processes read together
    if not engine.main:
        return
    settings = config.latents
    held_out, transform = build.data(config).test, trained.transform
    denoiser = network_of(config, trained, engine.device)
    sde, device = trained.spec.model_process, denoiser.device
    index = pairs_of(held_out, settings.pairs, config.model.class_conditional)
    labels = None if held_out.labels is None else held_out.labels[index[0]]
    model = ConditionedDenoiser(denoiser, **conditioning(config, labels, device))
    t_min = build.flow_options(config)["t_min"]
    tolerances = {"rtol": settings.rtol, "atol": settings.rtol, "t_min": t_min, "max_nfe": config.likelihood.max_nfe}
    noise = seeded(config.seed, stream=LATENT_STREAM)
    ends = [
        encoded(transform, held_out.samples[side], labels, config.data.dequantize, noise).to(device) for side in index
    ]
    trips = [round_trip(model, x, sde, **tolerances) for x in ends]
    error = torch.cat([trip.error for trip in trips])
    weights = torch.linspace(0.0, 1.0, settings.points, dtype=torch.float64)
    path = interpolate(trips[0].latent, trips[1].latent, weights)
    between = [decode(model, z, sde, **tolerances) for z in path]
    tempered = [decode(model, trips[0].latent, sde, temperature=tau, **tolerances) for tau in settings.temperatures]
    place = folder / "latents"
    pictures = {"round_trip": [ends[0], trips[0].decoded, ends[1], trips[1].decoded]}
    pictures |= {"interpolation": between, "temperature": tempered}
    for name, columns in pictures.items():
        # A row of tiles for each pair.
        rows = torch.stack(columns, dim=1).flatten(0, 1).cpu()
        told = None if labels is None else labels.repeat_interleave(len(columns))
        shown = stored(transform, rows, told)
        write_aside(place / f"{name}.png", png(picture(samples_of(shown), len(columns))))
    result = {
        "pairs": index.shape[1],
        "round_trip_rms": float(error.square().mean().sqrt()),
        "round_trip_worst": float(error.max()),
        "latent_rms": float(torch.cat([trip.latent for trip in trips]).square().mean().sqrt() / sde.prior_std),
        "nfe": trips[0].nfe,
        "rtol": settings.rtol,
        "smallest_time": sde.t_likelihood if t_min is None else t_min,
        "temperatures": list(settings.temperatures),
        "data": trained.title,
        "checkpoint_step": trained.step,
        "seed": config.seed,
    }
    write_json(place / "latents.json", result)
    set_result(folder, "latents", result)
    print(
        f"{2 * result['pairs']} samples encoded and decoded: rms error {result['round_trip_rms']:.1e}, worst "
        f"{result['round_trip_worst']:.1e} at rtol {settings.rtol:g}, smallest time {result['smallest_time']:g}, nfe "
        f"{result['nfe']} both ways; latents have {result['latent_rms']:.3f} times the prior's standard deviation"
    )
    print(f"wrote {place}/round_trip.png, interpolation.png, temperature.png and latents.json")


# --- evaluation -------------------------------------------------------------------------------------------------


def evaluate(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """The held-out loss of raw and averaged weights, by noise level, and held-out bits/dim."""
    config, trained = trained_network(config, folder, engine)
    splits = build.data(config)
    task = Task.of(config, trained.transform, trained.spec.model_process)
    found: dict[str, HeldOut] = {}
    with progress(len(trained.weights), "set", "evaluate", visible=engine.main) as bar:
        for name in trained.weights:
            found[name] = held_out_loss(task, denoiser_of(trained, name, engine.device), splits.test, engine)
            bar.update()
    result = {
        "held_out_loss": {name: losses.mean for name, losses in found.items()},
        "held_out_by_level": {name: losses.by_level for name, losses in found.items()},
        "checkpoint_step": trained.step,
    }
    engine.on_main(lambda: set_result(folder, "evaluation", result))
    kind = config.training.weighting if config.training.loss == "score_matching" else config.training.loss
    losses = ", ".join(f"{loss.mean:.4f} {name}" for name, loss in found.items())
    print(f"held-out loss ({kind}) of each set of weights: {losses}")
    report_likelihood(config, folder, engine, trained, splits)


def post_hoc(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Averages of any length from the snapshots of a training, and their held-out losses."""
    config, trained = trained_network(config, folder, engine)
    splits, settings = build.data(config), config.ema
    task = Task.of(config, trained.transform, trained.spec.model_process)
    stored = snapshot_index(folder)
    step = settings.step or (stored[-1].step if stored else 0)
    rows = []
    for length in settings.lengths:
        name = build.power_name(length) + (f"_at_{step}" if settings.step else "")
        weights, residual = reconstruct(folder, length, step, stored)
        engine.on_main(partial(save_average, folder, name, step, weights))
        made = replace(trained, weights={name: weights})
        loss = held_out_loss(task, denoiser_of(made, name, engine.device), splits.test, engine)
        rows.append({"length": length, "weights": name, "held_out_loss": loss.mean, "residual": residual})
    result = {"step": step, "averages": rows}
    engine.on_main(lambda: set_result(folder, "ema", result))
    shown = [
        {**row, "held_out_loss": f"{row['held_out_loss']:.5f}", "residual": f"{row['residual']:.1e}"} for row in rows
    ]
    print(table(shown))
    print(f"wrote them to {folder / AVERAGES}: --config.sampling.weights={rows[0]['weights']} takes one")


def everything(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Train or resume, sample with every sampler of sampling.gallery from the same noise, and evaluate."""
    gallery = build.gallery(config)
    for entry in gallery:
        build.rehearse(config, *entry)
    train(config, folder, engine)
    config, trained = trained_network(config, folder, engine)
    rows = [sample_into(folder, config, engine, trained, *entry) for entry in gallery]
    print(table(rows))
    evaluate(config, folder, engine)
    print(f"wrote samples_<sampler>.png, .npz and .json, and results.json, to {folder}")


# --- what there is --------------------------------------------------------------------------------------------


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value) or repr('')}" for name, value in options.items()) or "-"


def sampler_rows() -> list[dict[str, str]]:
    """The samplers with their options and defaults, a row each."""
    return [
        {
            "sampler": name,
            "order": entry.order,
            "evaluations": entry.evaluations,
            "noise": entry.noise,
            "grid": entry.grid or "process",
            "options": _listed(sampler_options(name)),
            "source": entry.source,
        }
        for name, entry in SAMPLER_TABLE.items()
    ]


def grid_rows() -> list[dict[str, str]]:
    """The grids with their options and defaults, a row each."""
    return [
        {
            "grid": kind,
            "options": _listed(grid_options(kind)),
            "nodes": (inspect.getdoc(builder) or "").partition("\n")[0],
        }
        for kind, builder in GRIDS.items()
    ]


def catalogue() -> str:
    """The samplers and grids as tables of text."""
    samplers = wrapped(sampler_rows(), {"order": 12, "evaluations": 12, "noise": 10, "options": 28, "source": 16})
    return "\n\n".join(
        [
            "Samplers (--sampler NAME, --sampler.OPTION VALUE), with their order of convergence and the network's\n"
            "evaluations a step under the default options; the step to x0_hat at the end is one evaluation more. The\n"
            'grid is what --grid auto, the default, takes: "process" is uniform, and karras under EDM.',
            table(samplers),
            "Grids of noise levels (--grid NAME, --grid.OPTION VALUE).",
            table(wrapped(grid_rows(), {"options": 30, "nodes": 72})),
        ]
    )


MODES: dict[str, Callable[[ConfigDict, Path, Engine], None]] = {
    "all": everything,
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "latents": latents,
    "evaluate": evaluate,
    "ema": post_hoc,
    "import": import_network,
    "export": export_network,
}
