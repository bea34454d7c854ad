"""Folders of diffusers: a UNet2DModel with its scheduler, read and written without the library.

FOLDER/unet/config.json                          or FOLDER/config.json
FOLDER/unet/diffusion_pytorch_model.safetensors  or beside it (.bin too)
FOLDER/scheduler/scheduler_config.json           or FOLDER/scheduler_config.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion.core.continuous import RectifiedFlow
from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.sizes import sides, size_of
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, only, read_json, resolved
from sde_diffusion.importers.reading import read_safetensors, read_torch
from sde_diffusion.importers.rules import BlockNames, Part, Rule, by_class, pair, stacked
from sde_diffusion.importers.wrapped import bare, states
from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.blocks import Head, ResidualBlock, SelfAttention
from sde_diffusion.nets.building import outline
from sde_diffusion.nets.resample import DownConv, UpConv

PUBLISHED: dict[str, Settings] = {}
"""Folders of diffusers carry their configuration."""

WEIGHTS = "diffusion_pytorch_model"

# --- weights --------------------------------------------------------------------------------------------------

_BLOCK = BlockNames("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What the layers of attention were called before release 0.18, as in many published folders."""


def _attention(ours: str, theirs: str, former: bool) -> list[Rule]:
    names = {name: _FORMER[name] if former else name for name in _FORMER}
    return [
        *pair(f"{ours}.norm", f"{theirs}.group_norm"),
        *stacked(f"{ours}.qkv", [f"{theirs}.{names[name]}" for name in ("to_q", "to_k", "to_v")]),
        *stacked(f"{ours}.out", [f"{theirs}.{names['to_out.0']}"]),
    ]


def unet_rules(net: Backbone, former: bool = False) -> list[Rule]:
    """The rules of UNet2DModel. former: attention has the names it had before release 0.18."""
    deepest = len(net.encoder) - 1

    def place(part: Part) -> str:
        block = isinstance(part.module, ResidualBlock)
        kind = "resnets" if block else "attentions"
        if part.where == "middle":
            return f"mid_block.{kind}.{1 if block and part.index else 0}"
        if part.where == "down":  # there it is the end of the level before
            return f"down_blocks.{part.level - 1}.downsamplers.0"
        if part.where == "up":
            return f"up_blocks.{deepest - part.level}.upsamplers.0"
        if part.where.startswith("up_"):
            return f"up_blocks.{deepest - part.level}.{kind}.{part.index}"
        return f"down_blocks.{part.level}.{kind}.{part.index}"

    def resized(part: Part) -> list[Rule]:
        return pair(f"{part.ours}.conv", f"{place(part)}.conv")

    rules = [
        *pair("conditioning.hidden", "time_embedding.linear_1"),
        *pair("conditioning.out", "time_embedding.linear_2"),
    ]
    if net.conditioning.classes is not None:
        rules.append(Rule("conditioning.classes.weight", ("class_embedding.weight",)))
    return rules + by_class(
        net,
        {
            nn.Conv2d: lambda part: pair(part.ours, "conv_in"),
            ResidualBlock: lambda part: _BLOCK.rules(part.ours, part.module, place(part)),
            SelfAttention: lambda part: _attention(part.ours, place(part), former),
            DownConv: resized,
            UpConv: resized,
            Head: lambda part: [*pair("head.norm", "conv_norm_out"), *pair("head.conv", "conv_out")],
        },
    )


# --- configuration of the network -----------------------------------------------------------------------------

_NETWORK: Settings = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_CONV, _TYPED, _RESNET = "conv", "typed", "resnet"
_BLOCKS: dict[str, tuple[bool, str]] = {
    "DownBlock2D": (False, _CONV),
    "AttnDownBlock2D": (True, _TYPED),
    "ResnetDownsampleBlock2D": (False, _RESNET),
    "UpBlock2D": (False, _CONV),
    "AttnUpBlock2D": (True, _TYPED),
    "ResnetUpsampleBlock2D": (False, _RESNET),
}
"""Blocks -> whether attention follows, and what changes the size: "typed" is what (down|up)sample_type says."""
_MODEL_UNUSED = {"num_train_timesteps", "_class_name", "_diffusers_version", "_name_or_path"}


def _options(given: Settings) -> tuple[Settings, bool]:
    """The arguments of our network, and whether it takes images of [0, 1] and centres them."""
    own = resolved("diffusers network", given, _NETWORK, _MODEL_UNUSED)
    channels = list(own["block_out_channels"])
    unscaled = own["resnet_time_scale_shift"] == "default" or not own["add_attention"]
    for key, supported in (
        ("time_embedding_type", ["positional"]),
        ("mid_block_type", ["UNetMidBlock2D"]),
        ("mid_block_scale_factor", [1]),
        ("downsample_padding", [0, 1]),
        ("downsample_type", ["conv", "resnet"]),
        ("upsample_type", ["conv", "resnet"]),
        ("act_fn", ["silu", "swish"]),
        ("time_embedding_dim", [None, 4 * channels[0]]),
        # None leaves the attention of the middle without a norm where the norms of blocks are scaled and shifted.
        ("attn_norm_num_groups", [own["norm_num_groups"], *([None] if unscaled else [])]),
        ("class_embed_type", [None]),
        ("resnet_time_scale_shift", ["default", "scale_shift"]),
    ):
        only("diffusers", key, own[key], supported)
    down = [choose("block of diffusers", name, _BLOCKS) for name in own["down_block_types"]]
    up = [choose("block of diffusers", name, _BLOCKS) for name in own["up_block_types"]]
    # The last block of either way changes no size.
    changes = {own["downsample_type"] if kind == _TYPED else kind for _, kind in down[:-1]}
    changes |= {own["upsample_type"] if kind == _TYPED else kind for _, kind in up[:-1]}
    if len(changes) > 1:
        raise UserError("diffusers: sizes that change by convolutions on some levels and by blocks on others")
    size = sides(own["sample_size"] or 32, "diffusers: sample_size")
    return {
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"],
        "image_size": size_of(*size),
        "channels": channels,
        "blocks": own["layers_per_block"],
        "attention": [attention for attention, _ in down],
        "up_attention": [attention for attention, _ in up[::-1]],
        "head_channels": own["attention_head_dim"] or 0,
        "groups": own["norm_num_groups"],
        "eps": own["norm_eps"],
        "shift": own["freq_shift"],
        "cosine_first": own["flip_sin_to_cos"],
        "same_padding": own["downsample_padding"] == 0,
        "scale_shift": own["resnet_time_scale_shift"] == "scale_shift",
        "resample_blocks": changes == {_RESNET},
        "middle_attention": own["add_attention"],
        "dropout": own["dropout"],
        "num_classes": own["num_class_embeds"] or 0,
    }, bool(own["center_input_sample"])


# --- configuration of the scheduler ---------------------------------------------------------------------------

_SCHEDULER: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range", None]


def _linear(own: Settings) -> Tensor:
    return torch.linspace(own["beta_start"], own["beta_end"], own["num_train_timesteps"], dtype=torch.float64)


def _scaled_linear(own: Settings) -> Tensor:
    ends = own["beta_start"] ** 0.5, own["beta_end"] ** 0.5
    return torch.linspace(*ends, own["num_train_timesteps"], dtype=torch.float64) ** 2


_BETAS: dict[str, Callable[[Settings], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda own: DiscreteVP.cosine(own["num_train_timesteps"]).betas,
}


def _table_home(given: Settings) -> Settings:
    # A scheduler has many keys that concern its own steps; those of the training alone are read.
    own = {**_SCHEDULER, **{key: value for key, value in given.items() if key in _SCHEDULER}}
    name = str(given.get("_class_name", "DDPMScheduler"))
    if not given.keys() & {"beta_schedule", "beta_start", "beta_end", "trained_betas"} and name != "DDPMScheduler":
        raise UserError(
            f"the scheduler {name!r} has no table of betas: those of a variance-preserving "
            "process are supported (DDPM, DDIM, PNDM, DPMSolver, UniPC, Euler, Heun, ...), and those of flow matching"
        )
    only("diffusers", "variance_type", own["variance_type"], _VARIANCES)
    betas = own["trained_betas"] or choose("beta_schedule", own["beta_schedule"], _BETAS)(own)
    prediction = choose("prediction_type", own["prediction_type"], _PREDICTIONS)
    process = DiscreteVP(torch.as_tensor(betas, dtype=torch.float64))
    return {
        "process": process.rescaled() if own["rescale_betas_zero_snr"] else process,
        "prediction": prediction,
        "label": "index",
        "variance": "learned_range" if own["variance_type"] == "learned_range" else "fixed",
    }


_FLOW: Settings = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}
_OWN_STEPS = "its steps are not those of one shift"
_UNSHIFTED = {
    "use_dynamic_shifting": "its shift is another one for each size of picture",
    "invert_sigmas": "its network is told the time from noise to data",
    "shift_terminal": _OWN_STEPS,
    "use_karras_sigmas": _OWN_STEPS,
    "use_exponential_sigmas": _OWN_STEPS,
    "use_beta_sigmas": _OWN_STEPS,
    "stochastic_sampling": "its steps draw noise of their own",
}
"""Keys of a flow-matching scheduler that have no equal here, and why."""
_FLOW_UNUSED = {
    *("_class_name", "_diffusers_version", "_name_or_path", "base_shift", "max_shift", "base_image_seq_len"),
    *("max_image_seq_len", "time_shift_type"),  # of dynamic shifting
}


def _flow_home(given: Settings) -> Settings:
    own = resolved("diffusers scheduler", given, _FLOW, _FLOW_UNUSED)
    for key, reason in _UNSHIFTED.items():
        if own[key]:
            raise UserError(f"diffusers: {key} = {own[key]!r} of a flow-matching scheduler is not supported: {reason}")
    only("diffusers", "num_train_timesteps of flow matching", own["num_train_timesteps"], [1000])
    return {"process": RectifiedFlow(), "prediction": "velocity", "label": "thousand_time"}


_FLOW_SAMPLERS = {"FlowMatchEulerDiscreteScheduler": "euler", "FlowMatchHeunDiscreteScheduler": "heun"}
"""Schedulers of flow matching alone -> their sampler here."""
_SOLVERS = {
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "UniPCMultistepScheduler": "unipc",
}
"""Schedulers that solve the flow of rectified flow where use_flow_sigmas is set -> their sampler here."""


def _scheduler_home(given: Settings) -> tuple[Settings, Settings]:
    """The home of a scheduler's network, and how it samples, as keys of `sampling`."""
    name = str(given.get("_class_name"))
    if name in _FLOW_SAMPLERS:
        return _flow_home(given), _flow_sampling(_FLOW_SAMPLERS[name], given.get("shift", 1.0))
    if not given.get("use_flow_sigmas"):
        return _table_home(given), {}
    only("diffusers", "the scheduler with use_flow_sigmas", name, list(_SOLVERS))
    only("diffusers", "prediction_type with use_flow_sigmas", given.get("prediction_type"), ["flow_prediction"])
    read = {key: given[key] for key in ("num_train_timesteps", *_UNSHIFTED) if key in given}
    return _flow_home(read), _flow_sampling(_SOLVERS[name], given.get("flow_shift", 1.0))


def _flow_sampling(sampler: str, shift: float) -> Settings:
    return {"sampler": sampler, "grid": "uniform", "shift": float(shift)}


# --- the folder -----------------------------------------------------------------------------------------------


def _json(folder: Path, *places: str) -> Settings | None:
    return next((read_json(folder / place) for place in places if (folder / place).is_file()), None)


def _weights(folder: Path) -> Mapping[str, Tensor]:
    for place in (folder / "unet", folder):
        if (place / f"{WEIGHTS}.safetensors").is_file():
            return bare(read_safetensors(place / f"{WEIGHTS}.safetensors"))
        if (place / f"{WEIGHTS}.bin").is_file():
            return states(read_torch(place / f"{WEIGHTS}.bin"), place, "diffusers").weights
    raise UserError(f"{folder} holds no {WEIGHTS}.safetensors, nor in unet/: is it a folder of diffusers?")


def read(path: Path, config: Settings | None) -> Foreign:
    """The network of a folder; config: {"network": {...}, "scheduler": {...}} in place of its own files.

    Raises UserError for a folder that is none of diffusers', and for options that are not supported.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder: a model of diffusers is one, with config.json and scheduler_config.json"
        )
    given = resolved("diffusers", config or {}, {"network": None, "scheduler": None})
    network = given["network"] or _json(path, "unet/config.json", "config.json")
    scheduler = given["scheduler"] or _json(path, "scheduler/scheduler_config.json", "scheduler_config.json")
    if network is None:
        raise UserError(f"{path} holds no config.json of a network, nor in unet/: is it a folder of diffusers?")
    if scheduler is None:
        raise UserError(
            f"{path} holds no scheduler/scheduler_config.json, which tells the noise levels of the training"
        )
    only("diffusers", "_class_name", network.get("_class_name", "UNet2DModel"), ["UNet2DModel"])
    home, sampling = _scheduler_home(scheduler)
    options, centred = _options(network)
    spec = NetworkSpec(
        **home,
        input_scale="centre" if centred else "none",
        data_range=(0.0, 1.0) if centred else (-1.0, 1.0),
        shape=(options["in_channels"], *sides(options["image_size"])),
        network="unet2d",
        options=options,
    )
    channels = (2 if spec.variance == "learned_range" else 1) * options["in_channels"]
    if options["out_channels"] != channels:
        raise UserError(
            f"the network puts out {options['out_channels']} channels, and {channels} are expected of one for "
            f"{options['in_channels']} with the scheduler's variance_type: {spec.variance}"
        )
    net = outline(spec.network, spec.options)
    assert isinstance(net, Backbone)
    weights = _weights(path)
    former = any(key.endswith(".query.weight") for key in weights)
    return Foreign(spec, net, unet_rules(net, former), weights, sampling=sampling)
