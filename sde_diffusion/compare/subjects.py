"""What samplers are compared on: a network under its weights, or a closed-form model; and real samples beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict

from sde_diffusion import settings as build
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset, DataTransform, Splits
from sde_diffusion.denoisers.analytic import GaussianMixture
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import Model, trained_model
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.storage.checkpoint import Checkpoint, checkpoint_at
from sde_diffusion.storage.trained import with_average

REAL_STREAM = 15
ORACLE_SAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that samplers are compared on, its name beside others, and its exact distribution where it is known."""

    name: str
    model: Model
    truth: GaussianMixture | None = None


def subjects(config: ConfigDict, folder: Path, engine: Engine) -> tuple[ConfigDict, list[Subject], Splits]:
    """What samplers are compared on, and the real samples that figures compare with.

    With them the configuration whose process and model are those of the network.
    """
    if config.oracle.kind:
        return config, *oracle_subject(config, engine.device)
    config, newest = trained_network(config, folder, engine)
    settings = config.compare
    made = [name for name in settings.weights if name not in newest.weights and settings.checkpoints]
    if made:
        raise everyones(
            UserError(
                f"compare.weights: {made[0]!r} was made after the training and is the same for all checkpoints; leave "
                "compare.checkpoints empty"
            )
        )
    found = []
    for step in settings.checkpoints or (newest.step,):
        for weights in settings.weights or (config.sampling.weights,):
            for guidance in settings.guidance or (config.sampling.guidance,):
                own = config.copy_and_resolve_references()
                own.sampling.update(weights=weights, guidance=float(guidance))
                trained = newest if step == newest.step else checkpoint_at(folder, step)
                trained = with_average(trained, folder, weights)
                name = ", ".join(
                    [weights]
                    + [f"step {step:,}"] * (len(settings.checkpoints) > 1)
                    + [f"guidance {guidance:g}"] * (len(settings.guidance) > 1)
                )
                found.append(Subject(name, trained_model(own, trained, engine.device)))
    return config, found, real_samples(config, newest)


def real_samples(config: ConfigDict, trained: Checkpoint) -> Splits:
    """The configuration's data. Raises UserError for data of another shape than the network's."""
    splits = build.data(config)
    if splits.train.shape != trained.spec.shape:
        raise UserError(
            f"{splits.train.title} has samples of shape {list(splits.train.shape)}, and the network makes those of "
            f"{list(trained.spec.shape)}"
        )
    return splits


def oracle_subject(config: ConfigDict, device: torch.device) -> tuple[list[Subject], Splits]:
    """A closed-form model under the configuration's process, and exact samples of it."""
    mixture = build.ORACLES[config.oracle.kind](config.oracle)
    title = f"{config.oracle.kind} of {len(mixture.weights)} Gaussians in {mixture.means[0].numel()} dimensions"
    exact = mixture.sample(
        max(config.sampling.num_samples, ORACLE_SAMPLES), generator=seeded(config.seed, stream=REAL_STREAM)
    )
    model = Model(
        lambda labels: build.sampling_denoiser(config, mixture.denoiser()),
        build.process(config),
        mixture.shape,
        DataTransform(None),
        device=device,
        protocol={"data": title, "oracle": config.oracle.to_dict(), "clip": config.sampling.clip},
        dtype=torch.float64,
        noise=config.sampling.noise,
        prior=config.sampling.prior or None,
    )
    real = Dataset(exact.float(), None, None, (), title)
    return [Subject("exact", model, mixture)], Splits(real, real)
