"""The bare job: train or resume, sample, evaluate, compare."""

from __future__ import annotations

from pathlib import Path

from sde_diffusion.commands.compare import compare
from sde_diffusion.commands.evaluation import evaluate_on
from sde_diffusion.commands.sampling import drawn_table
from sde_diffusion.commands.training import train
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import require
from sde_diffusion.pipelines.run_data import splits_of
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import sample_into
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def everything(settings: Settings, folder: Path, engine: Engine) -> None:
    """Train or resume, sample with every sampler of sampling.gallery from the same noise, evaluate, and compare.

    A closed-form model, which has nothing to train, is compared at once.
    """
    require("report")  # before anything is trained
    if settings.oracle.kind:
        return compare(settings, folder, engine)
    gallery = settings.sampling.gallery_entries()
    trials = [(trial.sampler, trial.grid_steps, trial.options) for trial in settings.compare.trials()]
    if settings.sampling.out and len(gallery) > 1:
        raise UserError(
            f"sampling.out={settings.sampling.out!r} names the samples of one sampler, and sampling.gallery has "
            f"{len(gallery)}: leave it out, or sample by --mode sample"
        )
    for sampler, steps, options in gallery + trials:
        settings.dry_run(sampler, steps, options)
    train(settings, folder, engine)
    settings, trained = trained_network(settings, folder, engine)
    rows = [sample_into(folder, settings, engine, trained, *entry) for entry in gallery]
    print(drawn_table(rows))
    splits = splits_of(settings, trained)
    if splits.test is not None:
        evaluate_on(settings, folder, engine, trained, splits)
    else:
        print(f"nothing is held out of {splits.train.title}, of which the network could be evaluated")
    print(f"wrote samples_<sampler>.png, .npz and .json, and results.json, to {folder}")
    if settings.compare.samplers and settings.data.storage == "streaming":
        print("a stream has no comparison: its real samples are not all at hand; --mode compare tells what can be done")
    elif splits.test is None and settings.compare.split == "test":
        print("nothing is held out for a comparison; --mode compare --config.compare.split=train makes one")
    elif settings.compare.samplers:
        compare(settings, folder, engine)
