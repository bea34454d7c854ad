"""What one GPU does, in one table of at most five minutes: as the CPU, without waiting, and how fast.

No network is needed. A row that fails tells its error in one sentence and the others go on; the exit code is 1 then.

    python benchmarks/gpu.py                              # the table, on the GPU
    python benchmarks/gpu.py --device cpu --toy           # the same at toy size, to see that it runs
    python benchmarks/gpu.py --only sampling              # the rows whose names hold this word
    python benchmarks/gpu.py --train 1800 --root FOLDER   # CIFAR-10 for so many seconds: gpu_headline.py
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_place import NotHere, Place
from gpu_rows import Row, place_of, rows

from sde_diffusion.core.errors import UserError

HEAD = ("row", "figure", "wanted", "outcome", "s")


def sentence(error: BaseException) -> str:
    """An error in one line that a cell of a table can hold."""
    lines = " ".join(f"{type(error).__name__}: {error}".split()) if str(error) else type(error).__name__
    return lines.replace("|", "/")[:240]


def outcome(row: Row, place: Place, left: float) -> tuple[str, str, str, str, str]:
    """A row's cells; a row for which too little time is left is not run."""
    started = time.perf_counter()
    if left <= 0.0 or (row.seconds > left and not place.toy):
        return row.name, "", "", "not run", ""
    try:
        found = row.measure(place)
        told = found.figure, found.wanted, {None: "measured", True: "good", False: "BAD"}[found.good]
    except NotHere as error:
        told = str(error), "", "-"
    except Exception as error:
        told = sentence(error), "", "FAILED"
    return row.name, *told, f"{time.perf_counter() - started:.1f}"


def about(place: Place) -> str:
    """The machine and PyTorch, and the size, in a line."""
    name = torch.cuda.get_device_name(place.device) if place.cuda else f"the CPU ({torch.get_num_threads()} threads)"
    cuda = f", CUDA {torch.version.cuda}" if place.cuda else ""
    size = ", at toy size: its speeds mean nothing" if place.toy else ""
    return f"{name}, PyTorch {torch.__version__}{cuda}, Python {platform.python_version()}{size}"


def report(wanted: Sequence[Row], place: Place, minutes: float) -> int:
    """Measure the rows and print the table as they come; 1 where one is bad or failed, 0 otherwise."""
    end = time.perf_counter() + 60.0 * minutes
    print(f"{about(place)}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    outcomes = []
    for row in wanted:
        cells = outcome(row, place, end - time.perf_counter())
        outcomes.append(cells[3])
        print(f"| {' | '.join(cells)} |", flush=True)
    counted = {what: outcomes.count(what) for what in ("good", "measured", "-", "not run", "BAD", "FAILED")}
    named = {"-": "not for this device"}
    print("\n" + ", ".join(f"{count} {named.get(what, what)}" for what, count in counted.items()))
    return int(bool(counted["BAD"] or counted["FAILED"]))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--toy", action="store_true", help="small networks and few steps: seconds on a CPU")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which the rows that are left are not run")
    parser.add_argument("--only", default="", help="the rows whose names hold this")
    parser.add_argument("--train", type=float, default=0.0, metavar="SECONDS", help="train on CIFAR-10 for so long")
    parser.add_argument("--root", default="", help="--train: the folder of CIFAR-10")
    parser.add_argument("--network", default="ddpmpp_cifar", help="--train: a configuration")
    parser.add_argument("--workdir", default="runs/gpu", help="--train: where it is written")
    given = parser.parse_args(argv)
    if given.train and not (given.root or given.toy):
        parser.error("--train needs --root FOLDER, where CIFAR-10 lies; with --toy it trains on digits")
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = place_of(given.device, given.toy, Path(folder))
            if given.train:
                from gpu_headline import headline

                headline(place, given.network, given.train, given.root, Path(given.workdir))
                return 0
            return report([row for row in rows() if given.only in row.name], place, given.minutes)
        except (UserError, RuntimeError) as error:
            print(f"error: {error}; --device cpu --toy runs without a GPU", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
