"""Checkpoints of improved- and guided-diffusion (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021): a .pt state dict.

The configuration is given under their own names: the flags of their scripts (num_channels, attention_resolutions as
"16,8" pixels, learn_sigma, ...), or the arguments of UNetModel (model_channels, attention_resolutions as factors of
the size, out_channels, ...); the flags of the diffusion may stand beside either.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, needed, only, resolved
from sde_diffusion.importers.reading import read_torch
from sde_diffusion.importers.rules import BlockNames, Part, Rule, by_class, matrix, pair, qkv
from sde_diffusion.importers.wrapped import states
from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.blocks import Head, ResidualBlock, SelfAttention
from sde_diffusion.nets.building import outline
from sde_diffusion.nets.resample import Down, DownConv, Up, UpConv

# --- weights --------------------------------------------------------------------------------------------------

_BLOCK = BlockNames("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def unet_rules(net: Backbone, new_order: bool) -> list[Rule]:
    """The rules of UNetModel. new_order: rows of qkv are ordered as ours, instead of head by head."""
    rules = [*pair("conditioning.hidden", "time_embed.0"), *pair("conditioning.out", "time_embed.2")]
    if net.conditioning.classes is not None:
        rules.append(Rule("conditioning.classes.weight", ("label_emb.weight",)))
    counts = {"input_blocks": 0, "output_blocks": 0}

    def opened(blocks: str) -> str:
        """The next entry of a list of blocks, which the attention and the change of size after it share."""
        counts[blocks] += 1
        return f"{blocks}.{counts[blocks] - 1}"

    order = "part head channel" if new_order else "head part channel"
    last, layers = "", count()

    def place(part: Part) -> str:
        nonlocal last, layers
        opens = {"stem": "input_blocks", "down": "input_blocks", "block": "input_blocks", "up_block": "output_blocks"}
        if part.where in opens or (part.where == "middle" and part.index == 0):
            last, layers = opened(opens[part.where]) if part.where in opens else "middle_block", count()
        return f"{last}.{next(layers)}"

    def attention(part: Part) -> list[Rule]:
        ours, theirs = part.ours, place(part)
        return [
            *pair(f"{ours}.norm", f"{theirs}.norm"),
            *qkv(f"{ours}.qkv", f"{theirs}.qkv", part.module.heads, order),
            *matrix(f"{ours}.out", f"{theirs}.proj_out"),
        ]

    def without_weights(part: Part) -> list[Rule]:
        place(part)
        return []

    return rules + by_class(
        net,
        {
            nn.Conv2d: lambda part: pair(part.ours, place(part)),
            ResidualBlock: lambda part: _BLOCK.rules(part.ours, part.module, place(part)),
            SelfAttention: attention,
            DownConv: lambda part: pair(f"{part.ours}.conv", f"{place(part)}.op"),
            UpConv: lambda part: pair(f"{part.ours}.conv", f"{place(part)}.conv"),
            Down: without_weights,
            Up: without_weights,
            Head: lambda part: [*pair("head.norm", "out.0"), *pair("head.conv", "out.2")],
        },
    )


# --- configuration --------------------------------------------------------------------------------------------

_DIFFUSION = {
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "learn_sigma": False,
}
_UNUSED = {
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
    "sigma_small",
    "use_checkpoint",
    "use_fp16",
    "dims",
}
_ARGUMENTS = {
    "image_size": 64,
    "in_channels": 3,
    "model_channels": 128,
    "out_channels": 3,
    "num_res_blocks": 2,
    "attention_resolutions": (),
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "num_classes": None,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_FLAGS = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_GUIDED_ONLY = {"num_head_channels", "resblock_updown", "use_new_attention_order", "use_fp16", "channel_mult"}
_MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4)} | {
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
IMAGENET_CLASSES = 1000
_SCHEDULES = {"linear": DiscreteVP.linear, "cosine": DiscreteVP.cosine}

_IMPROVED = {"diffusion_steps": 4000, "noise_schedule": "cosine", "learn_sigma": True, "num_res_blocks": 3} | {
    "rescale_timesteps": True
}
_GUIDED = {"attention_resolutions": "32,16,8", "diffusion_steps": 1000, "learn_sigma": True} | {
    "num_head_channels": 64,
    "resblock_updown": True,
}
_LSUN = _GUIDED | {"image_size": 256, "num_channels": 256, "num_res_blocks": 2}
PUBLISHED: dict[str, Settings] = {
    "cifar10_uncond_50M_500K": _IMPROVED | {"image_size": 32, "dropout": 0.3},
    "cifar10_uncond_vlb_50M_500K": _IMPROVED | {"image_size": 32, "dropout": 0.3},
    "imagenet64_uncond_100M_1500K": _IMPROVED | {"image_size": 64},
    "imagenet64_uncond_vlb_100M_1500K": _IMPROVED | {"image_size": 64},
    "imagenet64_cond_270M_250K": _IMPROVED
    | {"image_size": 64, "num_channels": 192, "class_cond": True, "rescale_timesteps": False},
    "64x64_diffusion": _GUIDED
    | {"class_cond": True, "noise_schedule": "cosine", "num_channels": 192, "num_res_blocks": 3}
    | {"use_new_attention_order": True, "dropout": 0.1},
    "128x128_diffusion": _GUIDED
    | {"class_cond": True, "image_size": 128, "num_channels": 256, "num_heads": 4, "num_head_channels": -1},
    "256x256_diffusion": _GUIDED | {"class_cond": True, "image_size": 256, "num_channels": 256},
    "256x256_diffusion_uncond": _GUIDED | {"image_size": 256, "num_channels": 256},
    "512x512_diffusion": _GUIDED | {"class_cond": True, "image_size": 512, "num_channels": 256},
    "lsun_bedroom": _LSUN | {"dropout": 0.1},
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN | {"dropout": 0.1},
}
"""The flags that their documentation gives for published models, by the name of their file."""


def _from_flags(given: Settings) -> Settings:
    """The arguments of UNetModel and the diffusion's flags, from the flags of their scripts."""
    # Both projects' scripts have a default of their own for this one.
    rescale = {"rescale_timesteps": not (_GUIDED_ONLY & given.keys())}
    own = resolved("OpenAI", given, {**_FLAGS, **_DIFFUSION, **rescale}, _UNUSED)
    size = int(own["image_size"])
    multipliers = own["channel_mult"] or _MULTIPLIERS.get(size)
    if not multipliers:
        sizes = ", ".join(map(str, sorted(_MULTIPLIERS)))
        raise UserError(f"OpenAI: channel_mult is needed for image_size {size}; only {sizes} have one of their own")
    if isinstance(multipliers, str):
        multipliers = [float(part) for part in multipliers.split(",")]
    resolutions = own["attention_resolutions"]
    pixels = resolutions.split(",") if isinstance(resolutions, str) else resolutions
    return {
        **{name: own[name] for name in own if name in _ARGUMENTS or name in _DIFFUSION},
        "in_channels": 3,
        "model_channels": own["num_channels"],
        "out_channels": 6 if own["learn_sigma"] else 3,
        "attention_resolutions": [size // int(part) for part in pixels],
        "channel_mult": multipliers,
        "num_classes": IMAGENET_CLASSES if own["class_cond"] else None,
    }


def _from_arguments(given: Settings) -> Settings:
    # Improved-diffusion's network is not told its size: 64, the default of their flags, unless it stands beside.
    needed("OpenAI", given, ("model_channels", "num_res_blocks"))
    own = resolved("OpenAI", given, {**_ARGUMENTS, **_DIFFUSION}, _UNUSED)
    return {**own, "learn_sigma": own["out_channels"] == 2 * own["in_channels"]}


def _spec(config: Settings, weights: Mapping[str, Tensor]) -> tuple[NetworkSpec, bool]:
    own = _from_arguments(config) if "model_channels" in config else _from_flags(config)
    only("OpenAI", "num_heads_upsample", own["num_heads_upsample"], [-1, own["num_heads"]])
    stem = weights.get("input_blocks.0.0.weight")
    multipliers, channels = list(own["channel_mult"]), own["model_channels"]
    options: dict[str, Any] = {
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"],
        "image_size": own["image_size"],
        "channels": channels,
        "multipliers": multipliers,
        "blocks": own["num_res_blocks"],
        "attention_factors": [int(factor) for factor in own["attention_resolutions"]],
        "heads": own["num_heads"],
        "head_channels": max(own["num_head_channels"], 0),
        "dropout": own["dropout"],
        "scale_shift": own["use_scale_shift_norm"],
        "resample_blocks": own["resblock_updown"],
        "convolutions": own.get("conv_resample", True),
        # The two projects differ in the stem where the first multiplier is not 1.
        "wide_stem": multipliers[0] != 1 and (stem is None or len(stem) != channels),
        "num_classes": own["num_classes"] or 0,
    }
    size = own["image_size"]
    schedule = choose("noise_schedule", own["noise_schedule"], _SCHEDULES)
    spec = NetworkSpec(
        process=schedule(own["diffusion_steps"]),
        prediction="x0" if own["predict_xstart"] else "eps",
        label="index_1000" if own["rescale_timesteps"] else "index",
        shape=(own["in_channels"], size, size),
        network="adm",
        options=options,
        variance="learned_range" if own["learn_sigma"] else "fixed",
    )
    return spec, bool(own["use_new_attention_order"])


# --- the file -------------------------------------------------------------------------------------------------


def read(path: Path, config: Settings | None) -> Foreign:
    """The network of a .pt file. Raises UserError for a file or a configuration that is none of OpenAI's."""
    found = states(read_torch(path), path, "improved- and guided-diffusion")
    if config is None:
        raise UserError(
            f"{path.name} does not say its configuration: give the source's own flags, as a JSON file or the name of a "
            f"published model: {', '.join(sorted(PUBLISHED))}"
        )
    spec, new_order = _spec(config, found.weights)
    net = outline(spec.network, spec.options)
    assert isinstance(net, Backbone)
    rules = unet_rules(net, new_order)
    return Foreign(spec, net, rules, found.weights, found.averages, averaged=found.averaged)
