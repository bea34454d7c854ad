"""The real command line on small trainings: in processes of its own, or forked from a warm one (warm.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm import Warm

from sde_diffusion.storage.checkpoint import checkpoint_files, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--config.model.network=mlp",
    "--config.model.mlp.width=32",
    "--config.model.mlp.blocks=1",
    "--config.training.batch_size=32",
    "--config.training.warmup_steps=5",
    "--config.training.cooldown_steps=0",
    "--config.training.evaluate_every=40",
    "--config.training.sample_every=0",
    "--config.likelihood.num_samples=20",
    "--config.sampling.num_samples=12",
    "--config.compare.samplers=()",
)
"""A configuration that trains in seconds."""


def command(*flags: object) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *map(str, flags)]


def run(*flags: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after the bare job."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    few = (
        *("--config.compare.samplers=('ddim','ode')", "--config.compare.steps=(2,)", "--config.compare.bootstraps=3"),
        *("--config.compare.metrics=('frechet','precision')", "--config.likelihood.rtol=1e-2"),
        *("--config.compare.flow_samples=12", "--config.compare.flow_rtol=1e-3"),
    )
    done = run(
        *("--config", "vpsde_digits", "--workdir", folder, *TINY, "--config.training.steps=40", *few),
        "--config.sampling.gallery=('ddim:5','pc:4','ode')",
    )
    assert "bits/dim" in done.stdout and "ddim" in done.stdout
    assert str(folder / "report.html") in done.stdout.splitlines()[-1]
    return folder


def test_bare_job_leaves_all_it_promises(trained: Path) -> None:
    for sampler, nfe in {"ddim": 5, "pc": 8, "ode": None}.items():
        with np.load(trained / f"samples_{sampler}.npz") as arrays:
            images = arrays["images"]
        assert images.dtype == np.uint8 and images.shape == (12, 8, 8, 1)
        manifest = json.loads((trained / f"samples_{sampler}.json").read_text())
        assert manifest["samples"] == 12 and (nfe is None or manifest["nfe"] == nfe)
        # 12 tiles of 64 pixels in a grid of 4 x 3 with borders of 4.
        assert Image.open(trained / f"samples_{sampler}.png").size == (4 * 68 + 4, 3 * 68 + 4)
    results = json.loads((trained / "results.json").read_text())
    assert set(results["samples"]) == {"ddim", "pc", "ode"}
    assert results["likelihood"]["bin_width"] == 2 / 16 and results["likelihood"]["samples"] == 20
    assert results["likelihood"]["smallest_time"] == 1e-5 and results["samples"]["ddim"]["smallest_time"] == 1e-3
    assert results["evaluation"]["held_out_loss"]["ema"] > 0
    assert {"compare.json", "compare.csv", "compare.md", "report.html"} <= {path.name for path in trained.iterdir()}
    assert list((trained / "tensorboard").iterdir()) and list((trained / "checkpoints").iterdir())
    assert json.loads((trained / "config.json").read_text())["training"]["steps"] == 40


def test_same_seed_same_samples_whatever_the_batch_size(warm: Warm, trained: Path) -> None:
    drawn = []
    for size in (12, 5):
        warm.run(
            *("--config", "vpsde_digits", "--workdir", trained, *TINY, "--mode", "sample", "--sampler", "pc"),
            *("--steps", 6, "--num_samples", 11, "--seed", 3, f"--config.sampling.batch_size={size}"),
        )
        with np.load(trained / "samples_pc.npz") as arrays:
            drawn.append(arrays["images"].astype(int))
    # Matrix products of another size may round differently, by less than a grey level.
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert (drawn[0] != drawn[1]).mean() < 0.01
    assert drawn[0].std() > 10


def test_class_means_and_labels(warm: Warm, tmp_path: Path) -> None:
    """A class-conditional network, with the mean of each class subtracted: its samples are near the means."""
    flags = ("--config", "vpsde_digits", "--workdir", tmp_path, *TINY, "--config.model.class_conditional=True")
    flags += ("--config.data.subtract_mean=class", "--config.training.steps=40", "--mode")
    warm.run(*flags, "train")
    warm.run(*flags, "sample", "--sampler", "ddim", "--steps", 5, "--num_samples", 40)
    with np.load(tmp_path / "samples_ddim.npz") as arrays:
        labels, images = arrays["labels"], arrays["images"][..., 0].astype(float)
    assert labels.tolist() == [i % 10 for i in range(40)]
    from sde_diffusion.data import DataOptions, load_splits

    digits = load_splits("digits", DataOptions()).train
    assert digits.labels is not None
    means = np.stack([digits.samples[digits.labels == k, 0].double().mean(0).numpy() * 255 / 16 for k in range(10)])
    drawn = np.stack([images[labels == k].mean(0) for k in range(10)])
    own = [np.corrcoef(drawn[k].ravel(), means[k].ravel())[0, 1] for k in range(10)]
    other = [np.corrcoef(drawn[k].ravel(), means[(k + 1) % 10].ravel())[0, 1] for k in range(10)]
    assert np.mean(own) > np.mean(other) + 0.2


def test_load_gives_the_denoiser_of_a_run(trained: Path) -> None:
    import sde_diffusion as sd

    ema, raw = sd.load(trained), sd.load(trained, weights="raw")
    assert ema.spec.process == sd.VPSDE() and ema.spec.prediction == "edm"
    x = torch.zeros(2, 1, 8, 8)
    kernel = ema.spec.process.kernel(0.5)
    assert not torch.equal(ema(x, kernel), raw(x, kernel))
    with pytest.raises(sd.UserError, match=r"did you mean 'raw'|Valid names: ema, raw"):
        sd.load(trained, weights="rav")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = read_checkpoint(folder)
    assert found.step == 60
    parts = {**found.weights, **found.optimizer["state"]}
    return {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}


def test_a_killed_training_resumes_to_the_same_bits(warm: Warm, tmp_path: Path) -> None:
    """kill -9 in the middle, then the same command again: weights, averages and moments as if never killed."""
    flags = (
        *("--config", "vpsde_digits", "--mode", "train", *TINY, "--config.training.steps=60", "--device", "cpu"),
        *("--config.training.checkpoint_every=10", "--config.model.dropout=0.2"),
    )
    warm.run(*flags, "--workdir", tmp_path / "whole")
    process = subprocess.Popen(
        command(*flags, "--workdir", tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoint_files(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint_files(tmp_path / "killed")
    text = warm.run(*flags, "--workdir", tmp_path / "killed")
    assert "resuming" in text or "is trained" in text
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config", "vpsde_digit"], "did you mean 'vpsde_digits'"),
        (["--config", "vpsde_digits", "--config.training.stepz=3"], "steps"),
        (["--config", "vpsde_digits", "--config.training.compile=True"], "key training.compile is compile now"),
        (["--config", "ncsnpp_cifar:deeep", "--mode", "sample"], "unknown variant 'deeep'; did you mean 'deep'?"),
        (["--config", "vpsde_digits:deep", "--mode", "sample"], "'vpsde_digits' has no variants"),
        (["--config", "edm_cifar", "--network.block", "3"], "network 'songunet' has no option 'block'"),
        (["--config", "vpsde_digits", "--mode", "trian"], "did you mean 'train'"),
        (["--config", "vpsde_digits", "--sampler", "dddim"], "did you mean 'ddim'"),
        (["--config", "vpsde_digits", "--option", "eta=1", "--sampler", "euler"], "it takes no options"),
        (["--config", "vpsde_digits", "--sampler.etta=1"], "did you mean 'eta'"),
        (
            ["--config", "vpsde_digits", "--sampler", "dpmpp_2m", "--sampler.order", "two"],
            "option order of dpmpp_2m must be a whole number, got 'two'",
        ),
        (["--config", "vpsde_digits", "--sampler", "dpmpp_2m", "--sampler.order", "9"], "order of dpmpp_2m must be"),
        (["--config", "vpsde_digits", "--grid", "karras", "--grid.rhoo", "5"], "did you mean 'rho'"),
        (["--config", "vpsde_digits", "--grid", "strided"], "levels of a discrete process"),
        (["--config", "ddpm_cifar", "--steps", "2000", "--sampler", "ddim"], "choose 1 to 1000"),
        (["--config", "vpsde_digits", "--sampler.", "2"], "--sampler. lacks the name of an option"),
        (["--config", "vpsde_digits", "--sampler.eta"], "--sampler.eta needs a value"),
        (["--config", "vpsde_digits", "--steps", "0"], "at least 1"),
        (["--config", "vpsde_digits", "--config.training.steps=0"], "training.steps must be at least 1"),
        (["--config", "vpsde_digits", "--sampel", "ddim"], "sampler"),
        (["--config", "vpsde_digits", "--config.training.steps=many"], "many"),
        (["--config", "vpsde_digits", "--config.process.name=VPSED"], "VPSDE"),
        (["--config", "vpsde_digits", "--device", "abacus"], "abacus"),
        ([], "--config is needed"),
    ],
)
def test_bad_requests_are_one_sentence(warm: Warm, flags: list[str], says: str, tmp_path: Path) -> None:
    assert says in warm.refused(*flags, "--workdir", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_options_on_the_command_line_are_read_in_any_form() -> None:
    from sde_diffusion.commands.flags import resolve_options

    given = "main.py --sampler lms --sampler.order 2 -sampler.start=a=b --grid.shift -1 --config.sampling.options.x= 0"
    said = "main.py --sampler lms --option=order=2 --option=start=a=b --grid_option=shift=-1 --option=x= 0"
    assert resolve_options(given.split(" ")) == said.split(" ")
    for alone in ("--sampler.order", "--grid.rho --steps 5"):
        with pytest.raises(ValueError, match="needs a value"):
            resolve_options(["main.py", *alone.split()])


def test_the_catalogue_lists_every_sampler_and_grid_with_its_options(warm: Warm) -> None:
    from sde_diffusion.core.grids import GRIDS, grid_options
    from sde_diffusion.samplers import SAMPLERS, sampler_options

    text = warm.run("--mode", "samplers")
    assert max(map(len, text.splitlines())) <= 120
    # A row goes on in the lines that begin with a space.
    rows = {row.split()[0]: row for row in re.split(r"\n(?! )", text) if row}
    for names, options in ((SAMPLERS, sampler_options), (GRIDS, grid_options)):
        for name in names:
            words = {word.strip(",") for word in rows[name].split()}
            assert words >= {f"{option}={default!s}" for option, default in options(name).items() if default != ""}
    assert "Lu et al. 2022b" in rows["dpmpp_2m"] and "with churn" in rows["heun"] and "sections=''" in rows["respaced"]


def test_named_options_reach_the_sampler_and_the_grid(warm: Warm, trained: Path) -> None:
    """In the bare job, and in a sampling with the configuration's own sampler (ddim)."""
    flags = ("--config", "vpsde_digits", "--workdir", trained, *TINY, "--config.training.steps=40", "--steps", 4)
    lms = ("--sampler", "lms", "--sampler.order", 2, "--sampler.start=runge_kutta")
    warm.run(*flags, *lms, "--grid", "karras", "--grid.rho", 5)
    keys = ("--config.sampling.grid=polyexponential", "--config.sampling.grid_options.rho=2")
    warm.run(*flags, "--mode", "sample", "--sampler.eta", "1", *keys)
    manifests = [json.loads((trained / f"samples_{name}.json").read_text()) for name in ("lms", "ddim")]
    assert [m["options"] for m in manifests] == [{"order": 2, "start": "runge_kutta"}, {"eta": 1.0}]
    assert [(m["grid"], m["grid_options"]) for m in manifests] == [
        ("karras", {"rho": 5.0}),
        ("polyexponential", {"rho": 2.0}),
    ]
    assert [m["snap"] for m in manifests] == [False, False]
    stored = json.loads((trained / "config.json").read_text())["sampling"]
    assert stored["options"] == stored["grid_options"] == {}  # nothing was trained with the others


def test_a_missing_data_folder_is_named(warm: Warm, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    said = warm.refused("--config", "vpsde_cifar", f"--config.data.root={missing}", "--workdir", tmp_path / "run")
    assert str(missing) in said and not missing.exists()


def test_sampling_without_a_training_says_so(warm: Warm, tmp_path: Path) -> None:
    said = warm.refused("--config", "vpsde_digits", "--mode", "sample", "--workdir", tmp_path / "none")
    assert "none" in said


def test_another_configuration_is_refused_and_nothing_is_lost(warm: Warm, trained: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in trained.rglob("*") if path.is_file() and path.name != ".lock"}

    before = files()
    said = warm.refused("--config", "subvpsde_digits", "--workdir", trained, *TINY)
    assert "process.name ('VPSDE' there, 'SubVPSDE' here)" in said
    assert before == files()


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(warm: Warm, tmp_path: Path) -> None:
    flags = ("--config", "vpsde_digits", "--mode", "train", "--workdir", tmp_path / "run", *TINY)
    warm.run(*flags, "--config.training.steps=10", "--config.training.checkpoint_every=10")
    (good,) = checkpoint_files(tmp_path / "run")
    kept = {path: path.read_bytes() for path in good.iterdir()}
    said = warm.refused(
        *flags, "--config.training.steps=40", "--config.training.learning_rate=1e30", "--config.training.grad_clip=0"
    )
    assert "nan" in said.lower() or "inf" in said.lower()
    assert str(good) in said and "learning_rate" in said
    assert {path: path.read_bytes() for path in good.iterdir()} == kept


def test_a_damaged_checkpoint_is_named(warm: Warm, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "run" / "checkpoints")
    damaged = checkpoint_files(tmp_path / "run")[-1] / "weights_ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert str(damaged) in warm.refused("--config", "vpsde_digits", "--mode", "sample", "--workdir", tmp_path / "run")


def test_help_reads_well() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=120)
    assert "python main.py --config vpsde_digits" in done.stdout and "--mode" in done.stdout
