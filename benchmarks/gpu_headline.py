"""CIFAR-10 for a given time on one GPU, by the toolkit's own command line, and what it came to.

The fastest good way to train is found first: bf16 or float32, compiled or not, whose losses agree, by the images it
would pass in the time that is left after its start. Then

    --mode train      to as many steps as fit; four checkpoints at equal distances
    --mode compare    the last weights of each by dpmpp_2m: distance against training time
    --mode compare    the last checkpoint by three samplers, 5,000 samples each

leave a run folder with the checkpoints, the report, the samples, `sheet.png` and `headline.md`. The distance is the
Fréchet distance in the features of the set's own classifier, which compares with itself alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_place import LOSSES, ROOT, Place
from gpu_speed import train_speed

from sde_diffusion.report.pictures import png, tiles
from sde_diffusion.storage.checkpoint import checkpoint_at
from sde_diffusion.storage.files import write_aside

SAMPLERS, TOY_SAMPLERS = ("ddim:50", "dpmpp_2m:20", "heun:18"), ("ddim:4", "dpmpp_2m:3", "heun:2")
COUNT, TOY_COUNT, PARTS, SHOWN = 5000, 60, 4, 24
SPARE = 0.9
"""The share of the time that steps are planned for; the rest goes into checkpoints and held-out losses."""


@dataclass(frozen=True)
class Way:
    """How to train: images a second, seconds until the first step is done, and the mean of some losses."""

    precision: str
    compiler: str
    speed: float
    start: float
    loss: float

    def images(self, seconds: float) -> float:
        """How many images it passes in some time."""
        return self.speed * max(0.0, SPARE * seconds - self.start)


def fastest(ways: list[Way], seconds: float) -> Way:
    """The way that passes the most images in some time, of those whose losses are float32's; the first is float32."""
    good = [way for way in ways if abs(way.loss / ways[0].loss - 1.0) <= LOSSES]
    return max(good, key=lambda way: way.images(seconds))


def ways(place: Place, network: str) -> list[Way]:
    """Each way to train a network, measured on some steps; one that fails is told and left out."""
    found = []
    for precision, compiler in (("fp32", ""), ("bf16", ""), ("bf16", "eager" if place.toy else "inductor")):
        try:
            speed, start, loss = train_speed(network, precision, compiler, place)
        except Exception as error:
            if not found:
                raise
            print(f"{precision} {compiler}: {error}", flush=True)
            continue
        print(f"{precision}{' compiled' * bool(compiler)}: {speed:,.0f} images/s after {start:.1f} s", flush=True)
        found.append(Way(precision, compiler, speed, start, loss))
    return found


def plan(way: Way, seconds: float, batch: int, most: int | None = None) -> dict[str, Any]:
    """The keys of a training of some time: a short warm-up, a cosine at its end, an average over a twentieth of it.

    most: steps at most.
    """
    steps = max(PARTS, int(way.images(seconds) / batch) // PARTS * PARTS)
    steps = min(steps, most or steps)
    return {
        "training.steps": steps,
        "training.warmup_steps": min(1000, steps // 10),
        "training.cooldown_steps": steps // 3,
        "training.ema_decay": round(max(0.9, min(0.9999, 1.0 - 20.0 / steps)), 6),
        "training.precision": way.precision,
        "training.checkpoint_every": steps // PARTS,
        "training.keep_checkpoints": PARTS,
        "training.evaluate_every": steps,
        "training.sample_every": 0,
        "training.log_every": max(1, steps // 200),
    }


def distances(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each run's sampler, evaluations and distance with its interval, of a report of --mode compare."""
    return [
        {key: run[key] for key in ("label", "nfe", "variant", "id", "failed", "sampler")}
        | {key: run["values"].get("frechet", {}).get(key) for key in ("value", "low", "high")}
        for run in report["runs"]
    ]


def told(row: Mapping[str, Any]) -> str:
    """A distance in words."""
    if row["value"] is None:
        return row["failed"] or "none"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def sheet(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The first samples of each sampler, a row each, from the same noise."""
    images = []
    for row in rows:
        with np.load(folder / "compare" / row["id"] / f"samples_{row['sampler']}.npz", allow_pickle=False) as arrays:
            images.append(arrays["images"][:SHOWN])
    write_aside(folder / "sheet.png", png(tiles(np.concatenate(images), SHOWN)))


def headline(place: Place, network: str, seconds: float, root: str, folder: Path) -> None:
    """Train for so many seconds, and write what it came to. At toy size: the digits, for a few steps."""
    way = fastest(ways(place, network), seconds)
    name, batch = ("vpsde_digits", 16) if place.toy else (network, 128)
    keys = plan(way, seconds, batch, 40 if place.toy else None)
    keys |= {"training.batch_size": batch, "compare.cache": str(folder / "cache"), "compare.features": "classifier"}
    keys |= {"model.unet.channels": 8} if place.toy else {"data.root": root, "sampling.batch_size": 500}
    common = ["--config", str(ROOT / "configs" / f"{name}.py"), "--workdir", str(folder), "--device", str(place.device)]
    common += [f"--config.{key}={value}" for key, value in keys.items()]
    place.command([*common, f"--config.compile={way.compiler}", "--mode", "train"])
    steps = [keys["training.checkpoint_every"] * part for part in range(1, PARTS + 1)]
    trained = {step: checkpoint_at(folder, step) for step in steps}

    asked = ["--mode", "compare", "--metrics", "frechet", "--config.compare.likelihood=False"]
    asked += ["--num_samples", str(TOY_COUNT if place.toy else COUNT)]
    three = TOY_SAMPLERS if place.toy else SAMPLERS
    found = []
    for samplers, checkpoints in ((three[1:2], tuple(steps)), (three, ())):
        chosen = ["--samplers", ",".join(samplers), f"--config.compare.checkpoints={checkpoints}"]
        place.command([*common, *asked, *chosen])
        found.append(json.loads((folder / "compare.json").read_text()))
    curve, ends = map(distances, found)
    sheet(folder, [row for row in ends if not row["failed"]])
    title = found[1]["reference"]["data"]
    lines = [
        f"{title}, {network if not place.toy else name}, {keys['training.steps']:,} steps of {batch} in {way.precision}"
        f"{' compiled' * bool(way.compiler)}; Fréchet distance of {TOY_COUNT if place.toy else COUNT:,} samples to the "
        f"training split in the features of the set's own classifier, which is not the FID of papers",
        "",
        f"| training | {three[1]} |\n|---:|---:|",
        *(f"| {trained[step].progress['seconds']:,.0f} s | {told(row)} |" for step, row in zip(steps, curve)),
        "",
        "| sampler | evaluations | distance |\n|---|---:|---:|",
        *(f"| `{row['label']}` | {row['nfe']} | {told(row)} |" for row in ends),
        *(f"| {one['label']} | | {told(one['values']['frechet'])} |" for one in found[1]["baselines"]),
    ]
    text = "\n".join(lines) + "\n"
    write_aside(folder / "headline.md", text.encode())
    print(f"\n{text}\nwrote {folder}/headline.md, sheet.png, report.html, checkpoints/ and compare/*/samples_*.npz")
