"""Encode samples to latents by the probability flow, decode them, and draw what lies between."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.conditions import rows_of
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers.wrappers import ConditionedDenoiser
from sde_diffusion.likelihood.codes import decode, interpolate, round_trip
from sde_diffusion.metrics.reconstruction import reconstruction
from sde_diffusion.pipelines.batch import samples_of, stored, taken_by
from sde_diffusion.pipelines.run_folder import network_of, trained_network
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.results import set_result, write_json

LATENT_STREAM = 8  # a stream of its own: modes/training.py, figures.py and data/dataset.py have the others


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


def latents(settings: Settings, folder: Path, engine: Engine) -> None:
    """Encode held-out samples, decode them again, interpolate between them, and change the latents' temperature.

    The work of a moment, which the main process does alone.
    """
    settings, trained = trained_network(settings, folder, engine)  # which all processes read together
    if not engine.main:
        return
    own = settings.latents
    held_out, transform = settings.splits().test, trained.transform
    denoiser = network_of(settings, trained, engine.device)
    sde, device = trained.spec.model_process, denoiser.device
    index = pairs_of(held_out, own.pairs, settings.model.class_conditional)
    conditions = rows_of(held_out.conditions, index[0])
    labels = conditions.get("labels")
    model = ConditionedDenoiser(denoiser, **taken_by(denoiser, conditions))
    t_min = settings.likelihood.smallest_time
    tolerances: dict[str, Any] = {
        "rtol": own.rtol,
        "atol": own.rtol,
        "t_min": t_min,
        "max_nfe": settings.likelihood.max_nfe,
    }
    noise = seeded(settings.seed, stream=LATENT_STREAM)
    ends = [
        transform.prepared(held_out.samples[side], labels, dequantize=settings.data.dequantize, generator=noise)
        for side in index
    ]
    ends = [x.to(device) for x in ends]
    trips = [round_trip(model, x, sde, **tolerances) for x in ends]
    error = torch.cat([trip.error for trip in trips])
    weights = torch.linspace(0.0, 1.0, own.points, dtype=torch.float64)
    path = interpolate(trips[0].latent, trips[1].latent, weights)
    between = [decode(model, z, sde, **tolerances) for z in path]
    tempered = [decode(model, trips[0].latent, sde, temperature=tau, **tolerances) for tau in own.temperatures]
    place = folder / "latents"
    pictures = {"round_trip": [ends[0], trips[0].decoded, ends[1], trips[1].decoded]}
    pictures |= {"interpolation": between, "temperature": tempered}
    for name, columns in pictures.items():
        # A row of tiles for each pair.
        rows = torch.stack(columns, dim=1).flatten(0, 1).cpu()
        every = torch.arange(index.shape[1]).repeat_interleave(len(columns))
        shown = stored(transform, rows, rows_of(conditions, every))
        write_aside(place / f"{name}.png", png(picture(samples_of(shown), len(columns))))
    every = torch.arange(index.shape[1]).repeat(len(ends))
    originals, returned = (
        samples_of(stored(transform, torch.cat(xs).cpu(), rows_of(conditions, every)))
        for xs in (ends, [trip.decoded for trip in trips])
    )
    alike = reconstruction(originals, returned, own.figures) if transform.levels else {}
    result: dict[str, Any] = {
        "pairs": index.shape[1],
        "round_trip_rms": float(error.square().mean().sqrt()),
        "round_trip_worst": float(error.max()),
        "reconstruction": {name: asdict(score) for name, score in alike.items()},
        "latent_rms": float(torch.cat([trip.latent for trip in trips]).square().mean().sqrt() / sde.prior_std),
        "nfe": trips[0].nfe,
        "rtol": own.rtol,
        "smallest_time": sde.t_likelihood if t_min is None else t_min,
        "temperatures": list(own.temperatures),
        "data": trained.title,
        "checkpoint_step": trained.step,
        "seed": settings.seed,
    }
    write_json(place / "latents.json", result)
    set_result(folder, "latents", result)
    print(
        f"{2 * result['pairs']} samples encoded and decoded: rms error {result['round_trip_rms']:.1e}, worst "
        f"{result['round_trip_worst']:.1e} at rtol {own.rtol:g}, smallest time {result['smallest_time']:g}, nfe "
        f"{result['nfe']} both ways; latents have {result['latent_rms']:.3f} times the prior's standard deviation"
    )
    for name, score in alike.items():
        print(f"{name}: {score.reason or f'{score.value:.4g}'}")
    print(f"wrote {place}/round_trip.png, interpolation.png, temperature.png and latents.json")
