"""The comparison by the real command line: gone on with, after kills and damage; its bad inputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from comparing import NETWORK, SAMPLERS, SMALL, compare, report, timeless
from warm import Warm


def test_finished_runs_are_taken_as_they_are(warm: Warm, compared: Path, tmp_path: Path) -> None:
    """With another sampler only its runs are drawn; the others keep their seconds and their figures."""
    shutil.copytree(compared, tmp_path / "run")
    before = {cell["id"]: cell for cell in report(compared)["runs"]}
    warm.run(*compare(tmp_path / "run", "--samplers", "ddim,euler", "--steps", "2,4"))
    after = report(tmp_path / "run")["runs"]
    assert [cell["label"] for cell in after] == ["ddim", "ddim", "euler", "euler"]
    assert [cell for cell in after if cell["id"] in before] == [before[cell["id"]] for cell in after[:2]]


def test_the_distance_to_the_flow_is_of_as_many_samples_whatever_the_batch(
    warm: Warm, compared: Path, tmp_path: Path
) -> None:
    """Its 16 samples in batches of 5, drawn anew."""
    shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("compare*"))
    flags = ("--samplers", "ddim", "--steps", "4", "--metrics", "frechet", "--config.sampling.batch_size=5")
    warm.run(*compare(tmp_path / "run", *flags))
    (mine,) = report(tmp_path / "run")["runs"]
    theirs = next(cell for cell in report(compared)["runs"] if cell["id"] == mine["id"])
    assert mine["values"]["flow_distance"]["value"] == pytest.approx(
        theirs["values"]["flow_distance"]["value"], rel=1e-3
    )
    ends = [np.load(path) for path in sorted((tmp_path / "run" / "compare" / mine["id"]).glob("ends-*.npy"))]
    assert [len(part) for part in ends] == [5, 5, 5, 1]


def test_kills_change_nothing(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """Killed at later and later changes of the disk, and gone on with: the report of an undisturbed comparison.

    Every single change is that of other tests, of what it writes with: test_shards.py, test_files.py.
    """
    flags = ("--samplers", "ddim,ode", "--steps", "2", "--config.sampling.batch_size=32", "--metrics", "frechet")
    flags += ("--config.compare.likelihood=False",)
    for name in ("whole", "killed"):
        shutil.copytree(trained, tmp_path / name)
    warm.run(*compare(tmp_path / "whole", *flags))
    kills = 0
    while warm.killed(5 + 12 * kills, tmp_path / "killed", *compare(tmp_path / "killed", *flags)):
        kills += 1
    assert kills > 5
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


def test_a_damaged_cell_is_drawn_again(warm: Warm, compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "run")
    flags = compare(tmp_path / "run", *SAMPLERS)
    cells = sorted((tmp_path / "run" / "compare").glob("dd*/samples_*.npz"))
    cells[0].write_bytes(cells[0].read_bytes()[:-40])
    cells[1].unlink()
    (cells[2].parent / "trajectory.npz").unlink()
    warm.run(*flags)
    assert timeless(tmp_path / "run") == timeless(compared)


def test_a_cell_that_fails_is_marked(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """A step size beyond all measure diverges; the other runs are there, and the report says why one is not."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("compare*", "report.html"))
    text = warm.run(
        *compare(tmp_path / "run", "--samplers", "ddim,pc::snr_target=1e30,euler_maruyama", "--steps", "4"),
        "--metrics",
        "frechet",
    )
    ddim, pc, _ = report(tmp_path / "run")["runs"]
    assert not ddim["failed"] and ddim["values"]["frechet"]["value"] > 0
    assert "overflow" in pc["failed"] and not pc["values"] and pc["nfe"] is None
    assert "overflow" in text
    for name in ("compare.json", "compare.csv", "compare.md", "report.html"):
        assert "overflow" in (tmp_path / "run" / name).read_text()


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
    request += ("--metrics", "frechet,sliced_wasserstein")
    assert "labels" in warm.refused(*request, "--config.compare.features=classifier")
    said = warm.run(*request)
    found = report(tmp_path / "run")
    assert found["protocol"]["features"]["network"] == "values"
    # 64 samples, fewer than the 64 features and one of a covariance: said before anything is drawn, and the kernel
    # distance decides.
    few = "64 samples are too few for the Fréchet distance by 64 features: 65 are needed"
    instead = f"{few}; the kernel distance decides instead"
    assert said.splitlines()[0] == instead
    assert found["warnings"][0] == instead and found["recommendation"]["metric"] == "kid"
    (cell,) = found["runs"]
    assert cell["values"]["frechet"] == {"value": None, "low": None, "high": None, "reason": few}
    assert cell["values"]["sliced_wasserstein"]["value"] > 0
