"""To a folder of diffusers: the network as a UNet2DModel, and the scheduler of the process it was trained under.

Whether there is an equal class is read from the network itself: any of our U-Nets without the pyramids, filters and
rescaled sums of NCSN++ may have one. Nothing of diffusers is needed to write the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save as safetensors
from torch import Tensor, nn

from sde_diffusion.core.continuous import RectifiedFlow
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.processes import process_state
from sde_diffusion.core.sizes import size_of
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec
from sde_diffusion.importers.diffusers import WEIGHTS, unet_rules
from sde_diffusion.importers.rules import exported
from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.blocks import GroupNorm, ResidualBlock, SelfAttention, Stage
from sde_diffusion.storage.files import write_aside

T = TypeVar("T")
VERSION = "0.30.0"
"""The release of diffusers whose names the folder has."""
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise UserError(f"diffusers has no network equal to this one: {reason}")


def _one(what: str, values: Iterable[T]) -> T:
    """The one value that all have."""
    found = set(values)
    _require(len(found) == 1, f"it has one {what}, and this one {', '.join(map(str, sorted(map(str, found))))}")
    return found.pop()


def _attended(stages: Iterable[Stage]) -> list[bool]:
    return [any(isinstance(layer, SelfAttention) for layer in stage) for stage in stages]


def _every(what: str, attended: list[bool]) -> bool:
    _require(all(attended) or not any(attended), f"{what}, attention follows some blocks of a level only")
    return all(attended)


def _sinusoids(net: Backbone) -> partial[Tensor]:
    """The features of the noise level. Raises UserError for those, and for a design, that diffusers does not have."""
    design, features = net.design, net.conditioning.features
    _require(isinstance(features, partial), "it is told the noise level by random features")
    assert isinstance(features, partial)
    _require(net.conditioning.augment is None, "it is told of augmentation")
    _require(
        net.conditioning.classes is None or not net.conditioning.classes_first,
        "its classes are told beside the noise level",
    )
    plain = design.input_pyramid == design.output_pyramid == "none" and design.taps is None and not design.rescale
    _require(plain, "pyramids, filters and rescaled sums are those of NCSN++")
    _require(design.resampling != "pool", "sizes change by means and nearest neighbours")
    _require(not (design.project and design.resampling == "block"), "resampling blocks have a convolution in the skip")
    return features


def network_config(net: nn.Module) -> dict[str, Any]:
    """UNet2DModel's configuration of a network. Raises UserError with the reason where there is none."""
    _require(isinstance(net, Backbone), f"a {type(net).__name__} is no U-Net of its kind")
    assert isinstance(net, Backbone)
    design, features = net.design, _sinusoids(net)
    norms = [layer for layer in net.modules() if isinstance(layer, GroupNorm)]
    attention = [layer for layer in net.modules() if isinstance(layer, SelfAttention)]
    single = all(layer.heads == 1 for layer in attention)
    head = None if single else _one("width of heads", [layer.out.in_features // layer.heads for layer in attention])
    blocks = [layer for layer in net.modules() if isinstance(layer, ResidualBlock)]
    down = [_every("on the way down", _attended(level.stages)) for level in net.encoder]
    up = [_every("on the way up", _attended(level.stages)) for level in net.decoder]
    resnet = design.resampling == "block"
    channels = [_width(level.stages) for level in net.encoder]
    _require(net.stem.out_channels == channels[0], "its stem has other channels than its first level")
    hidden = net.conditioning.hidden
    sizes = (hidden.in_features, hidden.out_features)
    _require(
        sizes == (channels[0], 4 * channels[0]), f"its noise level has layers of {sizes[0]} and {sizes[1]} channels"
    )
    kinds = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    classes = net.conditioning.classes
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": size_of(*net.shape[1:]),
        "in_channels": net.shape[0],
        "out_channels": net.head.conv.out_channels if net.head is not None else net.shape[0],
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": features.keywords["shift"],
        "flip_sin_to_cos": features.keywords["cosine_first"],
        "down_block_types": ["AttnDownBlock2D" if wanted else kinds[0] for wanted in down],
        "up_block_types": ["AttnUpBlock2D" if wanted else kinds[1] for wanted in up],
        "block_out_channels": channels,
        "layers_per_block": _one("number of blocks", [len(level.stages) for level in net.encoder]),
        "downsample_padding": 0 if design.same_padding else 1,
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": blocks[0].dropout.p,
        "act_fn": "silu",
        "attention_head_dim": head,
        "norm_num_groups": _one("number of groups", [norm.num_groups for norm in norms]),
        # Unless it is told, the attention of the middle has no norm beside a scale and shift.
        "attn_norm_num_groups": norms[0].num_groups,
        "norm_eps": _one("epsilon", [norm.eps for norm in norms]),
        "resnet_time_scale_shift": "scale_shift" if design.scale_shift else "default",
        "add_attention": design.middle_attention,
        "num_class_embeds": None if classes is None else classes.num_embeddings,
    }


def _width(stages: Iterable[Stage]) -> int:
    first = next(iter(stages))[0]
    assert isinstance(first, ResidualBlock)
    return first.conv1.out_channels


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers for a home: what does not fit, and its configuration where all does.

    reasons    why it is not equal to the home -> whether it is in this respect
    config     of the scheduler
    """

    reasons: dict[str, bool]
    config: Callable[[], dict[str, Any]]

    @property
    def misfits(self) -> list[str]:
        return [reason for reason, fits in self.reasons.items() if not fits]


def _of_betas(spec: NetworkSpec, shift: float) -> Scheduler:
    state = process_state(spec.process)
    reasons = {
        f"it knows processes of discrete betas, and this one is a {state['name']}": "betas" in state,
        f"its label is the index of a level, and this one's is {spec.label!r}": spec.label == "index",
        f"it has no prediction {spec.prediction!r}": spec.prediction in _PREDICTIONS,
        f"its steps have no shift, and this one is {shift:g}; export with a shift of 1": shift == 1.0,
    }
    return Scheduler(
        reasons,
        lambda: {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": len(state["betas"]),
            "trained_betas": state["betas"],
            "prediction_type": _PREDICTIONS[spec.prediction],
            "variance_type": "learned_range" if spec.variance == "learned_range" else "fixed_small",
            "clip_sample": False,
            # The others leave out the last level, from which sampling must begin (Lin et al. 2023, section 3.3).
            **({"timestep_spacing": "trailing"} if state["betas"][-1] == 1.0 else {}),
        },
    )


def _of_flow(spec: NetworkSpec, shift: float) -> Scheduler:
    name = process_state(spec.process)["name"]
    reasons = {
        f"flow matching knows RectifiedFlow, and this one is a {name}": spec.process == RectifiedFlow(),
        f"its label is 1000 t, 'thousand_time', and this one's is {spec.label!r}": spec.label == "thousand_time",
        f"flow matching predicts the velocity, and this one {spec.prediction!r}": spec.prediction == "velocity",
        "flow matching has no learned variance": spec.variance == "fixed",
    }
    return Scheduler(
        reasons,
        lambda: {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift},
    )


def scheduler_config(spec: NetworkSpec, shift: float = 1.0) -> dict[str, Any]:
    """The configuration of the scheduler of a network's home, which steps with a shift.

    Raises UserError with the reason where diffusers has none.
    """
    range_fits = {"its data lie in [-1, 1]": spec.data_range == (-1.0, 1.0) and spec.input_scale == "none"}
    found = min((of(spec, shift) for of in (_of_betas, _of_flow)), key=lambda scheduler: len(scheduler.misfits))
    for reason in Scheduler({**found.reasons, **range_fits}, found.config).misfits:
        raise UserError(f"diffusers has no scheduler equal to this home: {reason}")
    return {**found.config(), "_diffusers_version": VERSION}


def export_diffusers(denoiser: NetworkDenoiser, folder: str | Path, *, shift: float = 1.0) -> None:
    """Write a network into a new folder that diffusers loads: a DDPMPipeline of a UNet2DModel and a scheduler.

    The scheduler is DDPMScheduler for a table of betas, and FlowMatchEulerDiscreteScheduler with the shift for
    rectified flow. Raises UserError for a folder that is not empty, and with the reason where diffusers has no equal.
    """
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} exists and is not an empty folder; choose another one")
    net = denoiser.net
    network, scheduler = network_config(net), scheduler_config(denoiser.spec, shift)
    assert isinstance(net, Backbone)
    weights = exported(net.state_dict(), unet_rules(net))
    parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
    write_aside(place / "unet" / f"{WEIGHTS}.safetensors", safetensors(weights, metadata={"format": "pt"}))
    documents = {
        "unet/config.json": network,
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION, **parts},
    }
    for name, content in documents.items():
        write_aside(place / name, (json.dumps(content, indent=2) + "\n").encode())
