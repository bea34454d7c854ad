"""What training for the likelihood gains on 8x8 digits: L_hybrid, and times drawn by importance.

    python benchmarks/likelihood_training.py [--steps 1250] [--threads 2] [--folder FOLDER]

1. iddpm_digits with L_hybrid, and the same with L_simple, at equal steps: the discrete bound on held-out digits. A
   network of L_simple has no learned variance, so that each fixed one is shown; differences are sample by sample.
2. Variance of the gradient of L_vlb: at the trained network, of a batch whose levels are drawn uniformly
   (independently), stratified, or as losses have been ("loss_aware"), in units of the first. The variance is the trace
   of the covariance of the gradient, E|g|^2 - |E g|^2, over repeated batches.
3. Variance of the gradient of the likelihood-weighted loss, g^2 |score error|^2, under VP, sub-VP and VE, with times
   uniform, stratified, or by importance: at networks that a third as many steps with importance trained.

Runs are kept in --folder and reused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run_lib.py and configs/ are not installed

import run_lib
import sde_diffusion as sd
from sde_diffusion.data import Dataset, batches
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.likelihood.decoder import Space
from sde_diffusion.likelihood.discrete import Chain
from sde_diffusion.nets.building import build_network, load_weights
from sde_diffusion.objectives.losses import denoising_score_matching, variational_loss
from sde_diffusion.objectives.times import TimeSampler, time_sampler
from sde_diffusion.report.likelihood import summary
from sde_diffusion.report.table import table
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import read_checkpoint
from sde_diffusion.storage.trained import denoiser_of

settings_of = Settings.from_config

BATCH, REPEATS = 64, 150


def configuration(name: str, steps: int, **training: object) -> ConfigDict:
    """A named configuration with other steps and training keys."""
    config = import_module(f"configs.{name}").get_config()
    config.device = "cpu"
    config.training.steps = steps
    config.training.cooldown_steps = int(0.7 * steps)
    config.training.sample_every = 0
    for key, value in training.items():
        config.training[key] = value
    return config


def bounds(config: ConfigDict, folder: Path, variances: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Variance -> the discrete bound of each held-out digit, in bits/dim."""
    trained, test = read_checkpoint(folder), settings_of(config).splits().test
    denoiser = sd.ConditionedDenoiser(denoiser_of(trained), labels=test.labels)
    return {
        variance: sd.elbo(
            denoiser,
            test.samples,
            trained.spec.process,
            levels=test.levels,
            variance=variance,
            generator=sd.sample_generators(0, range(len(test))),
            draws=2,
        ).per_sample.total.numpy()
        for variance in variances
    }


def hybrid_against_simple(folder: Path, steps: int) -> Path:
    """Train both and print their bounds; the folder of the first."""
    found: dict[str, np.ndarray] = {}
    for loss, variance, kinds in (
        ("hybrid", "learned_range", ("learned",)),
        ("score_matching", "fixed", ("posterior", "beta")),
    ):
        config = configuration("iddpm_digits", steps, loss=loss)
        config.model.variance = variance
        run_lib.train(settings_of(config), folder / loss, settings_of(config).engine())
        name = {"hybrid": "L_hybrid", "score_matching": "L_simple"}[loss]
        found |= {f"{name}, {kind}": values for kind, values in bounds(config, folder / loss, kinds).items()}
    best = found["L_hybrid, learned"]
    rows = [
        {
            "training, variance": name,
            "bits/dim": str(summary(values)),
            "more than L_hybrid": str(summary(values - best)),
        }
        for name, values in found.items()
    ]
    print(table(rows), flush=True)
    return folder / "hybrid"


def gradient_variance(
    network: torch.nn.Module,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    sampler: TimeSampler,
    stream: Iterator[tuple[Tensor, Tensor | None]],
    encode: Callable[[Tensor, Tensor | None], Tensor],
    warm: int,
) -> float:
    """Trace of the covariance of a batch's gradient; the sampler first learns from `warm` batches without gradients.

    loss: (x0, t, noise, labels, weight) -> losses [B] and the weighted mean's gradient is taken here.
    """
    g, total, square = torch.Generator().manual_seed(1), None, 0.0
    parameters = [p for p in network.parameters() if p.requires_grad]
    for index in range(warm + REPEATS):
        samples, labels = next(stream)
        assert labels is not None
        x0 = encode(samples, labels)
        t, weight = sampler.draw(len(x0), g)
        noise = torch.randn(x0.shape, generator=g)
        with torch.set_grad_enabled(index >= warm):
            losses = loss(x0, t, noise, labels, weight)
        if index < warm:
            sampler.learn(t, losses)
            continue
        gradient = torch.cat(
            [part.flatten() for part in torch.autograd.grad((weight.to(losses) * losses).mean(), parameters)]
        )
        square += float(gradient.square().sum())
        total = gradient.double() if total is None else total + gradient.double()
    assert total is not None
    mean = total / REPEATS
    return (square / REPEATS - float(mean.square().sum())) * REPEATS / (REPEATS - 1)


def trainable(folder: Path) -> tuple[torch.nn.Module, NetworkDenoiser]:
    """The averaged network of a run, ready for gradients."""
    trained = read_checkpoint(folder)
    network = build_network(trained.spec.network, trained.spec.options)
    load_weights(network, trained.weights["ema"])
    return network, NetworkDenoiser(network, trained.spec)


def print_variances(title: str, found: dict[str, float]) -> None:
    first = next(iter(found.values()))
    rows = [{title: name, "variance": value, "of the first": value / first} for name, value in found.items()]
    print(table(rows), flush=True)


def bound_gradients(folder: Path, data: Dataset) -> None:
    """Part 2."""
    network, denoiser = trainable(folder)
    sde, transform = denoiser.spec.process, read_checkpoint(folder).transform
    chain, space = Chain.of(sde), Space(data.levels)
    assert sde.times is not None

    def loss(x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        return variational_loss(denoiser, chain, x0, t, noise, space=space, labels=labels)

    warm = 25 * len(sde.times) // BATCH
    samplers = {"levels": 0, "loss_aware, not yet warm: stratified": 0, "loss_aware": warm}
    print_variances(
        "L_vlb, levels drawn",
        {
            name: gradient_variance(
                network,
                loss,
                time_sampler(sde, name.partition(",")[0]),
                batches(data, BATCH, seed=2),
                transform.encode,
                count,
            )
            for name, count in samplers.items()
        },
    )


def weighted_gradients(folder: Path, data: Dataset) -> None:
    """Part 3."""
    network, denoiser = trainable(folder)
    sde, transform = denoiser.spec.process, read_checkpoint(folder).transform
    g = torch.Generator().manual_seed(3)

    def loss(x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        return denoising_score_matching(denoiser, sde, x0, t, noise, weighting="likelihood", labels=labels)

    print_variances(
        f"{type(sde).__name__}, times",
        {
            name: gradient_variance(
                network,
                loss,
                time_sampler(sde, name),
                batches(data, BATCH, seed=2),
                lambda samples, labels: transform.dequantize(samples, labels, generator=g),
                0,
            )
            for name in ("uniform", "stratified", "importance")
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder otherwise")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        hybrid = hybrid_against_simple(folder, flags.steps)
        bound_gradients(hybrid, settings_of(configuration("iddpm_digits", flags.steps)).splits().train)
        for name in ("vpsde_digits", "subvpsde_digits", "vesde_digits"):
            config = configuration(name, flags.steps // 3, weighting="likelihood", times="importance")
            run_lib.train(settings_of(config), folder / name, settings_of(config).engine())
            weighted_gradients(folder / name, settings_of(config).splits().train)


if __name__ == "__main__":
    main()
