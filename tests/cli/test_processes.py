"""Two processes against one: the same training, the same samples, the same bits/dim."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
FLAGS = (
    "--config",
    "vpsde_digits",
    "--config.model.unet.channels=16",
    "--config.model.unet.multipliers=(1,2)",
    "--config.model.unet.blocks=1",
    "--config.model.unet.attention_resolutions=()",
    "--config.model.dropout=0.0",
    "--config.training.batch_size=32",
    f"--config.training.steps={STEPS}",
    "--config.training.warmup_steps=5",
    "--config.training.cooldown_steps=0",
    "--config.training.log_every=1",
    "--config.training.evaluate_every=6",
    "--config.training.held_out_batches=2",
    "--config.training.checkpoint_every=6",
    "--config.training.ema_decays=(0.99,)",
    "--config.training.sample_every=0",
    "--config.sampling.gallery=('ddim:10','ddpm:10')",
    "--config.sampling.num_samples=24",
    "--config.sampling.batch_size=8",
    "--config.compare.samplers=('ddim','ddpm')",
    "--config.compare.steps=(4,)",
    "--config.compare.bootstraps=3",
    "--config.compare.flow_samples=20",
    "--config.compare.flow_rtol=1e-3",
    "--config.likelihood.num_samples=12",
    "--config.likelihood.batch_size=4",
    "--config.likelihood.probes=1",
    "--config.likelihood.figures=('ode','elbo')",
    "--config.likelihood.terms=10",
    "--config.likelihood.rtol=1e-2",
    "--config.likelihood.atol=1e-2",
)


def launched(*flags: object) -> str:
    """What the main command prints under torchrun, with two processes over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "main.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each step, and the held-out losses."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    named = ("loss/train", "loss/held_out")
    train, held_out = ([row[name] for row in rows if name in row] for name in named)
    return np.array(train), np.array(held_out)


def weights(folder: Path) -> dict[str, np.ndarray]:
    (newest,) = folder.glob(f"checkpoints/step_{STEPS:09d}")
    files = ("weights_raw", "weights_ema", "weights_ema_0.99", "optimizer")
    return {f"{file}/{k}": v for file in files for k, v in load_file(newest / f"{file}.safetensors").items()}


@pytest.fixture(scope="module")
def alone(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare job by one process."""
    folder = tmp_path_factory.mktemp("processes") / "alone"
    warm.run(*FLAGS, "--workdir", folder)
    return folder


def compare_trainings(one: Path, other: Path) -> None:
    for mine, theirs in zip(losses(one), losses(other), strict=True):
        assert len(mine) and len(mine) == len(theirs)
        np.testing.assert_allclose(theirs, mine, rtol=1e-5)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    # Adam divides by the root of a second moment, so that where a gradient is rounding alone a weight may differ by
    # its learning rate's order; the norm of the difference says how far apart the networks are.
    for file in ("weights_raw", "weights_ema", "weights_ema_0.99"):
        keys = [key for key in mine if key.startswith(f"{file}/")]
        a, b = (np.concatenate([found[key].ravel() for key in keys]) for found in (mine, theirs))
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(a)


def test_a_training_by_two_processes_is_that_of_one(alone: Path, tmp_path: Path) -> None:
    text = launched(*FLAGS, "--mode", "train", "--workdir", tmp_path)
    assert "x 2 processes" in text and text.count("parameters under") == 1, "one process speaks for both"
    compare_trainings(alone, tmp_path)


def test_passes_before_an_update_are_one_batch(alone: Path, warm: Warm, tmp_path: Path) -> None:
    warm.run(*FLAGS, "--mode", "train", "--workdir", tmp_path, "--config.training.accumulate=4")
    compare_trainings(alone, tmp_path)


def test_two_processes_go_on_where_one_stopped(alone: Path, warm: Warm, tmp_path: Path) -> None:
    """They share the averages and Adam's state, each of them a part."""
    folder = Path(shutil.copytree(alone, tmp_path / "half"))
    shutil.rmtree(folder / "checkpoints" / f"step_{STEPS:09d}")
    text = warm.run(*FLAGS, "--mode", "train", "--workdir", folder, "--config.training.sharding=full", processes=2)
    assert f"step {STEPS // 2} to {STEPS}" in text
    compare_trainings(alone, folder)


def test_samples_bits_and_evaluation_of_two_processes_are_those_of_one(alone: Path, warm: Warm, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone, tmp_path / "both"))
    shutil.rmtree(folder / "likelihood")
    shutil.rmtree(folder / "compare")
    for old in folder.glob("samples_*"):
        old.unlink()
    warm.run(*FLAGS, "--workdir", folder, processes=2)
    for sampler in ("ddim", "ddpm"):
        with np.load(alone / f"samples_{sampler}.npz") as a, np.load(folder / f"samples_{sampler}.npz") as b:
            assert len(a["images"]) == 24
            np.testing.assert_array_equal(a["images"], b["images"])
    mine, theirs = (json.loads((place / "results.json").read_text()) for place in (alone, folder))
    assert mine["evaluation"] == theirs["evaluation"]
    figures = [
        [cell["values"] for cell in json.loads((place / "compare.json").read_text())["runs"]]
        for place in (alone, folder)
    ]
    assert figures[0] == figures[1] and figures[0][0]["flow_distance"]["value"] > 0
    assert mine["likelihood"]["bits_per_dim"] == theirs["likelihood"]["bits_per_dim"]
    rows = [(place / "likelihood" / "test.csv").read_text().splitlines() for place in (alone, folder)]
    columns = rows[0][0].split(",")
    kept = [i for i, name in enumerate(columns) if not name.endswith("_seconds")]
    cells = [[[line.split(",")[i] for i in kept] for line in lines] for lines in rows]
    assert cells[0] == cells[1]


def test_what_one_process_does_alone_does_not_keep_the_other_waiting(alone: Path, warm: Warm, tmp_path: Path) -> None:
    """Latents, after both have read the network."""
    folder = Path(shutil.copytree(alone, tmp_path / "both"))
    few = ("--config.latents.pairs=1", "--config.latents.points=2", "--config.latents.temperatures=(1.0,)")
    loose = "--config.latents.rtol=1e-2"
    text = warm.run(*FLAGS, "--mode", "latents", "--workdir", folder, *few, loose, processes=2)
    assert text.count("2 samples encoded and decoded") == 1
    assert (folder / "latents" / "latents.json").exists()


def test_an_error_of_two_processes_is_one_sentence(warm: Warm, tmp_path: Path) -> None:
    text = warm.refused(*FLAGS, "--workdir", tmp_path, "--config.training.batch_size=33", processes=2)
    assert "training.batch_size=33 is not divided by 2 processes" in text and "32 or 34" in text
    assert not list(tmp_path.iterdir())


def test_bf16_is_near_and_not_equal(alone: Path, warm: Warm, tmp_path: Path) -> None:
    """The network's passes are in bf16, of 8 bits: losses near those of float32, weights stored in float32."""
    warm.run(*FLAGS, "--mode", "train", "--workdir", tmp_path, "--config.training.precision=bf16")
    mine, theirs = losses(alone)[0], losses(tmp_path)[0]
    difference = np.abs(theirs / mine - 1).max()
    assert 1e-5 < difference < 0.05
    assert all(value.dtype == np.float32 for value in weights(tmp_path).values())


def test_a_precision_that_the_device_lacks(warm: Warm, tmp_path: Path) -> None:
    said = warm.refused(*FLAGS, "--workdir", tmp_path, "--device", "cpu", "--config.training.precision=fp16")
    assert "'fp16' needs a GPU" in said and "'bf16'" in said
