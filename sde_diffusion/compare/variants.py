"""What samplers are compared on: a network under its weights, or a closed-form model; and real samples beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset, DataTransform, Splits
from sde_diffusion.denoisers.analytic import GaussianMixture
from sde_diffusion.pipelines.run_data import splits_of
from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import Model, trained_model
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint, checkpoint_at
from sde_diffusion.storage.trained import with_average

REAL_STREAM = 15
ORACLE_SAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Variant:
    """A model that samplers are compared on, its name beside others, and its exact distribution where it is known."""

    name: str
    model: Model
    truth: GaussianMixture | None = None


def variants(settings: Settings, folder: Path, engine: Engine) -> tuple[Settings, list[Variant], Splits]:
    """What samplers are compared on, and the real samples that figures compare with.

    With them the configuration whose process and model are those of the network.
    """
    if settings.oracle.kind:
        return settings, *oracle_variant(settings, engine.device)
    settings, newest = trained_network(settings, folder, engine)
    if settings.sampling.classes or settings.sampling.attributes:  # the real samples beside them are of all
        print(
            "the comparison draws all classes in turn; sampling.classes and attributes are for --mode sample and edit"
        )
        settings = replace(settings, sampling=replace(settings.sampling, classes=(), attributes=()))
    own = settings.compare
    made = [name for name in own.weights if name not in newest.weights and own.checkpoints]
    if made:
        raise everyones(
            UserError(
                f"compare.weights: {made[0]!r} was made after the training and is the same for all checkpoints; leave "
                "compare.checkpoints empty"
            )
        )
    found = []
    for step in own.checkpoints or (newest.step,):
        for weights in own.weights or (settings.sampling.weights,):
            for guidance in own.guidance or (settings.sampling.guidance,):
                sampling = replace(settings.sampling, weights=weights, guidance=float(guidance))
                trained = newest if step == newest.step else checkpoint_at(folder, step)
                trained = with_average(trained, folder, weights)
                name = ", ".join(
                    [weights]
                    + [f"step {step:,}"] * (len(own.checkpoints) > 1)
                    + [f"guidance {guidance:g}"] * (len(own.guidance) > 1)
                )
                found.append(Variant(name, trained_model(replace(settings, sampling=sampling), trained, engine.device)))
    return settings, found, real_samples(settings, newest)


def real_samples(settings: Settings, trained: Checkpoint) -> Splits:
    """The configuration's data. Raises UserError for data of another shape than the network's."""
    splits = splits_of(settings, trained)
    if splits.train.shape != trained.spec.shape:
        raise UserError(
            f"{splits.train.title} has samples of shape {list(splits.train.shape)}, and the network makes those of "
            f"{list(trained.spec.shape)}"
        )
    return splits


def oracle_variant(settings: Settings, device: torch.device) -> tuple[list[Variant], Splits]:
    """A closed-form model under the configuration's process, and exact samples of it."""
    mixture = settings.oracle.mixture()
    title = f"{settings.oracle.kind} of {len(mixture.weights)} Gaussians in {mixture.means[0].numel()} dimensions"
    exact = mixture.sample(
        max(settings.sampling.num_samples, ORACLE_SAMPLES), generator=seeded(settings.seed, stream=REAL_STREAM)
    )
    model = Model(
        lambda conditions: settings.sampling.clipped(mixture.denoiser()),
        settings.process.process(),
        mixture.shape,
        DataTransform(None),
        device=device,
        protocol={"data": title, "oracle": settings.oracle.values(), "clip": settings.sampling.clip},
        dtype=torch.float64,
        noise=settings.sampling.noise,
        prior=settings.sampling.prior or None,
    )
    real = Dataset(exact.float(), None, None, (), title)
    return [Variant("exact", model, mixture)], Splits(real, real)
