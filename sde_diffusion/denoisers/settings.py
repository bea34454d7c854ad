"""What a network is and what it was made for: the sections "process", "model" and "oracle" of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sde_diffusion.core.conditions import listed
from sde_diffusion.core.continuous import EDM, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.core.discrete import DiscreteVE, DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.options import checked_options
from sde_diffusion.core.prediction import PREDICTIONS
from sde_diffusion.core.process import SDE
from sde_diffusion.core.settings import Section, at_least, one_of, part, setting
from sde_diffusion.core.sizes import size_of
from sde_diffusion.denoisers.analytic import GaussianMixture, drawn_mixture
from sde_diffusion.denoisers.c_noise import C_NOISES
from sde_diffusion.denoisers.network import INPUT_SCALES, VARIANCES, NetworkSpec, step_variance
from sde_diffusion.nets import NETWORKS
from sde_diffusion.nets.building import arguments


@dataclass(frozen=True)
class ProcessSettings(Section):
    """The diffusion process that a network is trained under."""

    key: ClassVar[str] = "process"

    name: str = setting("VPSDE", "a process by name: VPSDE, SubVPSDE, VESDE, EDM, RectifiedFlow, DiscreteVP, ...")
    beta_min: float = setting(0.1, "VP, sub-VP, DiscreteVP: rate at t = 0")
    beta_max: float = setting(20.0, "rate at t = 1 (Song et al. 2021, Appendix C)")
    sigma_min: float = setting(0.01, "VE, EDM, DiscreteVE: noise std, in model units (data in [-1, 1])")
    sigma_max: float = setting(50.0, "VE, EDM, DiscreteVE: noise std at t = 1")
    levels: int = setting(1000, "discrete processes: number of noise levels")

    def process(self) -> SDE:
        """The process. Raises UserError for an unknown name or parameters that make none."""
        return choose("process", self.name, PROCESS_BUILDERS)(self)


PROCESS_BUILDERS: dict[str, Callable[[ProcessSettings], SDE]] = {
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
"""A process by the name that a configuration gives it; one class may have several, with tables of other levels."""


@dataclass(frozen=True)
class UNetSettings(Section):
    """The network "unet"."""

    key: ClassVar[str] = "model.unet"

    channels: int = setting(128, "at full resolution", at_least(1))
    multipliers: tuple[int, ...] = setting((1, 2, 2, 2), "of the channels, one a level")
    blocks: int = setting(2, "residual blocks a level")
    attention_resolutions: tuple[int, ...] = setting((16,), "pixels of the shorter side")
    heads: int = setting(1, "of attention")


@dataclass(frozen=True)
class MLPSettings(Section):
    """The network "mlp"."""

    key: ClassVar[str] = "model.mlp"

    width: int = setting(256, "of the hidden layers")
    blocks: int = setting(4, "residual blocks")


@dataclass(frozen=True)
class ModelSettings(Section):
    """The network, what it predicts and what it is told."""

    key: ClassVar[str] = "model"

    network: str = setting("unet", "unet, ddpm, ddpmpp, ncsnpp, adm, dit, mlp, ...", one_of("network", NETWORKS))
    prediction: str = setting(
        "v", "what the network predicts: eps, x0, v, velocity, score, edm, ...", one_of("prediction", PREDICTIONS)
    )
    label: str = setting(
        "time",
        "c_noise, of the noise level: time, logsnr, log_sigma, edm, index, ...",
        one_of("label", C_NOISES),
    )
    input_scale: str = setting(
        "none",
        '"unit": x over its std; "centre": 2 x - 1, for data in [0, 1]',
        one_of("input scale", INPUT_SCALES),
    )
    sigma_data: float = setting(0.5, 'std of the data, which prediction and weighting "edm" and "unit" assume')
    class_conditional: bool = setting(False, "whether the network is told the class")
    conditions: tuple[str, ...] = setting(
        (), 'vectors of the data that the network is told beside the class: "attributes", "targets"'
    )
    variance: str = setting(
        "fixed",
        'of each step; or "learned_range": between its two bounds (iDDPM)',
        one_of("variance", VARIANCES),
    )
    dropout: float = setting(0.0, "share of the activations that a training drops")
    embedding: str = setting("positional", '"unet", "mlp", "songunet": of c_noise, "positional" or "fourier"')
    fourier_scale: float = setting(16.0, "std of the random Fourier frequencies")
    unet: UNetSettings = part(UNetSettings)
    mlp: MLPSettings = part(MLPSettings)
    options: Mapping[str, Any] = setting({}, "arguments of the other networks; --network.NAME VALUE sets them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_data > 0.0:
            raise UserError(f"model.sigma_data, a standard deviation, must be positive, got {self.sigma_data}")

    @property
    def step_variance(self) -> str:
        """The variance of the steps of a discrete model: learned where the network learns it."""
        return step_variance(self.variance)

    @property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the network's constructor."""
        return arguments(self.network)

    def own_options(self) -> dict[str, Any]:
        """`options`, checked. Raises UserError for one that the network does not have or that has another type."""
        schema = {n: given.default for n, given in self.arguments.items() if given.default is not given.empty}
        return checked_options("network", self.network, schema, _plain(self.options))

    def network_options(self) -> dict[str, Any]:
        """The arguments that are given by name: those of the network's own section, and `options`.

        Raises UserError for one that the network does not have or that has another type.
        """
        own = getattr(self, self.network, None)
        return {**(_plain(own.values()) if isinstance(own, Section) else {}), **self.own_options()}

    def check_conditions(self, label_dropout: float, augment: float) -> None:
        """Raises UserError where a training would tell the network what it does not take."""
        schema, options = self.arguments, self.network_options()
        if self.class_conditional and "num_classes" not in schema:
            raise UserError(f"model.class_conditional: the network {self.network!r} is not told classes")
        no_class = options.get("no_class", schema["no_class"].default if "no_class" in schema else True)
        if self.conditions and "vectors" not in schema:
            raise UserError(f"model.conditions: the network {self.network!r} is told no vectors")
        if label_dropout > 0.0 and self.class_conditional and not no_class:
            raise UserError(
                f"training.label_dropout withholds classes, and {self.network!r} has no row for 'no class' unless it "
                "is built with --network.no_class True"
            )
        if augment > 0.0 and "augment_dims" not in schema:
            able = [name for name, net in NETWORKS.items() if "augment_dims" in inspect.signature(net).parameters]
            raise UserError(
                f"training.augment needs a network that is told of it, and {self.network!r} is not: choose one of "
                + ", ".join(able)
            )

    def check_pair(self, process: SDE) -> None:
        """Raises UserError for a network that could not be asked at the first level of the process that trains it."""
        NetworkSpec(process, self.prediction, self.label).check_first_level()

    def spec(
        self,
        process: SDE,
        shape: Sequence[int],
        classes: Sequence[str],
        title: str,
        augment_dims: int = 0,
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> NetworkSpec:
        """The network's description for samples of a shape, with the classes of their set; title: of that set.

        augment_dims: how many numbers describe an augmentation; 0 for none. columns: the names of the values of every
        vector of the set, such as {"attributes": ("smiling", "young")}. Raises UserError for conditions that the data
        lack, vectors where the network needs images, and unknown arguments.
        """
        if self.class_conditional and not classes:
            raise UserError(f"model.class_conditional needs labels, which {title} does not have")
        schema, shape = self.arguments, tuple(shape)
        if "image_size" in schema and len(shape) != 3:
            raise UserError(f"model.network={self.network!r} needs images, and {title} holds vectors; choose 'mlp'")
        # Each network takes what its constructor names.
        known = {
            "in_channels": shape[0],
            "image_size": size_of(*shape[1:]) if len(shape) == 3 else None,
            "shape": list(shape),
            **({"out_channels": 2 * shape[0]} if self.variance == "learned_range" else {}),
            "num_classes": len(classes) if self.class_conditional else 0,
            "dropout": self.dropout,
            "embedding": self.embedding,
            "fourier_scale": self.fourier_scale,
            **({"augment_dims": augment_dims} if augment_dims else {}),
            **({"vectors": self._vectors(columns or {}, title)} if self.conditions else {}),
        }
        return NetworkSpec(
            process=process,
            prediction=self.prediction,
            label=self.label,
            input_scale=self.input_scale,
            shape=shape,
            network=self.network,
            options={**{n: value for n, value in known.items() if n in schema}, **self.network_options()},
            variance=self.variance,
            sigma_data=self.sigma_data,
        )

    def _vectors(self, columns: Mapping[str, Sequence[str]], title: str) -> dict[str, int]:
        """The number of values of each vector that the network is told."""
        for name in self.conditions:
            if name == "labels":
                raise UserError("model.conditions names vectors; of classes tell by model.class_conditional=True")
            if name not in columns:
                raise UserError(
                    f"model.conditions names {name!r}, which {title} does not have; it has {listed(columns)}"
                )
        return {name: len(columns[name]) for name in self.conditions}

    def as_built(self, spec: NetworkSpec) -> ModelSettings:
        """The settings of a network that there is: the inverse of `spec`."""
        own, options = getattr(self, spec.network, None), dict(spec.options)
        shared: dict[str, Any] = {name: options[name] for name in _SHARED if name in options}
        if isinstance(own, Section):
            names = own.values().keys() & options.keys()
            shared[spec.network] = type(own).from_values({**own.values(), **{name: options[name] for name in names}})
        else:
            names = set()
        rest = {name: value for name, value in options.items() if name not in {*names, *shared, *_OF_THE_DATA}}
        return replace(
            self,
            network=spec.network,
            prediction=spec.prediction,
            label=spec.label,
            input_scale=spec.input_scale,
            variance=spec.variance,
            sigma_data=spec.sigma_data,
            class_conditional=bool(options.get("num_classes")),
            conditions=tuple(options.get("vectors", ())),
            options=rest,
            **shared,
        )


_SHARED = ("dropout", "embedding", "fourier_scale")
"""Arguments of several networks, each a key of its own."""
_OF_THE_DATA = ("in_channels", "out_channels", "image_size", "shape", "num_classes", "vectors", "augment_dims")
"""Arguments of networks that follow from the data, from `variance` and from what a training tells."""


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


ORACLES: dict[str, Callable[[OracleSettings], GaussianMixture]] = {
    "mixture": lambda c: drawn_mixture(c.dims, c.components),
}
"""Closed-form models that a comparison can be about, in place of a network."""


@dataclass(frozen=True)
class OracleSettings(Section):
    """--mode compare of a closed-form model, in place of a network."""

    key: ClassVar[str] = "oracle"

    kind: str = setting("", '"mixture"; "" for none', one_of("oracle", {"": None}, ORACLES))
    dims: int = setting(12, "of its vectors", at_least(1))
    components: int = setting(2, "of the mixture", at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind and self.dims < 2:
            raise UserError(f"oracle.dims must be at least 2, got {self.dims}")

    def mixture(self) -> GaussianMixture:
        """The closed-form model."""
        return ORACLES[self.kind](self)
