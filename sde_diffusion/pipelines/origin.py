"""What a training begins with: fresh weights, the network of training.init_from, or a checkpoint of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataTransform, Source, Splits
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint, checkpoint_files, read_checkpoint
from sde_diffusion.storage.manifest import MANIFEST
from sde_diffusion.storage.trained import usual_weights, with_average
from sde_diffusion.training.initial import Initial, Wanted, initial
from sde_diffusion.training.trainer import RAW

FRESH = (
    "fresh are the optimiser, the averages (which begin with the taken weights), the count of steps, the seed, the "
    "order of the data, the learned times, model.dropout, and all that training.* says"
)


@dataclass(frozen=True, eq=False)
class Start:
    """The network that a training begins or goes on with.

    settings    with the process and model of that network
    weights     those of the first step; None for fresh ones
    resumed     the checkpoint that it goes on from; None at the beginning
    """

    settings: Settings
    spec: NetworkSpec
    transform: DataTransform
    weights: Mapping[str, Tensor] | None = None
    resumed: Checkpoint | None = None


def fresh(settings: Settings, data: Source) -> Start:
    """A training from fresh weights. Raises UserError where the data and the network do not go together."""
    settings.model.check_pair(settings.process.process())
    return Start(settings, settings.spec(data), DataTransform.fit(data, settings.data.subtract_mean))


def going_on(settings: Settings, resumed: Checkpoint, data: Source) -> Start:
    """A training from its own checkpoint; one that began with another's network keeps what it took from that."""
    stored: Mapping[str, Any] = resumed.config.get("training", {})
    if not stored.get("init_from"):
        settings.model.check_pair(settings.process.process())
        return Start(settings, settings.spec(data), resumed.transform, resumed.weights[RAW], resumed)
    kept = {name: stored[name] for name in ("init_from", "init_weights")}
    own = adopted(settings, resumed.spec, resumed.transform)
    own = replace(own, training=replace(own.training, **kept))
    return Start(own, resumed.spec, resumed.transform, resumed.weights[RAW], resumed)


@dataclass(frozen=True, eq=False)
class Origin:
    """A network that a training begins with, where it lies and which of its weights are taken."""

    name: str
    weights: str
    found: Checkpoint

    @classmethod
    def of(cls, settings: Settings, engine: Engine) -> Origin | None:
        """The network of training.init_from; None where there is none. All processes read it together."""
        if not settings.training.init_from:
            return None
        read: list[Origin] = []
        engine.each(lambda: read.append(cls.read(settings.training.init_from, settings.training.init_weights)))
        return read[0]

    @classmethod
    def read(cls, place: str, weights: str) -> Origin:
        """The network of a run folder or a checkpoint. Raises UserError where it or its weights are not there."""
        path = Path(place).expanduser()
        if path.is_file() or (path.is_dir() and not (checkpoint_files(path) or (path / MANIFEST).exists())):
            raise UserError(
                f"training.init_from={place!r} is neither a run folder nor a checkpoint of one; a network of another "
                f"code base becomes a run first, by --mode import --source NAME --path {place} --workdir RUN"
            )
        found = read_checkpoint(path)
        wanted = weights or usual_weights(found)
        return cls(place, wanted, with_average(found, path, wanted))

    def start(self, settings: Settings, data: Source) -> Start:
        """A training from this network, brought to the data; prints what is taken and what is fresh.

        Raises UserError where the network cannot be brought to the data, and for settings that do not go with it.
        """
        wanted = Wanted(
            dropout=settings.model.dropout,
            classes=settings.model.class_conditional,
            no_class=settings.training.label_dropout > 0.0,
            augment=settings.augment_dims,
        )
        first = initial(self.name, self.found, self.found.weights[self.weights], data, wanted)
        own = adopted(settings, first.spec, first.transform)
        own = replace(own, training=replace(settings.training, init_weights=self.weights))
        own.model.check_pair(first.spec.process)
        own.check()
        self._say(settings, own, first)
        return Start(own, first.spec, first.transform, first.weights)

    def _say(self, here: Settings, own: Settings, first: Initial) -> None:
        """Print what is taken, what is changed and what is fresh."""
        spec, count = first.spec, sum(value.numel() for value in first.weights.values())
        print(
            f"beginning with {self.name}, step {self.found.step:,}, weights {self.weights!r}: {spec.network} of "
            f"{count:,} numbers under {type(spec.process).__name__}, which predicts {spec.prediction}"
        )
        taken = [f"{key} {value!r} (here {before!r})" for key, before, value in changed(here, own)]
        if taken:
            print(f"taken from {self.name}: {', '.join(taken)}")
        for words in first.changes:
            print(f"changed: {words}")
        print(FRESH)


def beginning(settings: Settings, folder: Path, engine: Engine) -> tuple[Splits | None, Start | None]:
    """The data of a training and what it begins with, where that can be known before its folder is begun.

    So no folder is begun for data that cannot be read, nor for a network that does not fit them; None for one that is
    there, unless it has no checkpoint yet and the training is to begin with another's network.
    """
    begun = engine.on_main(lambda: bool(checkpoint_files(folder)))
    origin = None if begun else Origin.of(settings, engine)
    if origin is None and folder.exists():
        return None, None
    splits = settings.splits()
    return splits, origin.start(settings, splits.train) if origin else fresh(settings, splits.train)


def adopted(settings: Settings, spec: NetworkSpec, transform: DataTransform) -> Settings:
    """The settings with the process, the model and the map of the data that a network has."""
    mean = "none" if transform.mean is None else "class" if transform.per_class else "all"
    own = settings.as_trained(spec)
    return replace(own, data=replace(own.data, subtract_mean=mean))


def changed(before: Settings, after: Settings) -> Iterator[tuple[str, Any, Any]]:
    """The keys of a network and its data that differ, with both values."""
    for (key, here, _), (_, value, _) in zip(before.items(), after.items(), strict=True):
        if here != value and (key.startswith(("model.", "process.")) or key == "data.subtract_mean"):
            yield key, here, value


def check_origin(folder: Path, settings: Settings) -> None:
    """Raises UserError where a training would go on that began with another network than training.init_from."""
    path, given = folder / "config.json", settings.training
    if not (path.exists() and checkpoint_files(folder) and given.init_from):
        return
    stored = json.loads(path.read_text()).get("training", {})
    there = stored.get("init_from", "")
    if not there:
        raise UserError(
            f"{folder} holds a training that began with fresh weights, and training.init_from={given.init_from!r} is "
            "asked for: choose another --workdir for it, or leave the key out"
        )
    same = Path(there).expanduser().resolve() == Path(given.init_from).expanduser().resolve()
    if not same or given.init_weights not in ("", stored.get("init_weights", "")):
        raise UserError(
            f"{folder} holds a training that began with {there!r}, weights {stored.get('init_weights')!r}, not with "
            f"training.init_from={given.init_from!r}, training.init_weights={given.init_weights!r}: choose another "
            "--workdir, or leave these keys out"
        )
