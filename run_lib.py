"""What each command does: the table of the modes, and all of them in a row.

A mode is a function (settings, folder, engine); sde_diffusion/commands has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sde_diffusion.commands.compare import compare
from sde_diffusion.commands.edit import edit
from sde_diffusion.commands.evaluation import evaluate, post_hoc
from sde_diffusion.commands.exchange import export_network, import_network
from sde_diffusion.commands.latents import latents
from sde_diffusion.commands.likelihood import likelihood
from sde_diffusion.commands.sampling import sample
from sde_diffusion.commands.training import train
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import sample_into
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def everything(settings: Settings, folder: Path, engine: Engine) -> None:
    """Train or resume, sample with every sampler of sampling.gallery from the same noise, evaluate, and compare.

    A closed-form model, which has nothing to train, is compared at once.
    """
    if settings.oracle.kind:
        return compare(settings, folder, engine)
    gallery = settings.sampling.gallery_entries()
    trials = [(trial.sampler, trial.grid_steps, trial.options) for trial in settings.compare.trials()]
    for sampler, steps, options in gallery + trials:
        settings.dry_run(sampler, steps, options)
    train(settings, folder, engine)
    settings, trained = trained_network(settings, folder, engine)
    rows = [sample_into(folder, settings, engine, trained, *entry) for entry in gallery]
    print(table(rows))
    evaluate(settings, folder, engine)
    print(f"wrote samples_<sampler>.png, .npz and .json, and results.json, to {folder}")
    if settings.compare.samplers and settings.data.storage == "streaming":
        print("a stream has no comparison: its real samples are not all at hand; --mode compare tells what can be done")
    elif settings.compare.samplers:
        compare(settings, folder, engine)


MODES: dict[str, Callable[[Settings, Path, Engine], None]] = {
    "all": everything,
    "train": train,
    "sample": sample,
    "edit": edit,
    "likelihood": likelihood,
    "latents": latents,
    "evaluate": evaluate,
    "compare": compare,
    "ema": post_hoc,
    "import": import_network,
    "export": export_network,
}
