"""The comparison by the real command line: its files, its runs, what it is asked to compare."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import compare, report
from warm import Warm

WRITTEN = ("compare.json", "compare.csv", "compare.md", "report.html")


def test_all_files_are_written(compared: Path) -> None:
    assert all((compared / name).stat().st_size for name in WRITTEN)
    assert {path.name for path in (compared / "compare").glob("*.png")} == {
        *("quality_nfe.png", "quality_seconds.png", "agreement.png"),
    }
    with open(compared / "compare.csv") as file:
        rows = list(csv.DictReader(file))
    found = report(compared)
    assert len(rows) == len(found["runs"]) == 4 * 3 + 4
    for row, cell in zip(rows, found["runs"], strict=True):
        assert float(row["frechet"]) == pytest.approx(cell["values"]["frechet"]["value"])
    assert "<script src" not in (compared / "report.html").read_text()


def test_runs_say_what_they_are(compared: Path) -> None:
    found = report(compared)
    nfe = {(cell["label"], cell["steps"]): cell["nfe"] for cell in found["runs"] if cell["steps"]}
    for steps in (2, 4, 8):
        assert nfe["ddim", steps] == nfe["ddpm", steps] == steps
        assert nfe["pc", steps] == 2 * steps and nfe["heun", steps] == 2 * steps - 1
    adaptive = [cell for cell in found["runs"] if cell["label"] == "ode"]
    assert [cell["tolerance"] for cell in adaptive] == [1e-1, 1e-2, 1e-3, 1e-4]
    assert [cell["nfe"] for cell in adaptive] == sorted(cell["nfe"] for cell in adaptive)
    for cell in found["runs"]:
        told = cell["protocol"]
        needed = (
            "seed weights weights_digest checkpoint_step sampler options grid smallest_time device versions guidance"
        )
        assert set(needed.split()) <= told.keys()
        assert cell["samples"] == 64 and cell["timing"]["seconds"] > 0 and not cell["failed"]
    shared = found["protocol"]
    assert shared["reference"]["split"] == "train" and shared["reference"]["samples"] == 1497
    assert shared["features"]["network"] == "classifier" and len(shared["features"]["weights_digest"]) == 12
    assert any("fewer than 10,000" in sentence for sentence in found["warnings"])
    assert {"ode", "elbo"} == found["likelihood"].keys()


def test_samplers_start_from_the_same_noise(compared: Path) -> None:
    """What each is asked first is the same x, and deterministic ones come nearer to the flow with more steps."""
    first: dict[str, np.ndarray] = {}
    for place in sorted((compared / "compare").glob("*/trajectory.npz")):
        with np.load(place) as trajectory:
            first[place.parent.name] = trajectory["x"][0]
            assert len(trajectory["x"]) == len(trajectory["x0_hat"]) == len(trajectory["captions"])
    fixed = [x for name, x in first.items()]
    assert len(fixed) == 16 and all(np.array_equal(x, fixed[0]) for x in fixed)
    away = {
        (cell["label"], cell["steps"] or cell["tolerance"]): cell["values"]["flow_distance"]["value"]
        for cell in report(compared)["runs"]
    }
    assert away["ddim", 2] > away["ddim", 4] > away["ddim", 8]
    assert away["heun", 8] < 0.5 * away["ddim", 8]
    assert away["ode", 1e-4] < 1e-2 < away["ddim", 8] < away["ddpm", 8]


def test_the_trajectory_ends_with_the_samples(compared: Path) -> None:
    for place in (compared / "compare").glob("*/trajectory.npz"):
        with np.load(place) as trajectory, np.load(next(place.parent.glob("samples_*.npz"))) as arrays:
            shown = trajectory["x0_hat"][-1]
            assert np.array_equal(shown, arrays["images"][: len(shown)])


def test_tensorboard_has_the_runs(compared: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for cell in report(compared)["runs"]:
        events = EventAccumulator(str(compared / "tensorboard" / "compare" / cell["id"]))
        events.Reload()
        assert events.Images("samples")
        (scalar,) = events.Scalars("frechet")
        assert scalar.value == pytest.approx(cell["values"]["frechet"]["value"], rel=1e-5)
        assert events.PluginTagToContent("hparams")


def test_closed_form_model(warm: Warm, tmp_path: Path) -> None:
    """The distance to the exact flow falls with the order of each sampler; and the flow's bits/dim are those of the
    density, but for the prior, which is not quite the law of x at t = 1."""
    warm.run(
        *("--config", "oracle_gmm", "--workdir", tmp_path, "--config.sampling.num_samples=500"),
        *("--config.compare.samplers=('ddim','heun','dpmpp_2m','ddpm','ode')", "--config.compare.steps=(16,32,64)"),
        *("--config.compare.bootstraps=10", "--config.compare.reference_samples=1000", "--metrics", "energy"),
    )
    found = report(tmp_path)
    away = {
        (cell["label"], cell["steps"] or cell["tolerance"]): cell["values"]["flow_distance"]["value"]
        for cell in found["runs"]
    }
    for label, order in {"ddim": 1, "heun": 2, "dpmpp_2m": 2}.items():
        assert np.log2(away[label, 32] / away[label, 64]) > order - 0.35
    assert away["ode", 1e-4] < 1e-3
    worst = {
        cell["label"]: cell["values"]["covariance_error"]["value"] for cell in found["runs"] if cell["steps"] == 16
    }
    assert worst["dpmpp_2m"] < worst["ddim"] and worst["dpmpp_2m"] < worst["ddpm"]
    exact, flow = (found["likelihood"][name]["bits_per_dim"] for name in ("exact density", "ode"))
    assert flow == pytest.approx(exact, abs=5e-4) and flow != exact


def test_several_weights_checkpoints_and_guidances(warm: Warm, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("compare*", "report.html"))
    warm.run(
        *compare(tmp_path / "run", "--samplers", "ddim", "--steps", "4", "--config.compare.weights=('ema','raw')"),
        *("--config.compare.checkpoints=(30,60)", "--config.compare.guidance=(0.0,1.5)", "--metrics", "frechet"),
    )
    found = report(tmp_path / "run")["runs"]
    assert len({cell["id"] for cell in found}) == len({cell["variant"] for cell in found}) == 8
    assert {(c["protocol"]["weights"], c["protocol"]["checkpoint_step"], c["protocol"]["guidance"]) for c in found} == {
        (weights, step, guidance) for weights in ("ema", "raw") for step in (30, 60) for guidance in (0.0, 1.5)
    }
    # Under guidance the network is called with and without the class.
    assert all(cell["nfe"] == (8 if cell["protocol"]["guidance"] else 4) for cell in found)
    assert len({cell["values"]["frechet"]["value"] for cell in found}) == 8


def test_too_little_memory_is_a_sentence() -> None:
    from sde_diffusion.core.errors import UserError
    from sde_diffusion.pipelines.sampling import in_words

    with (
        pytest.raises(UserError, match=r"too little memory for 7 samples at once; a smaller sampling\.batch_size"),
        in_words("ddim", 7),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(UserError, match="ddim fails: The size of tensor a"), in_words("ddim", 7):
        torch.zeros(2) + torch.zeros(3)
