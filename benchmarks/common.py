"""What the benchmarks share."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue; the CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, with everything that it queued."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, in turns, after two rounds of warming up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            time_taken = elapsed(work, device)
            if turn > 1:
                taken[name].append(time_taken)
    return {name: statistics.median(times) for name, times in taken.items()}
