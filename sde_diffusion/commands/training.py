"""--mode train: train the network of a configuration, or go on with its training."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grids import make_grid
from sde_diffusion.data import DataTransform, Source, Splits
from sde_diffusion.pipelines.batch import samples_of, stored
from sde_diffusion.pipelines.chosen import Turns, check_wanted
from sde_diffusion.pipelines.origin import Start, beginning, check_origin, fresh, going_on
from sde_diffusion.pipelines.run_data import announce, examples_of, note_files, size_of, splits_of
from sde_diffusion.pipelines.run_folder import check_folder, shared_checkpoint
from sde_diffusion.pipelines.sampling import draw, network_model
from sde_diffusion.report.pictures import picture
from sde_diffusion.report.training import training_summary
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.runtime.tracking import check_tracker
from sde_diffusion.settings.root import Settings, fresh_network
from sde_diffusion.storage.checkpoint import checkpoint_files
from sde_diffusion.storage.files import FolderLock
from sde_diffusion.storage.results import set_result, write_json
from sde_diffusion.training.averages import drop_snapshots
from sde_diffusion.training.run import Run
from sde_diffusion.training.trainer import Trainer, loaded

PREVIEW_STEPS, PREVIEW_SAMPLES = 20, 36


def train(settings: Settings, folder: Path, engine: Engine) -> None:
    """Train to training.steps, from the newest whole checkpoint where there is one; one trainer at a time."""
    check_tracker(settings.tracking)
    settings.data.check_apart(folder)
    splits, start = beginning(settings, folder, engine)
    with ExitStack() as held:

        def lock() -> None:
            engine.part(settings.training.batch_size)
            held.enter_context(FolderLock(folder, "trained"))
            check_origin(folder, settings)
            check_folder(folder, settings, training=True)

        engine.on_main(lock)
        resumed = shared_checkpoint(folder, engine) if engine.on_main(lambda: bool(checkpoint_files(folder))) else None
        if resumed and not resumed.optimizer:
            raise UserError(
                f"{folder} holds an imported network, which is sampled and evaluated, not trained on: train it in "
                f"another --workdir, with --config.training.init_from={folder}"
            )
        splits = splits or settings.splits()
        splits = splits_of(settings, resumed, splits) if resumed else splits
        splits.tell(print)
        start = going_on(settings, resumed, splits.train) if resumed else start or fresh(settings, splits.train)
        settings = start.settings
        check_wanted(settings.sampling.classes, settings.sampling.attributes, splits.train)
        if not resumed:  # else not before something is trained with it
            engine.on_main(partial(write_json, folder / "config.json", settings.plain()))
        elif resumed.step >= settings.training.steps:
            print(f"{folder} is trained to step {resumed.step}")
            return
        run = begin(start, folder, engine, splits)
        engine.on_main(partial(note_files, folder, splits.files, resumed is not None))
        rows = engine.part(settings.training.batch_size)
        result = run.train(rows, resumed.progress.get("data") if resumed else None)
    print(training_summary(folder, result))


def begin(start: Start, folder: Path, engine: Engine, splits: Splits) -> Run:
    """A training with its network, at the step of a checkpoint where there is one."""
    settings, spec, transform, resumed = start.settings, start.spec, start.transform, start.resumed
    training, task = settings.training, settings.task(transform, spec, spec.model_process)
    net = engine.sharded_network(loaded(fresh_network(spec, settings.seed), start.weights))
    trainer = Trainer.from_settings(engine, spec, net, training, task.times, passes=settings.compiled(net))
    if resumed:
        trainer.resume(resumed)
    # Of a session that went further, perhaps in another way.
    engine.on_main(lambda: drop_snapshots(folder, trainer.step))
    announce(splits)
    examples = examples_of(splits.train, spec)
    net.train()
    print(
        f"{'resuming' if resumed else 'training'} {folder}: {spec.network} of "
        f"{sum(p.numel() for p in net.parameters()):,} parameters under {settings.process.name} on "
        f"{splits.train.title}, {size_of(splits.train)} samples, step {trainer.step:,} to {training.steps:,}, "
        f"{engine.device}{f' x {engine.count} processes' * (engine.count > 1)}, {engine.precision}, smallest training "
        f"time {spec.process.t_train:g}"
    )
    return Run(
        task,
        trainer,
        engine,
        partial(settings.data.batches, splits.train, training.batch_size, settings.seed),
        splits.test,
        folder,
        about={name: getattr(splits.train, name) for name in ("title", "classes", "columns")}
        | {"config": settings.plain(), "examples": examples},
        preview=partial(preview, settings, splits.train, transform, Turns(examples)),
        tracking=settings.tracking,
        before_checkpoint=partial(write_json, folder / "config.json", settings.plain()),
        on_result=lambda result: engine.on_main(partial(set_result, folder, "training", result)),
        seconds_before=resumed.progress.get("seconds", 0.0) if resumed else 0.0,
    )


def preview(settings: Settings, data: Source, transform: DataTransform, turns: Turns, trainer: Trainer) -> np.ndarray:
    """A picture of a few samples by a few steps, in the midst of a training."""
    denoiser = trainer.alone
    # A grid that every process has at any number of steps, whatever sampling.grid is.
    grid = make_grid(denoiser.spec.model_process, PREVIEW_STEPS, "logsnr")
    model = network_model(settings, denoiser, transform, data.classes, turns=turns if turns.rows else None)
    drawn = draw(model, "ddim", grid, settings.seed, range(PREVIEW_SAMPLES), {})
    return picture(samples_of(stored(transform, drawn.x, drawn.conditions)))
