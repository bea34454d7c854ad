"""What is sampled, by the command line: chosen classes and checkpoints, under names, beside what was there before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from comparing import NETWORK
from PIL import Image
from warm import Warm

from sde_diffusion.storage.files import FolderLock


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A trained run of its own, which knows the classes 0 to 9."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def asked(run: Path, *flags: object) -> tuple[object, ...]:
    return ("--mode", "sample", "--workdir", run, "--steps", 2, *flags)


def arrays(run: Path, name: str = "ddim") -> dict[str, np.ndarray]:
    with np.load(run / f"samples_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def manifest(run: Path, name: str = "ddim") -> dict[str, object]:
    found: dict[str, object] = json.loads((run / f"samples_{name}.json").read_text())
    return found


def files(run: Path) -> dict[str, bytes]:
    """All that a person sees."""
    shown = (path for path in run.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(run)): path.read_bytes() for path in shown}


# --- the configuration of a run --------------------------------------------------------------------------------


def test_keys_go_over_the_configuration_of_the_run(warm: Warm, run: Path) -> None:
    """--workdir alone is enough; config.json stays as it was, also where nothing is left to train."""
    before = (run / "config.json").read_bytes()
    warm.run(*asked(run, "--num_samples", 4, "--config.sampling.format=png", "--config.sampling.batch_size=3"))
    assert len(list((run / "samples_ddim").iterdir())) == 4 and manifest(run)["seed"] == 0
    assert "did you mean" in warm.refused(*asked(run, "--config.sampling.formt=png")).lower()
    text = warm.run("--mode", "train", "--workdir", run, "--config.sampling.clip=True")
    assert "is trained to step 60" in text
    warm.refused("--mode", "train", "--workdir", run, "--config.training.steps=70", "--config.training.batch_size=3")
    assert (run / "config.json").read_bytes() == before
    warm.run("--mode", "train", "--workdir", run, "--config.training.steps=61")
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 61


def test_a_mistyped_folder_is_named_and_not_made(warm: Warm, run: Path) -> None:
    wrong = run.with_name("runn")
    for flags in ((), ("--config.seed=1",), NETWORK):
        said = warm.refused("--mode", "sample", "--workdir", wrong, *flags)
        assert f"did you mean {run}?" in said and str(wrong) in said
    assert not wrong.exists()
    said = warm.refused("--config.seed=1", "--mode", "sample")
    assert "--config.seed=1 changes a configuration, and there is none" in said
    (run / "config.json").write_text("{")
    assert f"{run}/config.json is no configuration" in warm.refused(*asked(run))


def test_a_smaller_batch_names_its_remedy(warm: Warm, run: Path) -> None:
    """Which goes on with the training."""
    ask = ("--mode", "train", "--workdir", run, "--config.training.steps=61")
    said = warm.refused(*ask, "--config.training.batch_size=12")
    remedy = "keep training.batch_size=32 and set training.accumulate=4: every update then takes its 32 samples in 4"
    assert remedy in said
    assert "accumulate" not in warm.refused(*ask, "--config.training.batch_size=64")
    assert "going on with other values" in warm.run(*ask, "--config.training.accumulate=4")
    assert "training.loss: unknown loss 'vbl'; did you mean 'vlb'" in warm.refused(*ask, "--config.training.loss=vbl")


# --- classes ---------------------------------------------------------------------------------------------------


def test_chosen_classes_take_turns(warm: Warm, run: Path) -> None:
    """Sample i starts from the same noise as ever; names are beside the samples, and the picture has a row for each."""
    text = warm.run(*asked(run, "--classes", "7, 3", "--num_samples", 5))
    assert "classes: 3 = 3, 7 = 7" in text
    chosen = arrays(run)
    assert chosen["labels"].tolist() == [7, 3, 7, 3, 7] and chosen["classes"].tolist() == list("0123456789")
    assert manifest(run)["conditions"] == {"labels": [7, 3], "counts": []} and manifest(run)["classes"][7] == "7"
    tile, names = 68, np.asarray(Image.open(run / "samples_ddim.png"))
    assert names.shape[0] == 2 * tile + 4 and names.shape[1] - (3 * tile + 4) in range(1, tile)
    warm.run(*asked(run, "--num_samples", 8))
    every = arrays(run)
    assert every["labels"].tolist() == list(range(8))
    assert np.abs(chosen["images"][3].astype(int) - every["images"][3]).max() <= 1  # a 3 in both
    warm.run(*asked(run, "--config.sampling.classes=(5,1,2,3,7)", "--num_samples", 8))
    mixed = arrays(run)  # samples 1, 2 and 3 are those of all classes in turn
    assert np.abs(mixed["images"][1:4].astype(int) - every["images"][1:4]).max() <= 1
    assert np.abs(mixed["images"][4].astype(int) - chosen["images"][4]).max() <= 1


def test_counts_of_each_class(warm: Warm, run: Path) -> None:
    warm.run(*asked(run, "--classes", "3:4,7:2,0:1", "--config.sampling.batch_size=2", "--config.sampling.format=zip"))
    told = manifest(run)
    assert told["labels"] == [3, 7, 0, 3, 7, 3, 3] and told["samples"] == 7 and told["classes"] == list("0123456789")
    refused = {
        ("--classes", "3:4,7"): "all classes have counts, as in 3:10,7:2, or none has one",
        ("--classes", "3:4", "--num_samples", 9): "leave --num_samples out",
        ("--classes", "3:none"): "'3:none' should be a class with its count",
        ("--classes", "11"): "there is no class '11'; did you mean '1'? The network knows 0 = 0, 1 = 1",
        ("--classes", "3,3"): "asks twice for class 3",
        ("--classes", "3,7", "--num_samples", 1): "sampling.num_samples=1 is fewer than the 2 classes",
    }
    before = files(run)
    for flags, sentence in refused.items():
        assert sentence in warm.refused(*asked(run, *flags)), flags
    other = warm.refused("--mode", "evaluate", "--workdir", run, "--classes", "3")
    assert "--classes is for --mode sample and edit" in other
    assert files(run) == before


def test_guidance_in_both_ways_of_counting(warm: Warm, run: Path) -> None:
    warm.run(*asked(run, "--num_samples", 2, "--guidance.scale", 3))
    first, told = arrays(run)["images"], manifest(run)
    assert told["guidance"] == 2.0
    assert "are kept" not in warm.run(*asked(run, "--num_samples", 2, "--guidance", 2))
    assert np.array_equal(arrays(run)["images"], first) and manifest(run)["request"] == told["request"]
    assert "the same setting" in warm.refused(*asked(run, "--guidance", 2, "--guidance.scale", 3))
    assert "--guidance.scale is 1 (none) or more, got 0.5" in warm.refused(*asked(run, "--guidance.scale", 0.5))


# --- names and what was there before ---------------------------------------------------------------------------


def test_former_samples_are_kept(warm: Warm, run: Path) -> None:
    """Of another request, or more of this one; more of the same request take the place of fewer."""
    warm.run(*asked(run, "--num_samples", 5))
    few = arrays(run)["images"]
    assert "are kept" not in warm.run(*asked(run, "--num_samples", 9))
    many = files(run)
    assert np.array_equal(arrays(run)["images"][:5], few)
    assert "the 9 samples that were there are kept: samples_ddim_1.*" in warm.run(*asked(run, "--num_samples", 4))
    text = warm.run(*asked(run, "--num_samples", 4, "--seed", 1, "--config.sampling.format=png"))
    assert "the 4 samples that were there are kept: samples_ddim_2.*" in text
    now = files(run)
    assert now["samples_ddim_1.npz"] == many["samples_ddim.npz"]
    assert now["samples_ddim_1.png"] == many["samples_ddim.png"]
    kept = json.loads(now["samples_ddim_1.json"])
    assert kept["files"].keys() == {"samples_ddim_1.npz"} and kept["samples"] == 9
    assert len(arrays(run, "ddim_2")["images"]) == 4 and len(list((run / "samples_ddim").iterdir())) == 4
    assert "samples_ddim.npz" not in now


def test_samples_of_a_name_and_of_a_checkpoint(warm: Warm, run: Path) -> None:
    newest = (*asked(run, "--num_samples", 3),)
    assert "samples_mine.png" in warm.run(*newest, "--out", "mine")
    assert "samples_ddim_step30.npz" in warm.run(*newest, "--config.sampling.checkpoint=30")
    older, mine = manifest(run, "ddim_step30"), manifest(run, "mine")
    assert (older["checkpoint_step"], mine["checkpoint_step"]) == (30, 60)
    assert not np.array_equal(arrays(run, "ddim_step30")["images"], arrays(run, "mine")["images"])
    assert json.loads((run / "results.json").read_text())["samples"].keys() == {"mine", "ddim_step30"}
    before = files(run)
    assert "its checkpoints are of steps: 30, 60" in warm.refused(*newest, "--config.sampling.checkpoint=31")
    for wrong in ("../mine", "mine.npz", "a b"):
        assert "sampling.out is a name of letters" in warm.refused(*newest, "--out", wrong)
    several = warm.refused("--mode", "all", "--workdir", run, "--config.sampling.out=mine")
    assert "names the samples of one sampler, and sampling.gallery has 3" in several
    assert files(run) == before


def test_a_second_sampler_of_the_same_name_is_refused(warm: Warm, run: Path) -> None:
    """As long as the first one lives; another name is free. What the first had drawn is not drawn again."""
    slow = asked(run, "--num_samples", 300, "--steps", 100, "--config.sampling.batch_size=10")
    first = warm.begin(*slow)
    deadline = time.monotonic() + 60
    while not list(run.glob(".samples_ddim-*/marks/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    said = warm.refused(*slow, "--seed", 1)
    assert f"is being sampled into samples_ddim.* by process {first}" in said and "--out NAME" in said
    warm.run(*asked(run, "--num_samples", 2, "--out", "beside"))
    os.kill(first, signal.SIGKILL)
    assert warm.wait(first)[0] == -signal.SIGKILL
    assert "of 300 samples are in" in warm.run(*slow)
    assert len(arrays(run)["images"]) == 300
    with FolderLock(run, "sampled", ".lock_samples_ddim"):
        pass


def test_networks_without_classes_say_so(warm: Warm, run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    few = ("--config.model.class_conditional=False", "--config.training.steps=1", "--config.training.label_dropout=0.")
    warm.run(*NETWORK, *few, "--mode", "train", "--workdir", plain)
    said = warm.refused(*asked(plain, "--classes", "3"))
    assert "the network is told none" in said and not list(plain.glob("samples_*"))
