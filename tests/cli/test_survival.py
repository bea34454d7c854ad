"""Kills at any change of the disk: nothing is lost, nothing is done twice, and the outcome is the same to the bit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from warm import Warm

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


def killed_again_and_again(
    warm: Warm,
    folder: Path,
    flags: tuple[object, ...],
    check: Callable[[], object],
    every: int,
    like: Path | None = None,
) -> int:
    """Kill a command at its n-th change of a folder, for one n after another, and go on from there; how many they were.

    every: the distance of one n from the next.

    Whenever it ends by itself the outcome is checked, and it begins anew, with a copy of `like`: the last of all is one
    that nothing went before.
    """

    def anew() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        if like is not None:
            shutil.copytree(like, folder)
        return True

    number, new = 0, anew()
    while True:
        if warm.killed(number, folder, *flags):
            number, new = number + every, False
            continue
        check()
        if new:
            return number
        new = anew()


def test_kills_of_a_training(warm: Warm, tmp_path: Path) -> None:
    """At each eleventh change of the disk, among checkpoints, averages, snapshots, the log of the metrics, results.

    At every change of what writes them: tests/training/test_checkpoint.py, test_metrics_log.py.
    """
    steps, folder = 6, tmp_path / "killed"
    short = (
        *("--config.training.checkpoint_every=3", "--config.training.keep_checkpoints=1"),
        *("--config.training.ema_decays=()", "--config.training.ema_lengths=(0.1,)"),
        *("--config.training.ema_snapshots=6", "--config.training.log_every=2"),
    )
    warm.run(*training(tmp_path / "whole", steps), *short)
    whole = tensors(tmp_path / "whole")
    assert len(whole) > 80

    def check() -> None:
        found = tensors(folder)
        assert whole.keys() == found.keys() and all(np.array_equal(whole[key], found[key]) for key in whole)
        told = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert sorted(set(told)) == [2, 4, 6], "every logged step, none lost"
        # The next writer clears away what killed ones left; the last of all removes the checkpoint before its own.
        asides = [path.name for path in (folder / "checkpoints").glob(".*")]
        assert len(asides) <= 1 and all(name.startswith(".step_000000003.") for name in asides)
        assert [path.name for path in (folder / "ema_snapshots").glob("[!.]*")] == names

    names = [path.name for path in (tmp_path / "whole" / "ema_snapshots").glob("[!.]*")]
    assert len(names) == 1
    assert killed_again_and_again(warm, folder, (*training(folder, steps), *short), check, 11) > 60


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network trained for a moment."""
    folder = tmp_path_factory.mktemp("survival") / "trained"
    warm.run(*training(folder, 10))
    return folder


def test_kills_of_a_sampling(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """At each ninth change of the disk: the images of an undisturbed one, and nothing left behind.

    At every change of what writes them: tests/training/test_shards.py.
    """
    whole, broken = Path(shutil.copytree(trained, tmp_path / "whole")), tmp_path / "broken"
    flags = (*DIGITS, "--mode", "sample", "--sampler", "ddpm", "--steps", 3, "--num_samples", 7)
    flags += ("--config.sampling.batch_size=4",)
    warm.run(*flags, "--workdir", whole)

    def check() -> None:
        with np.load(whole / "samples_ddpm.npz") as a, np.load(broken / "samples_ddpm.npz") as b:
            # What is drawn again may be so in another batch, where a convolution sums in another order.
            assert np.abs(a["images"].astype(int) - b["images"]).max() <= 1 and len(b["images"]) == 7
        assert not [path for path in broken.iterdir() if path.name.startswith(".samples")]

    assert killed_again_and_again(warm, broken, (*flags, "--workdir", broken), check, 9, trained) > 40


def test_kills_of_a_likelihood_run(warm: Warm, trained: Path, tmp_path: Path) -> None:
    whole, broken = Path(shutil.copytree(trained, tmp_path / "whole")), tmp_path / "broken"
    flags = (*DIGITS, "--mode", "likelihood", "--config.likelihood.num_samples=4", "--config.likelihood.batch_size=1")
    flags += ("--config.likelihood.figures=('elbo',)", "--config.likelihood.terms=5")
    warm.run(*flags, "--workdir", whole)

    def numbers(folder: Path) -> list[dict[str, str]]:
        with open(folder / "likelihood" / "test.csv", newline="") as file:
            return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in csv.DictReader(file)]

    def check() -> None:
        assert numbers(whole) == numbers(broken) and len(numbers(broken)) == 4

    assert killed_again_and_again(warm, broken, (*flags, "--workdir", broken), check, 7, trained) > 20


def begun(warm: Warm, folder: Path, *flags: object) -> int:
    """The number of the process of a training that has written a line of its metrics at least."""
    process = warm.begin(*flags)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(warm: Warm, number: signal.Signals, tmp_path: Path) -> None:
    process = begun(warm, tmp_path, *training(tmp_path, 100_000), "--config.training.checkpoint_every=1000000")
    os.kill(process, number)
    code, text = warm.wait(process)
    assert code == 0 and f"{number.name} came: stopped at step" in text and "Traceback" not in text
    (saved,) = (tmp_path / "checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert str(saved) in text and 0 < step < 100_000
    finished = warm.run(*training(tmp_path, step + 3))
    assert f"step {step:,} to {step + 3:,}" in finished


def test_a_second_trainer_is_refused_while_the_first_lives(warm: Warm, tmp_path: Path) -> None:
    first = begun(warm, tmp_path, *training(tmp_path, 1_000_000), "--config.training.checkpoint_every=1")
    try:
        said = warm.refused(*training(tmp_path, 1_000_000))
        assert f"is being trained by process {first}" in said
    finally:
        os.kill(first, signal.SIGKILL)
        warm.wait(first)
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
    quick = ("--config.model.network=mlp", "--config.model.mlp.width=16", "--config.model.mlp.blocks=1")
    flags = (*training(tmp_path, 200), *quick, "--config.training.checkpoint_every=100")
    flags += ("--config.training.explosion=1.01", "--config.training.skip_limit=1000")
    text = warm.run(*flags)
    skipped = json.loads((tmp_path / "results.json").read_text())["training"]["skipped_updates"]
    assert 3 < skipped < 100 and text.count("this update is skipped") == skipped
    assert f"{skipped} updates were skipped" in text and newest(tmp_path).name == "step_000000200"
    updates = {float(value) for key, value in tensors(tmp_path).items() if key.endswith("step")}
    assert updates == {200.0 - skipped}, "Adam's own count"


def test_an_unwritable_folder_is_one_sentence(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in warm.refused(*training(tmp_path / "file" / "run", 3))
