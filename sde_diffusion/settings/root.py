"""All settings in one: made of a configuration at the edge, checked, and turned into objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from ml_collections import ConfigDict, FieldReference
from torch import nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import process_state
from sde_diffusion.core.settings import Section, one_of, part, setting
from sde_diffusion.data import Augmentation, DataTransform, Source, Splits
from sde_diffusion.data.settings import DataSettings
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.denoisers.settings import ModelSettings, OracleSettings, ProcessSettings
from sde_diffusion.importers.settings import ImportingSettings
from sde_diffusion.nets.building import build_network
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.runtime.progress import Progress, progress
from sde_diffusion.runtime.ranks import process_number
from sde_diffusion.runtime.tracking import NONE, TRACKERS
from sde_diffusion.settings.comparison import CompareSettings
from sde_diffusion.settings.figures import FIGURES, Evaluation, NamedFigure
from sde_diffusion.settings.likelihood import LatentsSettings, LikelihoodSettings
from sde_diffusion.settings.moved import check_moved, keys_of
from sde_diffusion.settings.sampling import EditSettings, SamplingSettings
from sde_diffusion.training.losses import Task
from sde_diffusion.training.settings import EmaSettings, TrainingSettings


def natural(key: str, value: int) -> None:
    """A whole number of 0 or more."""
    if value < 0:
        raise UserError(f"{key} must be 0 or more, got {value}")


@dataclass(frozen=True)
class Settings(Section):
    """Every setting of the command line."""

    seed: int = setting(0, "one seed gives the same weights, samples and likelihoods", natural)
    device: str = setting("auto", '"cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one')
    deterministic: bool = setting(False, "the same bits again on a GPU too, by torch.use_deterministic_algorithms")
    compile: str = setting("", 'torch.compile\'s backend for the network, such as "inductor"; "" for none')
    tracking: str = setting(
        NONE,
        '"wandb" or "mlflow": where trainings are tracked beside TensorBoard',
        one_of("tracker", TRACKERS, {NONE: None}),
    )
    data: DataSettings = part(DataSettings)
    process: ProcessSettings = part(ProcessSettings)
    model: ModelSettings = part(ModelSettings)
    training: TrainingSettings = part(TrainingSettings)
    sampling: SamplingSettings = part(SamplingSettings)
    edit: EditSettings = part(EditSettings)
    likelihood: LikelihoodSettings = part(LikelihoodSettings)
    compare: CompareSettings = part(CompareSettings)
    oracle: OracleSettings = part(OracleSettings)
    ema: EmaSettings = part(EmaSettings)
    latents: LatentsSettings = part(LatentsSettings)
    importing: ImportingSettings = part(ImportingSettings)

    @classmethod
    def from_config(cls, config: ConfigDict) -> Settings:
        """The settings of a configuration. Raises UserError for the first key or value that cannot be used."""
        values = config.to_dict()
        check_moved(keys_of(values))
        return cls.from_values(values)

    def config(self) -> ConfigDict:
        """A configuration of these values, whose keys are locked."""
        return ConfigDict(_referenced(self)).lock()

    def plain(self) -> dict[str, Any]:
        """All values as JSON has them."""
        stored: dict[str, Any] = json.loads(json.dumps(self.values()))
        return stored

    def check(self) -> None:
        """Raises UserError for the first settings that do not go together, before anything is done."""
        sde, training, model = self.process.process(), self.training, self.model
        self.data.options(self.seed)
        if training.loss == "hybrid" and model.variance == "fixed":
            raise UserError("training.loss='hybrid' trains a learned variance: it needs model.variance='learned_range'")
        training.objective(sde, model.step_variance, model.sigma_data)
        training.time_sampler(sde)
        training.check_times()
        self.likelihood.check(FIGURES)
        model.check_conditions(training.label_dropout, training.augment)
        self.sampling.check(sde)
        self.compare.check(self.oracle.kind)
        if self.data.subtract_mean == "class" and not model.class_conditional:
            raise UserError(
                "data.subtract_mean='class' needs model.class_conditional=True: without labels a sample has no class "
                "whose mean could be added back"
            )

    def engine(self, training: bool = True) -> Engine:
        """This process and those beside it, on the device; with what concerns a training, or without.

        Raises UserError for a device that is not there, or that lacks the precision.
        """
        if self.deterministic or torch.are_deterministic_algorithms_enabled():  # setting it takes seconds of imports
            torch.use_deterministic_algorithms(self.deterministic)
        own = self.training
        return Engine(self.device, own.precision, own.accumulate, own.sharding) if training else Engine(self.device)

    def splits(self) -> Splits:
        """The training and the held-out set."""
        return self.data.splits(self.seed, _shown)

    def spec(self, source: Source) -> NetworkSpec:
        """The network's description for a set of data. Raises UserError where the two do not go together."""
        process, own = self.process.process(), source
        return self.model.spec(process, own.shape, own.classes, own.title, self.augment_dims, own.columns)

    @property
    def augment_dims(self) -> int:
        """How many numbers a training tells of its augmentations; 0 for none."""
        return Augmentation.dims if self.training.augment > 0.0 else 0

    def task(self, transform: DataTransform, spec: NetworkSpec, sde: SDE) -> Task:
        """What the losses of a network are about that is trained under `sde`."""
        return Task.from_settings(self.training, self.seed, transform, self.data.dequantize, spec, sde)

    def compiled(self, net: nn.Module) -> nn.Module:
        """The network behind torch.compile, where a backend is named; its weights are the same tensors.

        Raises UserError for an unknown backend.
        """
        if not self.compile:
            return net
        backends = torch.compiler.list_backends()
        choose("backend of torch.compile", self.compile, dict.fromkeys([*backends, "aot_eager", "eager"]))
        return cast(nn.Module, torch.compile(net, backend=self.compile))

    def dry_run(self, sampler: str, steps: int, options: Mapping[str, Any]) -> None:
        """Raises UserError for what a grid or a sampler refuses, before a network is trained for them."""
        sde, learned = self.process.process(), self.model.variance != "fixed"
        self.sampling.dry_run(sde, learned, sampler, steps, options)

    def figures(self, sde: SDE, transform: DataTransform, where: torch.device) -> dict[str, NamedFigure]:
        """The figures of likelihood.figures, by name, for a network trained under `sde`."""
        about = Evaluation(sde, transform, where, self.data.dequantize, self.model.step_variance)
        return {name: FIGURES[name](self.likelihood, about) for name in self.likelihood.figures}

    def as_trained(self, spec: NetworkSpec) -> Settings:
        """The settings with the process and model that a network was trained with, which may be another's.

        The process is the nearest that a configuration can name; what is computed with it is the network's own.
        """
        state, home, process = process_state(spec.process), spec.process, self.process
        if process_state(process.process()) != state:
            known = {name: value for name, value in state.items() if hasattr(process, name)}
            known |= {"levels": len(home.times)} if home.times is not None else {}
            process = replace(process, **known)
        return replace(self, process=process, model=self.model.as_built(spec))


def _referenced(section: Section) -> dict[str, Any]:
    """A section's values for a configuration, which holds each to the type of its default but where it has another."""
    found = {}
    for own in fields(section):
        value = getattr(section, own.name)
        if isinstance(value, Section):
            value = _referenced(value)
        elif own.metadata.get("also"):
            value = FieldReference(value, field_type=object)
        found[own.name] = value
    return found


def fresh_network(spec: NetworkSpec, seed: int) -> nn.Module:
    """The network with fresh weights that depend on the seed only; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(spec.network, spec.options)


def _shown(pictures: int, title: str) -> Progress:
    """How many pictures of a set are decoded, as the first process shows it."""
    return progress(pictures, "picture", f"reading {title}", visible=process_number() == 0)
