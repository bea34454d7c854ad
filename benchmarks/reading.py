"""Measures how fast pictures are read and written: decoding, JPEG's draft mode, the cache, and PNG files beside .npz.

    python benchmarks/reading.py [--count 2000] [--side 768] [--target 128]

Every figure is a ratio within this process: seconds on a shared machine mean little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sde_diffusion.storage.shards import Shards

BATCH = 500


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def sampling(folder: Path, fmt: str, count: int) -> None:
    """As `--mode sample` stores them: images of 32x32 that a PNG packs about as photographs."""
    shards = Shards(folder, "x", {}, fmt)
    for indices in shards.missing(count, BATCH):
        noise = np.random.default_rng(indices[0])
        smooth = noise.integers(0, 256, (len(indices), 8, 8, 3)).repeat(4, 1).repeat(4, 2)
        images = (smooth + noise.integers(0, 6, (len(indices), 32, 32, 3))).clip(0, 255).astype(np.uint8)
        shards.write(indices, {"images": images})
    shards.finish(count, {})


def writing(place: Path, count: int) -> None:
    """PNG files, each of them flushed to the disk, beside one .npz."""
    npz, png = (seconds(lambda fmt=fmt: sampling(place / fmt, fmt, count)) for fmt in ("npz", "png"))
    print(f"{count:,} samples of 32x32: png {png / npz:.2f} times the time of npz ({png:.2f} s and {npz:.2f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as place:
        writing(Path(place), given.count)


if __name__ == "__main__":
    main()
