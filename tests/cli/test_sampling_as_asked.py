"""Sampling as people ask for it, by the command line: their own sigmas, a start from pictures, noise and precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comparing import NETWORK
from PIL import Image
from warm import Warm

Sampled = Callable[..., Path]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A trained run of its own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def digits(trained: Path, warm: Warm, tmp_path: Path) -> Path:
    """Pictures in folders named as the classes of the run."""
    rng = np.random.default_rng(0)
    for name in ("3", "8"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(rng.integers(0, 256, (20, 16), dtype=np.uint8)).save(
                tmp_path / "digits" / name / f"{index}.png"
            )
    return tmp_path / "digits"


def images(run: Path, name: str) -> np.ndarray:
    with np.load(run / f"samples_{name}.npz") as file:
        return file["images"].astype(int)


def sample(warm: Warm, run: Path, *flags: object) -> dict[str, object]:
    """The manifest of eight samples."""
    sampler = flags[flags.index("--sampler") + 1]
    warm.run(*NETWORK, "--mode", "sample", "--workdir", run, "--num_samples", 8, *flags)
    found: dict[str, object] = json.loads((run / f"samples_{sampler}.json").read_text())
    return found


def test_a_grid_of_ones_own(warm: Warm, run: Path) -> None:
    """As many steps as sigmas, the same samples as from the same times; another number of steps is refused."""
    sigmas = sample(warm, run, "--sampler", "ddim", "--grid", "given", "--grid.sigmas", "80,20,5,1,0.2")
    assert sigmas["steps"] == sigmas["nfe"] == 5
    assert sigmas["grid_options"] == {"sigmas": [80, 20, 5, 1, 0.2]}
    given = ("--grid", "given", "--grid.sigmas", "80,5,0.2", "--steps", 4)
    assert "3 sigmas are given, and the steps are 4" in warm.refused(
        *NETWORK, "--mode", "sample", "--workdir", run, *given
    )
    low = warm.refused(*NETWORK, "--mode", "sample", "--workdir", run, "--grid", "given", "--grid.sigmas", "1,0.5")
    assert "log-SNR 0" in low and "prior" in low
    named = sample(
        warm,
        run,
        *("--sampler", "ddpm", "--grid", "given", "--grid.sigmas", "1,0.5", "--config.sampling.prior=process"),
    )
    assert named["prior"] == "process" and named["nfe"] == 2


def test_noise_and_precision(warm: Warm, run: Path) -> None:
    """On one Brownian path 40 and 80 steps of ddpm give the same digits, on white noise others; bf16 is close to fp32.

    Distances are rms grey levels of 255.
    """

    def drawn(steps: int, *flags: str) -> np.ndarray:
        sample(warm, run, "--sampler", "ddpm", "--grid", "logsnr", "--steps", steps, *flags)
        return images(run, "ddpm")

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2.0)))

    path = "--config.sampling.noise=brownian"
    together = distance(drawn(40, path), whole := drawn(80, path))
    assert together < 0.5 * distance(drawn(40), drawn(80))
    half = drawn(80, path, "--config.sampling.precision=bf16")
    assert 0.0 < distance(half, whole) < 15.0
    refused = (*NETWORK, "--mode", "sample", "--workdir", run)
    assert "did you mean 'brownian'" in warm.refused(*refused, "--config.sampling.noise=brownien")
    assert "did you mean 'bf16'" in warm.refused(*refused, "--config.sampling.precision=bf61")


def test_edit(warm: Warm, run: Path, digits: Path) -> None:
    """The less strength the nearer to what was there; a strength of 1 is the whole grid; the sheet shows both."""
    ask = (*NETWORK, "--mode", "edit", "--workdir", run, "--input", digits, "--steps", 10, "--grid", "logsnr")
    distances = []
    for strength in (0.1, 0.5, 1.0):
        text = warm.run(*ask, "--strength", strength)
        manifest = json.loads((run / "samples_ddim_edit.json").read_text())
        assert manifest["nfe"] == manifest["steps"] == round(10 * strength) and "samples_ddim_edit.png" in text
        assert manifest["names"] == [f"{name}/{i}.png" for name in "38" for i in range(3)]
        before = [Image.open(digits / name).resize((8, 10), Image.Resampling.LANCZOS) for name in manifest["names"]]
        cut = np.stack([np.asarray(picture.crop((0, 1, 8, 9))) for picture in before])[..., None].astype(int)
        distances.append(float(np.sqrt(np.mean((images(run, "ddim_edit") - cut) ** 2.0))))
    assert distances[0] < 25.0 < distances[1] < distances[2]
    with np.load(run / "samples_ddim_edit.npz") as file:
        assert file["labels"].tolist() == [3, 3, 3, 8, 8, 8]
    sheet = np.asarray(Image.open(run / "samples_ddim_edit.png"))
    assert sheet.shape == (2 * 68 + 4, 6 * 68 + 4, 3)
    assert json.loads((run / "results.json").read_text())["edits"]["ddim"]["steps"] == 10


def test_edits_that_are_none(warm: Warm, run: Path, digits: Path) -> None:
    def refused(sentence: str, *flags: object, mode: str = "edit") -> None:
        assert sentence in warm.refused(*NETWORK, "--mode", mode, "--workdir", run, *flags)

    refused("needs --strength", "--input", digits)
    refused("in (0, 1], got 1.5", "--input", digits, "--strength", 1.5)
    refused("there is no picture, folder or .npz file", "--strength", 0.5)
    refused("--strength is for --mode edit", "--strength", 0.5, mode="sample")
    refused("has none: put the pictures into folders", "--input", digits / "3" / "0.png", "--strength", 0.5)
    (digits / "3").rename(digits / "three")
    refused("has the folder 'three'", "--input", digits, "--strength", 0.5)
