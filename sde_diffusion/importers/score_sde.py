"""Checkpoints of score_sde_pytorch (Song et al. 2021): a .pth with model, optimizer, ema and step.

The model's keys carry DataParallel's prefix "module."; ema holds a list, shadow_params, of the averages of the
parameters that are trained, in their order. A network for data in [0, 1] takes 2 x - 1 to the layers itself, and one
with scale_by_sigma divides its output by sigma from a table in the file: here both belong to the spec, and the network
predicts sigma times the score.

The configuration is theirs: sections model, data and training of one of their files, or a name of PUBLISHED. Where
model.name or training.sde is absent, as in a file of the sections of the network alone, the keys of the weights tell
the network, and scale_by_sigma the SDE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.core.continuous import VESDE, VPSDE, SubVPSDE
from sde_diffusion.core.discrete import DiscreteVE, DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, chosen, only, resolved
from sde_diffusion.importers.reading import read_torch
from sde_diffusion.importers.rules import Rule, converted
from sde_diffusion.importers.score_sde_ncsnv2 import ncsnv2_keys, registration
from sde_diffusion.importers.score_sde_unet import in_order, unet_rules
from sde_diffusion.importers.wrapped import bare, is_state, states
from sde_diffusion.nets.backbone import Backbone
from sde_diffusion.nets.building import outline
from sde_diffusion.nets.ncsnv2 import NCSNv2

# --- configuration --------------------------------------------------------------------------------------------

_MODEL = {
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "num_scales": 1000,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "dropout": 0.1,
    "nonlinearity": "swish",
    "normalization": "GroupNorm",
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    "num_res_blocks": 4,
    "attn_resolutions": (16,),
    "resamp_with_conv": True,
    "conditional": True,
    "scale_by_sigma": False,
    "fir": False,
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "attention_type": "ddpm",
    "init_scale": 0.0,
    "embedding_type": "fourier",
    "fourier_scale": 16.0,
    "conv_size": 3,
    "interpolation": "bilinear",
    "name": "",
    "ema_rate": 0.9999,
    "sigma_begin": 50.0,
}
_DATA = {"image_size": 32, "num_channels": 3, "channels": 3, "centered": False}
_TRAINING = {"continuous": True, "sde": ""}
_DDPMPP = {"nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 4, "embedding_type": "positional", "name": "ncsnpp"}
_NCSNPP = {"nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 4, "fir": True, "name": "ncsnpp"}
_VE = {"scale_by_sigma": True, "progressive_input": "residual", "embedding_type": "fourier"}
_VP_NCSNPP = _NCSNPP | {"progressive_input": "residual", "embedding_type": "positional"}
_DDPM = {"nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "name": "ddpm", "embedding_type": "positional"}
_DEEP = {"num_res_blocks": 8}
_LARGE = {
    "ch_mult": (1, 1, 2, 2, 2, 2, 2),
    "num_res_blocks": 2,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "scale_by_sigma": True,
    "sigma_max": 348.0,
    "num_scales": 2000,
}


def _published(model: Mapping[str, Any], sde: str, continuous: bool, size: int = 32) -> Settings:
    centered = sde != "vesde"
    return {
        "model": dict(model),
        "data": {"image_size": size, "num_channels": 3, "centered": centered},
        "training": {"sde": sde, "continuous": continuous},
    }


PUBLISHED: dict[str, Settings] = {
    "cifar10_ddpmpp_continuous": _published(_DDPMPP, "vpsde", True),
    "cifar10_ddpmpp_deep_continuous": _published(_DDPMPP | _DEEP, "vpsde", True),
    "cifar10_ddpmpp": _published(_DDPMPP, "vpsde", False),
    "subvp/cifar10_ddpm_continuous": _published(_DDPM, "subvpsde", True),
    "subvp/cifar10_ddpmpp_continuous": _published(_DDPMPP, "subvpsde", True),
    "subvp/cifar10_ddpmpp_deep_continuous": _published(_DDPMPP | _DEEP, "subvpsde", True),
    "cifar10_ncsnpp_continuous": _published(_NCSNPP | _VE, "vesde", True),
    "cifar10_ncsnpp_deep_continuous": _published(_NCSNPP | _VE | _DEEP, "vesde", True),
    "cifar10_ncsnpp": _published(_NCSNPP | _VE | {"embedding_type": "positional"}, "vesde", False),
    "vp/cifar10_ncsnpp": _published(_VP_NCSNPP, "vpsde", False),
    "vp/cifar10_ncsnpp_continuous": _published(_VP_NCSNPP, "vpsde", True),
    "vp/cifar10_ncsnpp_deep_continuous": _published(_VP_NCSNPP | _DEEP, "vpsde", True),
    "subvp/cifar10_ncsnpp_continuous": _published(_VP_NCSNPP, "subvpsde", True),
    "subvp/cifar10_ncsnpp_deep_continuous": _published(_VP_NCSNPP | _DEEP, "subvpsde", True),
    "cifar10_ddpm_continuous": _published(_DDPM, "vpsde", True),
    "cifar10_ddpm": _published(_DDPM, "vpsde", False),
    "ve/cifar10_ddpm": _published(_DDPM | {"scale_by_sigma": True}, "vesde", False),
    "ncsnv2/cifar10": _published(
        {"name": "ncsnv2_64", "nf": 128, "num_scales": 232, "scale_by_sigma": True, "nonlinearity": "elu"}
        | {"normalization": "InstanceNorm++"},
        "vesde",
        False,
    ),
    "celebahq_256_ncsnpp_continuous": _published(_NCSNPP | _VE | _LARGE, "vesde", True, 256),
    "ffhq_256_ncsnpp_continuous": _published(_NCSNPP | _VE | _LARGE, "vesde", True, 256),
    "bedroom_ncsnpp_continuous": _published(_NCSNPP | _VE | _LARGE | {"sigma_max": 378.0}, "vesde", True, 256),
    "church_ncsnpp_continuous": _published(_NCSNPP | _VE | _LARGE | {"sigma_max": 380.0}, "vesde", True, 256),
}
PUBLISHED |= {
    f"{settings['training']['sde'].removesuffix('sde')}/{name}": settings
    for name, settings in PUBLISHED.items()
    if "/" not in name
}
"""Configurations of published models, by the path of their folder and, where that tells them apart, by its name."""

_PYRAMIDS = {"none": "none", "input_skip": "skip", "output_skip": "skip", "residual": "residual"}
_UNUSED_DATA = {"dataset", "random_flip", "uniform_dequantization", "category", "tfrecords_path", "root"}
_UNUSED_TRAINING = {
    "batch_size",
    "n_iters",
    "log_freq",
    "eval_freq",
    "snapshot_freq",
    "snapshot_freq_for_preemption",
    "snapshot_sampling",
    "likelihood_weighting",
    "reduce_mean",
    "continuouse",  # as one of their files has it
}
_SECTIONS = {"model": None, "data": None, "training": None}
_UNUSED_SECTIONS = {"sampling", "eval", "optim", "seed", "device", "sde", "name"}


def _network_name(weights: Mapping[str, Tensor], model: Mapping[str, Any]) -> str:
    """The network: the one that the configuration names, or the one that the weights tell."""
    name = str(model["name"]).lower()
    if name:
        return "ncsnv2" if name.startswith("ncsnv2") else name
    if "begin_conv.weight" in weights:
        return "ncsnv2"
    # With BigGAN's blocks a change of size always has a Conv_2; DDPM's own network knows no type of blocks.
    big = any(key.endswith("Conv_2.weight") for key in weights)
    return "ncsnpp" if big or str(model["resblock_type"]).lower() == "ddpm" else "ddpm"


def _size(data: Settings) -> Settings:
    return {"in_channels": int(data["num_channels"]), "image_size": int(data["image_size"])}


def _widths(model: Settings) -> Settings:
    return {
        "channels": model["nf"],
        "multipliers": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention_resolutions": list(model["attn_resolutions"]),
        "dropout": model["dropout"],
    }


def _conditional(model: Settings) -> None:
    only("score_sde", "model.conditional", model["conditional"], [True])
    only("score_sde", "model.nonlinearity", model["nonlinearity"], ["swish"])


def _ddpm(model: Settings, data: Settings) -> tuple[str, Settings]:
    _conditional(model)
    own = {"convolutions": model["resamp_with_conv"], "last_attention": True}
    return "ddpm", {**_size(data), **_widths(model), **own}


def _ncsnpp(model: Settings, data: Settings) -> tuple[str, Settings]:
    _conditional(model)
    fourier = chosen("embedding_type", model["embedding_type"], {"fourier": True, "positional": False})
    own = {
        "embedding": "fourier" if fourier else "positional",
        "features": 2 if fourier else 1,
        "fourier_scale": model["fourier_scale"],
        "big_blocks": chosen("resblock_type", model["resblock_type"], {"biggan": True, "ddpm": False}),
        "convolutions": model["resamp_with_conv"],
        "rescale": model["skip_rescale"],
        "taps": list(model["fir_kernel"]) if model["fir"] else [],
        "input_pyramid": chosen("progressive_input", model["progressive_input"], _PYRAMIDS),
        "output_pyramid": chosen("progressive", model["progressive"], _PYRAMIDS),
        "combine": chosen("progressive_combine", model["progressive_combine"], {"sum": "sum", "cat": "cat"}),
    }
    return "songunet", {**_size(data), **_widths(model), **own}


def _ncsnv2(model: Settings, data: Settings) -> tuple[str, Settings]:
    only("score_sde", "model.nonlinearity", model["nonlinearity"], ["elu"])
    only("score_sde", "model.normalization", model["normalization"], ["InstanceNorm++"])
    return "ncsnv2", {**_size(data), "channels": model["nf"]}


_OPTIONS: dict[str, Callable[[Settings, Settings], tuple[str, Settings]]] = {
    "ddpm": _ddpm,
    "ncsnpp": _ncsnpp,
    "ncsnv2": _ncsnv2,
}
"""Their networks -> ours with its arguments."""

Home = tuple[SDE, str]


def _positional(model: Settings) -> None:
    """Of a step the source would take the logarithm for Fourier features, which no model of it does."""
    only("score_sde with a variance-preserving SDE", "model.embedding_type", _features(model), ["positional"])


def _features(model: Settings) -> str:
    """How the network is told its label: `ddpm` knows one way only, whatever the configuration says."""
    return "fourier" if model["name"] != "ddpm" and str(model["embedding_type"]).lower() == "fourier" else "positional"


def _vp_home(model: Settings, continuous: bool) -> Home:
    _positional(model)
    if continuous:
        return VPSDE(model["beta_min"], model["beta_max"]), "time"
    return DiscreteVP.linear(model["num_scales"], model["beta_min"], model["beta_max"]), "index"


def _subvp_home(model: Settings, continuous: bool) -> Home:
    _positional(model)
    return SubVPSDE(model["beta_min"], model["beta_max"]), "time"


def _ve_home(model: Settings, continuous: bool) -> Home:
    ends = float(model["sigma_min"]), float(model["sigma_max"])
    if continuous:
        return VESDE(*ends), "log_sigma" if _features(model) == "fourier" else "sigma"
    return DiscreteVE.geometric(*ends, model["num_scales"]), "reversed_index"


_HOMES: dict[str, Callable[[Settings, bool], Home]] = {"vpsde": _vp_home, "subvpsde": _subvp_home, "vesde": _ve_home}


def _check_sigmas(table: Tensor | None, model: Settings) -> None:
    """Raises UserError where the noise levels in the file are not those of the configuration."""
    if table is None or table.ndim != 1 or not len(table):
        return
    there = len(table), float(table.max()), float(table.min())
    told = int(model["num_scales"]), float(model["sigma_max"]), float(model["sigma_min"])
    if there[0] != told[0] or any(abs(a / b - 1.0) > 1e-4 for a, b in zip(there[1:], told[1:], strict=True)):
        raise UserError(
            f"the file's table has {there[0]} noise levels from {there[1]:g} to {there[2]:g}, and the configuration "
            f"(num_scales, sigma_max, sigma_min) says {told[0]} from {told[1]:g} to {told[2]:g}"
        )


def _spec(config: Settings, weights: Mapping[str, Tensor]) -> NetworkSpec:
    """The spec of a configuration. Raises UserError where the noise levels in the file are others."""
    sections = resolved("score_sde", config, _SECTIONS, _UNUSED_SECTIONS)
    model = resolved("score_sde model", sections["model"] or {}, _MODEL)
    data = resolved("score_sde data", sections["data"] or {}, _DATA, _UNUSED_DATA)
    training = resolved("score_sde training", sections["training"] or {}, _TRAINING, _UNUSED_TRAINING)
    model["name"] = name = _network_name(weights, model)
    network, options = choose("network of score_sde", name, _OPTIONS)(model, data)
    exploding = bool(model["scale_by_sigma"]) or name == "ncsnv2"
    sde = str(training["sde"]).lower() or ("vesde" if exploding else "vpsde")
    home = choose("SDE of score_sde", sde, _HOMES)
    if exploding and sde != "vesde":
        raise UserError(f"a network with model.scale_by_sigma belongs to training.sde = 'vesde', not {sde!r}")
    # NCSNv2 is not told the noise level, so only its levels' labels tell whether it knows the levels alone.
    continuous = bool(training["continuous"]) and name != "ncsnv2"
    process, label = home(model, continuous)
    if sde == "vesde":  # under a VP-SDE the file has a table too, of which nothing depends
        _check_sigmas(weights.get("sigmas"), model)
    centred = bool(data["centered"])
    return NetworkSpec(
        process=process,
        prediction="sigma_score" if exploding else "score" if sde == "vesde" else "eps",
        label=label,
        input_scale="none" if centred else "centre",
        data_range=(-1.0, 1.0) if centred else (0.0, 1.0),
        shape=(options["in_channels"], options["image_size"], options["image_size"]),
        network=network,
        options=options,
    )


# --- the file -------------------------------------------------------------------------------------------------


def _state(found: Any, path: Path) -> tuple[Settings, dict[str, Tensor], bool]:
    """The file's sections, the model's state dict without the prefixes of wrappers, and whether that is an average."""
    if isinstance(found, dict) and is_state(found.get("model")):
        return found, bare(found["model"]), False
    inside = states(found, path, "score_sde_pytorch")
    sections: Settings = {} if inside.averages is None else {"ema": inside.averages}
    return sections, inside.weights, inside.averaged


def _averages(ema: Any, weights: Mapping[str, Tensor], order: list[str], path: Path) -> dict[str, Tensor] | None:
    """The averaged weights: shadow_params lists them in the order of the parameters that are trained."""
    if ema is None:
        return None
    if is_state(ema) and set(order) <= bare(ema).keys():
        return {**weights, **bare(ema)}
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else ema
    if not isinstance(shadow, list | tuple):
        raise UserError(f"{path}: 'ema' holds no list shadow_params, as files of score_sde_pytorch do")
    # As in the file, in the source's order, or with every number of the model but the table.
    orders = ([key for key in weights if key in set(order)], order, [key for key in weights if key != "sigmas"])
    for keys in orders:
        if [weights[key].shape for key in keys] == [value.shape for value in shadow]:
            return {**weights, **dict(zip(keys, shadow, strict=True))}
    if len(shadow) != len(order):
        raise UserError(f"{path}: ema.shadow_params has {len(shadow)} tensors, and the network {len(order)} parameters")
    first = next(i for i, key in enumerate(order) if weights[key].shape != shadow[i].shape)
    raise UserError(
        f"{path}: ema.shadow_params[{first}] is {tuple(shadow[first].shape)} where {order[first]} "
        f"is {tuple(weights[order[first]].shape)}"
    )


def read(path: Path, config: Settings | None) -> Foreign:
    """The network of a .pth file. Raises UserError for a file or a configuration that is none of score_sde's."""
    sections, weights, averaged = _state(read_torch(path), path)
    if config is None:
        raise UserError(
            f"{path.name} does not say its configuration: give the source's own (sections model, data, training), as a "
            f"JSON file or the name of a published model: {', '.join(sorted(PUBLISHED))}"
        )
    spec = _spec(config, weights)
    net = outline(spec.network, spec.options)
    if isinstance(net, NCSNv2):
        rules = [Rule(ours, (theirs,)) for ours, theirs in ncsnv2_keys(net).items()]
        order = sorted((rule.theirs[0] for rule in rules), key=registration)
    else:
        assert isinstance(net, Backbone)
        rules = unet_rules(net, bool(spec.options.get("big_blocks")))
        # The Fourier frequencies are no parameter that is trained.
        order = in_order(key for rule in rules if not rule.ours.endswith(".frequencies") for key in rule.theirs)
    ignored = ("sigmas",)
    converted(weights, rules, net, ignored)  # which names what does not fit, before the averages are laid beside it
    averages = _averages(sections.get("ema"), weights, order, path)
    step = sections.get("step", 0)
    return Foreign(spec, net, rules, weights, averages, ignored, int(step), averaged=averaged)
