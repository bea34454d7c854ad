"""What the benchmarks share."""

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
