"""A run on pictures that are no squares, by the command line: everything that a run makes, and sizes that cannot be."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from warm import Warm

import sde_diffusion as sd
from sde_diffusion.data import DataOptions, DataTransform, load_pictures, load_splits
from sde_diffusion.report.pictures import tiles

HEIGHT, WIDTH = 8, 12
TINY = (
    *("--config", "vpsde_cifar", "--device", "cpu", "--config.data.dataset=folder", "--config.training.steps=4"),
    *("--config.model.network=unet", "--config.model.unet.channels=8", "--config.model.unet.multipliers=(1,2)"),
    *("--config.model.unet.blocks=0", "--config.model.unet.attention_resolutions=(4,)"),
    *("--config.training.batch_size=4", "--config.training.held_out_batches=1", "--config.training.warmup_steps=1"),
    *("--config.sampling.num_samples=6", "--config.sampling.steps=2", "--config.sampling.gallery=('ddim:2',)"),
    *("--config.likelihood.figures=('elbo',)", "--config.likelihood.terms=2", "--config.compare.features=values"),
    *("--config.compare.samplers=('ddim','heun')", "--config.compare.steps=(2,)", "--config.compare.flow_samples=4"),
    "--config.compare.bootstraps=2",
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve of them, half as high as wide or less."""
    (tmp_path / "pictures").mkdir()
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 256, (10, 20 + index, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{index:02}.png")
    return tmp_path / "pictures"


def met(samples: Tensor) -> list[Any]:
    """What the first level tells of each picture, KL(q(x_1 | x_0) | N(0, I)) in bits for each of its numbers."""
    x, first = DataTransform(256).encode(samples).double(), sd.VPSDE().kernel(torch.ones((), dtype=torch.float64))
    squares = x.square().flatten(1).mean(1)
    nats = 0.5 * (first.alpha**2 * squares + first.variance - 1.0 - first.variance.log())
    return [pytest.approx(value, rel=1e-3) for value in (nats / math.log(2.0)).tolist()]


def priors(table: Path) -> list[float]:
    return [float(row["elbo_prior"]) for row in csv.DictReader(table.open())]


def test_a_run_on_rectangles(warm: Warm, pictures: Path, tmp_path: Path) -> None:
    """Trained, sampled, evaluated and compared by one command; then drawn from by the size that the run has stored."""
    run = tmp_path / "run"
    own = (*TINY, f"--config.data.root={pictures}", "--config.data.fit=pad", "--workdir", run)
    warm.run(*own, f"--config.data.image_size=({HEIGHT},{WIDTH})")
    stored = json.loads((run / "config.json").read_text())["data"]
    assert stored["image_size"] == [HEIGHT, WIDTH] and stored["fit"] == "pad"
    images = np.load(run / "samples_ddim.npz")["images"]
    assert images.shape == (6, HEIGHT, WIDTH, 3)
    assert np.array_equal(np.asarray(Image.open(run / "samples_ddim.png").convert("RGB")), tiles(images))
    options = DataOptions(root=str(pictures), image_size=(HEIGHT, WIDTH), fit="pad")
    assert priors(run / "likelihood" / "test.csv") == met(load_splits("folder", options).test.samples)
    report = json.loads((run / "compare.json").read_text())
    assert {cell["label"]: cell["failed"] for cell in report["runs"]} == {"ddim": "", "heun": ""}
    assert all(cell["values"]["kid"]["value"] is not None for cell in report["runs"])
    warm.run("--workdir", run, "--mode", "sample", "--sampler", "ddim", "--num_samples", 7)
    (more,) = [x for x in (np.load(path)["images"] for path in run.glob("samples_ddim*.npz")) if len(x) == 7]
    assert np.array_equal(more[:6], images)
    folder = (f"--config.likelihood.folder={pictures}", f"--config.likelihood.image_size=({HEIGHT},{WIDTH})")
    warm.run(*own, f"--config.data.image_size=({HEIGHT},{WIDTH})", "--mode", "likelihood", *folder)
    (table,) = (run / "likelihood").glob("pictures-*.csv")
    assert priors(table) == met(load_pictures(str(pictures), (HEIGHT, WIDTH), DataOptions(fit="pad"))[0].samples)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (
            "(8,13)",
            "(8, 13) cannot be halved 1 times; valid are the multiples of 2, such as (8, 12) and (8, 14)",
        ),
        ("8x12", "data.image_size must be a whole number, or values in brackets, such as (10, 20), got '8x12'"),
        ("(8,12,3)", "or (height, width), such as 32 or (24, 32); got (8, 12, 3)"),
    ],
)
def test_sizes_that_cannot_be(warm: Warm, pictures: Path, tmp_path: Path, size: str, says: str) -> None:
    run = tmp_path / "run"
    line = warm.refused(
        *TINY, f"--config.data.root={pictures}", f"--config.data.image_size={size}", "--mode", "train", "--workdir", run
    )
    assert line.endswith(says)
    assert not (run / "checkpoints").exists()
