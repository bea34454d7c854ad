"""Encode samples to latents by the probability flow, decode them, and draw what lies between."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.core.conditions import rows_of
from sde_diffusion.core.noise import seeded
from sde_diffusion.denoisers.wrappers import ConditionedDenoiser
from sde_diffusion.metrics.reconstruction import reconstruction
from sde_diffusion.pipelines.batch import samples_of, stored, taken_by
from sde_diffusion.pipelines.codes import coded_pairs, pairs_of
from sde_diffusion.pipelines.run_data import splits_of
from sde_diffusion.pipelines.run_folder import network_of, trained_network
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.results import set_result, write_json

LATENT_STREAM = 8


def latents(settings: Settings, folder: Path, engine: Engine) -> None:
    """Encode held-out samples, decode them again, interpolate between them, and change the latents' temperature.

    The work of a moment, which the main process does alone.
    """
    settings, trained = trained_network(settings, folder, engine)  # which all processes read together
    if not engine.main:
        return
    own, transform = settings.latents, trained.transform
    held_out, denoiser = (
        splits_of(settings, trained).held_out("--mode latents"),
        network_of(settings, trained, engine.device),
    )
    index = pairs_of(held_out, own.pairs, settings.model.class_conditional)
    conditions = rows_of(held_out.conditions, index[0])
    model = ConditionedDenoiser(denoiser, **taken_by(denoiser, conditions))
    noise, labels = seeded(settings.seed, stream=LATENT_STREAM), conditions.get("labels")
    ends = [
        transform.prepared(held_out.samples[side], labels, dequantize=settings.data.dequantize, generator=noise)
        for side in index
    ]
    coded = coded_pairs(settings, model, trained.spec.model_process, [x.to(denoiser.device) for x in ends])
    place = folder / "latents"
    for name, columns in coded.columns.items():
        # A row of tiles for each pair.
        rows = torch.stack(columns, dim=1).flatten(0, 1).cpu()
        every = torch.arange(index.shape[1]).repeat_interleave(len(columns))
        shown = stored(transform, rows, rows_of(conditions, every))
        write_aside(place / f"{name}.png", png(picture(samples_of(shown), len(columns))))
    every = torch.arange(index.shape[1]).repeat(len(ends))
    originals, returned = (
        samples_of(stored(transform, torch.cat(xs).cpu(), rows_of(conditions, every)))
        for xs in (ends, [trip.decoded for trip in coded.trips])
    )
    alike = reconstruction(originals, returned, own.figures) if transform.levels else {}
    result: dict[str, Any] = {
        "pairs": index.shape[1],
        **coded.figures,
        "reconstruction": {name: asdict(score) for name, score in alike.items()},
        "rtol": own.rtol,
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
