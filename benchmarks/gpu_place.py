"""What the rows of `benchmarks/gpu.py` share: where they are measured, the command line, and what a figure is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
EXACT, SINGLE, LOSSES = 1e-8, 1e-2, 0.05
"""Relative differences that are allowed: of a GPU from the CPU in float64 and in float32 without TF32, where adaptive
steps may part by a rounding; and of a loss in another precision."""


class NotHere(Exception):
    """What this device, or this size, has no part in; the sentence says why."""


@dataclass(frozen=True)
class Found:
    """A row's figure in words, what is wanted of it, and whether it is met; None for a measurement."""

    figure: str
    wanted: str = ""
    good: bool | None = None


Command = Callable[..., None]
"""Carries out flags of main.py; with stop=FILE it is told to stop (SIGTERM) as soon as the file is there."""


def command(flags: list[str], stop: Path | None = None, processes: int = 1) -> None:
    """The real command line, in a process of its own. Raises RuntimeError with its last line where it fails."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "main.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    if stop is not None:
        stopping(stop, process.pid, lambda: process.poll() is None)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(([line for line in said.splitlines() if "error" in line.lower()] or [said])[-1][-300:])


def stopping(file: Path, number: int, wanted: Callable[[], bool]) -> threading.Thread:
    """Sends a process SIGTERM as soon as a file is there and has something in it."""

    def watch() -> None:
        while wanted() and not (file.is_file() and file.stat().st_size):
            time.sleep(0.01)
        if wanted():
            os.kill(number, signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@dataclass(eq=False)
class Place:
    """Where rows are measured: the device, whether at toy size, a folder for what they write, what they share."""

    device: torch.device
    toy: bool
    folder: Path
    command: Command = command
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def gpu_only(self, what: str) -> None:
        """Raises NotHere where the device is no GPU."""
        if not self.cuda:
            raise NotHere(f"{what}: CUDA only")


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products and convolutions of float32 with 10 bits of mantissa, or with all of them."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = wanted
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network whose outputs are not those of fresh weights, many of which are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator).to(weight))
    return net.eval().requires_grad_(False)


def close(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the rms of what is wanted."""
    wanted = wanted.double().cpu()
    return float((found.double().cpu() - wanted).abs().max() / wanted.square().mean().sqrt())
