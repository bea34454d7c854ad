"""Draw samples of a trained network: the same for every batch size and number of processes, stored as they come."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion.core.conditions import Conditions
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.noise import sample_generators
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import process_state
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.guidance import GuidedDenoiser
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.denoisers.wrappers import ConditionedDenoiser, Seen, WatchedDenoiser
from sde_diffusion.pipelines.batch import samples_of, stored, taken_by
from sde_diffusion.pipelines.chosen import Turns, all_classes, listed, wanted_turns
from sde_diffusion.pipelines.run_folder import network_of
from sde_diffusion.report.pictures import Picture, by_class, picture, png
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.runtime.progress import progress
from sde_diffusion.samplers import edit as edit_samples
from sde_diffusion.samplers import sample as draw_samples
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.files import FolderLock, InUse, write_aside
from sde_diffusion.storage.records import tensor_digest
from sde_diffusion.storage.results import set_result
from sde_diffusion.storage.shards import KINDS, Shards

PICTURE_SAMPLES = 100
TOLD = ("sampler", "steps", "nfe", "samples", "seconds")
"""What a table tells of samples that were drawn, of their manifest."""


@dataclass(frozen=True, eq=False)
class Model:
    """What samples are drawn of, by any sampler: a network under its weights, or a closed-form denoiser.

    denoiser: for a batch of samples under these conditions
    sde, shape: the process that is run backwards, and the shape of a sample in it; transform: from it to the data
    turns: the conditions of samples, which take them in turn; classes: the names of labels, where there are any
    protocol: all that a denoiser depends on, as plain values
    calls: of the network for one evaluation: two under guidance
    noise, prior: as `sde_diffusion.sample` takes them
    """

    denoiser: Callable[[Conditions], Denoiser]
    sde: SDE
    shape: tuple[int, ...]
    transform: DataTransform
    turns: Turns = field(default_factory=lambda: Turns({}))
    classes: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    protocol: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    dtype: torch.dtype | None = None
    noise: str = "white"
    prior: str | None = None


def network_model(
    settings: Settings,
    network: NetworkDenoiser,
    transform: DataTransform,
    classes: tuple[str, ...],
    guidance: float = 0.0,
    protocol: Mapping[str, Any] | None = None,
    turns: Turns | None = None,
) -> Model:
    """A network as samplers are to see it: told classes, guided and clipped as the configuration says.

    turns: the conditions of samples; all classes in turn, unless given. Raises UserError for guidance of a network that
    does not know samples without their class.
    """
    classed = "labels" in network.spec.conditions
    if guidance and not (network.spec.conditions and settings.training.label_dropout > 0.0):
        raise UserError(
            f"guidance {guidance:g} takes the difference between what the network says with and without a condition: "
            "it needs model.class_conditional=True, or model.conditions, and a training with training.label_dropout > "
            "0, such as 0.1"
        )

    def denoiser(conditions: Conditions) -> Denoiser:
        passes = settings.sampling.at_precision(network)
        own = taken_by(network, conditions)
        model: Denoiser = ConditionedDenoiser(passes, **own)
        untold = network.spec.untold(own)
        if guidance and not untold:
            raise UserError(
                f"guidance {guidance:g} pulls towards what samples are told, and these are told nothing: of the "
                f"network's conditions ({', '.join(network.spec.conditions)}) none is given"
            )
        if guidance:
            model = GuidedDenoiser(model, ConditionedDenoiser(passes, **{**own, **untold}), guidance)
        return settings.sampling.clipped(model)

    return Model(
        denoiser,
        network.spec.model_process,
        network.spec.shape,
        transform,
        turns or all_classes(network.spec.conditions, classes),
        classes if classed else (),
        network.device,
        protocol or {},
        2 if guidance else 1,
        noise=settings.sampling.noise,
        prior=settings.sampling.prior or None,
    )


def trained_model(settings: Settings, trained: Checkpoint, device: torch.device) -> Model:
    """The network of a checkpoint under the weights, guidance, classes and attributes of sampling.

    Raises UserError for classes or attributes of a network that is told none, and for those that it does not know.
    """
    own = settings.sampling
    network = network_of(settings, trained, device)
    numbers = range(network.spec.options.get("num_classes") or 0)
    classes = trained.classes or tuple(map(str, numbers))
    turns = wanted_turns(own.classes, own.attributes, trained, classes)
    protocol = {
        "clip": own.clip,
        "guidance": own.guidance,
        "data": trained.title,
        "checkpoint_step": trained.step,
        "weights": own.weights,
        "weights_digest": tensor_digest(trained.weights[own.weights]),
        **({"conditions": turns.protocol} if turns else {}),  # else the weights say which there are
    }
    return network_model(settings, network, trained.transform, classes, own.guidance, protocol, turns)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples in model space [n, *D], the conditions they were drawn for, and the calls of the network they took."""

    x: Tensor
    conditions: Conditions
    nfe: int
    seen: list[Seen] = field(default_factory=list)


def draw(
    model: Model,
    sampler: str,
    grid: TimeGrid,
    seed: int,
    indices: range,
    options: Mapping[str, Any],
    on_step: Callable[[], Any] = lambda: None,
    watch: int = 0,
    x0: Tensor | None = None,
) -> Drawn:
    """Some samples, on the CPU; watch: of how many each evaluation is kept; x0: data from which they start.

    Sample i starts from noise that depends on (seed, i) only: the same for every sampler, batch and process.
    """
    conditions = model.turns.of(indices)
    watched = WatchedDenoiser(model.denoiser(conditions), watch)

    def advance(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        on_step()

    seen = watched if watch else watched.denoiser
    shared: dict[str, Any] = {
        "sampler": sampler,
        "generator": sample_generators(seed, indices),
        "noise": model.noise,
        "on_step": advance,
        **options,
    }
    if x0 is None:
        shape = (len(indices), *model.shape)
        out = draw_samples(seen, shape, grid, prior=model.prior, device=model.device, dtype=model.dtype, **shared)
    else:
        out = edit_samples(seen, x0.to(model.device), grid, **shared)
    return Drawn(out.x.cpu(), conditions, out.nfe * model.calls, watched.seen if watch else [])


def sampling_protocol(
    settings: Settings, model: Model, sampler: str, grid: TimeGrid, options: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a sample depends on beside its index."""
    return {
        "sampler": sampler,
        "options": dict(options),
        "steps": grid.steps,
        "grid": settings.sampling.grid_kind(sampler, grid.sde),
        "grid_options": settings.sampling.options_of_grid(sampler, grid.sde),
        "snap": settings.sampling.snap,
        "shift": settings.sampling.shift,
        "largest_time": float(grid.times[0]),
        "smallest_time": float(grid.times[-1]),
        "process": {key: value for key, value in process_state(grid.sde).items() if not isinstance(value, list)},
        "seed": settings.seed,
        "noise": model.noise,
        "prior": model.prior,
        "precision": settings.sampling.precision,
        **model.protocol,
    }


@contextmanager
def in_words(sampler: str, count: int) -> Iterator[None]:
    """A context in which what torch cannot do for `count` samples at once is a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator has no error of its own.
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise UserError(
                f"there is too little memory for {count:,} samples at once; a smaller sampling.batch_size needs less, "
                "and gives the same samples"
            ) from error
        raise UserError(f"{sampler} fails: {str(error).partition(chr(10))[0]}") from error


@dataclass(frozen=True, eq=False)
class Drawing:
    """The first `count` samples of one sampler, on their way into shards, `size` at once.

    keep: is given each batch before it is stored; of the first `watch` samples each evaluation is kept; data: from
    which the samples start, [count, *D].
    """

    model: Model
    sampler: str
    grid: TimeGrid
    seed: int
    options: Mapping[str, Any]
    shards: Shards
    count: int
    size: int
    watch: int = 0
    keep: Callable[[range, Drawn], None] = lambda indices, drawn: None
    data: Tensor | None = None

    def carry_out(self, engine: Engine, told: str) -> int:
        """Draw what is not stored yet; how many samples that were.

        Each batch is stored as it is drawn, by the process that drew it.
        """
        missing = engine.on_main(
            lambda: self.shards.missing(self.count, min(self.size, -(-self.count // engine.count)))
        )
        left = sum(map(len, missing))
        if left < self.count:
            print(f"{self.count - left:,} of {self.count:,} samples are in {self.shards.work} already")
        mine = engine.mine(missing)

        def draw_mine() -> None:
            for indices in mine:
                started = time.perf_counter()
                watch = self.watch if indices.start == 0 else 0
                with in_words(self.sampler, len(indices)):
                    x0 = None if self.data is None else self.data[indices.start : indices.stop]
                    drawn = draw(
                        self.model, self.sampler, self.grid, self.seed, indices, self.options, bar.update, watch, x0
                    )
                arrays = stored(self.model.transform, drawn.x, drawn.conditions)
                seconds = time.perf_counter() - started
                self.keep(indices, drawn)
                # What else a network is told follows from the protocol.
                kept = {name: arrays[name] for name in (*KINDS, "labels") if name in arrays}
                self.shards.write(indices, kept, {"nfe": drawn.nfe, "seconds": seconds})

        with progress(len(mine) * self.grid.steps, "step", told, visible=engine.main) as bar:
            engine.each(draw_mine)
        return left


def sample_into(
    folder: Path,
    settings: Settings,
    engine: Engine,
    trained: Checkpoint,
    sampler: str,
    steps: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw the samples of one sampler, write its picture, arrays and manifest; the row for the table.

    A sampling that was killed goes on where it was.
    """
    model = trained_model(settings, trained, engine.device)
    own, count = settings.sampling, model.turns.count or settings.sampling.num_samples
    if count < len(own.classes):
        raise everyones(
            UserError(f"sampling.num_samples={count} is fewer than the {len(own.classes)} classes of sampling.classes")
        )
    grid = settings.sampling.make_grid(model.sde, steps, sampler)
    protocol = sampling_protocol(settings, model, sampler, grid, options)
    shards = Shards(folder, own.result_name(sampler), protocol, own.format)
    drawing = Drawing(model, sampler, grid, settings.seed, options, shards, count, own.batch_size)
    entry = own.result_name(sampler)
    shown = partial(sheet_by_class, model.classes) if own.classes else plain_sheet
    row = drawn_into(folder, engine, drawing, protocol, f"sample {sampler}", entry=entry, sheet=shown)
    labels = model.turns.of(range(count)).get("labels")
    classes = {} if labels is None else {"classes": listed(sorted(set(labels.tolist())), model.classes)}
    return {**{name: row[name] for name in (*TOLD, "smallest_time")}, **classes}


Sheet = Callable[[Mapping[str, NDArray[Any]]], Picture]
"""The first samples, with their labels where they have some -> the picture of them."""


def plain_sheet(arrays: Mapping[str, NDArray[Any]]) -> Picture:
    """The samples, one after another."""
    return picture(samples_of(arrays))


def sheet_by_class(classes: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Picture:
    """A row of samples for each class."""
    return by_class(samples_of(arrays), arrays["labels"], classes)


def drawn_into(
    folder: Path,
    engine: Engine,
    drawing: Drawing,
    protocol: Mapping[str, Any],
    told: str,
    *,
    entry: str,
    section: str = "samples",
    sheet: Sheet,
) -> dict[str, Any]:
    """Draw what is left, and finish it: its manifest. section, entry: of results.json; sheet: of its picture.

    Raises UserError where another process draws into samples of that name.
    """
    started, name = time.perf_counter(), drawing.shards.name
    with ExitStack() as held:

        def lock() -> None:
            try:
                held.enter_context(FolderLock(folder, f"sampled into samples_{name}.*", f".lock_samples_{name}"))
            except InUse as error:
                raise UserError(f"{error}; wait for it, or give these samples another name by --out NAME") from error

        engine.on_main(lock)
        left = drawing.carry_out(engine, told)
        seconds = round(time.perf_counter() - started, 3)
        row = {**protocol, "samples": drawing.count, "seconds": seconds, "samples_of_last_session": left}
        finished = engine.on_main(lambda: finish_sampling(drawing, {**row, **made_by(engine)}, sheet))
        engine.on_main(lambda: set_result(folder, section, finished, entry))
    return finished


def made_by(engine: Engine) -> dict[str, Any]:
    """The machine and the libraries that figures were made with."""
    libraries = ("torch", "numpy", "sde-diffusion")
    return {
        "device": str(engine.device),
        "processes": engine.count,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
    }


def finish_sampling(drawing: Drawing, row: Mapping[str, Any], sheet: Sheet) -> dict[str, Any]:
    """The picture, the arrays and the manifest of samples that are all drawn; the manifest."""
    shards, count = drawing.shards, drawing.count
    arrays = shards.first(min(count, PICTURE_SAMPLES))
    if "samples" in arrays:  # points in the plane are drawn as their density, of which more is more
        arrays = shards.first(count)
    if said := shards.keep_former(count):
        print(said)
    write_aside(shards.manifest.with_suffix(".png"), png(sheet(arrays)))
    manifest = {**row, "nfe": max(note["nfe"] for note in shards.notes(count))}
    shards.finish(count, manifest, drawing.model.classes)
    return manifest
