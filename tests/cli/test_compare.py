"""The comparison by the real command line: its files, its resumption, its bad inputs."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from warm import Warm

NETWORK = (
    *("--config", "vpsde_digits", "--config.model.network=mlp", "--config.model.mlp.width=32"),
    *("--config.model.mlp.blocks=1", "--config.training.batch_size=32", "--config.training.warmup_steps=5"),
    *("--config.training.cooldown_steps=0", "--config.training.evaluate_every=60", "--config.training.sample_every=0"),
    *("--config.training.steps=60", "--config.training.checkpoint_every=30", "--config.training.held_out_batches=1"),
)
"""A network that trains in seconds; it is told classes, and knows samples without them."""
SMALL = (
    *("--config.sampling.num_samples=64", "--config.compare.flow_samples=16", "--config.compare.bootstraps=10"),
    *("--config.likelihood.num_samples=10", "--config.likelihood.terms=5", "--config.likelihood.rtol=1e-2"),
)
WRITTEN = ("compare.json", "compare.csv", "compare.md", "report.html")


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after its training."""
    folder = tmp_path_factory.mktemp("compare") / "digits"
    warm.run(*NETWORK, "--mode", "train", "--workdir", folder)
    return folder


def compare(folder: Path, *flags: object) -> tuple[object, ...]:
    return (*NETWORK, *SMALL, "--mode", "compare", "--workdir", folder, *flags)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def timeless(folder: Path) -> dict[str, Any]:
    """The report without what depends on the clock."""
    found = report(folder)
    for cell in found["cells"]:
        del cell["timing"]
    del found["recommendation"]  # which names the fastest
    return found


@pytest.fixture(scope="module")
def compared(warm: Warm, trained: Path) -> Path:
    """The run folder after a comparison."""
    text = warm.run(*compare(trained, "--samplers", "ddim,heun,ddpm,pc,ode", "--steps", "2,4,8"))
    assert str(trained / "report.html") in text
    return trained


def test_all_files_are_written(compared: Path) -> None:
    assert all((compared / name).stat().st_size for name in WRITTEN)
    assert {path.name for path in (compared / "compare").glob("*.png")} == {
        *("quality_nfe.png", "quality_seconds.png", "agreement.png"),
    }
    with open(compared / "compare.csv") as file:
        rows = list(csv.DictReader(file))
    found = report(compared)
    assert len(rows) == len(found["cells"]) == 4 * 3 + 4
    for row, cell in zip(rows, found["cells"], strict=True):
        assert float(row["frechet"]) == pytest.approx(cell["values"]["frechet"]["value"])
    assert "<script src" not in (compared / "report.html").read_text()


def test_cells_say_what_they_are(compared: Path) -> None:
    found = report(compared)
    nfe = {(cell["label"], cell["steps"]): cell["nfe"] for cell in found["cells"] if cell["steps"]}
    for steps in (2, 4, 8):
        assert nfe["ddim", steps] == nfe["ddpm", steps] == steps
        assert nfe["pc", steps] == 2 * steps and nfe["heun", steps] == 2 * steps - 1
    adaptive = [cell for cell in found["cells"] if cell["label"] == "ode"]
    assert [cell["tolerance"] for cell in adaptive] == [1e-1, 1e-2, 1e-3, 1e-4]
    assert [cell["nfe"] for cell in adaptive] == sorted(cell["nfe"] for cell in adaptive)
    for cell in found["cells"]:
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
    for place in sorted((compared / "compare").glob("*/film.npz")):
        with np.load(place) as film:
            first[place.parent.name] = film["x"][0]
            assert len(film["x"]) == len(film["x0_hat"]) == len(film["captions"])
    fixed = [x for name, x in first.items()]
    assert len(fixed) == 16 and all(np.array_equal(x, fixed[0]) for x in fixed)
    away = {
        (cell["label"], cell["steps"] or cell["tolerance"]): cell["values"]["flow_distance"]["value"]
        for cell in report(compared)["cells"]
    }
    assert away["ddim", 2] > away["ddim", 4] > away["ddim", 8]
    assert away["heun", 8] < 0.5 * away["ddim", 8]
    assert away["ode", 1e-4] < 1e-2 < away["ddim", 8] < away["ddpm", 8]


def test_the_film_ends_with_the_samples(compared: Path) -> None:
    for place in (compared / "compare").glob("*/film.npz"):
        with np.load(place) as film, np.load(next(place.parent.glob("samples_*.npz"))) as arrays:
            shown = film["x0_hat"][-1]
            assert np.array_equal(shown, arrays["images"][: len(shown)])


def test_finished_cells_are_taken_as_they_are(warm: Warm, compared: Path, tmp_path: Path) -> None:
    """With another sampler only its cells are drawn; the others keep their seconds and their figures."""
    shutil.copytree(compared, tmp_path / "run")
    before = {cell["id"]: cell for cell in report(compared)["cells"]}
    warm.run(*compare(tmp_path / "run", "--samplers", "ddim,euler", "--steps", "2,4"))
    after = report(tmp_path / "run")["cells"]
    assert [cell["label"] for cell in after] == ["ddim", "ddim", "euler", "euler"]
    assert [cell for cell in after if cell["id"] in before] == [before[cell["id"]] for cell in after[:2]]


def test_the_distance_to_the_flow_is_of_as_many_samples_whatever_the_batch(
    warm: Warm, compared: Path, tmp_path: Path
) -> None:
    """Its 16 samples in batches of 5, drawn anew."""
    shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("compare*"))
    warm.run(*compare(tmp_path / "run", "--samplers", "ddim", "--steps", "4", "--config.sampling.batch_size=5"))
    (mine,) = report(tmp_path / "run")["cells"]
    theirs = next(cell for cell in report(compared)["cells"] if cell["id"] == mine["id"])
    assert mine["values"]["flow_distance"]["value"] == pytest.approx(
        theirs["values"]["flow_distance"]["value"], rel=1e-3
    )
    ends = [np.load(path) for path in sorted((tmp_path / "run" / "compare" / mine["id"]).glob("ends-*.npy"))]
    assert [len(part) for part in ends] == [5, 5, 5, 1]


def test_kills_change_nothing(warm: Warm, compared: Path, tmp_path: Path) -> None:
    """Killed later and later on its way: the report of an undisturbed comparison."""
    flags = ("--samplers", "ddim,pc,ode", "--steps", "2,4", "--config.sampling.batch_size=16")
    for name in ("whole", "killed"):
        shutil.copytree(
            compared, tmp_path / name, ignore=shutil.ignore_patterns("compare*", "likelihood", "results.json")
        )
    began = time.monotonic()
    warm.run(*compare(tmp_path / "whole", *flags))
    undisturbed, killed = time.monotonic() - began, 0
    for share in (0.2, 0.35, 0.55):
        code, text = warm.signalled(signal.SIGKILL, share * undisturbed, *compare(tmp_path / "killed", *flags))
        assert code in (0, -signal.SIGKILL), text
        killed += code != 0
    assert killed >= 2  # each has less left to do than the one before
    warm.run(*compare(tmp_path / "killed", *flags))
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


def test_a_damaged_cell_is_drawn_again(warm: Warm, compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "run")
    flags = compare(tmp_path / "run", "--samplers", "ddim,heun,ddpm,pc,ode", "--steps", "2,4,8")
    cells = sorted((tmp_path / "run" / "compare").glob("dd*/samples_*.npz"))
    cells[0].write_bytes(cells[0].read_bytes()[:-40])
    cells[1].unlink()
    (cells[2].parent / "film.npz").unlink()
    warm.run(*flags)
    assert timeless(tmp_path / "run") == timeless(compared)


def test_a_cell_that_fails_is_marked(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """A step size beyond all measure diverges; the other cells are there, and the report says why one is not."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("compare*", "report.html"))
    text = warm.run(*compare(tmp_path / "run", "--samplers", "ddim,pc::snr_target=1e30,euler_maruyama", "--steps", "4"))
    ddim, pc, _ = report(tmp_path / "run")["cells"]
    assert not ddim["failed"] and ddim["values"]["frechet"]["value"] > 0
    assert "overflow" in pc["failed"] and not pc["values"] and pc["nfe"] is None
    assert "overflow" in text
    for name in WRITTEN:
        assert "overflow" in (tmp_path / "run" / name).read_text()


def test_several_weights_checkpoints_and_guidances(warm: Warm, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("compare*", "report.html"))
    warm.run(
        *compare(tmp_path / "run", "--samplers", "ddim", "--steps", "4", "--config.compare.weights=('ema','raw')"),
        *("--config.compare.checkpoints=(30,60)", "--config.compare.guidance=(0.0,1.5)"),
    )
    found = report(tmp_path / "run")["cells"]
    assert len({cell["id"] for cell in found}) == len({cell["subject"] for cell in found}) == 8
    assert {(c["protocol"]["weights"], c["protocol"]["checkpoint_step"], c["protocol"]["guidance"]) for c in found} == {
        (weights, step, guidance) for weights in ("ema", "raw") for step in (30, 60) for guidance in (0.0, 1.5)
    }
    # Under guidance the network is called with and without the class.
    assert all(cell["nfe"] == (8 if cell["protocol"]["guidance"] else 4) for cell in found)
    assert len({cell["values"]["frechet"]["value"] for cell in found}) == 8


def test_bad_requests(warm: Warm, trained: Path, tmp_path: Path) -> None:
    flags = compare(trained)
    assert "did you mean 'ddim'" in warm.refused(*flags, "--samplers", "ddpm,dimm")
    assert "did you mean 'frechet'" in warm.refused(*flags, "--metrics", "frechet,frechett")
    assert "has no option 'etta'" in warm.refused(*flags, "--samplers", "ddim::etta=1")
    assert "'10,x'" in warm.refused(*flags, "--steps", "10,x")
    assert "compare.samplers is empty" in warm.refused(*flags, "--config.compare.samplers=()")
    assert "no checkpoint of step 31; its checkpoints are of steps: 30, 60" in warm.refused(
        *flags, "--config.compare.checkpoints=(31,)"
    )
    assert "several numbers of steps" in warm.refused(*NETWORK, "--mode", "sample", "--steps", "10,20")
    assert "is for --mode compare" in warm.refused(*NETWORK, "--mode", "sample", "--samplers", "ddim")
    assert "--samplers" in warm.refused(*flags, "--sampler", "ddim")
    assert "train first" in warm.refused(*compare(tmp_path / "none"))
    assert "closed-form model" in warm.refused("--config", "oracle_gmm", "--mode", "train", "--workdir", tmp_path)
    inception = warm.refused(*flags, "--config.compare.features=inception")
    assert "torch-fidelity" in inception or "pt_inception" in inception
    assert not (tmp_path / "none").exists()


def test_guidance_needs_samples_without_their_class(warm: Warm, tmp_path: Path) -> None:
    flags = (*NETWORK, "--workdir", tmp_path, "--config.training.label_dropout=0.0", "--config.training.steps=2")
    warm.run(*flags, "--mode", "train")
    assert "label_dropout" in warm.refused(*flags, "--mode", "sample", "--config.sampling.guidance=2.0")


def test_data_without_labels(warm: Warm, tmp_path: Path) -> None:
    """A classifier is refused by name; what is taken by itself are the values."""
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(pictures / f"{i}.png")
    flags = (
        *(*NETWORK, *SMALL, "--workdir", tmp_path / "run", "--config.data.dataset=folder"),
        *(f"--config.data.root={pictures}", "--config.model.class_conditional=False", "--config.training.steps=2"),
        *("--config.training.label_dropout=0.0", "--config.data.image_size=8"),
    )
    warm.run(*flags, "--mode", "train")
    request = (*flags, "--mode", "compare", "--samplers", "ddim", "--steps", "2")
    assert "labels" in warm.refused(*request, "--config.compare.features=classifier")
    warm.run(*request)
    found = report(tmp_path / "run")
    assert found["protocol"]["features"]["network"] == "values"
    # 64 samples, fewer than the 64 features and one of a covariance: said, and the other figures are there.
    (cell,) = found["cells"]
    assert cell["values"]["frechet"]["value"] is None and "covariance" in cell["values"]["frechet"]["reason"]
    assert cell["values"]["sliced_wasserstein"]["value"] > 0


def test_closed_form_model(warm: Warm, tmp_path: Path) -> None:
    """The distance to the exact flow falls with the order of each sampler; and the flow's bits/dim are those of the
    density, but for the prior, which is not quite the law of x at t = 1."""
    warm.run(
        *("--config", "oracle_gmm", "--workdir", tmp_path, "--config.sampling.num_samples=1000"),
        *("--config.compare.samplers=('ddim','heun','dpmpp_2m','ddpm','ode')", "--config.compare.steps=(16,32,64)"),
        "--config.compare.bootstraps=10",
    )
    found = report(tmp_path)
    away = {
        (cell["label"], cell["steps"] or cell["tolerance"]): cell["values"]["flow_distance"]["value"]
        for cell in found["cells"]
    }
    for label, order in {"ddim": 1, "heun": 2, "dpmpp_2m": 2}.items():
        assert np.log2(away[label, 32] / away[label, 64]) > order - 0.35
    assert away["ode", 1e-4] < 1e-3
    worst = {
        cell["label"]: cell["values"]["covariance_error"]["value"] for cell in found["cells"] if cell["steps"] == 16
    }
    assert worst["dpmpp_2m"] < worst["ddim"] and worst["dpmpp_2m"] < worst["ddpm"]
    exact, flow = (found["likelihood"][name]["bits_per_dim"] for name in ("exact density", "ode"))
    assert flow == pytest.approx(exact, abs=5e-4) and flow != exact


def test_tensorboard_has_the_cells(compared: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for cell in report(compared)["cells"]:
        events = EventAccumulator(str(compared / "tensorboard" / "compare" / cell["id"]))
        events.Reload()
        assert events.Images("samples")
        (scalar,) = events.Scalars("frechet")
        assert scalar.value == pytest.approx(cell["values"]["frechet"]["value"], rel=1e-5)
        assert events.PluginTagToContent("hparams")


def test_too_little_memory_is_a_sentence() -> None:
    from sde_diffusion.errors import UserError
    from sde_diffusion.modes.sampling import in_words

    with (
        pytest.raises(UserError, match=r"too little memory for 7 samples at once; a smaller sampling\.batch_size"),
        in_words("ddim", 7),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(UserError, match="ddim fails: The size of tensor a"), in_words("ddim", 7):
        torch.zeros(2) + torch.zeros(3)
