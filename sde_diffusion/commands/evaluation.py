"""What a trained network is worth on held-out data, by each of its averages, those made afterwards too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from sde_diffusion.data import Splits
from sde_diffusion.pipelines.likelihood import report_likelihood
from sde_diffusion.pipelines.run_data import splits_of
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.runtime.progress import progress
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.results import set_result
from sde_diffusion.storage.trained import AVERAGES, denoiser_of, save_average
from sde_diffusion.training.averages import reconstruct, snapshot_index
from sde_diffusion.training.losses import HeldOut, held_out_loss
from sde_diffusion.training.settings import power_name


def evaluate(settings: Settings, folder: Path, engine: Engine) -> None:
    """The held-out loss of raw and averaged weights, by noise level, and held-out bits/dim."""
    settings, trained = trained_network(settings, folder, engine)
    evaluate_on(settings, folder, engine, trained, splits_of(settings, trained))


def evaluate_on(settings: Settings, folder: Path, engine: Engine, trained: Checkpoint, splits: Splits) -> None:
    """The same of a network and data that have been read."""
    held_out = splits.held_out("--mode evaluate", "of other samples --mode likelihood gives the bits/dim")
    task = settings.task(trained.transform, trained.spec, trained.spec.model_process)
    found: dict[str, HeldOut] = {}
    with progress(len(trained.weights), "set", "evaluate", visible=engine.main) as bar:
        for name in trained.weights:
            found[name] = held_out_loss(task, denoiser_of(trained, name, engine.device), held_out, engine)
            bar.update()
    result = {
        "held_out_loss": {name: losses.mean for name, losses in found.items()},
        "held_out_by_level": {name: losses.by_level for name, losses in found.items()},
        "checkpoint_step": trained.step,
    }
    engine.on_main(lambda: set_result(folder, "evaluation", result))
    kind = settings.training.weighting if settings.training.loss == "score_matching" else settings.training.loss
    losses = ", ".join(f"{loss.mean:.4f} {name}" for name, loss in found.items())
    print(f"held-out loss ({kind}) of each set of weights: {losses}")
    report_likelihood(settings, folder, engine, trained, splits)


def post_hoc(settings: Settings, folder: Path, engine: Engine) -> None:
    """Averages of any length from the snapshots of a training, and their held-out losses."""
    settings, trained = trained_network(settings, folder, engine)
    splits, own = splits_of(settings, trained), settings.ema
    task = settings.task(trained.transform, trained.spec, trained.spec.model_process)
    stored = snapshot_index(folder)
    step = own.step or (stored[-1].step if stored else 0)
    rows = []
    for length in own.lengths:
        name = power_name(length) + (f"_at_{step}" if own.step else "")
        weights, residual = reconstruct(folder, length, step, stored)
        engine.on_main(partial(save_average, folder, name, step, weights))
        made = replace(trained, weights={name: weights})
        denoiser, test = denoiser_of(made, name, engine.device), splits.test
        loss = None if test is None else held_out_loss(task, denoiser, test, engine).mean
        rows.append({"length": length, "weights": name, "held_out_loss": loss, "residual": residual})
    result = {"step": step, "averages": rows}
    engine.on_main(lambda: set_result(folder, "ema", result))
    shown = [
        {
            **row,
            "held_out_loss": "-" if row["held_out_loss"] is None else f"{row['held_out_loss']:.5f}",
            "residual": f"{row['residual']:.1e}",
        }
        for row in rows
    ]
    if splits.test is None:
        print(f"of {splits.train.title} nothing is held out, so that these averages have no held-out loss")
    print(table(shown))
    print(f"wrote them to {folder / AVERAGES}: --config.sampling.weights={rows[0]['weights']} takes one")
