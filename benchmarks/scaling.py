"""How the training scales with the number of processes: images a second, and the share of n times one process's.

    python benchmarks/scaling.py                               1 and 2 processes of one thread each, the digits network
    python benchmarks/scaling.py --processes 1,2,4,8 --device cuda --config vpsde_cifar --batch 128 --root FOLDER

Weak scaling: every process has a batch of `batch`, so that the ideal is n times the images of one. Strong scaling: the
batch is shared. Each is the main command under torchrun; the figure is the median of `images_per_second` in
metrics.jsonl after the first interval, and the rounds alternate between the counts of processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sde_diffusion.runtime.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]


def speed(arguments: argparse.Namespace, processes: int, batch: int) -> float:
    """Images a second of one training."""
    with tempfile.TemporaryDirectory() as place:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [
            sys.executable,
            *launch,
            str(ROOT / "main.py"),
            *("--config", arguments.config, "--mode", "train", "--workdir", place, "--device", arguments.device),
            f"--config.training.batch_size={batch}",
            f"--config.training.steps={arguments.steps}",
            f"--config.training.log_every={arguments.steps // 6}",
            f"--config.training.evaluate_every={10 * arguments.steps}",
            f"--config.training.checkpoint_every={10 * arguments.steps}",
            "--config.training.sample_every=0",
            f"--config.training.sharding={arguments.sharding}",
            *((f"--config.data.root={arguments.root}",) if arguments.root else ()),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        rows = read_metrics(Path(place) / "metrics.jsonl")
    found = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return statistics.median(found[1:])


def main() -> None:
    """Print a row for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--config", default="vpsde_digits")
    parser.add_argument("--batch", type=int, default=64, help="of one process")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sharding", default="none")
    parser.add_argument("--root", default="")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.processes.split(",")]
    for kind, batch_of in (("weak", lambda n: n * arguments.batch), ("strong", lambda n: arguments.batch)):
        rounds = [[speed(arguments, n, batch_of(n)) for n in counts] for _ in range(arguments.rounds)]
        for i, n in enumerate(counts):
            own = statistics.median(row[i] for row in rounds)
            efficiency = statistics.median(row[i] / row[0] * counts[0] / n for row in rounds)
            print(
                f"{kind:6} {n:3d} processes, batch {batch_of(n):5d}: {own:8.1f} images/s, efficiency {efficiency:.2f}"
            )


if __name__ == "__main__":
    main()
