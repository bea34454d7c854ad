"""The rows of `benchmarks/gpu.py`: what a GPU must do as the CPU does, and how fast it is.

A row is a function of a place (the device, toy size or not, a folder) and its own arguments. It gives a figure, what is
wanted of it, and whether that is met; a figure without a wish is a measurement. What a device cannot do is `NotHere`.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import elapsed, median_seconds
from ml_collections import ConfigDict
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion import build
from sde_diffusion.data import Dataset, DataTransform, Splits
from sde_diffusion.engine import Engine, usable_device
from sde_diffusion.modes.training import Run, Task, begin, part_losses
from sde_diffusion.noise import seeded
from sde_diffusion.progress import memory
from sde_diffusion.samplers import SAMPLER_TABLE

ROOT = Path(__file__).resolve().parents[1]
EXACT, SINGLE, LOSSES = 1e-8, 1e-2, 0.05
"""Relative differences that are allowed: of a GPU from the CPU in float64 and in float32 without TF32, where adaptive
steps may part by a rounding; and of a loss in another precision."""
NETWORKS = ("ddpm_cifar", "ddpmpp_cifar")


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


# --- a GPU beside the CPU -------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "annealed_langevin": {"langevin_steps": 2},
    "ode": {"rtol": 1e-2, "atol": 1e-2},
    "adaptive_sde": {"rtol": 0.5, "atol": 0.1},
}
"""Fewer evaluations than by default."""


@cache
def small(device: torch.device | str, dtype: torch.dtype) -> sd.NetworkDenoiser:
    """A network like that of the digits, but narrow, with weights that are the same everywhere."""
    config = importlib.import_module("configs.vpsde_digits").get_config()
    config.model.class_conditional = False
    config.model.unet.update(channels=8, multipliers=(1, 2))
    blank = Dataset(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), 17, ("a", "b"), "stand-in")
    spec = build.spec(config, blank)
    return sd.NetworkDenoiser(shaken(build.network(spec, 0)).to(device=device, dtype=dtype), spec)


def samples(name: str, steps: int, device: torch.device | str, dtype: torch.dtype, count: int = 4) -> Tensor:
    """Samples by some steps of a sampler, with the noise of generators on the CPU, one for each."""
    denoiser = small(device, dtype)
    sde = denoiser.spec.model_process
    grid = sd.make_grid(sde, steps, SAMPLER_TABLE[name].grid or sde.grid)
    generators = sd.sample_generators(0, range(count))
    shape = (count, *denoiser.spec.shape)
    options = OPTIONS.get(name, {})
    return sd.sample(denoiser, shape, grid, sampler=name, generator=generators, device=device, dtype=dtype, **options).x


def densities(method: str, steps: int, device: torch.device | str, dtype: torch.dtype, count: int = 2) -> Tensor:
    """log p of some data, by one probe for each from generators on the CPU; more than a few steps are precise ones."""
    denoiser = small(device, dtype)
    x = 0.5 * torch.randn(count, *denoiser.spec.shape, generator=seeded(1), dtype=torch.float64)
    generators = sd.sample_generators(2, range(count))
    sde, tolerance = denoiser.spec.model_process, 1e-3 if steps > 5 else 1e-1
    x = x.to(device=device, dtype=dtype)
    return sd.log_likelihood(denoiser, x, sde, method=method, rtol=tolerance, generator=generators).nats


Compute = Callable[[int, torch.device | str, torch.dtype], Tensor]


def as_on_the_cpu(compute: Compute, place: Place) -> Found:
    """The largest relative difference of a device's results from the CPU's, in float64 and in float32."""
    steps = 3 if place.toy else 10
    with tf32(False):
        double, single = (
            close(compute(steps, place.device, dtype), compute(steps, "cpu", dtype))
            for dtype in (torch.float64, torch.float32)
        )
    good = double <= EXACT and single <= SINGLE
    return Found(f"{double:.1e} float64, {single:.1e} float32", f"<= {EXACT:.0e}, {SINGLE:.0e}", good)


def without_waiting(name: str, place: Place) -> Found:
    """The steps of a sampler, none of which may wait for the GPU: torch raises an error where one would.

    From the first node to the last; before and after, the driver looks once whether all values are finite.
    """
    if SAMPLER_TABLE[name].tolerances:
        raise NotHere("it looks at its errors to choose its steps")
    denoiser = small(place.device, torch.float32)
    sde = denoiser.spec.model_process
    grid = sd.make_grid(sde, 3 if place.toy else 10, SAMPLER_TABLE[name].grid or sde.grid)
    generator = torch.Generator(place.device).manual_seed(0)
    modes: list[str] = []

    def watch(index: int, *_: Any) -> None:
        if index in (0, grid.steps - 1):
            modes.append("default" if index else "error")
            if place.cuda:
                torch.cuda.set_sync_debug_mode(modes[-1])

    def draw(on_step: Callable[..., None] | None) -> None:
        options = {**OPTIONS.get(name, {}), "generator": generator, "device": place.device}
        sd.sample(denoiser, (4, *denoiser.spec.shape), grid, sampler=name, on_step=on_step, **options)

    if place.cuda:
        elapsed(lambda: draw(None), place.device)  # the first call loads kernels
    try:
        draw(watch)
    finally:
        if place.cuda:
            torch.cuda.set_sync_debug_mode("default")
    if (modes[0], modes[-1]) != ("error", "default"):
        raise RuntimeError(f"the sampler's steps were not seen from the first to the last: {modes}")
    place.gpu_only("waits")
    return Found(f"0 waits in {grid.steps} steps", "0", True)


# --- speed ----------------------------------------------------------------------------------------------------


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
    spec = build.spec(config, splits.train)
    task = Task.of(config, DataTransform.fit(splits.train, config.data.subtract_mean), spec.process)
    engine = Engine(str(place.device), config.training.precision)
    with redirect_stdout(io.StringIO()):
        run = begin(task, place.folder / "in_training", engine, splits, spec, None)
    run.trainer.net.train()
    return run


def one_update(run: Run, batch: tuple[Tensor, Tensor | None]) -> float:
    """A whole step of training, with its clipping, Adam and average; the loss."""
    rows = range(run.config.training.batch_size)
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
            losses.append(one_update(run, (images, None)))

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
    spec = build.spec(config, data)
    net = shaken(build.network(spec, 0)).to(place.device)
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


# --- trainings by the command line ----------------------------------------------------------------------------


def digits_flags(place: Place, folder: Path) -> list[str]:
    """A short training on digits by the command line."""
    steps = 16 if place.toy else 400
    changed = {
        "training.steps": steps,
        "training.batch_size": 8 if place.toy else 64,
        "training.cooldown_steps": steps // 2,
        "training.log_every": 2,
        "training.evaluate_every": steps,
        "training.held_out_batches": 2,
        "training.sample_every": 0,
        "training.checkpoint_every": steps,
        "model.unet.channels": 8 if place.toy else 24,
        "deterministic": place.cuda,
    }
    keys = [f"--config.{key}={value}" for key, value in changed.items()]
    where = ["--workdir", str(folder), "--device", str(place.device).partition(":")[0]]
    return ["--config", str(ROOT / "configs" / "vpsde_digits.py"), "--mode", "train", *where, *keys]


def result_of(folder: Path) -> dict[str, Any]:
    """What a training came to."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["training"]
    return found


def uninterrupted(place: Place) -> dict[str, Any]:
    """A training in one piece, carried out once."""
    if "whole" not in place.kept:
        folder = place.folder / "whole"
        place.command(digits_flags(place, folder))
        place.kept["whole"] = result_of(folder)
    found: dict[str, Any] = place.kept["whole"]
    return found


def resumed(place: Place) -> Found:
    """A training that SIGTERM stops and that the same command ends, beside one in one piece."""
    whole, folder = uninterrupted(place), place.folder / "stopped"
    place.command(digits_flags(place, folder), stop=folder / "metrics.jsonl")
    if (folder / "results.json").exists():
        raise RuntimeError("the training ended before it was stopped")
    (stopped_at,) = (path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    place.command(digits_flags(place, folder))
    found = result_of(folder)
    losses = [(found[name], whole[name]) for name in ("loss", "held_out_loss")]
    told = "; ".join(f"{ours:.6f} and {theirs:.6f}" for ours, theirs in losses)
    return Found(f"last and held-out loss {told}, stopped at {stopped_at}", "equal", all(a == b for a, b in losses))


def two_processes(place: Place) -> Found:
    """A training by two processes beside that of one."""
    if place.cuda and torch.cuda.device_count() < 2:
        raise NotHere("it needs two GPUs, and there is one")
    whole, folder = uninterrupted(place), place.folder / "two"
    place.command(digits_flags(place, folder), processes=2)
    found = result_of(folder)
    away = abs(found["held_out_loss"] / whole["held_out_loss"] - 1.0)
    how = f"{found['processes']} processes, {found['images_per_second']:,.0f} images/s"
    told = f"{how} beside {whole['images_per_second']:,.0f} of one, held-out loss {away:.1e} away"
    return Found(told, "<= 1e-3, relative", away <= 1e-3 and found["processes"] == 2)


def fp16(place: Place) -> Found:
    """fp16's training beside float32's, and a scale that is too high, which must fall until gradients are finite."""
    place.gpu_only("fp16")
    config = importlib.import_module("configs.vpsde_digits").get_config()
    splits, steps, ends, found = build.data(config), 60, {}, ""
    for precision in ("fp32", "fp16"):
        config.training.precision = precision
        with torch.random.fork_rng([place.device]):
            run = in_training(config, place, splits)
            losses = []
            for _ in range(steps):
                batch = splits.train.read(torch.arange(config.training.batch_size))
                losses.append(one_update(run, batch))
            ends[precision] = sum(losses[-20:]) / 20
            if precision == "fp16":
                engine = run.trainer.engine
                engine.load_scale({**engine.scale_state(), "scale": 2.0**40})
                before = [weight.clone() for weight in run.trainer.net.parameters()]
                one_update(run, batch)
                kept = all(map(torch.equal, before, run.trainer.net.parameters()))
                for _ in range(30):
                    one_update(run, batch)
                scale = engine.scale_state()["scale"]
                moved = not all(map(torch.equal, before, run.trainer.net.parameters()))
                found = f"scale 2^40 fell to 2^{math.log2(scale):.0f}"
    good = kept and moved and 0.0 < scale < 2.0**40 and abs(ends["fp16"] / ends["fp32"] - 1.0) <= LOSSES
    told = f"loss {ends['fp16']:.4f} and {ends['fp32']:.4f} of fp32; {found}"
    return Found(told, f"within {LOSSES:.0%}; no step while it overflows, and steps after", good)


@dataclass(frozen=True)
class Row:
    """A line of the table. seconds: what it takes on a GPU, about; it is not begun where less is left."""

    name: str
    measure: Callable[[Place], Found]
    seconds: float = 1.0


def rows() -> list[Row]:
    """All rows, what must be right before what is only slow; compilers, which take longest, last."""
    return [
        *(Row(f"`{name}` as on the CPU", partial(as_on_the_cpu, partial(samples, name))) for name in sd.SAMPLERS),
        *(
            Row(f"likelihood, `{method}`, as on the CPU", partial(as_on_the_cpu, partial(densities, method)))
            for method in ("rk45", "per_sample")
        ),
        *(Row(f"`{name}` waits for nothing", partial(without_waiting, name)) for name in sd.SAMPLERS),
        Row("fp16's scale", fp16, 8.0),
        Row("a training resumes", resumed, 40.0),
        Row("two processes", two_processes, 20.0),
        Row("channels_last", layouts),
        *(
            Row(f"training, {name}, {precision}", partial(training, name, precision, False), 12.0)
            for name in NETWORKS
            for precision in ("fp32", "tf32", "bf16")
        ),
        *(Row(f"sampling, DDPM++, {how}", partial(sampling, how), 12.0) for how in ("fp32", "bf16", "bf16, graphs")),
        *(Row(f"training, {name}, bf16, compiled", partial(training, name, "bf16", True), 80.0) for name in NETWORKS),
        Row("sampling, DDPM++, bf16, compiled", partial(sampling, "bf16, compiled"), 40.0),
    ]


def place_of(name: str, toy: bool, folder: Path) -> Place:
    """The device of that name, at toy size or not. Raises UserError for one that is not there."""
    return Place(usable_device(name), toy, folder)
