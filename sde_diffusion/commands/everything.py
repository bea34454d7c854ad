"""The bare job: train or resume, sample, evaluate, compare."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from sde_diffusion import settings as build
from sde_diffusion.commands.compare import compare
from sde_diffusion.commands.evaluation import evaluate
from sde_diffusion.commands.training import train
from sde_diffusion.core.packages import require
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import sample_into
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine


def everything(config: ConfigDict, folder: Path, engine: Engine) -> None:
    """Train or resume, sample with every sampler of sampling.gallery from the same noise, evaluate, and compare.

    A closed-form model, which has nothing to train, is compared at once.
    """
    require("report")  # before anything is trained
    if config.oracle.kind:
        return compare(config, folder, engine)
    gallery = build.gallery(config)
    for sampler, steps, options in [*gallery, *((t.sampler, t.grid_steps, t.options) for t in build.trials(config))]:
        build.rehearse(config, sampler, steps, options)
    train(config, folder, engine)
    config, trained = trained_network(config, folder, engine)
    rows = [sample_into(folder, config, engine, trained, *entry) for entry in gallery]
    print(table(rows))
    evaluate(config, folder, engine)
    print(f"wrote samples_<sampler>.png, .npz and .json, and results.json, to {folder}")
    if config.compare.samplers and config.data.storage == "streaming":
        print("a stream has no comparison: its real samples are not all at hand; --mode compare tells what can be done")
    elif config.compare.samplers:
        compare(config, folder, engine)
