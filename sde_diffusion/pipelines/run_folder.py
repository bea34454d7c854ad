"""What every mode asks of a run folder: its results, whether it is this configuration's, and its network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.settings import flat
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import (
    Checkpoint,
    checkpoint_at,
    checkpoint_files,
    checkpoint_path,
    newest_whole,
    read_checkpoint,
)
from sde_diffusion.storage.trained import denoiser_of, with_average
from sde_diffusion.training.settings import TrainingSettings

FREE = ("data.root", "data.workers", "data.prefetch", "data.corrupt_limit", "data.held_out")
"""Keys of the data that may differ from those of a training: where and how they are read, not what they are."""


STORAGE = "data.storage"
TAKEN = ("process.", "model.", "data.subtract_mean", "training.init_")
"""Keys that a training which began with another's network has from that, whatever a configuration says."""


KEPT = (
    "batch_size",
    "loss",
    "vlb_weight",
    "weighting",
    "times",
    "p_mean",
    "p_std",
    "shift",
    "augment",
    "label_dropout",
    "ema_decay",
    "ema_decays",
    "ema_lengths",
)
"""Keys of a training that it cannot go on without: what it minimises, the order of its data, what it averages."""


def differing(folder: Path, settings: Settings) -> dict[str, str]:
    """The keys in which a configuration differs from that of the folder's training, with both values in words."""
    path = folder / "config.json"
    if not (path.exists() and checkpoint_files(folder)):
        return {}
    stored = json.loads(path.read_text())
    if "imported" in stored:  # its network, process and data are those of its source, whatever a configuration says
        return {}
    here = settings.plain()
    sections = ("seed", "data", "process", "model", "training")
    old, new = (flat({name: c[name] for name in sections if name in c}) for c in (stored, here))
    ignored = TAKEN if old.get("training.init_from") else ()
    # A key that the older folder does not know has its default there.
    return {
        key: f"{key} ({old[key]!r} there, {new.get(key)!r} here)"
        for key in sorted(old)
        if old[key] != new.get(key) and not key.startswith(ignored)
    }


def smaller_batch(folder: Path, training: TrainingSettings) -> str:
    """The end of a sentence about a training whose batch cannot be smaller: how it takes as little memory."""
    whole = json.loads((folder / "config.json").read_text())["training"]["batch_size"]
    least = -(-whole * training.accumulate // training.batch_size)
    passes = next((n for n in range(least, whole) if whole % n == 0), whole)
    if training.batch_size >= whole:
        return ""
    return (
        f". To need less memory keep training.batch_size={whole} and set training.accumulate={passes}: every update "
        f"then takes its {whole} samples in {passes} passes, and comes to the same"
    )


def check_folder(folder: Path, settings: Settings, training: bool = False) -> None:
    """Raises UserError if the folder holds a training of another data set, process or model.

    To go on training, the seed and what decides the course of a training must be the same too; the keys that differ
    and may do so are printed.
    """
    found = differing(folder, settings)
    # Only a stream has another order, and may hold out other samples.
    free = FREE if "streaming" in found.get(STORAGE, "") else (*FREE, STORAGE)
    kept = {"seed", *(f"training.{name}" for name in KEPT)} if training else set()
    harm = [
        words
        for key, words in found.items()
        if key in kept or (key.startswith(("data.", "process.", "model.")) and key not in free)
    ]
    if harm:
        remedy = smaller_batch(folder, settings.training) if "training.batch_size" in kept & found.keys() else ""
        raise UserError(
            f"{folder} holds a training with another configuration: {'; '.join(harm[:4])}"
            f"{' ...' if len(harm) > 4 else ''}; choose another --workdir, or its own configuration, which --workdir "
            f"without --config takes{remedy}"
        )
    if training and found:
        print(f"going on with other values: {'; '.join(found.values())}")


def shared_checkpoint(folder: Path, engine: Engine, step: int = 0) -> Checkpoint:
    """The newest whole checkpoint of a run folder, or that of a step, the same in every process."""
    if engine.count == 1:
        return checkpoint_at(folder, step) if step else read_checkpoint(folder)
    path, found = engine.on_main(lambda: checkpoint_path(folder, step) if step else newest_whole(folder)), []
    engine.each(lambda: found.append(read_checkpoint(path)))
    return found[0]


def trained_network(settings: Settings, folder: Path, engine: Engine) -> tuple[Settings, Checkpoint]:
    """The checkpoint of the run folder, which must be this configuration's, or an imported one.

    The newest, unless sampling.checkpoint names a step. With it the configuration whose process and model are those of
    the network. An average that was made after the training is among its weights if it is asked for.
    """
    engine.on_main(lambda: check_folder(folder, settings))
    step = settings.sampling.checkpoint
    found = shared_checkpoint(folder, engine, step)
    settings = with_weights(settings, folder, found)
    trained = with_average(found, folder, settings.sampling.weights)
    if trained.step != found.step and step:
        raise everyones(
            UserError(
                f"sampling.weights={settings.sampling.weights!r} were made after the training, of step {trained.step}; "
                f"leave sampling.checkpoint={step} out"
            )
        )
    return settings.as_trained(trained.spec), trained


def with_weights(settings: Settings, folder: Path, found: Checkpoint) -> Settings:
    """The settings with the weights that there are: those of an imported network may have no average, which is said."""
    if settings.sampling.weights != "ema" or "ema" in found.weights:
        return settings
    print(f"{folder} has no averaged weights: sampling.weights is 'raw'")
    return replace(settings, sampling=replace(settings.sampling, weights="raw"))


def network_of(settings: Settings, trained: Checkpoint, device: torch.device) -> NetworkDenoiser:
    """The network of a checkpoint on a device: the weights and the compiler are those of the configuration."""
    denoiser = denoiser_of(trained, settings.sampling.weights, device)
    return NetworkDenoiser(settings.compiled(denoiser.net), denoiser.spec)
