"""What it costs to begin: `import sde_diffusion` above `import torch`, its first uses, and answers of the command line.

    python benchmarks/import_time.py [--runs 5]

Medians of runs in processes of their own, in seconds, by the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    "import torch",
    "import sde_diffusion as sd",
    "sd.sample, sd.make_grid, sd.VPSDE",
    "sd.log_likelihood",
    "[getattr(sd, name) for name in sd.__all__]",
)
"""One after the other in one process."""
COMMANDS = ("--help", "--mode samplers", "--mode settings")


def seconds_of(arguments: list[str]) -> tuple[float, str]:
    """Seconds of a Python process, and what it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    spent = time.perf_counter() - started
    assert "Traceback" not in done.stderr, done.stderr
    return spent, done.stdout


def steps_once() -> list[float]:
    """Seconds of each step in a new process."""
    lines = ["import time", "at = [time.perf_counter()]"]
    for step in STEPS:
        lines += [step, "at.append(time.perf_counter())"]
    printed = seconds_of(["-c", "\n".join([*lines, "print(*(b - a for a, b in zip(at, at[1:])))"])])[1]
    return [float(text) for text in printed.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    for step, spent in zip(STEPS, zip(*(steps_once() for _ in range(runs)))):
        print(f"{statistics.median(spent):7.3f}  {step}")
    for command in COMMANDS:
        spent = [seconds_of([str(ROOT / "main.py"), *command.split()])[0] for _ in range(runs)]
        print(f"{statistics.median(spent):7.3f}  python main.py {command}")


if __name__ == "__main__":
    main()
