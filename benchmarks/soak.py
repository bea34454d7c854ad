"""Kills a training and a sampling at random moments, and looks whether the outcome is that of undisturbed ones.

    python benchmarks/soak.py [--kills 30] [--steps 200] [--images 2000] [--seed 0] [--root FOLDER]

Both are the command line itself (python main.py ...), in processes of their own, which get kill -9 some time after they
have begun; then the same command goes on. The tests kill at every change of the disk once (tests/faults.py); this looks
for what no such list holds, on a real disk, and takes a quarter of an hour.

    training   digits, a checkpoint in each seven steps, averages and snapshots: after the last kill every tensor of the
               newest checkpoint is that of an undisturbed training, bit for bit, no logged step is lost, and no file of
               a killed writer is left
    sampling   by ddim in batches of 50: the images are those of an undisturbed run in one batch, within the rounding of
               one grey level in at most one of 10,000 values, and no hidden folder is left

A session that ends before it is killed begins anew, so that all kills are kills. The exit code is 1 where the outcome
is another.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

MAIN = Path(__file__).resolve().parent.parent / "main.py"
DIGITS = (
    *("--config", "vpsde_digits", "--device", "cpu", "--config.model.unet.channels=8"),
    *("--config.model.unet.multipliers=(1,2)", "--config.model.unet.blocks=1", "--config.model.dropout=0.1"),
    *("--config.model.unet.attention_resolutions=()", "--config.training.batch_size=8"),
    *("--config.training.warmup_steps=5", "--config.training.cooldown_steps=0", "--config.training.log_every=10"),
    *("--config.training.evaluate_every=1000", "--config.training.held_out_batches=1"),
    *("--config.training.sample_every=0", "--config.training.checkpoint_every=7"),
    *("--config.training.keep_checkpoints=3", "--config.training.ema_decays=(0.9,)"),
    *("--config.training.ema_lengths=(0.05,0.1)", "--config.training.ema_snapshots=50"),
)


def started(*flags: object) -> subprocess.Popen[bytes]:
    """The command line, begun."""
    command = [sys.executable, str(MAIN), *DIGITS, *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes], seconds: float | None = None) -> bool:
    """Whether a command comes to its end in that time; else it is killed. Raises SystemExit where it fails."""
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        sys.exit(error.decode())
    return True


def kept_killing(flags: tuple[object, ...], kills: int, longest: float, draw: random.Random, anew: Callable[[], None]):
    """Kill a command so often, each time within that many seconds of its start, and then let it end."""
    killed = 0
    while killed < kills:
        if ended(started(*flags), draw.uniform(0.0, longest)):
            anew()
        else:
            killed += 1
            print(f"\r{killed} kills", end="", flush=True)
    print()
    ended(started(*flags))


def tensors(folder: Path) -> dict[str, NDArray[np.generic]]:
    """All tensors of the newest checkpoint."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return {f"{file.name}/{k}": v for file in sorted(newest.glob("*.safetensors")) for k, v in load_file(file).items()}


def training(root: Path, steps: int, kills: int, draw: random.Random) -> bool:
    """Whether a training that was killed is that of one that was not."""
    flags = ("--mode", "train", f"--config.training.steps={steps}", "--workdir")
    began = time.monotonic()
    ended(started(*flags, root / "whole"))
    longest = time.monotonic() - began
    killed = root / "killed"
    kept_killing((*flags, killed), kills, longest, draw, lambda: shutil.rmtree(killed))
    whole, found = tensors(root / "whole"), tensors(killed)
    told = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    asides = [path for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")]
    return (
        whole.keys() == found.keys()
        and all(np.array_equal(whole[key], found[key]) for key in whole)
        and sorted(set(told)) == list(range(10, steps + 1, 10))
        and not asides
    )


def sampling(root: Path, steps: int, images: int, kills: int, draw: random.Random) -> bool:
    """Whether a sampling that was killed is that of one that was not."""
    flags = ("--mode", "sample", "--sampler", "ddim", "--steps", 8, "--num_samples", images)
    flags += (f"--config.training.steps={steps}", "--workdir")
    broken = shutil.copytree(root / "whole", root / "broken")
    began = time.monotonic()
    ended(started(*flags, root / "whole", f"--config.sampling.batch_size={images}"))
    longest = time.monotonic() - began

    def anew() -> None:
        for path in broken.glob("samples_*"):
            path.unlink()

    kept_killing((*flags, broken, "--config.sampling.batch_size=50"), kills, longest, draw, anew)
    with np.load(root / "whole" / "samples_ddim.npz") as a, np.load(broken / "samples_ddim.npz") as b:
        difference = np.abs(a["images"].astype(int) - b["images"])
    left = [path for path in broken.iterdir() if path.name.startswith(".samples")]
    return len(difference) == images and difference.max() <= 1 and (difference > 0).mean() < 1e-4 and not left


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="of the training, and half as many of the sampling")
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    parser.add_argument("--images", type=int, default=2000, help="of the sampling")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--root", type=Path, help="a folder on the disk to be tried; a temporary one by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.root) as place:
        root, draw = Path(place), random.Random(asked.seed)
        outcomes = {
            "training": training(root, asked.steps, asked.kills, draw),
            "sampling": sampling(root, asked.steps, asked.images, asked.kills // 2, draw),
        }
    for name, same in outcomes.items():
        print(f"{name}: {'as if never killed' if same else 'ANOTHER OUTCOME'}")
    sys.exit(not all(outcomes.values()))


if __name__ == "__main__":
    main()
