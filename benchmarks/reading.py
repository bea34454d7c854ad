"""Measures how fast pictures are read and written: decoding, JPEG's draft mode, the cache, and PNG files beside .npz.

    python benchmarks/reading.py [--count 2000] [--side 768] [--size 64]

Every figure is a ratio within this process: seconds on a shared machine mean little.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sde_diffusion.data import DataOptions, Dataset, cache, load_splits, mapped
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

    def bare() -> None:
        (place / "bare").mkdir()
        for index in range(count):
            (place / "bare" / f"{index}").touch()

    empty = seconds(bare)
    npz, png = (seconds(lambda fmt=fmt: sampling(place / fmt, fmt, count)) for fmt in ("npz", "png"))
    print(
        f"{count:,} samples of 32x32: png takes {png / npz:.2f} times the time of npz ({png:.2f} s and {npz:.2f} s); "
        f"so many empty files alone {empty / npz:.2f} times"
    )


def photograph(side: int, seed: int) -> Image.Image:
    """Noise whose spectrum falls with the frequency, as that of photographs does."""
    noise, frequency = np.random.default_rng(seed), np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1.0
    waves = [np.fft.ifft2(np.fft.fft2(noise.normal(size=(side, side))) / radius).real for _ in range(4)]
    picture = np.stack([waves[0] + 0.3 * wave for wave in waves[1:]], axis=-1)
    picture = 128 + 50 * (picture - picture.mean()) / picture.std()
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def written(root: Path, side: int, form: str, count: int) -> Path:
    """A folder of so many pictures, of which eight differ."""
    kinds = [photograph(side, seed) for seed in range(8)]
    root.mkdir()
    for index in range(count):
        kinds[index % 8].save(root / f"{index:05}.{form}", quality=92)
    return root


def decoding(root: Path, size: int, what: str) -> None:
    """Threads beside none; JPEG's draft mode beside the whole; and what the cache had."""

    def load(**options: Any) -> Dataset:
        splits = load_splits("folder", DataOptions(root=str(root), image_size=size, split="none", **options))
        assert isinstance(splits.train, Dataset)
        return splits.train

    def timed(**options: Any) -> tuple[float, Dataset]:
        started = time.perf_counter()
        data = load(**options)
        return time.perf_counter() - started, data

    load(cache=False)
    usable, cache.LEAST = mapped.usable_cpus(), 1
    with unittest.mock.patch.object(mapped, "usable_cpus", lambda: 1):
        alone, _ = timed(cache=False)
    threads, whole = timed(cache=False)
    draft, smaller = timed(cache=False, draft=True)
    load()
    kept, again = timed()
    assert torch.equal(whole.samples, again.samples)
    rms = (whole.samples.float() - smaller.samples.float()).square().mean().sqrt().item()
    print(
        f"{len(whole):,} {what} to {size}x{size}, {len(whole) / alone:,.0f} pictures/s by one thread: {usable} "
        f"threads {alone / threads:.2f} times as fast, draft mode {threads / draft:.2f} times (rms {rms:.2f} grey "
        f"levels), from the cache {threads / kept:.1f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        place = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(place.resolve() / "cache")
        side, jpegs = given.side, max(16, given.count // 10)
        decoding(written(place / "jpeg", side, "jpeg", jpegs), given.size, f"JPEG pictures of {side}x{side}")
        decoding(written(place / "png", 32, "png", given.count), 32, "PNG pictures of 32x32")
        writing(place, given.count)


if __name__ == "__main__":
    main()
