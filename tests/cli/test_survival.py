"""Kills at random moments: nothing is lost, nothing is done twice, and the outcome is the same to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
DIGITS = (
    "--config",
    "vpsde_digits",
    "--config.model.unet.channels=8",
    "--config.model.unet.multipliers=(1,2)",
    "--config.model.unet.blocks=1",
    "--config.model.unet.attention_resolutions=()",
    "--config.training.batch_size=8",
    "--config.training.warmup_steps=5",
    "--config.training.cooldown_steps=0",
    "--config.training.log_every=10",
    "--config.training.evaluate_every=1000",
    "--config.training.held_out_batches=1",
    "--config.training.sample_every=0",
    "--config.model.dropout=0.1",
)
"""A digits training of milliseconds a step, dropout included."""
KILLS = 30


def training(folder: Path, steps: int) -> tuple[object, ...]:
    often = ("--config.training.checkpoint_every=7", "--config.training.keep_checkpoints=3")
    averages = (
        "--config.training.ema_decays=(0.9,)",
        "--config.training.ema_lengths=(0.05,0.1)",
        "--config.training.ema_snapshots=50",
    )
    return (*DIGITS, "--mode", "train", "--workdir", folder, f"--config.training.steps={steps}", *often, *averages)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the newest checkpoint: weights, averages, the optimiser's state."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return {f"{file.name}/{k}": v for file in sorted(newest.glob("*.safetensors")) for k, v in load_file(file).items()}


def test_thirty_kills_of_a_training(warm: Warm, tmp_path: Path) -> None:
    """At random moments, most of them near or in the writing of a checkpoint, of which there is one in seven steps."""
    steps, draw = 200, random.Random(0)
    began = time.monotonic()
    warm.run(*training(tmp_path / "whole", steps))
    undisturbed = time.monotonic() - began
    killed, resumed = 0, 0
    for _ in range(4 * KILLS):
        code, text = warm.signalled(
            signal.SIGKILL, draw.uniform(0.3, 0.4 + undisturbed / 8), *training(tmp_path / "killed", steps)
        )
        assert code in (0, -signal.SIGKILL), text
        resumed += "resuming" in text
        killed += code != 0
        if killed == KILLS:
            break
        if code == 0:  # trained before it was killed: from the beginning, so that every kill is one of a training
            shutil.rmtree(tmp_path / "killed")
    assert killed == KILLS and resumed > KILLS // 3
    warm.run(*training(tmp_path / "killed", steps))
    whole, found = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert whole.keys() == found.keys() and len(whole) > 100
    assert all(np.array_equal(whole[key], found[key]) for key in whole)
    told = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(told)) == sorted(set(range(10, steps + 1, 10))), "every logged step, none lost"
    snapshots = [sorted(p.name for p in (tmp_path / n / "ema_snapshots").iterdir()) for n in ("whole", "killed")]
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) == steps // 50
    asides = [path for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert not asides, "what killed writers left is cleared away"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network trained for a moment."""
    folder = tmp_path_factory.mktemp("survival") / "trained"
    command = [sys.executable, str(ROOT / "main.py"), *map(str, training(folder, 10))]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def killed_until_done(warm: Warm, flags: tuple[object, ...], seconds: float, times: int) -> int:
    """How often a command was killed, at random moments, before it ended by itself after `times` kills."""
    draw, killed = random.Random(1), 0
    while killed < times:
        code, text = warm.signalled(signal.SIGKILL, draw.uniform(0.2, seconds), *flags)
        assert code in (0, -signal.SIGKILL), text
        if code == 0:
            break
        killed += 1
    warm.run(*flags)
    return killed


def test_kills_of_a_sampling_of_2000_images(warm: Warm, trained: Path, tmp_path: Path) -> None:
    whole, broken = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("whole", "broken"))
    flags = (*DIGITS, "--mode", "sample", "--sampler", "ddim", "--steps", 8, "--num_samples", 2000)
    began = time.monotonic()
    warm.run(*flags, "--workdir", whole, "--config.sampling.batch_size=2000")
    seconds = time.monotonic() - began
    cut = (*flags, "--workdir", broken, "--config.sampling.batch_size=50")
    assert killed_until_done(warm, cut, 0.4 + seconds / 6, 15) > 1
    with np.load(whole / "samples_ddim.npz") as a, np.load(broken / "samples_ddim.npz") as b:
        assert a["images"].shape == (2000, 8, 8, 1)
        # In another batch a convolution sums in another order, and now and then a grey level is rounded the other way.
        difference = np.abs(a["images"].astype(int) - b["images"])
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-4
    assert not [path for path in broken.iterdir() if path.name.startswith(".samples")]


def test_kills_of_a_likelihood_run(warm: Warm, trained: Path, tmp_path: Path) -> None:
    whole, broken = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("whole", "broken"))
    flags = (*DIGITS, "--mode", "likelihood", "--config.likelihood.num_samples=60", "--config.likelihood.batch_size=4")
    flags += ("--config.likelihood.figures=('elbo',)", "--config.likelihood.terms=20")
    began = time.monotonic()
    warm.run(*flags, "--workdir", whole)
    seconds = time.monotonic() - began
    assert killed_until_done(warm, (*flags, "--workdir", broken), 0.3 + seconds / 6, 12) > 1
    rows = [(folder / "likelihood" / "test.csv").read_text().splitlines() for folder in (whole, broken)]
    columns = rows[0][0].split(",")
    timed = [i for i, name in enumerate(columns) if name.endswith("_seconds")]

    def numbers(lines: list[str]) -> list[list[str]]:
        return [[cell for i, cell in enumerate(line.split(",")) if i not in timed] for line in lines]

    assert numbers(rows[0]) == numbers(rows[1]) and len(rows[0]) == 61


def begun(folder: Path, *flags: object) -> subprocess.Popen[str]:
    """A training that has written a line of its metrics at least."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(warm: Warm, number: signal.Signals, tmp_path: Path) -> None:
    process = begun(tmp_path, *training(tmp_path, 100_000), "--config.training.checkpoint_every=1000000")
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"{number.name} came: stopped at step" in text and "Traceback" not in text
    (saved,) = (tmp_path / "checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert str(saved) in text and 0 < step < 100_000
    finished = warm.run(*training(tmp_path, step + 3))
    assert f"step {step:,} to {step + 3:,}" in finished


def test_a_second_trainer_is_refused_while_the_first_lives(warm: Warm, tmp_path: Path) -> None:
    first = begun(tmp_path, *training(tmp_path, 1_000_000))
    try:
        said = warm.refused(*training(tmp_path, 1_000_000))
        assert f"is being trained by process {first.pid}" in said
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    step = int(newest(tmp_path).name.removeprefix("step_"))
    assert f"step {step:,} to {step + 2:,}" in warm.run(*training(tmp_path, step + 2))


def newest(folder: Path) -> Path:
    return sorted(folder.glob("checkpoints/step_*"))[-1]


@pytest.mark.parametrize(("file", "harm"), [("manifest.json", "flipped"), ("optimizer.safetensors", "cut")])
def test_a_damaged_checkpoint_is_named_and_passed_over(warm: Warm, file: str, harm: str, tmp_path: Path) -> None:
    warm.run(*training(tmp_path, 21))
    whole = tensors(tmp_path)
    path = newest(tmp_path) / file
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    text = warm.run(*training(tmp_path, 21))
    assert file in text and "step 14 to 21" in text
    assert all(np.array_equal(value, whole[key]) for key, value in tensors(tmp_path).items())


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root alone")
def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(warm: Warm, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        folder = place / "run"
        large = (*DIGITS, "--mode", "train", "--workdir", folder, "--config.model.unet.channels=24")
        large += ("--config.training.checkpoint_every=3",)
        said = warm.refused(*large, "--config.training.steps=90", "--config.training.keep_checkpoints=100")
        assert "free" in said and str(newest(folder)) in said
        step = int(newest(folder).name.removeprefix("step_"))
        assert step % 3 == 0
        for old in sorted(folder.glob("checkpoints/step_*"))[:-1]:  # a person makes room
            shutil.rmtree(old)
        text = warm.run(*large, f"--config.training.steps={step + 1}", "--config.training.keep_checkpoints=1")
        assert f"step {step} to {step + 1}" in text
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_keys_that_may_change_are_told_and_those_that_may_not_are_refused(warm: Warm, tmp_path: Path) -> None:
    warm.run(*training(tmp_path, 14))
    before = newest(tmp_path)
    harm = ("--config.training.batch_size=4", "--config.training.weighting=v", "--config.training.ema_lengths=(0.05,)")
    said = warm.refused(*training(tmp_path, 21), *harm[:2])
    assert "training.batch_size (8 there, 4 here); training.weighting (" in said
    assert "training.ema_lengths" in warm.refused(
        *training(tmp_path, 21)[:-1], "--config.training.ema_snapshots=0", harm[2]
    )
    assert "seed (0 there, 1 here)" in warm.refused(*training(tmp_path, 21), "--seed", 1)
    assert newest(tmp_path) == before
    text = warm.run(*training(tmp_path, 21), "--config.training.learning_rate=1e-5", "--config.training.grad_clip=0.5")
    assert "going on with other values: training.grad_clip (" in text and "training.learning_rate (" in text
    assert "step 14 to 21" in text


def test_an_update_that_is_skipped_leaves_the_weights_and_the_count_goes_on(warm: Warm, tmp_path: Path) -> None:
    """A factor of barely more than one makes every loss above the mean an explosion, once a hundred were seen."""
    flags = (*training(tmp_path, 400), "--config.training.explosion=1.01", "--config.training.skip_limit=1000")
    text = warm.run(*flags)
    skipped = json.loads((tmp_path / "results.json").read_text())["training"]["skipped_updates"]
    assert 3 < skipped < 300 and text.count("this update is skipped") == skipped
    assert f"{skipped} updates were skipped" in text and newest(tmp_path).name == "step_000000400"
    updates = {float(value) for key, value in tensors(tmp_path).items() if key.endswith("step")}
    assert updates == {400.0 - skipped}, "Adam's own count"


def test_an_unwritable_folder_is_one_sentence(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in warm.refused(*training(tmp_path / "file" / "run", 3))
