"""The runs of a comparison: one sampler at one budget, drawn once and kept.

A run has a folder of its own, named after all that its samples depend on, so that another request finds it again, and
a kill costs no more than the batch that was being drawn:

    samples_<sampler>.npz and .json   the samples and their protocol, with the calls of the network and the seconds
    trajectory.npz                    what the sampler asked and was told about the first samples
    ends-<first>.npy                  where samples ended in model space, for the distance to the converged flow
    scores-<digest>.json              the figures of these samples, under one protocol of judging
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.compare.variants import Variant
from sde_diffusion.core.conditions import rows_of
from sde_diffusion.core.kernel import match
from sde_diffusion.denoisers.wrappers import Seen
from sde_diffusion.pipelines.batch import samples_of, stored
from sde_diffusion.pipelines.sampling import Drawing, Drawn, Model, draw, in_words, made_by, sampling_protocol
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.chosen import Trial
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import sha256_of, write_aside
from sde_diffusion.storage.records import digest
from sde_diffusion.storage.shards import Shards

NUMERICS = 1
"""Raised when a sampler's samples become others, so that kept runs are not mixed with new ones."""
FRAMES = 25
POINTS = 2000
"""Of a trajectory: frames at most, and points where samples are vectors, which are shown as a density."""


@dataclass(frozen=True, eq=False)
class Run:
    """A sampler at one budget on one variant; `protocol` is all that its samples depend on."""

    variant: Variant
    trial: Trial
    protocol: Mapping[str, Any]
    place: Path
    count: int

    @classmethod
    def of(cls, settings: Settings, variant: Variant, trial: Trial, folder: Path) -> Run:
        """The run of a trial, with its place below `folder`. Raises UserError for a grid that the process lacks."""
        model, count = variant.model, settings.sampling.num_samples
        grid = settings.sampling.make_grid(model.sde, trial.grid_steps, trial.sampler)
        protocol = {
            **sampling_protocol(settings, model, trial.sampler, grid, trial.options),
            "samples": count,
            "numerics": NUMERICS,
            "kept": {"shown": settings.compare.shown, "flow_samples": settings.compare.flow_samples},
            # Calls are counted for whole batches, which end with their slowest sample.
            **({} if trial.steps else {"batch_size": settings.sampling.batch_size}),
        }
        budget = f"-{trial.steps}" if trial.steps else ""
        return cls(variant, trial, protocol, folder / f"{trial.sampler}{budget}-{digest(protocol)}", count)

    @property
    def name(self) -> str:
        """Of the run among all others."""
        return self.place.name

    @property
    def manifest(self) -> Path:
        """Where its protocol is kept, which is written last."""
        return self.place / f"samples_{self.trial.sampler}.json"

    @property
    def trajectory(self) -> Path:
        """Where what the sampler asked and was told is kept; runs of before have it by a former name."""
        former = self.place / "film.npz"
        return former if former.is_file() else self.place / "trajectory.npz"

    @property
    def whole(self) -> bool:
        """Whether its samples, its trajectory and its ends are there, as they were written."""
        if not self.manifest.is_file():
            return False
        files = {name: file["sha256"] for name, file in self.made()["files"].items()} | self.made()["beside"]
        return all(
            (self.place / name).is_file() and sha256_of(self.place / name) == sha256 for name, sha256 in files.items()
        )

    def draw(self, settings: Settings, engine: Engine, told: str) -> None:
        """Draw its samples, unless they are there; progress is told under that name."""
        if engine.on_main(lambda: self.whole):
            return
        model, trial, own = self.variant.model, self.trial, settings.sampling
        shards = Shards(self.place, trial.sampler, self.protocol)
        if engine.on_main(lambda: self.manifest.exists() or not self.trajectory.is_file()):
            # The trajectory is written before the first shard: without it, or damaged, nothing else is of use.
            engine.on_main(lambda: shutil.rmtree(self.place, ignore_errors=True))
        drawing = Drawing(
            model,
            trial.sampler,
            settings.sampling.make_grid(model.sde, trial.grid_steps, trial.sampler),
            settings.seed,
            trial.options,
            shards,
            self.count,
            own.batch_size,
            watch=POINTS if model.transform.levels is None else settings.compare.shown,
            keep=partial(self._keep, settings.compare.flow_samples),
        )
        drawing.carry_out(engine, told)
        engine.on_main(lambda: self._finish(shards, engine))

    def _keep(self, ends: int, indices: range, drawn: Drawn) -> None:
        """Store what is wanted beside the samples of a batch."""
        if indices.start == 0:
            write_trajectory(self.trajectory, self.variant.model, drawn)
        if indices.start < ends:
            write_array(self.place / f"ends-{indices.start:08d}.npy", drawn.x[: ends - indices.start].numpy())

    def _finish(self, shards: Shards, engine: Engine) -> None:
        notes = shards.notes(self.count)
        seconds = sum(note["seconds"] for note in notes)
        made = {**made_by(engine), "nfe": max(note["nfe"] for note in notes), "seconds": round(seconds, 4)}
        beside = {path.name: sha256_of(path) for path in (self.trajectory, *self._ends())}
        shards.finish(self.count, {**self.protocol, **made, "beside": beside})

    def made(self) -> dict[str, Any]:
        """Its manifest: the protocol, the machine, the calls of the network and the seconds of its samples."""
        found: dict[str, Any] = json.loads(self.manifest.read_text())
        return found

    def samples(self) -> np.ndarray:
        """Images uint8 [N, H, W, C], or vectors [N, D]."""
        with np.load(self.place / f"samples_{self.trial.sampler}.npz", allow_pickle=False) as arrays:
            return samples_of(arrays)

    @property
    def classes(self) -> tuple[int, ...]:
        """The class of each sample; empty where samples have none."""
        labels = self.variant.model.turns.of(range(self.count)).get("labels")
        return () if labels is None else tuple(labels.tolist())

    def _ends(self) -> list[Path]:
        return sorted(self.place.glob("ends-*.npy"))

    @property
    def ends(self) -> np.ndarray:
        """Where the first samples ended, in model space, [n, *D]."""
        return np.concatenate([np.load(path, allow_pickle=False) for path in self._ends()])


def write_array(path: Path, array: np.ndarray) -> None:
    """An array as an .npy file, whole or not at all."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_aside(path, content.getvalue())


def write_trajectory(path: Path, model: Model, drawn: Drawn) -> None:
    """Store what a sampler asked and was told about the first samples, as it is shown.

    x is divided by the standard deviation that it would have if the data's were 1.
    """
    seen = drawn.seen
    count, evaluations = len(seen[0].x), seen[-1].index + 1
    picked = sorted({round(i * (len(seen) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    conditions = rows_of(drawn.conditions, slice(count))

    def shown_as(x: Tensor) -> np.ndarray:
        samples = samples_of(stored(model.transform, x, conditions))
        return samples if samples.dtype == np.uint8 else samples[:, :2].astype(np.float32)

    def in_view(one: Seen) -> Tensor:
        return one.x / match((one.kernel.alpha**2 + one.kernel.variance).sqrt(), one.x)

    def caption(one: Seen) -> str:
        logsnr = float(one.kernel.logsnr.reshape(-1)[0])
        return f"evaluation {one.index + 1} of {evaluations}, log-SNR {logsnr:+.1f}"

    content = io.BytesIO()
    np.savez_compressed(
        content,
        x=np.stack([shown_as(in_view(seen[i])) for i in picked]),
        x0_hat=np.stack([shown_as(seen[i].x0_hat) for i in picked]),
        captions=np.array([caption(seen[i]) for i in picked]),
    )
    write_aside(path, content.getvalue())


def converged(settings: Settings, variant: Variant, folder: Path) -> Tensor:
    """Where the probability flow takes the first samples' noise, solved to compare.flow_rtol, [n, *D]; kept."""
    own, model = settings.compare, variant.model
    options = {"rtol": own.flow_rtol, "atol": own.flow_rtol}
    grid = settings.sampling.make_grid(model.sde, 2, "ode")
    protocol = {
        **sampling_protocol(settings, model, "ode", grid, options),
        "samples": own.flow_samples,
        "numerics": NUMERICS,
    }
    path = folder / f"flow-{digest(protocol)}.npy"
    if not path.is_file():
        size = settings.sampling.batch_size
        with in_words("the converged flow", size):
            pieces = [
                draw(model, "ode", grid, settings.seed, range(first, min(first + size, own.flow_samples)), options).x
                for first in range(0, own.flow_samples, size)
            ]
        write_array(path, torch.cat(pieces).numpy())
    return torch.from_numpy(np.load(path, allow_pickle=False))


def trajectory_frames(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What `write_trajectory` has stored to be shown: x and x0_hat, [F, n, H, W, C] or [F, n, 2], and the captions."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["x"], arrays["x0_hat"], [str(caption) for caption in arrays["captions"]]
