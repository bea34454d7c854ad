"""Measures the loader: the share of a training's time that waits for data, and the memory of all its processes.

The set is CIFAR-10 in parquet files, streamed by two workers. The first half trains the DDPM U-Net made small (64
channels), the second reads batches and does nothing with them; both in batches of 64.

    python benchmarks/loader.py --root DATA/cifar10_jpeg [--steps 100] [--threads 2]          (waiting)
    python benchmarks/loader.py --root DATA/cifar10_jpeg --memory [--storage mapped]          (memory, 2,000 steps)
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

import psutil
import torch

from sde_diffusion.data import DataOptions, DataTransform, Source, Stream, batches, load_splits
from sde_diffusion.nets.building import build_network
from sde_diffusion.settings.root import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ is not installed

settings_of = Settings.from_config

MARKS = (100, 500, 1000, 2000)
WARM_UP = 3  # steps that are not timed: the workers begin, and so does the network


def stream_of(data: Source, batch: int, workers: int) -> Stream:
    return batches(data, batch, seed=0, flip=True, workers=workers)


def waiting(data: Source, batch: int, workers: int, steps: int) -> None:
    """The share of the time of `steps` training steps that passes before a batch is there."""
    config = importlib.import_module("configs.vpsde_cifar").get_config()
    config.model.unet.channels = 64
    spec = settings_of(config).spec(data)
    net, transform = build_network(spec.network, spec.options), DataTransform(data.levels)
    # Without clipping and averages: what a training does besides would only make its steps longer.
    optimizer, generator = torch.optim.Adam(net.parameters(), fused=True), torch.Generator().manual_seed(0)
    stream, waited, started = stream_of(data, batch, workers), 0.0, 0.0
    for step in range(-WARM_UP, steps):
        if step == 0:
            waited, started = 0.0, time.perf_counter()
        before = time.perf_counter()
        samples, _ = next(stream)
        waited += time.perf_counter() - before
        x0 = transform.encode(samples)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.rand(len(x0), generator=generator)
        kernel = spec.process.kernel(t[:, None, None, None])
        noisy = (kernel.alpha * x0 + kernel.sigma * noise).float()
        loss = (net(noisy, 999 * t) - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    total = time.perf_counter() - started
    stream.close()
    print(
        f"{steps} steps of {batch} with {workers} workers: {1e3 * total / steps:.0f} ms a step, of which "
        f"{1e3 * waited / steps:.2f} ms waiting for data ({waited / total:.2%})"
    )


def memory(data: Source, batch: int, workers: int) -> None:
    """What this process and its workers hold: resident pages, shared ones counted in each, and those of one alone."""
    stream, here = stream_of(data, batch, workers), psutil.Process()
    started = time.perf_counter()
    for step in range(1, max(MARKS) + 1):
        next(stream)
        if step in MARKS:
            processes = [here, *here.children(recursive=True)]
            resident = sum(process.memory_info().rss for process in processes) / 2**20
            unique = sum(process.memory_full_info().uss for process in processes) / 2**20
            speed = step * batch / (time.perf_counter() - started)
            print(f"step {step:5}: {resident:7.1f} MiB resident, {unique:7.1f} MiB unique, {speed:,.0f} images/s")
    stream.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--storage", default="streaming")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    options = DataOptions(root=given.root, source="parquet", storage=given.storage, held_out=500)
    data = load_splits("cifar10", options).train
    print(f"{data.title}, {given.storage}")
    if given.memory:
        memory(data, given.batch, given.workers)
    else:
        waiting(data, given.batch, given.workers, given.steps)


if __name__ == "__main__":
    main()
