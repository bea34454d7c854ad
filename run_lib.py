"""What the commands do, readable from top to bottom: train, sample, likelihood, evaluate, and all of them in a row.

Every mode is a function (config, folder) that reads and writes one run folder:

    config.json  checkpoints/  tensorboard/  results.json  samples_<sampler>.{png,npz,json}

Whatever is random depends on (seed, index of the sample or step) only, so that neither the batch size nor an
interruption changes a result.
"""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from sde_diffusion import build
from sde_diffusion.build import NamedFigure
from sde_diffusion.checkpoint import (
    Checkpoint,
    checkpoint_files,
    denoiser_of,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    write_aside,
)
from sde_diffusion.data import Dataset, DataTransform, Splits, batches, load_pictures
from sde_diffusion.denoiser import ConditionedDenoiser, Denoiser, NetworkDenoiser
from sde_diffusion.elbo import Space
from sde_diffusion.ema import averaged
from sde_diffusion.errors import NotFinite, UserError
from sde_diffusion.figures import Batch
from sde_diffusion.grids import GRIDS, Node, TimeGrid, grid_options, make_grid
from sde_diffusion.importers import check_empty, export_diffusers, imported
from sde_diffusion.kernel import match
from sde_diffusion.latents import decode, interpolate, round_trip
from sde_diffusion.losses import Objective
from sde_diffusion.noise import rand, randn, sample_generators, seeded
from sde_diffusion.records import Records, digest, tensor_digest
from sde_diffusion.report.likelihood import captioned, histogram, summary
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.samplers import SAMPLER_TABLE, sampler_options
from sde_diffusion.samplers import sample as draw_samples
from sde_diffusion.sde import process_state
from sde_diffusion.times import TimeSampler

# One stream of random numbers for each purpose, so that none repeats another's; figures.py has the others.
TRAIN_STREAM, HELD_OUT_STREAM, DROPOUT_STREAM, LATENT_STREAM = 2, 3, 4, 8
PICTURE_SAMPLES, LIKELIEST = 100, 16
NUMERICS = 1
"""Raised when the bits/dim of one request become others, so that stored rows are not mixed with new ones."""
PREVIEW_STEPS, PREVIEW_SAMPLES = 20, 36


def progress(total: int, unit: str, what: str, done: int = 0, leave: bool = False) -> Any:
    """A progress bar; a line every half minute where the output is not a terminal."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, unit=unit, desc=what, leave=leave, mininterval=interval)


# --- the run folder -------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_aside(path, (json.dumps(content, indent=2) + "\n").encode())


def set_result(folder: Path, section: str, row: Mapping[str, Any], entry: str | None = None) -> None:
    """Replace one section of results.json, or one entry of that section; what else it holds stays."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[section] = dict(row) if entry is None else {**results.get(section, {}), entry: row}
    write_json(path, results)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def check_folder(folder: Path, config: ConfigDict, same_seed: bool = False) -> None:
    """Raises UserError if the folder holds a training of another data set, process or model (or with another seed)."""
    path = folder / "config.json"
    if not (path.exists() and checkpoint_files(folder)):
        return
    stored = json.loads(path.read_text())
    if "imported" in stored:  # its network, process and data are those of its source, whatever a configuration says
        return
    old, new = (
        _flat({name: c[name] for name in ("seed", "data", "process", "model")})
        for c in (stored, json.loads(config.to_json_best_effort()))
    )
    free = {"data.root"} if same_seed else {"data.root", "seed"}
    differing = [
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)"
        # A key that the older folder does not know has its default there.
        for key in sorted(old.keys() - free)
        if old[key] != new.get(key)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a training with another configuration: {'; '.join(differing[:4])}"
            f"{' ...' if len(differing) > 4 else ''}; choose another --workdir, or its own configuration"
        )


def trained_network(config: ConfigDict, folder: Path) -> tuple[ConfigDict, Checkpoint]:
    """The newest checkpoint of the run folder, which must be this configuration's, or an imported one.

    With it the configuration whose process and model are those of the network.
    """
    check_folder(folder, config)
    trained = read_checkpoint(folder)
    return build.as_trained(config, trained.spec), trained


def network_of(config: ConfigDict, trained: Checkpoint) -> NetworkDenoiser:
    """The network of a checkpoint: the weights, the device and the compiler are those of the configuration."""
    denoiser = denoiser_of(trained, config.sampling.weights, build.device(config))
    return NetworkDenoiser(build.compiled(config, denoiser.net), denoiser.spec)


# --- networks of other code bases -----------------------------------------------------------------------------


def import_network(config: ConfigDict, folder: Path) -> None:
    """Turn a checkpoint of another code base into a run folder, from which it can be sampled and evaluated."""
    settings = config.importing
    if not settings.path:
        raise UserError("--path is needed: the file to import, or the folder of diffusers")
    check_empty(folder)
    found = imported(settings.path, settings.source, settings.config or None)
    adopted = build.as_trained(config, found.spec)
    origin = {"imported": {"source": settings.source, "file": Path(settings.path).name}}
    save_checkpoint(folder, found, keep=1)
    write_json(folder / "config.json", {**json.loads(adopted.to_json_best_effort()), **origin})
    spec = found.spec
    count = sum(value.numel() for value in found.network.values())
    print(
        table(
            [
                {
                    "network": spec.network,
                    "numbers": f"{count:,}",
                    "process": type(spec.process).__name__,
                    "prediction": spec.prediction,
                    "label": spec.label,
                    "data range": f"{spec.data_range[0]:g} .. {spec.data_range[1]:g}",
                    "shape": "x".join(map(str, spec.shape)),
                    "step": found.step,
                }
            ]
        )
    )
    print(f"wrote {folder}: sample it with --mode sample --workdir {folder}")


def export_network(config: ConfigDict, folder: Path) -> None:
    """Write the run's network as a folder of diffusers."""
    if not config.importing.path:
        raise UserError("--path is needed: the folder of diffusers to write")
    config, trained = trained_network(config, folder)
    export_diffusers(denoiser_of(trained, config.sampling.weights), config.importing.path)
    print(f"wrote {config.importing.path}: diffusers' DDPMPipeline.from_pretrained reads it")


# --- training -------------------------------------------------------------------------------------------------


def learning_rate_factor(step: int, steps: int, warmup: int, cooldown: int) -> float:
    """Linear warm-up from 0, and a half cosine down to 0 over the last `cooldown` steps."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    left = (steps - step) / cooldown if cooldown else 1.0
    return rise * (0.5 - 0.5 * math.cos(math.pi * max(0.0, min(1.0, left))))


def encoded(
    transform: DataTransform,
    samples: Tensor,
    labels: Tensor | None,
    dequantize: bool,
    generator: torch.Generator,
) -> Tensor:
    """Stored samples in model space, dequantised or at their grey levels."""
    if dequantize:
        return transform.dequantize(samples, labels, generator=generator)
    return transform.encode(samples, labels)


def conditioning(config: ConfigDict, labels: Tensor | None, device: torch.device) -> dict[str, Tensor]:
    """What the network is told beside the noise level."""
    return {"labels": labels.to(device)} if config.model.class_conditional and labels is not None else {}


def batch_loss(
    config: ConfigDict,
    denoiser: NetworkDenoiser,
    transform: DataTransform,
    batch: tuple[Tensor, Tensor | None],
    objective: Objective,
    times: TimeSampler,
    generator: torch.Generator,
    learn: bool,
) -> Tensor:
    """The loss of one batch, a scalar; the time sampler may learn from it."""
    samples, labels = batch
    device, settings = denoiser.device, config.training
    x0 = encoded(transform, samples, labels, config.data.dequantize, generator)
    t, weight = times.draw(len(x0), generator)
    geometry: dict[str, Tensor] = {}
    augment = build.augmentation(config) if learn else None
    if augment is not None:
        x0, changed = augment(x0, generator)
        geometry = {"augment_labels": changed.to(device)}
    noise = randn(x0.shape, generator, like=x0)
    space = Space(None if config.data.dequantize else transform.levels, transform.offset(x0.to(device), labels))
    if labels is not None and settings.label_dropout > 0:
        # The class after the last one means "no class": one network learns p(x | y) and p(x) (Ho and Salimans 2022).
        dropped = rand((len(x0),), generator) < settings.label_dropout
        labels = labels.where(~dropped, denoiser.spec.options["num_classes"])
    told = {**conditioning(config, labels, device), **geometry}
    losses = objective(denoiser, x0.to(device), t, noise.to(device), space, **told)
    if learn:
        times.learn(t, losses)
    return (match(weight, losses) * losses).mean()


@torch.no_grad()
def held_out_loss(config: ConfigDict, denoiser: NetworkDenoiser, transform: DataTransform, dataset: Dataset) -> float:
    """The loss on held-out data, at times and with noise that are the same at every call."""
    size = min(config.training.batch_size, len(dataset))
    count = min(config.training.held_out_batches, math.ceil(len(dataset) / size))
    fixed = itertools.islice(batches(dataset, size, seed=config.seed), count)
    sde = denoiser.spec.model_process
    objective, times = build.objective(config, sde), build.times(config, sde)
    losses = [
        float(
            batch_loss(
                config,
                denoiser,
                transform,
                batch,
                objective,
                times,
                seeded(config.seed, i, stream=HELD_OUT_STREAM),
                learn=False,
            )
        )
        for i, batch in enumerate(fixed)
    ]
    return sum(losses) / len(losses)


def clip_gradient(net: nn.Module, limit: float) -> float:
    """The norm of the whole gradient, which is scaled down to the limit where it is beyond; 0 for no limit."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # Most gradients need no clipping, and scaling them by one takes as long as a third of Adam's update.
    if 0.0 < limit < float(norm):
        nn.utils.clip_grads_with_norm_(net.parameters(), limit, norm)
    return float(norm)


def train(config: ConfigDict, folder: Path) -> None:
    """Train to training.steps, from the newest checkpoint where there is one."""
    from torch.utils.tensorboard import SummaryWriter

    device = build.device(config)
    settings = config.training
    check_folder(folder, config, same_seed=True)
    resumed = read_checkpoint(folder) if checkpoint_files(folder) else None
    if resumed and not resumed.optimizer:
        raise UserError(f"{folder} holds an imported network, which is sampled and evaluated, not trained on")
    splits = build.data(config)
    write_json(folder / "config.json", json.loads(config.to_json_best_effort()))

    spec = build.spec(config, splits.train)
    transform = DataTransform.fit(splits.train, config.data.subtract_mean)
    net = build.network(spec, config.seed).to(device)
    step = resumed.step if resumed else 0
    if resumed:
        load_weights(net, resumed.network)
    ema = averaged(net, settings.ema_decay, updates=step)
    # fused: one kernel for all parameters, 4.5 times faster than the default on a CPU.
    optimizer = torch.optim.Adam(
        net.parameters(),
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    objective, times = build.objective(config), build.times(config)
    if resumed:
        load_weights(ema.module, resumed.ema)
        optimizer.load_state_dict(resumed.optimizer)
        times.load(resumed.times)

    def factor(at: int) -> float:
        return learning_rate_factor(at, settings.steps, settings.warmup_steps, settings.cooldown_steps)

    for group in optimizer.param_groups:
        group["initial_lr"] = settings.learning_rate
    schedule = LambdaLR(optimizer, factor, last_epoch=step - 1)

    def state() -> Checkpoint:
        return Checkpoint(
            step=step,
            spec=spec,
            transform=transform,
            network=net.state_dict(),
            ema=ema.module.state_dict(),
            optimizer=optimizer.state_dict(),
            random={"seed": config.seed, "torch": torch.get_rng_state()},
            title=splits.train.title,
            classes=splits.train.classes,
            times=times.state(),
        )

    if step >= settings.steps:
        print(f"{folder} is trained to step {step}")
        return
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"{'resuming' if resumed else 'training'} {folder}: {spec.network} of {parameters:,} parameters under "
        f"{config.process.name} on {splits.train.title}, {len(splits.train):,} samples, step {step:,} to "
        f"{settings.steps:,}, {device}, smallest training time {spec.process.t_train:g}"
    )
    net.train()
    denoiser = NetworkDenoiser(build.compiled(config, net), spec)
    ema_denoiser = NetworkDenoiser(ema.module, spec)
    stream = batches(splits.train, settings.batch_size, seed=config.seed, start_step=step, flip=config.data.flip)
    started, first = time.perf_counter(), step
    with (
        torch.random.fork_rng(),
        SummaryWriter(str(folder / "tensorboard"), purge_step=step) as board,
        progress(settings.steps, "step", "train", done=step, leave=True) as bar,
    ):
        while step < settings.steps:
            # Dropout draws from the global state; seeded by the step, a resumed training draws the same.
            torch.manual_seed(int(seeded(config.seed, step, stream=DROPOUT_STREAM).initial_seed()))
            drawn = seeded(config.seed, step, stream=TRAIN_STREAM)
            loss = batch_loss(config, denoiser, transform, next(stream), objective, times, drawn, learn=True)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = clip_gradient(net, settings.grad_clip)
            value = float(loss.detach())
            if not math.isfinite(value) or not math.isfinite(norm):
                files = checkpoint_files(folder)
                last = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
                raise UserError(
                    f"the loss is {value:g} and the gradient's norm {norm:g} at step {step}; {last}. "
                    "A lower training.learning_rate or training.grad_clip usually helps"
                )
            optimizer.step()
            schedule.step()
            ema.update_parameters(net)
            step += 1
            bar.update()

            final = step == settings.steps
            if step % settings.log_every == 0 or final:
                speed = (step - first) * settings.batch_size / (time.perf_counter() - started)
                bar.set_postfix(loss=f"{value:.4f}", images=f"{speed:.0f}/s")
                board.add_scalar("loss/train", value, step)
                board.add_scalar("gradient_norm", norm, step)
                board.add_scalar("images_per_second", speed, step)
            if step % settings.evaluate_every == 0 or final:
                held_out = held_out_loss(config, ema_denoiser, transform, splits.test)
                board.add_scalar("loss/held_out", held_out, step)
            if settings.sample_every and step % settings.sample_every == 0:
                # A grid that every process has at any number of steps, whatever sampling.grid is.
                preview = make_grid(spec.model_process, PREVIEW_STEPS, "logsnr")
                samples, _ = draw(
                    config, ema_denoiser, transform, splits.train.classes, "ddim", preview, PREVIEW_SAMPLES
                )
                board.add_image(
                    "samples",
                    picture(samples["images" if "images" in samples else "samples"]),
                    step,
                    dataformats="HWC",
                )
            if step % settings.checkpoint_every == 0 or final:
                save_checkpoint(folder, state(), settings.keep_checkpoints)
    seconds = time.perf_counter() - started
    set_result(
        folder,
        "training",
        {"steps": step, "parameters": parameters, "seconds_of_last_session": round(seconds, 2)},
    )


# --- sampling -------------------------------------------------------------------------------------------------


def draw(
    config: ConfigDict,
    denoiser: NetworkDenoiser,
    transform: DataTransform,
    classes: tuple[str, ...],
    sampler: str,
    grid: TimeGrid,
    count: int,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Samples as arrays to store, and the protocol they were made by.

    Sample i starts from noise that depends on (seed, i) only: the same for every sampler and batch size.
    """
    size = min(config.sampling.batch_size, count)
    arrays: dict[str, list[np.ndarray]] = {}
    nfe = 0
    started = time.perf_counter()
    with progress(math.ceil(count / size) * grid.steps, "step", f"sample {sampler}") as bar:

        def advance(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
            bar.update()

        for first in range(0, count, size):
            indices = range(first, min(first + size, count))
            # Without a request the classes take turns.
            labels = torch.tensor([i % len(classes) for i in indices]) if classes else None
            told = conditioning(config, labels, denoiser.device)
            model: Denoiser = build.sampling_denoiser(config, ConditionedDenoiser(denoiser, **told))
            out = draw_samples(
                model,
                (len(indices), *denoiser.spec.shape),
                grid,
                sampler=sampler,
                generator=sample_generators(config.seed, indices),
                device=denoiser.device,
                on_step=advance,
                **(options or {}),
            )
            nfe = max(nfe, out.nfe)
            for name, array in stored(transform, out.x.cpu(), labels if told else None).items():
                arrays.setdefault(name, []).append(array)
    protocol = {
        "sampler": sampler,
        "options": dict(options or {}),
        "steps": grid.steps,
        "nfe": nfe,
        "samples": count,
        "seconds": round(time.perf_counter() - started, 3),
        "grid": build.grid_kind(config, sampler, grid.sde),
        "grid_options": build.grid_options(config, sampler, grid.sde),
        "snap": config.sampling.snap,
        "smallest_time": float(grid.times[-1]),
        "process": {key: value for key, value in process_state(grid.sde).items() if not isinstance(value, list)},
        "clip": config.sampling.clip,
        "seed": config.seed,
        "device": str(denoiser.device),
    }
    return {name: np.concatenate(parts) for name, parts in arrays.items()}, protocol


def stored(transform: DataTransform, x: Tensor, labels: Tensor | None) -> dict[str, np.ndarray]:
    """Samples as they are stored: images uint8 [N, H, W, C], or vectors; and the labels they were drawn for."""
    told = {} if labels is None else {"labels": labels.numpy()}
    if transform.levels is None:
        return {"samples": transform.decode(x, labels).numpy(), **told}
    return {"images": transform.to_uint8(x, labels).permute(0, 2, 3, 1).numpy(), **told}


def sample_into(
    folder: Path,
    config: ConfigDict,
    trained: Checkpoint,
    sampler: str,
    steps: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw the samples of one sampler, write its picture, arrays and manifest; the row for the table."""
    denoiser = network_of(config, trained)
    count = config.sampling.num_samples
    grid = build.grid(config, denoiser.spec.model_process, steps, sampler)
    arrays, protocol = draw(config, denoiser, trained.transform, trained.classes, sampler, grid, count, options)
    shown = arrays["images" if "images" in arrays else "samples"]
    shown = shown[:PICTURE_SAMPLES] if "images" in arrays else shown
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_aside(folder / f"samples_{sampler}.png", png(picture(shown)))
    write_aside(folder / f"samples_{sampler}.npz", buffer.getvalue())
    manifest = {
        **protocol,
        "data": trained.title,
        "checkpoint_step": trained.step,
        "weights": config.sampling.weights,
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "numpy": version("numpy"),
        },
    }
    write_json(folder / f"samples_{sampler}.json", manifest)
    set_result(folder, "samples", manifest, sampler)
    return {name: protocol[name] for name in ("sampler", "steps", "nfe", "samples", "seconds", "smallest_time")}


def sample(config: ConfigDict, folder: Path) -> None:
    """Sample the run's network with sampling.sampler."""
    config, trained = trained_network(config, folder)
    row = sample_into(
        folder, config, trained, config.sampling.sampler, config.sampling.steps, build.sampler_options(config)
    )
    print(table([row]))
    print(f"wrote {folder / f'samples_{config.sampling.sampler}'}.png, .npz and .json")


# --- likelihood ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Data whose likelihood is asked for: its name in files, and the names of its images where they have any."""

    dataset: Dataset
    name: str
    files: list[str]


def evaluated_data(config: ConfigDict, trained: Checkpoint, splits: Splits | None = None) -> Evaluated:
    """The pictures of likelihood.folder, or a split of the data set.

    Raises UserError for data that the network cannot know: of other grey levels or another shape.
    """
    settings = config.likelihood
    if settings.folder:
        place = Path(settings.folder).expanduser().resolve()
        dataset, files = load_pictures(settings.folder, settings.image_size)
        # Folders of one name, and a folder named as a split, have files of their own.
        name = f"{place.name}-{digest(str(place).encode())[:6]}"
    else:
        dataset, files, name = getattr(splits or build.data(config), settings.split), [], settings.split
    levels = trained.transform.levels
    if dataset.levels != levels:
        raise UserError(
            f"{dataset.title} has {dataset.levels or 'no'} grey levels, and the network was trained on "
            f"{levels or 'continuous vectors'}: bits/dim would not be about the same data"
        )
    if dataset.shape != trained.spec.shape:
        raise UserError(
            f"{dataset.title} has samples of shape {list(dataset.shape)}, and the network takes "
            f"{list(trained.spec.shape)}; --config.likelihood.image_size cuts the pictures of a folder to a size"
        )
    return Evaluated(_in_classes_of(trained, dataset), name, files)


def _in_classes_of(trained: Checkpoint, dataset: Dataset) -> Dataset:
    """The data with the labels of the trained classes, without labels where the classes are others."""
    numbered = trained.classes == tuple(map(str, range(len(dataset.classes))))  # an imported network's, without names
    if dataset.labels is None or dataset.classes == trained.classes or numbered:
        return replace(dataset, classes=trained.classes) if numbered and dataset.labels is not None else dataset
    if not set(dataset.classes) <= set(trained.classes):
        return replace(dataset, labels=None, classes=())
    order = torch.tensor([trained.classes.index(name) for name in dataset.classes])
    return replace(dataset, labels=order[dataset.labels], classes=trained.classes)


def asked_for(config: ConfigDict, dataset: Dataset) -> int:
    """How many samples likelihood.num_samples comes to."""
    return min(config.likelihood.num_samples or len(dataset), len(dataset))


def likelihood_protocol(
    config: ConfigDict, trained: Checkpoint, data: Evaluated, figures: Mapping[str, NamedFigure]
) -> dict[str, Any]:
    """All that the bits/dim of a sample depend on."""
    weights = getattr(trained, {"ema": "ema", "raw": "network"}[config.sampling.weights])
    dataset = data.dataset
    count = asked_for(config, dataset)
    return {
        "data": dataset.title,
        "data_digest": tensor_digest(
            {"samples": dataset.samples} | ({} if dataset.labels is None else {"labels": dataset.labels})
        ),
        "given": "its class" if config.model.class_conditional and dataset.labels is not None else "nothing",
        "checkpoint_step": trained.step,
        "weights": config.sampling.weights,
        "weights_digest": tensor_digest(weights),
        "process": process_state(trained.spec.model_process),
        "seed": config.seed,
        "numerics": NUMERICS,
        # Only a solver with step sizes for each sample makes a row independent of its batch.
        "batches": None if config.likelihood.method == "per_sample" else [config.likelihood.batch_size, count],
        "figures": {name: {"space": figure.space, **figure.protocol} for name, figure in figures.items()},
    }


def likelihood_rows(
    config: ConfigDict,
    trained: Checkpoint,
    data: Evaluated,
    folder: Path,
    figures: Mapping[str, NamedFigure],
    protocol: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row of bits/dim for each sample; those that an earlier run has stored are not computed again."""
    denoiser = network_of(config, trained)
    dataset, settings = data.dataset, config.likelihood
    count = asked_for(config, dataset)
    with Records(folder, data.name, protocol) as records:
        missing = [index for index in range(count) if index not in records.rows]
        if len(missing) < count:
            print(f"{count - len(missing)} of {count} samples are in {records.path} already")
        with progress(count, "sample", "likelihood", done=count - len(missing)) as bar:
            for first in range(0, len(missing), settings.batch_size):
                indices = missing[first : first + settings.batch_size]
                labels = None if dataset.labels is None else dataset.labels[indices]
                batch = Batch(dataset.samples[indices], labels, indices, config.seed)
                model = ConditionedDenoiser(denoiser, **conditioning(config, labels, denoiser.device))
                rows: list[dict[str, Any]] = [{"index": index} for index in indices]
                for name, figure in figures.items():

                    def told(done: int, total: int, name: str = name) -> None:
                        bar.set_postfix_str(f"{name} {done}/{total}", refresh=done % 20 == 0)

                    started = time.perf_counter()
                    columns, nfe = figure.compute(model, batch, told)
                    seconds = (time.perf_counter() - started) / len(indices)
                    _check_finite(columns, indices)
                    for i, row in enumerate(rows):
                        row.update({column: float(values[i]) for column, values in columns.items()})
                        row.update({f"{name}_nfe": nfe, f"{name}_seconds": round(seconds, 5)})
                records.append(rows)
                bar.update(len(indices))
        found = [records.rows[index] for index in range(count)]
    names = [] if dataset.labels is None else [dataset.classes[int(label)] for label in dataset.labels[:count]]
    return [
        {
            "index": row["index"],
            **({"file": data.files[row["index"]]} if data.files else {}),
            **({"class": names[row["index"]]} if names else {}),
            **row,
        }
        for row in found
    ]


def _check_finite(columns: Mapping[str, torch.Tensor], indices: Sequence[int]) -> None:
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            wrong = indices[int(values.isfinite().logical_not().nonzero()[0])]
            raise NotFinite(f"{name} is not finite for sample {wrong}: check the model's output")


def figure_summary(name: str, figure: NamedFigure, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard error and interval of a figure's bits/dim, the means of its parts, and how it was computed."""
    own = summary(np.array([row[name] for row in rows]))
    parts = [column for column in rows[0] if column.startswith(f"{name}_")]
    means = {
        column.removeprefix(f"{name}_"): float(np.mean([row[column] for row in rows]))
        for column in parts
        if not column.endswith(("_nfe", "_seconds"))
    }
    return {
        "bits_per_dim": own.mean,
        "standard_error": own.standard_error,
        "interval": own.interval,
        "space": figure.space,
        "nfe": max(row[f"{name}_nfe"] for row in rows),
        "seconds": round(sum(row[f"{name}_seconds"] for row in rows), 2),
        **means,
        **figure.protocol,
    }


def report_likelihood(
    config: ConfigDict, folder: Path, trained: Checkpoint, splits: Splits | None = None
) -> dict[str, Any]:
    """Compute, store, print and draw the bits/dim of a split or a folder of images."""
    data = evaluated_data(config, trained, splits)
    figures = build.figures(config, trained.spec.model_process, trained.transform, build.device(config))
    place = folder / "likelihood"
    protocol = likelihood_protocol(config, trained, data, figures)
    rows = likelihood_rows(config, trained, data, place, figures, protocol)
    summaries = {name: figure_summary(name, figure, rows) for name, figure in figures.items()}
    first = next(iter(summaries.values()))
    result = {
        **first,
        "figure": next(iter(summaries)),
        "samples": len(rows),
        "split": data.name,
        "bin_width": trained.transform.bin_width or 1.0,
        **{key: value for key, value in protocol.items() if key not in ("figures", "process")},
        "figures": summaries,
    }
    set_result(folder, "likelihood", result)
    write_json(place / f"{data.name}.json", result)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_aside(place / f"{data.name}.csv", text.getvalue().encode())
    draw_likelihood(config, folder, trained, data, rows, list(figures))
    print(likelihood_text(result, rows))
    print(f"wrote {place / data.name}.csv, .json, _histogram.png, _most_likely.png and _least_likely.png")
    return result


def draw_likelihood(
    config: ConfigDict,
    folder: Path,
    trained: Checkpoint,
    data: Evaluated,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    """The histogram, the most and the least likely samples, and all of it in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    place, step = folder / "likelihood", trained.step
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    title = f"{data.name} of {trained.title}" if not data.files else data.name
    write_aside(place / f"{data.name}_histogram.png", histogram(columns, "bits/dim", f"{title}, {len(rows)} samples"))
    order = np.argsort(columns[names[0]], kind="stable")
    extremes = {"most_likely": order[:LIKELIEST], "least_likely": order[::-1][:LIKELIEST]}
    with SummaryWriter(str(folder / "tensorboard")) as board:
        for name, values in columns.items():
            board.add_scalar(f"bits_per_dim/{data.name}/{name}", float(values.mean()), step)
            board.add_histogram(f"bits_per_dim/{data.name}/{name}", values, step)
        for which, picked in extremes.items():
            index = torch.from_numpy(picked.copy())
            labels = None if data.dataset.labels is None else data.dataset.labels[index]
            shown = stored(trained.transform, trained.transform.encode(data.dataset.samples[index], labels), labels)
            captions = [f"{value:.3f}" for value in columns[names[0]][picked]]
            drawn = captioned(shown["images"], captions) if "images" in shown else picture(shown["samples"])
            write_aside(place / f"{data.name}_{which}.png", png(drawn))
            board.add_image(f"{data.name}/{which}", drawn, step, dataformats="HWC")


def likelihood_text(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Bits/dim by every figure side by side, what they are made of, and how they were computed."""
    summaries: Mapping[str, Mapping[str, Any]] = result["figures"]

    def interval(row: Mapping[str, Any]) -> str:
        return "-" if row["interval"] is None else f"{row['interval'][0]:.4f} .. {row['interval'][1]:.4f}"

    lines = [
        f"bits/dim of {result['samples']} samples of {result['data']} ({result['split']}) given {result['given']}",
        table(
            [
                {
                    "figure": name,
                    "bits/dim": f"{row['bits_per_dim']:.4f}",
                    "std. error": "-" if row["standard_error"] is None else f"{row['standard_error']:.4f}",
                    "95% interval": interval(row),
                    "smallest time": f"{row['smallest_time']:g}",
                    "nfe": row["nfe"],
                    "seconds": row["seconds"],
                    "space": row["space"],
                }
                for name, row in summaries.items()
            ]
        ),
    ]
    for name, row in summaries.items():
        if "method" in row:
            probes = f", {row['probes']} {row['probe']} probe{'s' * (row['probes'] > 1)}" if "probes" in row else ""
            steps = f"at rtol {row['rtol']:g}" if "rtol" in row else f"in {row['steps']} steps"
            lines.append(f"{name}: {row['divergence']} trace{probes}, {row['method']} {steps}")
        if "probe_error" in row:
            lines.append(f"{name}: the probes give each sample a standard error of {row['probe_error']:.4f} bits/dim")
        if "t_min_change" in row:
            lines.append(f"{name}: twice the smallest time changes bits/dim by {row['t_min_change']:+.1e}")
        if "prior" in row:
            terms = f", {row['terms']} of them for each sample" if row.get("terms") else ""
            how = f"{row['steps']} levels{terms}, variance {row['variance']}" if "steps" in row else "continuous time"
            lines.append(
                f"{name}: prior {row['prior']:.2e}, denoising {row['denoising']:.4f}, reconstruction "
                f"{row['reconstruction']:.4f}; {how}"
            )
    base, *others = summaries
    for name in others:
        gap = summary(np.array([row[name] - row[base] for row in rows]))
        lines.append(f"{name} - {base}, sample by sample: {gap}")
    return "\n".join(lines)


def likelihood(config: ConfigDict, folder: Path) -> None:
    """Bits/dim of the held-out (or training) split, or of a folder of images."""
    config, trained = trained_network(config, folder)
    report_likelihood(config, folder, trained)


# --- latents ---------------------------------------------------------------------------------------------------


def pairs_of(dataset: Dataset, count: int, same_class: bool) -> Tensor:
    """Indices [2, count] of samples to interpolate between; those of a pair share a class if they must.

    Raises UserError where there is no such pair.
    """
    if not same_class or dataset.labels is None:
        count = min(count, len(dataset) // 2)
        return torch.arange(2 * count).view(count, 2).T
    found = [torch.nonzero(dataset.labels == label)[:2, 0] for label in range(len(dataset.classes))]
    pairs = [pair for pair in found if len(pair) == 2][:count]
    if not pairs:
        raise UserError("no class has two held-out samples to interpolate between")
    return torch.stack(pairs, dim=1)


def latents(config: ConfigDict, folder: Path) -> None:
    """Encode held-out samples, decode them again, interpolate between them, and change the latents' temperature."""
    config, trained = trained_network(config, folder)
    settings = config.latents
    held_out, transform = build.data(config).test, trained.transform
    denoiser = network_of(config, trained)
    sde, device = trained.spec.model_process, denoiser.device
    index = pairs_of(held_out, settings.pairs, config.model.class_conditional)
    labels = None if held_out.labels is None else held_out.labels[index[0]]
    model = ConditionedDenoiser(denoiser, **conditioning(config, labels, device))
    t_min = build.flow_options(config)["t_min"]
    tolerances = {"rtol": settings.rtol, "atol": settings.rtol, "t_min": t_min, "max_nfe": config.likelihood.max_nfe}
    noise = seeded(config.seed, stream=LATENT_STREAM)
    ends = [
        encoded(transform, held_out.samples[side], labels, config.data.dequantize, noise).to(device) for side in index
    ]
    trips = [round_trip(model, x, sde, **tolerances) for x in ends]
    error = torch.cat([trip.error for trip in trips])
    weights = torch.linspace(0.0, 1.0, settings.points, dtype=torch.float64)
    path = interpolate(trips[0].latent, trips[1].latent, weights)
    between = [decode(model, z, sde, **tolerances) for z in path]
    tempered = [decode(model, trips[0].latent, sde, temperature=tau, **tolerances) for tau in settings.temperatures]
    place = folder / "latents"
    pictures = {"round_trip": [ends[0], trips[0].decoded, ends[1], trips[1].decoded]}
    pictures |= {"interpolation": between, "temperature": tempered}
    for name, columns in pictures.items():
        # A row of tiles for each pair.
        rows = torch.stack(columns, dim=1).flatten(0, 1).cpu()
        told = None if labels is None else labels.repeat_interleave(len(columns))
        shown = stored(transform, rows, told)
        array = shown["images" if "images" in shown else "samples"]
        write_aside(place / f"{name}.png", png(picture(array, len(columns))))
    result = {
        "pairs": index.shape[1],
        "round_trip_rms": float(error.square().mean().sqrt()),
        "round_trip_worst": float(error.max()),
        "latent_rms": float(torch.cat([trip.latent for trip in trips]).square().mean().sqrt() / sde.prior_std),
        "nfe": trips[0].nfe,
        "rtol": settings.rtol,
        "smallest_time": sde.t_likelihood if t_min is None else t_min,
        "temperatures": list(settings.temperatures),
        "data": trained.title,
        "checkpoint_step": trained.step,
        "seed": config.seed,
    }
    write_json(place / "latents.json", result)
    set_result(folder, "latents", result)
    print(
        f"{2 * result['pairs']} samples encoded and decoded: rms error {result['round_trip_rms']:.1e}, worst "
        f"{result['round_trip_worst']:.1e} at rtol {settings.rtol:g}, smallest time {result['smallest_time']:g}, nfe "
        f"{result['nfe']} both ways; latents have {result['latent_rms']:.3f} times the prior's standard deviation"
    )
    print(f"wrote {place}/round_trip.png, interpolation.png, temperature.png and latents.json")


# --- evaluation -------------------------------------------------------------------------------------------------


def evaluate(config: ConfigDict, folder: Path) -> None:
    """The held-out loss of raw and averaged weights, and held-out bits/dim."""
    config, trained = trained_network(config, folder)
    splits = build.data(config)
    device = build.device(config)
    losses = {
        weights: held_out_loss(config, denoiser_of(trained, weights, device), trained.transform, splits.test)
        for weights in ("ema", "raw")
    }
    set_result(folder, "evaluation", {"held_out_loss": losses, "checkpoint_step": trained.step})
    kind = config.training.weighting if config.training.loss == "score_matching" else config.training.loss
    print(f"held-out loss ({kind}): {losses['ema']:.4f} averaged, {losses['raw']:.4f} raw weights")
    report_likelihood(config, folder, trained, splits)


def everything(config: ConfigDict, folder: Path) -> None:
    """Train or resume, sample with every sampler of sampling.gallery from the same noise, and evaluate."""
    gallery = build.gallery(config)
    for entry in gallery:
        build.rehearse(config, *entry)
    train(config, folder)
    config, trained = trained_network(config, folder)
    rows = [sample_into(folder, config, trained, *entry) for entry in gallery]
    print(table(rows))
    evaluate(config, folder)
    print(f"wrote samples_<sampler>.png, .npz and .json, and results.json, to {folder}")


# --- what there is --------------------------------------------------------------------------------------------


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value) or repr('')}" for name, value in options.items()) or "-"


def sampler_rows() -> list[dict[str, str]]:
    """The samplers with their options and defaults, a row each."""
    return [
        {
            "sampler": name,
            "order": entry.order,
            "evaluations": entry.evaluations,
            "noise": entry.noise,
            "grid": entry.grid or "process",
            "options": _listed(sampler_options(name)),
            "source": entry.source,
        }
        for name, entry in SAMPLER_TABLE.items()
    ]


def grid_rows() -> list[dict[str, str]]:
    """The grids with their options and defaults, a row each."""
    return [
        {
            "grid": kind,
            "options": _listed(grid_options(kind)),
            "nodes": (inspect.getdoc(builder) or "").partition("\n")[0],
        }
        for kind, builder in GRIDS.items()
    ]


def catalogue() -> str:
    """The samplers and grids as tables of text."""
    samplers = wrapped(sampler_rows(), {"order": 12, "evaluations": 12, "noise": 10, "options": 28, "source": 16})
    return "\n\n".join(
        [
            "Samplers (--sampler NAME, --sampler.OPTION VALUE), with their order of convergence and the network's\n"
            "evaluations a step under the default options; the step to x0_hat at the end is one evaluation more. The\n"
            'grid is what --grid auto, the default, takes: "process" is uniform, and karras under EDM.',
            table(samplers),
            "Grids of noise levels (--grid NAME, --grid.OPTION VALUE).",
            table(wrapped(grid_rows(), {"options": 30, "nodes": 72})),
        ]
    )


MODES: dict[str, Callable[[ConfigDict, Path], None]] = {
    "all": everything,
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "latents": latents,
    "evaluate": evaluate,
    "import": import_network,
    "export": export_network,
}
