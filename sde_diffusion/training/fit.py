"""Training from Python: a person's own network on a person's own data, with all that `--mode train` has.

    denoiser = fit(net, NetworkSpec(VPSDE(), "v"), x, steps=2000)

Samples are in model space as they are given, [N, *D]: about as large as 1, and what comes out of a sampler is of their
kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import DataLoader

from sde_diffusion.core.conditions import Conditions
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data import Dataset, DataTransform, Source, Stream, batches
from sde_diffusion.data.dataset import Batch, Made, Plan, Share, in_turn
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.storage.checkpoint import checkpoint_files, read_checkpoint
from sde_diffusion.storage.files import FolderLock
from sde_diffusion.training.losses import Task
from sde_diffusion.training.run import Run
from sde_diffusion.training.settings import TrainingSettings
from sde_diffusion.training.trainer import RAW, Trainer, loaded

Data = Tensor | tuple[Tensor, Mapping[str, Tensor]] | DataLoader[Any]
"""Samples [N, *D]; these with conditions [N, ...] by name; or a loader of either."""


def fit(
    net: nn.Module,
    spec: NetworkSpec,
    data: Data,
    steps: int,
    *,
    batch_size: int = 64,
    learning_rate: float = 2e-4,
    seed: int = 0,
    folder: str | Path | None = None,
    held_out: Tensor | tuple[Tensor, Mapping[str, Tensor]] | None = None,
    settings: TrainingSettings | None = None,
    device: str = "auto",
    weights: str = "ema",
) -> NetworkDenoiser:
    """Train a network by denoising score matching, and give its denoiser with the averaged weights.

    net(x, c_noise, **conditions) is trained in place, under the process of the spec and for what that says it predicts.
    It may be a trained one, with its spec: those of a denoiser that `load`, `import_checkpoint` or `fit` gave. Layers
    that requires_grad_(False) froze stay as they are; a network that is frozen as a whole is trained as a whole.
    data: samples [N, *D] in model space; (samples, conditions), of which the network is told those of
    `spec.conditions`, or all; or a DataLoader of either, whose batches are then the training's.
    steps: updates of `batch_size` samples at `learning_rate`. Noise and times depend on (seed, step, row): with samples
    (not a loader) a training on several processes is that on one. folder: for checkpoints and losses; what is there is
    gone on from. held_out: what held-out losses are of. settings: all else that a training may be told, such as
    TrainingSettings(ema_decay=0.9999, weighting="edm", times="lognormal"). weights: "ema", "raw", or another average.

    Raises UserError for data that are no samples, for conditions that the network lacks or does not take, for a pair of
    prediction and process without a first level, and where too many updates in a row had to be skipped.
    """
    own = replace(settings or TrainingSettings(), steps=steps, learning_rate=learning_rate)
    source = _loader(data) if isinstance(data, DataLoader) else _dataset(data, "data")
    own = replace(own, batch_size=source.batch_size if isinstance(source, Loaded) else batch_size)
    spec = _completed(spec, source)
    spec.check_first_level()
    choose("weights", weights, {"raw": None, **own.profiles()})
    place = None if folder is None else Path(folder)
    engine = Engine(device, own.precision, own.accumulate, own.sharding)
    with ExitStack() as held:
        held.callback(engine.close)
        if place is not None and engine.main:
            held.enter_context(FolderLock(place, "trained"))
        resumed = read_checkpoint(place) if place is not None and checkpoint_files(place) else None
        trained = engine.sharded_network(loaded(_thawed(net), resumed.weights[RAW] if resumed else None))
        task = Task.from_settings(own, seed, DataTransform(None), False, spec, spec.process)
        trainer = Trainer.from_settings(engine, spec, trained, own, task.times)
        if resumed:
            trainer.resume(resumed)
        trained.train()
        about = {"title": source.title, "classes": (), "config": {}}
        test = None if held_out is None else _dataset(held_out, "held_out")
        run = Run(task, trainer, engine, _batches(source, own.batch_size, seed), test, place, about)
        run.seconds_before = resumed.progress.get("seconds", 0.0) if resumed else 0.0
        if trainer.step < steps:
            run.train(engine.part(own.batch_size), resumed.progress.get("data") if resumed else None)
        with trainer.averages.within(trainer.net, weights) if weights != "raw" else ExitStack():
            state = {name: value.detach().clone() for name, value in trainer.net.state_dict().items()}
    net.load_state_dict(state)
    return NetworkDenoiser(net.eval().requires_grad_(False), spec)


def _thawed(net: nn.Module) -> nn.Module:
    """The network, to be trained whole where all of it is frozen, as those are that `sd.load` and `sd.fit` give."""
    if not any(weight.requires_grad for weight in net.parameters()):
        net.requires_grad_(True)
    return net


def _batches(
    source: Source, size: int, seed: int
) -> Callable[[range, int, Mapping[str, Any] | None], AbstractContextManager[Stream]]:
    def opened(rows: range, first: int, state: Mapping[str, Any] | None) -> AbstractContextManager[Stream]:
        part = slice(rows.start, rows.stop)
        return closing(batches(source, size, seed=seed, start_step=first, part=part, state=state))

    return opened


def _completed(spec: NetworkSpec, source: Dataset | Loaded) -> NetworkSpec:
    """The spec with the shape of the samples, and the conditions that there are unless it names some."""
    own, given = list(spec.shape), list(source.shape)
    if own and own != given:
        raise UserError(f"the spec says that samples have shape {own}, and the data have {given}")
    return replace(spec, shape=tuple(source.shape), conditions=spec.conditions or tuple(source.conditions))


def _dataset(data: Tensor | tuple[Tensor, Mapping[str, Tensor]], name: str) -> Dataset:
    samples, conditions = data if isinstance(data, tuple) else (data, {})
    if not isinstance(samples, Tensor) or not samples.is_floating_point() or samples.ndim < 2:
        raise UserError(
            f"{name} must be samples [N, *D] of floating-point numbers, alone or with a dict of conditions, or a loader"
        )
    return Dataset(samples.float(), None, None, (), name, others=dict(conditions))


@dataclass(frozen=True, eq=False)
class Loaded:
    """The batches of a DataLoader, epoch after epoch, in its own order; a resumed training begins with its first."""

    loader: DataLoader[Any]
    shape: tuple[int, ...]
    conditions: tuple[str, ...]
    batch_size: int
    title: str = "a DataLoader"

    levels: ClassVar[None] = None
    labels: ClassVar[None] = None
    classes: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    corrupt_limit: ClassVar[float] = 0.0
    left_out: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = False
    size: ClassVar[None] = None

    def read(self, indices: Tensor) -> Batch:
        raise UserError("the samples of a DataLoader have no numbers")

    def divided(self, plan: Plan, readers: int) -> list[Share]:
        return in_turn(plan, readers)

    def made(self, plan: Plan, first: int, stride: int) -> Iterator[Made]:
        while True:
            for item in self.loader:
                samples, conditions = _item(item)
                if len(samples) == self.batch_size:
                    part = {name: value[plan.part] for name, value in conditions.items()}
                    yield Made(samples[plan.part], part, {}, ())


def _item(item: Any) -> tuple[Tensor, Conditions]:
    """A batch of a loader: samples, alone or with a dict of conditions."""
    parts = list(item) if isinstance(item, Iterable) and not isinstance(item, Tensor) else [item]
    samples, conditions = parts[0], parts[1] if len(parts) > 1 else {}
    if len(parts) > 2 or not isinstance(samples, Tensor) or not isinstance(conditions, Mapping):
        raise UserError("a DataLoader must give samples [B, *D], alone or as (samples, {name: tensor [B, ...]})")
    return samples.float(), dict(conditions)


def _loader(loader: DataLoader[Any]) -> Loaded:
    """The source of a loader, whose first batch says what there is. Raises UserError for one of no whole batch."""
    samples, conditions = _item(next(iter(loader), ()))
    if loader.batch_size is None or len(samples) != loader.batch_size:
        raise UserError("a DataLoader must give batches of its batch_size, of which the data are one at least")
    return Loaded(loader, tuple(samples.shape[1:]), tuple(conditions), loader.batch_size)
