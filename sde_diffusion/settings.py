"""From a configuration to objects: the only module that reads one.

A new process, data set or network option is one line in one of the tables here or in its own package.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from sde_diffusion import samplers
from sde_diffusion.core import grids
from sde_diffusion.core.continuous import EDM, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.core.discrete import DiscreteVE, DiscreteVP
from sde_diffusion.core.errors import UserError, choose, nearest, no_option
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.grids import GRIDS, make_grid
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.core.noise_sources import NOISES
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import process_state
from sde_diffusion.data import (
    DATASETS,
    DEQUANTIZERS,
    MEANS,
    Augmentation,
    DataOptions,
    DataTransform,
    Dequantizer,
    Source,
    Splits,
    Stream,
    batches,
    load_splits,
)
from sde_diffusion.denoisers.analytic import GaussianMixture, drawn_mixture
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.network import VARIANCES, NetworkSpec
from sde_diffusion.denoisers.wrappers import AutocastDenoiser, ClippedDenoiser
from sde_diffusion.importers import SOURCES
from sde_diffusion.likelihood.decoder import CDFS
from sde_diffusion.likelihood.flow import DIVERGENCES, PROBES
from sde_diffusion.metrics.bits import BoundSpace, Figure, elbo_figure, flow_figure, vlb_figure
from sde_diffusion.metrics.distances import METRICS
from sde_diffusion.metrics.features import EXTRACTORS
from sde_diffusion.metrics.reconstruction import RECONSTRUCTIONS
from sde_diffusion.nets import NETWORKS
from sde_diffusion.nets.building import build_network
from sde_diffusion.objectives import losses
from sde_diffusion.objectives.losses import OBJECTIVES, WEIGHTINGS, Objective, Settings
from sde_diffusion.objectives.times import TIME_SAMPLERS, TimeSampler, time_sampler
from sde_diffusion.runtime.engine import PRECISIONS, SHARDINGS, Engine
from sde_diffusion.samplers import SAMPLERS
from sde_diffusion.solvers.ode import FIXED_STEPS, SOLVERS
from sde_diffusion.storage.shards import FORMATS
from sde_diffusion.training.averages import Exponential, Power, Profile
from sde_diffusion.training.guard import LossGuard

ORACLES: dict[str, Callable[[ConfigDict], GaussianMixture]] = {
    "mixture": lambda c: drawn_mixture(c.dims, c.components),
}
"""Closed-form models that a comparison can be about, in place of a network."""

PROCESS_BUILDERS: dict[str, Callable[[ConfigDict], SDE]] = {
    "VPSDE": lambda c: VPSDE(c.beta_min, c.beta_max),
    "SubVPSDE": lambda c: SubVPSDE(c.beta_min, c.beta_max),
    "VESDE": lambda c: VESDE(c.sigma_min, c.sigma_max),
    "CosineVPSDE": lambda c: CosineVPSDE(),
    "EDM": lambda c: EDM(c.sigma_min, c.sigma_max),
    "RectifiedFlow": lambda c: RectifiedFlow(),
    "DiscreteVP": lambda c: DiscreteVP.linear(c.levels, c.beta_min, c.beta_max),
    "DiscreteRescaledVP": lambda c: DiscreteVP.linear(c.levels, c.beta_min, c.beta_max).rescaled(),
    "DiscreteCosineVP": lambda c: DiscreteVP.cosine(c.levels),
    "DiscreteVE": lambda c: DiscreteVE.geometric(c.sigma_min, c.sigma_max, c.levels),
}

_COUNTS = {
    "data": ("prefetch", "shuffle_window"),
    "training": (
        "steps",
        "batch_size",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "held_out_batches",
        "held_out_levels",
        "keep_checkpoints",
        "accumulate",
    ),
    "sampling": ("steps", "num_samples", "batch_size"),
    "likelihood": ("batch_size", "probes", "fixed_steps", "max_nfe", "points"),
    "latents": ("pairs", "points"),
    "compare": ("bootstraps", "shown", "flow_samples"),
    "oracle": ("dims", "components"),
}
_OPTIONAL_COUNTS = {
    "data": {"workers": "none", "held_out": "all", "image_size": "the set's own"},
    "likelihood": {"num_samples": "all samples", "image_size": "their own size", "terms": "all terms"},
    "training": {
        "milestone_every": "none",
        "ema_snapshots": "none",
        "sample_every": "none",
        "skip_limit": "none",
        "warmup_steps": "none",
        "cooldown_steps": "none",
        "weight_decay": "none",
        "grad_clip": "none",
    },
    "ema": {"step": "the last snapshot"},
    "compare": {"reference_samples": "all of the split"},
}
_TABLES: tuple[tuple[str, str, str, Any], ...] = (
    ("data", "dataset", "data set", DATASETS),
    ("data", "subtract_mean", "mean to subtract", MEANS),
    ("training", "loss", "loss", OBJECTIVES),
    ("training", "weighting", "weighting", WEIGHTINGS),
    ("training", "times", "time sampler", TIME_SAMPLERS),
    ("sampling", "sampler", "sampler", SAMPLERS),
    ("sampling", "grid", "grid", {"auto": None, **GRIDS}),
    ("sampling", "format", "format", FORMATS),
    ("training", "precision", "precision", PRECISIONS),
    ("sampling", "precision", "precision", PRECISIONS),
    ("sampling", "noise", "noise", NOISES),
    ("sampling", "prior", "prior of sampling.prior", {"": None, "process": None}),
    ("training", "sharding", "sharding", dict.fromkeys(SHARDINGS)),
    ("importing", "source", "source", SOURCES),
    ("likelihood", "split", "split", {"train": 0, "test": 0}),
    ("likelihood", "method", "ODE method", SOLVERS),
    ("likelihood", "divergence", "divergence", DIVERGENCES),
    ("likelihood", "probe", "probe", PROBES),
    ("likelihood", "dequantizer", "dequantizer", DEQUANTIZERS),
    ("likelihood", "cdf", "distribution function", CDFS),
)


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value of a configuration that cannot be used, before anything is done."""
    for section, names in _COUNTS.items():
        for name in names:
            if config[section][name] < 1:
                raise UserError(f"{section}.{name} must be at least 1, got {config[section][name]}")
    for section, meanings in _OPTIONAL_COUNTS.items():
        for name, zero in meanings.items():
            if config[section][name] < 0:
                raise UserError(f"{section}.{name} must be 0 ({zero}) or more, got {config[section][name]}")
    for section, name, kind, table in _TABLES:
        choose(kind, config[section][name], table)
    if not config.training.learning_rate > 0.0:
        raise UserError(f"training.learning_rate must be positive, got {config.training.learning_rate}")
    data_options(config)
    _check_training(config)
    if config.training.ema_snapshots and len(set(config.training.ema_lengths)) < 2:
        raise UserError(
            "training.ema_snapshots are of the averages of training.ema_lengths, of which --mode ema needs two or "
            f"more, such as (0.05, 0.1); got {tuple(config.training.ema_lengths)}"
        )
    if not config.ema.lengths:
        raise UserError("ema.lengths is empty; one length at least is needed, such as (0.05, 0.1)")
    for length in config.ema.lengths:
        Power(length)
    process(config)
    choose("variance", config.model.variance, VARIANCES)
    if not config.model.sigma_data > 0.0:
        raise UserError(f"model.sigma_data, a standard deviation, must be positive, got {config.model.sigma_data}")
    if config.training.loss == "hybrid" and config.model.variance == "fixed":
        raise UserError("training.loss='hybrid' trains a learned variance: it needs model.variance='learned_range'")
    objective(config)
    times(config)
    for name in config.likelihood.figures:
        choose("figure", name, FIGURES)
    if not config.likelihood.figures:
        raise UserError(f"likelihood.figures is empty; {nearest('', FIGURES)}")
    _check_likelihood(config)
    if config.training.loss != "score_matching" and config.training.times not in ("levels", "loss_aware"):
        raise UserError(
            f"training.loss={config.training.loss!r} is a sum over the levels: it needs training.times='levels' or "
            f"'loss_aware', not {config.training.times!r}"
        )
    if config.likelihood.levels < 2:
        raise UserError(f"likelihood.levels must be at least 2, got {config.likelihood.levels}")
    _check_network(config)
    gallery(config)
    _check_compare(config)
    sampler_options(config)
    grid_options(config, config.sampling.sampler)
    grids.check_ends(grid_kind(config, config.sampling.sampler), config.sampling.t_start, config.sampling.shift)
    if config.data.subtract_mean == "class" and not config.model.class_conditional:
        raise UserError(
            "data.subtract_mean='class' needs model.class_conditional=True: without labels a sample has no class "
            "whose mean could be added back"
        )


def _check_training(config: ConfigDict) -> None:
    training = config.training
    for name in ("adam_betas", "ema_decays", "ema_lengths"):
        values = training[name]
        if not isinstance(values, (tuple, list)) or not all(isinstance(value, (int, float)) for value in values):
            raise UserError(f"training.{name} must be numbers in brackets, such as (0.9, 0.99), got {values!r}")
    if len(training.adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in training.adam_betas):
        raise UserError(f"training.adam_betas must be two numbers in [0, 1), got {tuple(training.adam_betas)}")
    if not training.adam_eps > 0.0:
        raise UserError(f"training.adam_eps must be positive, got {training.adam_eps}")
    if not 0.0 <= training.label_dropout <= 1.0:
        raise UserError(f"training.label_dropout is a share in [0, 1], got {training.label_dropout}")
    if training.explosion and not training.explosion > 1.0:
        raise UserError(f"training.explosion is a factor of the mean loss beyond 1, or 0, got {training.explosion}")
    if config.seed < 0:
        raise UserError(f"seed must be 0 or more, got {config.seed}")
    profiles(config)


def _check_network(config: ConfigDict) -> None:
    schema = network_arguments(config)
    options = network_options(config)
    if config.model.class_conditional and "num_classes" not in schema:
        raise UserError(f"model.class_conditional: the network {config.model.network!r} is not told classes")
    no_class = options.get("no_class", schema["no_class"].default if "no_class" in schema else True)
    if config.training.label_dropout > 0.0 and not no_class:
        raise UserError(
            f"training.label_dropout withholds classes, and {config.model.network!r} has no row for 'no class' "
            "unless it is built with --network.no_class True"
        )
    if not 0.0 <= config.training.augment <= 1.0:
        raise UserError(f"training.augment is a probability in [0, 1], got {config.training.augment}")
    if config.training.augment > 0.0 and "augment_dims" not in schema:
        raise UserError(
            f"training.augment needs a network that is told of it, and {config.model.network!r} is not: choose one of "
            + ", ".join(name for name, net in NETWORKS.items() if "augment_dims" in inspect.signature(net).parameters)
        )


def _check_likelihood(config: ConfigDict) -> None:
    settings, latents = config.likelihood, config.latents
    for name, value in (
        ("likelihood.rtol", settings.rtol),
        ("likelihood.atol", settings.atol),
        ("latents.rtol", latents.rtol),
    ):
        if not value > 0.0:
            raise UserError(f"{name} must be positive, got {value}")
    if not settings.t_min < 0.5:
        raise UserError(f"likelihood.t_min must be below 0.5, or negative for the process's own, got {settings.t_min}")
    if settings.sensitivity and settings.t_min == 0.0:
        raise UserError("likelihood.sensitivity compares t_min with twice t_min: likelihood.t_min must not be 0")
    if settings.folder and not Path(settings.folder).expanduser().is_dir():
        raise UserError(f"likelihood.folder: there is no folder {settings.folder}")
    if settings.image_size and not settings.folder:
        raise UserError("likelihood.image_size is one of the pictures of likelihood.folder, and there is no folder")
    for name in latents.figures:
        choose("figure of a reconstruction", name, RECONSTRUCTIONS)
    if not (latents.temperatures and all(temperature > 0.0 for temperature in latents.temperatures)):
        raise UserError(f"latents.temperatures must be one or more positive numbers, got {latents.temperatures}")


def _check_compare(config: ConfigDict) -> None:
    settings = config.compare
    for name in ("steps", "checkpoints"):
        wrong = [
            value for value in settings[name] if isinstance(value, bool) or not isinstance(value, int) or value < 1
        ]
        if wrong:
            raise UserError(f"compare.{name} must be whole numbers of at least 1, got {wrong[0]!r}")
    if settings.samplers and not settings.steps:
        raise UserError("compare.steps is empty; one number of steps at least is needed, such as (10, 20, 50)")
    for key, names, table in (
        ("metric", settings.metrics, METRICS),
        ("feature network", [settings.features], {"auto": None, **EXTRACTORS}),
        ("split", [settings.split], {"train": None, "test": None}),
        ("oracle", [config.oracle.kind] if config.oracle.kind else [], ORACLES),
    ):
        for name in names:
            choose(key, name, table)
    for weight in (config.sampling.guidance, *settings.guidance):
        if not isinstance(weight, (int, float)) or weight < 0.0:
            raise UserError(f"a guidance weight is 0 (none) or more, got {weight!r}")
    if settings.inception and settings.features not in ("auto", "inception"):
        raise UserError(
            f"compare.inception is a file of Inception's weights, and compare.features={settings.features!r}"
        )
    if config.oracle.kind and config.oracle.dims < 2:
        raise UserError(f"oracle.dims must be at least 2, got {config.oracle.dims}")
    idle = [key for key in ("weights", "checkpoints", "guidance") if settings[key]]
    if config.oracle.kind and idle:
        raise UserError(
            f"compare.{idle[0]} is of networks, and oracle.kind={config.oracle.kind!r} is a closed-form model"
        )
    if not settings.flow_rtol > 0.0:
        raise UserError(f"compare.flow_rtol must be positive, got {settings.flow_rtol}")
    trials(config)


def engine(config: ConfigDict, training: bool = True) -> Engine:
    """This process and those beside it, on the configuration's device; with what concerns a training, or without.

    Raises UserError for a device that is not there, or that lacks the precision.
    """
    if config.deterministic or torch.are_deterministic_algorithms_enabled():  # setting it takes seconds of imports
        torch.use_deterministic_algorithms(config.deterministic)
    settings = config.training
    if not training:
        return Engine(config.device)
    return Engine(config.device, settings.precision, settings.accumulate, settings.sharding)


def process(config: ConfigDict) -> SDE:
    """The process. Raises UserError for an unknown name or parameters that make none."""
    return choose("process", config.process.name, PROCESS_BUILDERS)(config.process)


def data(config: ConfigDict) -> Splits:
    """The training and the held-out set."""
    splits = load_splits(config.data.dataset, data_options(config))
    if config.data.flip and splits.train.levels is None:
        raise UserError(f"data.flip: {splits.train.title} holds vectors, which cannot be flipped left to right")
    return splits


def data_options(config: ConfigDict) -> DataOptions:
    """What a data set is told. Raises UserError for values that no set can be read with."""
    names = [f.name for f in fields(DataOptions) if f.name in config.data]
    return DataOptions(**{name: config.data[name] for name in names}, seed=config.seed)


@contextmanager
def training_batches(
    config: ConfigDict, source: Source, rows: range, start_step: int, state: Mapping[str, int] | None
) -> Iterator[Stream]:
    """The rows of every batch that are this process's, from a step on; state: of a stream at that step."""
    options, training = config.data, config.training
    stream = batches(
        source,
        training.batch_size,
        seed=config.seed,
        start_step=start_step,
        flip=options.flip,
        part=slice(rows.start, rows.stop),
        workers=options.workers,
        prefetch=options.prefetch,
        state=state,
    )
    try:
        yield stream
    finally:
        stream.close()


def spec(config: ConfigDict, dataset: Source) -> NetworkSpec:
    """The network's description: its arguments from the configuration and the shape of the data.

    Raises UserError for labels that the data lack, vectors where the network needs images, and unknown arguments.
    """
    model = config.model
    if model.class_conditional and not dataset.classes:
        raise UserError(f"model.class_conditional needs labels, which {dataset.title} does not have")
    schema = network_arguments(config)
    if "image_size" in schema and len(dataset.shape) != 3:
        raise UserError(
            f"model.network={model.network!r} needs images, and {dataset.title} holds vectors; choose 'mlp'"
        )
    channels, learned = dataset.shape[0], model.variance == "learned_range"
    # Each network takes what its constructor names.
    known = {
        "in_channels": channels,
        "image_size": dataset.shape[-1],
        "shape": list(dataset.shape),
        **({"out_channels": 2 * channels} if learned else {}),
        "num_classes": len(dataset.classes) if model.class_conditional else 0,
        "dropout": model.dropout,
        "embedding": model.embedding,
        "fourier_scale": model.fourier_scale,
        **({"augment_dims": Augmentation.dims} if config.training.augment > 0 else {}),
    }
    return NetworkSpec(
        process=process(config),
        prediction=model.prediction,
        label=model.label,
        input_scale=model.input_scale,
        shape=dataset.shape,
        network=model.network,
        options={**{name: value for name, value in known.items() if name in schema}, **network_options(config)},
        variance=model.variance,
        sigma_data=model.sigma_data,
    )


def check_pair(config: ConfigDict) -> None:
    """Raises UserError for a network that could not be asked at the first level of the process that trains it."""
    model = config.model
    NetworkSpec(process(config), model.prediction, model.label).check_first_level()


def network_arguments(config: ConfigDict) -> Mapping[str, inspect.Parameter]:
    """The arguments of the network's constructor. Raises UserError for an unknown network."""
    network = choose("network", config.model.network, NETWORKS)
    return {name: given for name, given in inspect.signature(network).parameters.items() if name != "self"}


def network_options(config: ConfigDict) -> dict[str, Any]:
    """The arguments that the configuration gives by name: model.unet or model.mlp for these two, and model.options.

    Raises UserError for one that the network does not have or that has another type.
    """
    model = config.model
    own = _plain(model[model.network]) if model.network in model else {}  # a section of its own
    return {**own, **model_options(config)}


def model_options(config: ConfigDict) -> dict[str, Any]:
    """model.options. Raises UserError for one that the network does not have or that has another type."""
    arguments = network_arguments(config).items()
    schema = {name: given.default for name, given in arguments if given.default is not inspect.Parameter.empty}
    return checked_options("network", config.model.network, schema, _plain(config.model.options))


def as_trained(config: ConfigDict, network_spec: NetworkSpec) -> ConfigDict:
    """The configuration with the process and model that a network was trained with, which may be another's.

    The process is the nearest that a configuration can name; what is computed with it is the network's own.
    """
    found = config.copy_and_resolve_references()
    state, home = process_state(network_spec.process), network_spec.process
    with found.unlocked(), found.ignore_type():
        if process_state(process(config)) != state:
            found.process.update({name: value for name, value in state.items() if not isinstance(value, list)})
            if home.times is not None:
                found.process.levels = len(home.times)
        found.model.update(
            network=network_spec.network,
            prediction=network_spec.prediction,
            label=network_spec.label,
            input_scale=network_spec.input_scale,
            variance=network_spec.variance,
            sigma_data=network_spec.sigma_data,
            class_conditional=bool(network_spec.options.get("num_classes")),
        )
    return found


def _plain(section: ConfigDict) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in section.items()}


def network(network_spec: NetworkSpec, seed: int) -> nn.Module:
    """The network with fresh weights that depend on the seed only; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(network_spec.network, network_spec.options)


def compiled(config: ConfigDict, net: nn.Module) -> nn.Module:
    """The network behind torch.compile, where the configuration names a backend; its weights are the same tensors.

    Raises UserError for an unknown backend.
    """
    if not config.compile:
        return net
    backends = torch.compiler.list_backends()
    choose("backend of torch.compile", config.compile, dict.fromkeys([*backends, "aot_eager", "eager"]))
    return cast(nn.Module, torch.compile(net, backend=config.compile))


def objective(config: ConfigDict, sde: SDE | None = None) -> Objective:
    """What the training minimises under a process, the configuration's unless it is given.

    Raises UserError for a bound of a process without levels.
    """
    training = config.training
    settings = Settings(training.weighting, training.vlb_weight, step_variance(config), config.model.sigma_data)
    return losses.objective(sde or process(config), training.loss, settings)


def step_variance(config: ConfigDict) -> str:
    """The variance of the steps of a discrete model: learned where the network learns it."""
    return "posterior" if config.model.variance == "fixed" else "learned"


def optimizer(config: ConfigDict, net: nn.Module) -> torch.optim.Optimizer:
    """Adam, as one kernel for all parameters: 4.5 times faster than the default on a CPU."""
    training = config.training
    return torch.optim.Adam(
        net.parameters(),
        lr=training.learning_rate,
        betas=tuple(training.adam_betas),
        eps=training.adam_eps,
        weight_decay=training.weight_decay,
        fused=True,
    )


def learning_rate(config: ConfigDict) -> Callable[[int], float]:
    """The rate of each update, from 0: linear warm-up, and a half cosine down to 0 over the last cooldown_steps."""
    training = config.training

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
        left = (training.steps - step) / training.cooldown_steps if training.cooldown_steps else 1.0
        return training.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * max(0.0, min(1.0, left))))

    return rate


def power_name(length: float) -> str:
    """The name of the average of that relative length."""
    return f"power_{length:g}"


def profiles(config: ConfigDict) -> dict[str, Profile]:
    """The averages of the weights by name. Raises UserError for a decay or a length that is none."""
    training = config.training
    return {
        "ema": Exponential(training.ema_decay),
        **{f"ema_{decay:g}": Exponential(decay) for decay in training.ema_decays},
        **{power_name(length): Power(length) for length in training.ema_lengths},
    }


def guard(config: ConfigDict) -> LossGuard:
    """What skips updates whose loss has come apart."""
    return LossGuard(config.training.explosion)


def augmentation(config: ConfigDict) -> Augmentation | None:
    """The augmentation of training images that the network is told of; None for none."""
    return Augmentation(config.training.augment) if config.training.augment > 0.0 else None


def times(config: ConfigDict, sde: SDE | None = None) -> TimeSampler:
    """A fresh time sampler of a process, the configuration's unless it is given.

    Raises UserError for one that the process does not have.
    """
    training = config.training
    return time_sampler(
        sde or process(config), training.times, p_mean=training.p_mean, p_std=training.p_std, shift=training.shift
    )


def option(text: str) -> tuple[str, str]:
    """NAME=VALUE as a pair. Raises UserError for another form."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"option {text!r} should be NAME=VALUE, such as eta=0.5")
    return name, value


_OPTION_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    str: ((str,), "text"),
    NoneType: ((int, NoneType), "a whole number or None"),
    tuple: ((tuple, list), "numbers with commas between them, such as 80,20,5"),
}
"""The type of an option's default -> the types that the option takes, and their name."""


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, float):  # float knows "inf"
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text


def checked_options(kind: str, owner: str, schema: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a sampler or grid in the types of their defaults; text, as the command line gives it, is read.

    Raises UserError for an option that is not in the schema (name -> default) and for a value of another type.
    """
    found = {}
    for name, given in options.items():
        if name not in schema:
            raise UserError(no_option(kind, owner, name, schema))
        types, what = _OPTION_TYPES[type(schema[name])]
        value = _literal(given) if isinstance(given, str) and str not in types else given
        if type(value) not in types:
            raise UserError(f"option {name} of {owner} must be {what}, got {given!r}")
        found[name] = float(value) if float in types else value
    return found


def sampler_options(config: ConfigDict) -> dict[str, Any]:
    """The sampler's named options. Raises UserError for one that it does not have or that has another type."""
    sampler = config.sampling.sampler
    return checked_options("sampler", sampler, samplers.sampler_options(sampler), config.sampling.options)


def grid_kind(config: ConfigDict, sampler: str, sde: SDE | None = None) -> str:
    """The kind of grid; for "auto" the one that suits the sampler, or where any does, the process."""
    kind: str = config.sampling.grid
    if kind != "auto":
        return kind
    return samplers.SAMPLER_TABLE[sampler].grid or (sde or process(config)).grid


def grid_options(config: ConfigDict, sampler: str, sde: SDE | None = None) -> dict[str, Any]:
    """The grid's named options. Raises UserError for one that it does not have or that has another type."""
    kind = grid_kind(config, sampler, sde)
    return checked_options("grid", kind, grids.grid_options(kind), config.sampling.grid_options)


@dataclass(frozen=True)
class Chosen:
    """A sampler with its options, and its steps where they are given."""

    sampler: str
    steps: int | None
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """How figures name it: the sampler and the options that were given."""
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])


def chosen(key: str, entry: str) -> Chosen:
    """A sampler from an entry NAME, NAME:STEPS or NAME:[STEPS]:OPTION=VALUE,... of the configuration's `key`.

    Raises UserError for an unknown sampler or option, a value of another type, or a count that is none.
    """
    name, _, rest = entry.partition(":")
    steps, _, options = rest.partition(":")
    schema = samplers.sampler_options(name)
    if steps and not (steps.isdigit() and int(steps) > 0):
        raise UserError(f"{key}: {entry!r} should be NAME or NAME:STEPS with at least 1 step")
    # A comma inside a value is not followed by NAME=.
    named = dict(map(option, re.split(r",(?=\w+=)", options))) if options else {}
    return Chosen(name, int(steps) if steps else None, checked_options("sampler", name, schema, named))


def gallery(config: ConfigDict) -> list[tuple[str, int, dict[str, Any]]]:
    """The bare job's samplers, steps and options. Raises UserError for an entry that `chosen` refuses."""
    entries = [chosen("sampling.gallery", entry) for entry in config.sampling.gallery]
    return [(entry.sampler, entry.steps or config.sampling.steps, entry.options) for entry in entries]


@dataclass(frozen=True)
class Trial:
    """A sampler at one budget: `steps`, or the tolerances among its options where it has step sizes of its own."""

    sampler: str
    label: str
    steps: int | None
    options: dict[str, Any]

    @property
    def grid_steps(self) -> int:
        """Of its grid, of which one with step sizes of its own needs the two ends only."""
        return self.steps or 2


def trials(config: ConfigDict) -> list[Trial]:
    """Every sampler of compare.samplers at every budget.

    Raises UserError for an entry that `chosen` refuses, and for steps of a sampler with step sizes of its own.
    """
    found: dict[tuple[str, int | None, str], Trial] = {}
    for entry in map(partial(chosen, "compare.samplers"), config.compare.samplers):
        tolerances = samplers.SAMPLER_TABLE[entry.sampler].tolerances
        adaptive = bool(tolerances) and entry.options.get("method") not in FIXED_STEPS
        if adaptive and entry.steps:
            raise UserError(
                f"compare.samplers: {entry.sampler} has step sizes of its own; it takes tolerances in place of "
                f"{entry.steps} steps, as in {entry.sampler}::rtol=1e-3"
            )
        given = () if not adaptive or {"rtol", "atol"} & entry.options.keys() else tolerances
        sweep = [{**entry.options, "rtol": at, "atol": at} for at in given] or [entry.options]
        for steps in [None] if adaptive else [entry.steps] if entry.steps else config.compare.steps:
            for options in sweep:
                found[entry.label, steps, str(options)] = Trial(entry.sampler, entry.label, steps, options)
    return list(found.values())


def grid(config: ConfigDict, sde: SDE, steps: int, sampler: str) -> TimeGrid:
    """The grid of a sampler for a network trained under `sde`, with the given number of steps.

    Raises UserError for a grid that the process does not have.
    """
    settings = config.sampling
    return make_grid(
        sde,
        steps,
        grid_kind(config, sampler, sde),
        t_start=settings.t_start,
        t_end=_or_default(settings.t_end),
        shift=settings.shift,
        snap=sde if settings.snap else None,
        **grid_options(config, sampler, sde),
    )


@dataclass(frozen=True)
class _Zero:
    """A denoiser that stands in for a network, with a learned variance where the network has one."""

    learned: bool

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the fraction of the learned variance."""
        return torch.zeros_like(x), torch.zeros_like(x) if self.learned else None


def rehearse(config: ConfigDict, sampler: str, steps: int, options: Mapping[str, Any]) -> None:
    """Lay out the grid and take the sampler's first step, with zero for the network's output.

    Raises UserError for what the grid or the sampler refuses, before a network is trained for them.
    """
    sde = process(config)
    start = TimeGrid(sde, grid(config, sde, steps, sampler).times[:2])

    samplers.sample(
        _Zero(config.model.variance != "fixed"),
        (1, 1),
        start,
        sampler=sampler,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision of a network's passes in sampling -> the dtype of torch.autocast; none for fp32."""


def at_precision(config: ConfigDict, denoiser: Denoiser) -> Denoiser:
    """The denoiser with its passes in sampling.precision."""
    dtype = AUTOCAST.get(config.sampling.precision)
    return AutocastDenoiser(denoiser, dtype) if dtype else denoiser


def sampling_denoiser(config: ConfigDict, denoiser: Denoiser) -> Denoiser:
    """The denoiser as the sampler is to see it: clipped, where the configuration says so."""
    return ClippedDenoiser(denoiser) if config.sampling.clip else denoiser


def flow_options(config: ConfigDict) -> dict[str, Any]:
    """The named options of `log_likelihood`."""
    settings = config.likelihood
    names = ("method", "rtol", "atol", "divergence", "probes", "probe", "sensitivity", "max_nfe")
    options = {name: settings[name] for name in names}
    return {**options, "t_min": _or_default(settings.t_min), "steps": settings.fixed_steps}


@dataclass(frozen=True, eq=False)
class NamedFigure:
    """A figure of bits/dim, what it is about in words, and how it is computed, for its protocol."""

    compute: Figure
    space: str
    protocol: dict[str, Any]


def _bound_space(config: ConfigDict, transform: DataTransform, where: torch.device) -> BoundSpace:
    # A network trained on dequantised levels knows nothing of the levels themselves, and the other way round.
    continuous = config.data.dequantize or transform.levels is None
    return BoundSpace(transform, where, dequantizer(config) if continuous else None)


def _flow_figure(config: ConfigDict, sde: SDE, transform: DataTransform, where: torch.device) -> NamedFigure:
    options, noise = flow_options(config), dequantizer(config)
    smallest = sde.t_likelihood if options["t_min"] is None else options["t_min"]
    compute = flow_figure(sde, transform, where, noise, options)
    # The limit on the evaluations changes no number, and a solver has either steps or tolerances.
    idle = {"max_nfe", *(("rtol", "atol") if options["method"] in FIXED_STEPS else ("steps",))}
    idle |= {"probes", "probe"} if options["divergence"] == "exact" else set()
    protocol = {name: value for name, value in options.items() if name not in idle}
    return NamedFigure(compute, transform.space(noise), {**protocol, "smallest_time": smallest})


def _elbo_figure(config: ConfigDict, sde: SDE, transform: DataTransform, where: torch.device) -> NamedFigure:
    settings, space = config.likelihood, _bound_space(config, transform, where)
    chain = TimeGrid(sde, sde.times.flip(0)) if sde.times is not None else make_grid(sde, settings.levels, "logsnr")
    options = {
        "variance": step_variance(config),
        "cdf": settings.cdf,
        "terms": settings.terms if 0 < settings.terms < chain.steps else None,
    }
    told = {name: value for name, value in options.items() if name != "cdf" or space.dequantizer is None}
    protocol = {**told, "steps": chain.steps, "smallest_time": float(chain.times[-1])}
    return NamedFigure(elbo_figure(chain, space, options), transform.space(space.dequantizer), protocol)


def _vlb_figure(config: ConfigDict, sde: SDE, transform: DataTransform, where: torch.device) -> NamedFigure:
    settings, space = config.likelihood, _bound_space(config, transform, where)
    options = {"points": settings.points, "t_min": sde.t_sample}
    protocol = {**options, "smallest_time": sde.t_sample}
    return NamedFigure(vlb_figure(sde, space, options), transform.space(space.dequantizer), protocol)


FIGURES: dict[str, Callable[[ConfigDict, SDE, DataTransform, torch.device], NamedFigure]] = {
    "ode": _flow_figure,
    "elbo": _elbo_figure,
    "vlb": _vlb_figure,
}
"""Bits/dim: by the probability flow, by the bound in discrete time, by that in continuous time."""


def figures(config: ConfigDict, sde: SDE, transform: DataTransform, where: torch.device) -> dict[str, NamedFigure]:
    """The figures of likelihood.figures, by name. Raises UserError for an unknown one, and where there is none."""
    names = config.likelihood.figures
    return {name: choose("figure", name, FIGURES)(config, sde, transform, where) for name in names}


def dequantizer(config: ConfigDict) -> Dequantizer:
    """The dequantiser. Raises UserError for an unknown one."""
    return choose("dequantizer", config.likelihood.dequantizer, DEQUANTIZERS)


def _or_default(t: float) -> float | None:
    return None if t < 0 else t
