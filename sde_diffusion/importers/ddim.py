"""Checkpoints of ermongroup/ddim (Song et al. 2020, DDIM) and pesser/pytorch_diffusion: DDPM's network in PyTorch.

A training of the first writes a list [model, optimizer, epoch, step, ema]; the models that the second converted from
Ho et al. 2020 are state dicts. The configuration is the first one's YAML file, or its sections data, model and
diffusion: their networks are told the level's index and predict the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, needed, only, resolved
from sde_diffusion.importers.reading import read_torch
from sde_diffusion.importers.rules import BlockNames, Part, Rule, by_class, matrix, pair, stacked
from sde_diffusion.importers.wrapped import States, bare, is_state, states
from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.blocks import Head, ResidualBlock, SelfAttention
from sde_diffusion.nets.building import outline
from sde_diffusion.nets.resample import Down, DownConv, Up, UpConv

# --- weights --------------------------------------------------------------------------------------------------

_BLOCK = BlockNames("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut")


def unet_rules(net: Backbone) -> list[Rule]:
    """The rules of their Model, whose levels are numbered from the image's size down on both ways."""

    def place(part: Part) -> str:
        kind = "attn" if isinstance(part.module, SelfAttention) else "block"
        if part.where == "middle":
            return f"mid.{kind}_{2 if kind == 'block' and part.index else 1}"
        way = "up" if part.where.startswith("up_") else "down"
        return f"{way}.{part.level}.{kind}.{part.index}"

    def attention(part: Part) -> list[Rule]:
        ours, theirs = part.ours, place(part)
        return [
            *pair(f"{ours}.norm", f"{theirs}.norm"),
            *stacked(f"{ours}.qkv", [f"{theirs}.{name}" for name in "qkv"]),
            *matrix(f"{ours}.out", f"{theirs}.proj_out"),
        ]

    def without_weights(part: Part) -> list[Rule]:
        return []

    rules = [*pair("conditioning.hidden", "temb.dense.0"), *pair("conditioning.out", "temb.dense.1")]
    return rules + by_class(
        net,
        {
            nn.Conv2d: lambda part: pair(part.ours, "conv_in"),
            ResidualBlock: lambda part: _BLOCK.rules(part.ours, part.module, place(part)),
            SelfAttention: attention,
            # There a change of size is the end of the level before.
            DownConv: lambda part: pair(f"{part.ours}.conv", f"down.{part.level - 1}.downsample.conv"),
            UpConv: lambda part: pair(f"{part.ours}.conv", f"up.{part.level}.upsample.conv"),
            Down: without_weights,
            Up: without_weights,
            Head: lambda part: [*pair("head.norm", "norm_out"), *pair("head.conv", "conv_out")],
        },
    )


# --- configuration --------------------------------------------------------------------------------------------

_DATA: Settings = {"image_size": 32, "channels": 3, "logit_transform": False, "rescaled": True}
_DATA_UNUSED = {"dataset", "category", "uniform_dequantization", "gaussian_dequantization", "random_flip"} | {
    "num_workers"
}
_MODEL: Settings = {"type": "simple", "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": (1, 2, 2, 2)} | {
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "resamp_with_conv": True,
}
_MODEL_UNUSED = {"var_type", "ema_rate", "ema"}
_DIFFUSION: Settings = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02} | {
    "num_diffusion_timesteps": 1000
}
_SECTIONS_UNUSED = {"training", "sampling", "optim"}


def _linspace(own: Settings, power: float = 1.0) -> Tensor:
    ends = own["beta_start"] ** (1 / power), own["beta_end"] ** (1 / power)
    return torch.linspace(*ends, own["num_diffusion_timesteps"], dtype=torch.float64) ** power


def _sigmoid(own: Settings) -> Tensor:
    rise = torch.linspace(-6.0, 6.0, own["num_diffusion_timesteps"], dtype=torch.float64).sigmoid()
    return rise * (own["beta_end"] - own["beta_start"]) + own["beta_start"]


_BETAS: dict[str, Callable[[Settings], Tensor]] = {
    "linear": _linspace,
    "quad": lambda own: _linspace(own, 2.0),
    "const": lambda own: torch.full((own["num_diffusion_timesteps"],), own["beta_end"], dtype=torch.float64),
    "jsd": lambda own: 1.0 / torch.arange(own["num_diffusion_timesteps"], 0, -1, dtype=torch.float64),
    "sigmoid": _sigmoid,
}


def _published(size: int, multipliers: tuple[int, ...], dropout: float) -> Settings:
    return {
        "data": {"image_size": size},
        "model": {"ch_mult": multipliers, "dropout": dropout},
        "diffusion": {},
    }


_LSUN = _published(256, (1, 1, 2, 2, 4, 4), 0.0)
PUBLISHED: dict[str, Settings] = {
    "cifar10": _published(32, (1, 2, 2, 2), 0.1),
    "celeba": _published(64, (1, 2, 2, 2, 4), 0.1),
    "bedroom": _LSUN,
    "church": _LSUN,
    **{f"{ema}lsun_{kind}": _LSUN for ema in ("", "ema_") for kind in ("bedroom", "cat", "church")},
    "ema_cifar10": _published(32, (1, 2, 2, 2), 0.1),
}
"""Their configuration files, and the models that were converted from Ho et al. 2020, by name."""


def _spec(config: Settings) -> NetworkSpec:
    sections = resolved("ddim", config, {"data": {}, "model": {}, "diffusion": {}}, _SECTIONS_UNUSED)
    data = resolved("ddim data", sections["data"] or {}, _DATA, _DATA_UNUSED)
    needed("ddim", {**sections, **(sections["data"] or {})}, ["image_size"])
    model = resolved("ddim model", sections["model"] or {}, _MODEL, _MODEL_UNUSED)
    diffusion = resolved("ddim diffusion", sections["diffusion"] or {}, _DIFFUSION)
    only("ddim", "data.logit_transform", data["logit_transform"], [False])
    only("ddim", "model.type", model["type"], ["simple"])
    only("ddim", "model.out_ch", model["out_ch"], [model["in_channels"]])
    betas = choose("beta_schedule", diffusion["beta_schedule"], _BETAS)(diffusion)
    size, channels = data["image_size"], model["in_channels"]
    options: dict[str, Any] = {
        "in_channels": channels,
        "image_size": size,
        "channels": model["ch"],
        "multipliers": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention_resolutions": list(model["attn_resolutions"]),
        "dropout": model["dropout"],
        "convolutions": model["resamp_with_conv"],
    }
    return NetworkSpec(
        process=DiscreteVP(betas),
        prediction="eps",
        label="index",
        data_range=(-1.0, 1.0) if data["rescaled"] else (0.0, 1.0),
        shape=(channels, size, size),
        network="ddpm",
        options=options,
    )


# --- the file -------------------------------------------------------------------------------------------------


def _found(content: Any, path: Path) -> tuple[States, int]:
    """The weights of a file and the step that they are of."""
    if not isinstance(content, list):
        found = states(content, path, "ddim")
        named = found.averages is None and any(part.startswith("ema_") for part in path.parts[-2:])
        return (States(found.weights, averaged=True) if named else found), 0
    if len(content) < 4 or not is_state(content[0]):
        raise UserError(f"{path} holds no list [model, optimizer, epoch, step, ema], as files of ddim do")
    averages = bare(content[4]) if len(content) > 4 and is_state(content[4]) else None
    weights = bare(content[0])
    return States(weights, averages=None if averages is None else {**weights, **averages}), int(content[3])


def read(path: Path, config: Settings | None) -> Foreign:
    """The network of a file. Raises UserError for a file or a configuration that is none of ddim's."""
    found, step = _found(read_torch(path), path)
    if config is None:
        raise UserError(
            f"{path.name} does not say its configuration: give the source's own (sections data, model, diffusion), as "
            f"a YAML or JSON file or the name of a published model: {', '.join(sorted(PUBLISHED))}"
        )
    spec = _spec(config)
    net = outline(spec.network, spec.options)
    assert isinstance(net, Backbone)
    rules = unet_rules(net)
    return Foreign(spec, net, rules, found.weights, found.averages, step=step, averaged=found.averaged)
