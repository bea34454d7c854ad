"""Train a network: the losses of a batch and of held-out data, the loop over the steps, and what it writes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from sde_diffusion import settings as build
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grids import make_grid
from sde_diffusion.core.noise import rand, randn, row_generators, seeded
from sde_diffusion.core.process import SDE
from sde_diffusion.data import Dataset, DataTransform, Source, Splits, batches
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec
from sde_diffusion.likelihood.decoder import Space
from sde_diffusion.objectives.losses import Objective
from sde_diffusion.objectives.times import TimeSampler
from sde_diffusion.pipelines.batch import conditioning, encoded, samples_of, some, stored
from sde_diffusion.pipelines.run_folder import check_folder, plain, set_result, shared_checkpoint, write_json
from sde_diffusion.pipelines.sampling import draw, network_model
from sde_diffusion.report.pictures import picture
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.runtime.metrics_log import journal
from sde_diffusion.runtime.progress import Phases, memory, progress
from sde_diffusion.storage.checkpoint import Checkpoint, checkpoint_files, newest_whole, save_checkpoint
from sde_diffusion.storage.files import FolderLock
from sde_diffusion.training.averages import drop_snapshots, save_snapshot
from sde_diffusion.training.guard import Preempted, listening
from sde_diffusion.training.trainer import Outcome, RowLosses, Trainer, fresh_weights

# One stream of random numbers for each purpose, so that none repeats another's; modes/latents.py, figures.py and
# data/dataset.py have the others.
TRAIN_STREAM, HELD_OUT_STREAM, DROPOUT_STREAM = 2, 3, 4
PREVIEW_STEPS, PREVIEW_SAMPLES = 20, 36
LOGSNR_SHOWN = 20.0
"""Levels beyond plus and minus this count as such where losses are told by log-SNR: there may be no noise, or all."""


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
    build.check_pair(config)
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
    # torch.manual_seed notes the whole call stack for each kind of device that is not there: a tenth of a small step.
    seed = torch.default_generator.manual_seed if engine.device.type == "cpu" else torch.manual_seed
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
            seed(seeded(config.seed, trainer.step, engine.number, stream=DROPOUT_STREAM).initial_seed())
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
    transform = run.task.transform
    model = network_model(run.config, denoiser, transform, run.splits.train.classes)
    drawn = draw(model, "ddim", grid, run.config.seed, range(PREVIEW_SAMPLES), {})
    return picture(samples_of(stored(transform, drawn.x, drawn.labels)))


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
