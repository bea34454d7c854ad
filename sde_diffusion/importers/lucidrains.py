"""Checkpoints of lucidrains/denoising-diffusion-pytorch: a model-N.pt of its Trainer, or a state dict of its Unet.

    {"step", "model": weights of GaussianDiffusion, "ema": {"ema_model.*", "online_model.*", ...}, "version", ...}

The file tells nearly all: the network by its shapes and names, the noise levels by its table of betas, and what the
network predicts by the weights of its losses. It does not tell the size of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, needed, only, resolved
from sde_diffusion.importers.reading import read_torch
from sde_diffusion.importers.rules import Rule, pair
from sde_diffusion.importers.wrapped import States, bare, is_state, states
from sde_diffusion.nets.building import outline

PUBLISHED: dict[str, Settings] = {}
"""The code base has no published models."""

Weights = Mapping[str, Tensor]

# --- weights --------------------------------------------------------------------------------------------------


def _flat(ours: str, theirs: str) -> Rule:
    """A gain [C] that is [1, C, 1, 1] there."""
    return Rule(ours, (theirs,), lambda tensors: tensors[0].flatten())


def _only(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _turned(tensors: Sequence[Tensor]) -> Tensor:
    """[2, heads, memory, channels] of linear attention's [2, heads, channels, memory]."""
    return tensors[0].transpose(2, 3)


def _block(ours: str, theirs: str, options: Settings) -> list[Rule]:
    rules = pair(f"{ours}.modulation", f"{theirs}.mlp.1")
    for own, there in ((f"{ours}.{name}", f"{theirs}.{name}") for name in ("block1", "block2")):
        rules += pair(f"{own}.conv", f"{there}.proj")
        norm = pair(f"{own}.norm", f"{there}.norm")
        rules += norm if options["groups"] else [_flat(f"{own}.norm.gain", f"{there}.norm.g")]
    return rules


def _attention(ours: str, theirs: str, linear: bool, options: Settings) -> list[Rule]:
    inner = f"{theirs}.fn.fn" if options["former"] else theirs
    norm = f"{theirs}.fn.norm.g" if options["former"] else f"{theirs}.norm.g"
    rules = [_flat(f"{ours}.norm.gain", norm), Rule(f"{ours}.qkv.weight", (f"{inner}.to_qkv.weight",))]
    rules += pair(f"{ours}.out", f"{inner}.to_out.0" if linear else f"{inner}.to_out")
    if linear:
        rules.append(_flat(f"{ours}.out_norm.gain", f"{inner}.to_out.1.g"))
    if options["memory"]:
        rules.append(Rule(f"{ours}.memory", (f"{inner}.mem_kv",), _turned if linear else _only))
    return rules


def unet_rules(options: Settings, weights: Weights) -> list[Rule]:
    """The rules of their Unet. weights: its own, which tell where a block has a skip of its own."""
    last = len(options["multipliers"]) - 1

    def block(ours: str, theirs: str) -> list[Rule]:
        skip = pair(f"{ours}.skip", f"{theirs}.res_conv") if f"{theirs}.res_conv.weight" in weights else []
        return [*_block(ours, theirs, options), *skip]

    rules = [*pair("stem", "init_conv"), *pair("conditioning.hidden", "time_mlp.1")]
    rules += [*pair("conditioning.out", "time_mlp.3"), *pair("head", "final_conv"), *block("final", "final_res_block")]
    rules += [*block("middle_block1", "mid_block1"), *block("middle_block2", "mid_block2")]
    rules += _attention("middle_attention", "mid_attn", False, options)
    for number in range(last + 1):
        for ours, theirs, level in (("encoder", "downs", number), ("decoder", "ups", last - number)):
            own, there = f"{ours}.{number}", f"{theirs}.{number}"
            rules += [*block(f"{own}.block1", f"{there}.0"), *block(f"{own}.block2", f"{there}.1")]
            rules += _attention(f"{own}.attention", f"{there}.2", not options["full_attention"][level], options)
            changes = number != last  # of the last level either way the size stays
            rules += pair(
                f"{own}.change.conv" if changes else f"{own}.change", f"{there}.3.1" if changes else f"{there}.3"
            )
    return rules


# --- configuration --------------------------------------------------------------------------------------------

_CONFIG: Settings = {
    "image_size": None,
    "attn_heads": 4,
    "resnet_block_groups": 8,
    "sinusoidal_pos_emb_theta": 10000,
    "dropout": 0.0,
    "auto_normalize": True,
    "timesteps": 1000,
    "beta_schedule": None,
    "objective": None,
}
_UNUSED = {"dim", "init_dim", "out_dim", "dim_mults", "channels", "learned_variance", "attn_dim_head", "full_attn"} | {
    "flash_attn",
    "sampling_timesteps",
    "ddim_sampling_eta",
    "offset_noise_strength",
    "min_snr_loss_weight",
    "min_snr_gamma",
    "immiscible",
}
"""What the file tells itself, or what concerns their sampling and training alone."""
_PREDICTIONS = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
_FORMER_CONV = "downs.0.3.weight"


def _sigmoid(n: int) -> DiscreteVP:
    """alpha_bar falls as a logistic function from -3 to 3 (Jabri et al. 2022, figure 8)."""
    t = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    alpha_bar = (ends[1] - (6.0 * t - 3.0).sigmoid()) / (ends[1] - ends[0])
    return DiscreteVP((1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0.0, 0.999))


SCHEDULES: dict[str, Callable[[int], DiscreteVP]] = {
    "linear": DiscreteVP.linear,
    "cosine": DiscreteVP.cosine,
    "sigmoid": _sigmoid,
}


def process_of(betas: Tensor | None, own: Settings) -> DiscreteVP:
    """The process of a table of betas in float32: the schedule in full precision that it is of, or else its own."""
    if betas is None:
        needed("lucidrains", {key: value for key, value in own.items() if value is not None}, ["beta_schedule"])
        return choose("beta_schedule", own["beta_schedule"], SCHEDULES)(own["timesteps"])
    for schedule in SCHEDULES.values():
        try:
            found = schedule(len(betas))
        except UserError:  # a schedule that has no table of so few levels
            continue
        if torch.allclose(found.betas, betas.double(), rtol=1e-5, atol=1e-7):
            return found
    return DiscreteVP(betas.double())


def objective_of(weight: Tensor | None, process: DiscreteVP, own: Settings) -> str:
    """What the network predicts, by the weights of the losses: SNR, or min(SNR, gamma), in the units of each.

    Raises UserError where neither these nor the configuration say it.
    """
    if own["objective"] is not None or weight is None:
        needed("lucidrains", {key: value for key, value in own.items() if value is not None}, ["objective"])
        return str(own["objective"])
    snr = process.levels.logsnr.exp()
    scales = {"pred_noise": snr, "pred_x0": torch.ones_like(snr), "pred_v": snr + 1.0}
    for name, scale in scales.items():
        told = weight.double() * scale
        if torch.allclose(told, snr.clamp(max=float(told.max())), rtol=1e-3, atol=1e-6):
            return name
    raise UserError(
        f"the weights of the losses in the file are those of no objective: give 'objective', one of {', '.join(scales)}"
    )


def _options(weights: Weights, own: Settings) -> Settings:
    """The arguments of our network, by the shapes of theirs. Raises UserError for layers that are not supported."""
    lacking = [key for key in ("init_conv.weight", "time_mlp.1.weight", "final_conv.weight") if key not in weights]
    if lacking:
        raise UserError(f"the weights are none of denoising-diffusion-pytorch's Unet: {', '.join(lacking)} are missing")
    if "time_mlp.0.weights" in weights:
        raise UserError("lucidrains: networks with learned or random sinusoidal features are not supported")
    levels = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("downs."))
    if levels > 1 and _FORMER_CONV in weights:
        raise UserError("lucidrains: files from before release 0.32 (November 2022) have other layers: not supported")
    former = any(".fn.fn." in key for key in weights)
    channels = weights["time_mlp.1.weight"].shape[1]
    stem, into = weights["init_conv.weight"].shape[:2]
    out = len(weights["final_conv.weight"])
    if into == 2 * out:
        raise UserError(
            f"lucidrains: a network of {into} channels in and {out} out is told its own former prediction "
            "(self_condition=True), which is not supported"
        )
    widths = [len(weights[f"downs.{i}.3.1.weight" if i < levels - 1 else f"downs.{i}.3.weight"]) for i in range(levels)]
    attentions = [f"downs.{i}.2.fn.fn" if former else f"downs.{i}.2" for i in range(levels)]
    memory = weights.get("mid_attn.mem_kv")
    inner = len(weights[f"{attentions[-1]}.to_qkv.weight"]) // 3
    heads = own["attn_heads"] if memory is None else memory.shape[1]
    return {
        "in_channels": into,
        "image_size": own["image_size"],
        "out_channels": out,
        "channels": channels,
        "stem": stem,
        "multipliers": [width // channels for width in widths],
        "full_attention": [f"{name}.to_out.weight" in weights for name in attentions],
        "heads": heads,
        "head_channels": inner // heads,
        "memory": 0 if memory is None else memory.shape[2],
        "groups": own["resnet_block_groups"] if "mid_block1.block1.norm.weight" in weights else 0,
        "former": former,
        "dropout": own["dropout"],
    }


# --- the file -------------------------------------------------------------------------------------------------


def _stripped(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _found(content: Any, path: Path) -> tuple[States, Weights, int, str]:
    """The weights of the Unet, the tables of the diffusion, and the step and release that the file names."""
    if isinstance(content, Mapping) and is_state(content.get("model")):
        model, ema = bare(content["model"]), content.get("ema")
        inside = bare(_stripped(ema, "ema_model.")) if isinstance(ema, Mapping) else {}
        averages = _stripped(inside, "model.") or None
        states_of = States(_stripped(model, "model.") or model, averages=averages)
        return states_of, model, int(content.get("step") or 0), str(content.get("version") or "")
    found = states(content, path, "denoising-diffusion-pytorch")
    inner = _stripped(found.weights, "model.")
    averages = found.averages and (_stripped(found.averages, "model.") or found.averages)
    return States(inner or found.weights, found.averaged, averages), found.weights, 0, ""


def read(path: Path, config: Settings | None) -> Foreign:
    """The network of a .pt file. Raises UserError for a file that is none of the code base's, and for what it needs."""
    found, tables, step, version = _found(read_torch(path), path)
    own = resolved("lucidrains", config or {}, _CONFIG, _UNUSED)
    if own["image_size"] is None:
        raise UserError(
            f'{path.name} does not say the size of its pictures: give it, as {{"image_size": 64}}, in a JSON file'
        )
    size = own["image_size"] if isinstance(own["image_size"], list | tuple) else [own["image_size"]] * 2
    only("lucidrains", "sinusoidal_pos_emb_theta", own["sinusoidal_pos_emb_theta"], [10000])
    options = _options(found.weights, own)
    if options["former"] and version.startswith("1.7"):
        raise UserError(f"lucidrains: files of release {version} have layers of their own; those before and since load")
    process = process_of(tables.get("betas"), own)
    objective = objective_of(tables.get("loss_weight"), process, own)
    learned = options["out_channels"] == 2 * options["in_channels"]
    spec = NetworkSpec(
        process=process,
        prediction=choose("objective", objective, _PREDICTIONS),
        label="index",
        data_range=(-1.0, 1.0) if own["auto_normalize"] else (0.0, 1.0),
        shape=(options["in_channels"], *size),
        network="lucidrains",
        options=options,
        variance="learned_range" if learned else "fixed",
    )
    net = outline(spec.network, spec.options)
    rules = unet_rules(options, found.weights)
    return Foreign(spec, net, rules, found.weights, found.averages, step=step, averaged=found.averaged)
