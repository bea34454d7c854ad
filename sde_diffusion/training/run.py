"""A training from its first step, or from a checkpoint, to its last: the loop over the steps, and what it writes.

    checkpoints/  ema_snapshots/  metrics.jsonl  tensorboard/  previews/  tracking.json

A run without a folder writes nothing. The loop itself is `Run.train`; an update is the trainer's, a loss the task's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset, Stream
from sde_diffusion.data.dataset import Batch
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.runtime.journal import Journal, journal
from sde_diffusion.runtime.progress import Phases, Progress, memory, progress
from sde_diffusion.runtime.tracking import NONE
from sde_diffusion.storage.checkpoint import Checkpoint, newest_whole, save_checkpoint
from sde_diffusion.training.averages import save_snapshot
from sde_diffusion.training.guard import Preempted, Signals, listening
from sde_diffusion.training.losses import HeldOut, Task, held_out_loss, row_losses, some
from sde_diffusion.training.settings import TrainingSettings, power_name
from sde_diffusion.training.trainer import Outcome, RowLosses, Trainer

DROPOUT_STREAM = 4

Batches = Callable[[range, int, Mapping[str, Any] | None], AbstractContextManager[Stream]]
"""(rows of each batch that are this process's, first step, state of the stream there) -> the batches from there on."""


@dataclass(eq=False)
class Run:
    """A training in progress: what is trained and on what, where it is written, and where the time goes.

    batches: of the training data; test: what held-out losses are of, None for none; folder: None to write nothing.
    about: what a checkpoint says of the data and the settings: title, classes, config. preview: a picture of samples.
    tracking: a key of TRACKERS, or "none".
    before_checkpoint: is called by the main process before it writes one.
    on_result: is given what the training came to, before the last checkpoint, with which it counts as done.
    """

    task: Task
    trainer: Trainer
    engine: Engine
    batches: Batches
    test: Dataset | None = None
    folder: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[Trainer], np.ndarray] | None = None
    tracking: str = NONE
    before_checkpoint: Callable[[], object] = lambda: None
    on_result: Callable[[Mapping[str, Any]], object] = lambda result: None
    seconds_before: float = 0.0
    phases: Phases = field(default_factory=Phases)
    started: float = field(default_factory=time.perf_counter)
    held_out: HeldOut | None = None
    shown: tuple[float, int] = (0.0, 0)
    """When the speed was shown last, in seconds of this session, and at which step."""

    @property
    def session(self) -> float:
        """Seconds since this session began to train."""
        return time.perf_counter() - self.started

    @property
    def settings(self) -> TrainingSettings:
        """Of the training."""
        return self.task.settings

    def train(self, rows: range, position: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train to the last step: what the training came to.

        rows: those of each batch that are this process's; position: in a stream of data. Raises Preempted where a
        signal stops it, and UserError where too many updates in a row had to be skipped.
        """
        settings, engine, trainer = self.settings, self.engine, self.trainer
        first, result = trainer.step, dict[str, Any]()
        # torch.manual_seed notes the call stack for each kind of device that is not there: a tenth of a small step.
        seed = torch.default_generator.manual_seed if engine.device.type == "cpu" else torch.manual_seed
        with (
            torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []),
            self.batches(rows, first, position) as stream,
            self.journal(first) as log,
            progress(settings.steps, "step", "train", done=first, leave=True, visible=engine.main) as bar,
            listening() as signals,
        ):
            self.shown = (self.session, first)
            if self.test is not None and settings.init_from and first == 0:  # what the network is worth that was taken
                log.scalars(0, self.held_out_figures(self.test))
            while trainer.step < settings.steps:
                # Dropout draws from the global state; seeded by the step, a resumed training draws the same.
                seed(seeded(self.task.seed, trainer.step, engine.number, stream=DROPOUT_STREAM).initial_seed())
                with self.phases("data"):
                    batch = next(stream)
                with self.phases("step"):
                    losses_of = partial(part_losses, self.task, batch, rows, trainer.step)
                    outcome = trainer.update(losses_of, rows, bool(signals.name))
                bar.update()
                if outcome.objection:
                    self.note_skipped(outcome)
                self.show(outcome, log, bar)
                if trainer.step == settings.steps:
                    result = self.result(first, outcome, stream.corrupt)
                    self.on_result(result)
                self.store(outcome, stream, signals)
        return result

    def journal(self, step: int) -> AbstractContextManager[Journal]:
        """Where numbers and pictures are kept, from `step` on; in the main process only."""
        keep, config = self.settings.keep_previews, self.about.get("config", {})
        return journal(self.folder, step, self.engine.main, keep, self.tracking, config)

    def show(self, outcome: Outcome, log: Journal, bar: Progress) -> None:
        """Losses, speeds and samples, at the steps at which they are wanted."""
        settings, step = self.settings, self.trainer.step
        final = step == settings.steps
        if step % settings.log_every == 0 or final:
            speed = (step - self.shown[1]) * settings.batch_size / (self.session - self.shown[0])
            self.shown = (self.session, step)
            bar.note(loss=f"{outcome.loss:.4f}", images=f"{speed:.0f}/s")
            log.scalars(step, {"images_per_second": speed, **self.step_figures(outcome)})
        if self.test is not None and (step % settings.evaluate_every == 0 or final):
            log.scalars(step, self.held_out_figures(self.test))
        # The passes of a divided network are everyone's.
        wanted = self.preview and settings.sample_every and step % settings.sample_every == 0
        if self.preview and wanted and (self.engine.main or self.engine.sharded):
            with self.phases("samples"), self.trainer.averages.within(self.trainer.net, "ema"):
                log.image("samples", self.preview(self.trainer), step)

    def store(self, outcome: Outcome, stream: Stream, signals: Signals) -> None:
        """Checkpoints and snapshots, at the steps at which they are wanted. Raises Preempted where a signal came."""
        settings, step = self.settings, self.trainer.step
        final = step == settings.steps
        if self.folder is not None and outcome.sound:
            if settings.ema_snapshots and (step % settings.ema_snapshots == 0 or final):
                self.write_snapshot(self.folder)
            if step % settings.checkpoint_every == 0 or final or outcome.stop:
                self.write_checkpoint(self.folder, stream.state)
        if outcome.stop and not final:
            raise Preempted(
                f"{signals.name or 'a signal'} came: stopped at step {step:,} of {settings.steps:,}; "
                f"{last_checkpoint(self.folder)}, from which the same command goes on"
            )

    def note_skipped(self, outcome: Outcome) -> None:
        """Warn of a skipped update. Raises UserError if it is one too many."""
        step, settings, row = self.trainer.step, self.settings, self.trainer.guard.in_a_row
        if row > settings.skip_limit or (step == settings.steps and not outcome.sound):
            # Every process has the same losses, and comes to this.
            raise everyones(
                UserError(
                    f"{outcome.objection} at step {step}, and {row} update{'s' * (row > 1)} in a row had to be "
                    f"skipped; {last_checkpoint(self.folder)}. A lower training.learning_rate or training.grad_clip "
                    "usually helps"
                )
            )
        warnings.warn(f"step {step}: {outcome.objection}; this update is skipped", stacklevel=2)

    def step_figures(self, outcome: Outcome) -> dict[str, float]:
        """Of a step: its loss, where the time went, how much memory is in use."""
        return {
            "loss/train": outcome.loss,
            "gradient_norm": outcome.norm,
            "learning_rate": self.trainer.learning_rate(self.trainer.step - 1),
            "skipped_updates": self.trainer.guard.skipped,
            **{f"seconds/{name}": round(spent, 3) for name, spent in self.phases.seconds.items()},
            **{f"memory/{name}": round(mebibytes, 1) for name, mebibytes in memory().items()},
        }

    def held_out_figures(self, test: Dataset) -> dict[str, float]:
        """The held-out loss of the average, and by noise level."""
        trainer = self.trainer
        with self.phases("evaluate"), trainer.averages.within(trainer.net, "ema"):
            self.held_out = held_out_loss(self.task, trainer.alone, test, self.engine)
        parts = enumerate(self.held_out.by_level)
        levels = {f"loss/held_out_by_level/{i:02d}_logsnr_{at['logsnr']:+.2f}": at["loss"] for i, at in parts}
        return {"loss/held_out": self.held_out.mean, **levels}

    def write_snapshot(self, folder: Path) -> None:
        """Store the averages of which --mode ema makes those of other lengths."""
        with self.phases("checkpoint"):
            names = {power_name(length): length for length in self.settings.ema_lengths}
            powers = {names[name]: weights for name, weights in self.trainer.weights(*names).items()}
            self.engine.on_main(partial(save_snapshot, folder, self.trainer.step, powers))

    def write_checkpoint(self, folder: Path, position: Mapping[str, Any]) -> None:
        """Store all that the training needs to go on."""
        settings = self.settings
        with self.phases("checkpoint"):
            checkpoint = Checkpoint(
                **self.trainer.state(),
                transform=self.task.transform,
                random={"seed": self.task.seed},
                progress={
                    **self.trainer.progress(),
                    "data": dict(position),
                    "seconds": round(self.seconds_before + self.session, 2),
                },
                **self.about,
            )

            def save() -> None:
                self.before_checkpoint()
                save_checkpoint(folder, checkpoint, settings.keep_checkpoints, settings.milestone_every)

            self.engine.on_main(save)

    def result(self, first: int, outcome: Outcome, corrupt: Sequence[str]) -> dict[str, Any]:
        """What the training came to; first: the step at which this session began."""
        step, session = self.trainer.step, self.session
        return {
            "steps": step,
            "parameters": sum(p.numel() for p in self.trainer.net.parameters()),
            "seconds": round(self.seconds_before + session, 2),
            "seconds_of_last_session": round(session, 2),
            "images_per_second": round((step - first) * self.settings.batch_size / session, 1),
            "phases": {name: round(spent, 2) for name, spent in self.phases.seconds.items()},
            "shares": {name: round(share, 4) for name, share in self.phases.share().items()},
            "loss": outcome.loss,
            "held_out_loss": self.held_out.mean if self.held_out else None,
            "held_out_by_level": self.held_out.by_level if self.held_out else [],
            "skipped_updates": self.trainer.guard.skipped,
            "corrupt_files": sorted({name for part in self.engine.gathered_objects(list(corrupt)) for name in part}),
            "memory": memory(),
            "processes": self.engine.count,
            "precision": self.engine.precision,
            "device": str(self.engine.device),
        }


def part_losses(
    task: Task, batch: Batch, rows: range, step: int, denoiser: NetworkDenoiser, wanted: range
) -> RowLosses:
    """The losses of the wanted ones of a process's rows."""
    own = some(batch, wanted.start - rows.start, wanted.stop - rows.start)
    return row_losses(task, denoiser, own, wanted, task.settings.batch_size, step)


def last_checkpoint(folder: Path | None) -> str:
    """Where the newest whole checkpoint lies, in words."""
    if folder is None:
        return "there is no folder for checkpoints"
    with warnings.catch_warnings(action="ignore"):
        try:
            return f"the last good checkpoint is {newest_whole(folder)}"
        except UserError:
            return "there is no good checkpoint yet"
