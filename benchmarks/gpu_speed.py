"""Speed and memory of trainings and of sampling, by precision, compiler and CUDA graph."""

from __future__ import annotations

import gc
import importlib
import io
import math
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import elapsed, median_seconds
from gpu_place import LOSSES, Found, Place, shaken, tf32
from ml_collections import ConfigDict
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.commands.training import begin
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import Dataset, Splits
from sde_diffusion.data.dataset import Batch
from sde_diffusion.pipelines.origin import fresh
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.runtime.progress import memory
from sde_diffusion.settings.root import Settings, fresh_network
from sde_diffusion.training.run import Run, part_losses

settings_of = Settings.from_config


def cifar_config(name: str, toy: bool) -> ConfigDict:
    """A configuration of CIFAR-10; at toy size with a narrow network."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.training.batch_size = 2 if toy else 128
    if toy:
        narrow: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1}
        config.model.unet.update(narrow)
        with config.unlocked():
            config.model.options = ConfigDict(narrow if config.model.network == "ddpmpp" else {})
    return config


def in_training(config: ConfigDict, place: Place, splits: Splits) -> Run:
    """A training that has not begun, as `--mode train` has it."""
    settings = settings_of(config)
    engine = Engine(str(place.device), config.training.precision)
    with redirect_stdout(io.StringIO()):
        run = begin(fresh(settings, splits.train), place.folder / "in_training", engine, splits)
    run.trainer.net.train()
    return run


def one_update(run: Run, batch: Batch) -> float:
    """A whole step of training, with its clipping, Adam and average; the loss."""
    rows = range(run.settings.batch_size)
    torch.manual_seed(run.trainer.step)  # of dropout
    losses_of = partial(part_losses, run.task, batch, rows, run.trainer.step)
    return run.trainer.update(losses_of, rows, False).loss


def forget(place: Place) -> None:
    """Give back what rows before this one held, and count the memory anew."""
    gc.collect()  # trainings and their engines hold one another
    if place.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def peak(place: Place) -> str:
    """The most memory in use since it was last reset, in words."""
    used = memory()
    return f"{used.get('cuda_peak', used['resident_peak']) / 1024:.2f} GiB"


def train_speed(name: str, precision: str, compiler: str, place: Place) -> tuple[float, float, float]:
    """Images a second of a training's steps on one batch, seconds of its first step, and the mean of its losses."""
    forget(place)
    config = cifar_config(name, place.toy)
    config.training.precision = "fp32" if precision == "tf32" else precision
    config.compile = compiler
    size, steps = config.training.batch_size, 1 if place.toy else 10
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
    data = Dataset(images, torch.zeros(size, dtype=torch.int64), 256, ("a",), "stand-in")
    losses: list[float] = []
    with torch.random.fork_rng([place.device] if place.cuda else []), tf32(precision == "tf32"):
        run = in_training(config, place, Splits(data, data))

        def step() -> None:
            losses.append(one_update(run, (images, {})))

        first = elapsed(step, place.device)
        taken = median_seconds({"step": step}, steps, place.device)["step"]
        torch.compiler.reset()
    return size / taken, first, sum(losses) / len(losses)


def training(name: str, precision: str, compiled: bool, place: Place) -> Found:
    """The speed and the memory of a training, and its losses beside those of float32."""
    if precision == "tf32":
        place.gpu_only("TF32")
    compiler = ("eager" if place.toy else "inductor") if compiled else ""
    speed, first, loss = train_speed(name, precision, compiler, place)
    place.kept[f"speed {name} {precision} {compiler}"] = speed, first
    found = f"{speed:,.0f} images/s, {peak(place)}, first step {first:.1f} s, loss {loss:.4f}"
    if precision == "fp32":
        place.kept[f"loss {name}"] = loss
    reference = place.kept.get(f"loss {name}", math.nan)
    if math.isnan(reference):
        return Found(found)
    good = abs(loss / reference - 1.0) <= LOSSES
    return Found(found, f"loss within {LOSSES:.0%} of fp32's", good)


def layouts(place: Place) -> Found:
    """What channels_last, in which the networks always are, brings to a convolution and its gradient."""
    place.gpu_only("the layouts' speeds")
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        convolution = nn.Conv2d(256, 256, 3, padding=1, device=place.device).to(memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(128, 256, 16, 16, device=place.device).to(memory_format=layout)

        def both(convolution: nn.Conv2d = convolution, x: Tensor = x) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                F.silu(convolution(x)).sum().backward()  # type: ignore[no-untyped-call]

        found[layout] = median_seconds({"both": both}, 20, place.device)["both"]
    ratio = found[torch.contiguous_format] / found[torch.channels_last]
    return Found(f"{ratio:.2f} times the speed of the other layout, bf16 256 -> 256 at 16x16, batch 128")


class Autocast(nn.Module):
    """A network whose passes are in bf16, between tensors of float32."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net, self.kind = net, device.type

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        # Weights that autocast keeps would lie in the memory of a graph.
        with torch.autocast(self.kind, torch.bfloat16, cache_enabled=False):
            out: Tensor = self.net(x, label)
        return out.float()


class Graphed(nn.Module):
    """A network's pass as one CUDA graph, for batches of one size."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.x, self.label = net, x.clone(), torch.ones(len(x), device=x.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(3):
                net(self.x, self.label)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.out = net(self.x, self.label)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.x.copy_(x)
        self.label.copy_(label)
        self.graph.replay()
        return self.out.clone()


def sampling(how: str, place: Place) -> Found:
    """The speed of 20 evaluations of DDPM++ by ddim, and the samples beside those in float32."""
    if how.endswith("graphs"):
        place.gpu_only("CUDA graphs")
    config = cifar_config("ddpmpp_cifar", place.toy)
    count = 2 if place.toy else 64
    data = Dataset(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0]), 256, ("a",), "stand-in")
    spec = settings_of(config).spec(data)
    net = shaken(fresh_network(spec, 0)).to(place.device)
    sde = spec.process
    grid = sd.make_grid(sde, 2 if place.toy else 20, "logsnr")
    x = sde.prior_sample((count, *spec.shape), generator=seeded(3)).to(place.device)
    forget(place)
    with tf32(False):
        used = Autocast(net, place.device) if how.startswith("bf16") else net
        if how.endswith("compiled"):
            used = torch.compile(used, backend="eager" if place.toy else "inductor")  # type: ignore[assignment]
        if how.endswith("graphs"):
            used = Graphed(used, x)
        denoiser = sd.NetworkDenoiser(used, spec)

        def draw() -> Tensor:
            return sd.sample(denoiser, grid=grid, x=x).x

        first = elapsed(draw, place.device)
        taken = median_seconds({"draw": draw}, 1 if place.toy else 3, place.device)["draw"]
        found = draw()
        torch.compiler.reset()
    told = f"{count / taken:,.1f} images/s of {grid.steps} steps, {peak(place)}, first {first:.1f} s"
    if how == "fp32":
        place.kept["samples"] = found.cpu()
    reference = place.kept.get("samples")
    if reference is None:
        return Found(told)
    away = float((found.cpu() - reference).square().mean().sqrt() / reference.square().mean().sqrt())
    return Found(f"{told}, rms {away:.1e}", f"rms to fp32's <= {LOSSES:.0e}", away <= LOSSES)
