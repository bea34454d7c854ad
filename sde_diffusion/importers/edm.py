"""Checkpoints of EDM (Karras et al. 2022): a .pkl of preconditioned networks.

The pickle holds the averaged network, "ema", as an object that carries its constructor's arguments, and with them its
configuration. It is read without running any code (see reading.py). A preconditioner is a home:

    EDMPrecond    EDM, prediction "edm", label log(sigma)/4, input of unit variance for data of its sigma_data
    VPPrecond     VP-SDE, "eps", label 999 t: its c_in = 1/sqrt(1 + sigma^2) is the step from sigma to alpha x_t
    VEPrecond     VE-SDE, "sigma_score", label log(sigma/2), as a network for data in [0, 1] sees it
    iDDPMPrecond  cosine levels, "eps" with a learned variance, label the index of the nearest level
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.core.continuous import EDM, VESDE, VPSDE
from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.foreign import Foreign, Settings, needed, only, resolved
from sde_diffusion.importers.reading import Persistent, module_tensors, read_edm_pickle, read_torch
from sde_diffusion.importers.rules import BlockNames, Part, Rule, by_class, matrix, pair, qkv
from sde_diffusion.importers.wrapped import bare
from sde_diffusion.nets.backbone import Backbone, InputResidual, InputSkip, OutputSkip
from sde_diffusion.nets.blocks import Head, ResidualBlock, SelfAttention
from sde_diffusion.nets.building import outline
from sde_diffusion.nets.embedding import FourierFeatures

PUBLISHED: dict[str, Settings] = {}
"""Files of EDM carry their configuration."""

# --- weights --------------------------------------------------------------------------------------------------

_BLOCK = BlockNames("norm0", "conv0", "affine", "norm1", "conv1", "skip")


def _class_rows(classes: int, bias: bool) -> Rule:
    """Rows of a table from a matrix [out, classes]: sqrt(classes) times its columns, plus the bias; for none that."""

    def join(tensors: Any) -> Tensor:
        columns = tensors[0].T * (math.sqrt(classes) if bias else 1.0)
        none = tensors[1] if bias else torch.zeros_like(columns[0])
        return torch.cat([columns + none, none[None]])

    keys = ("map_label.weight", "map_label.bias") if bias else ("map_label.weight",)
    return Rule("conditioning.classes.weight", keys, join)


def _attention(ours: str, layer: SelfAttention, theirs: str) -> list[Rule]:
    return [
        *pair(f"{ours}.norm", f"{theirs}.norm2"),
        *qkv(f"{ours}.qkv", f"{theirs}.qkv", layer.heads, "head channel part"),
        *matrix(f"{ours}.out", f"{theirs}.proj"),
    ]


_ENCODER = {"stem": "conv", "down": "down", "block": "block{index}", "attention": "block{index}"}
_DECODER = {"middle": "in{half}", "up_block": "block{index}", "up_attention": "block{index}"}


def unet_rules(net: Backbone, song: bool) -> list[Rule]:
    """The rules of SongUNet, or of DhariwalUNet."""
    size = net.shape[1]

    def place(part: Part) -> str:
        # On the way up the source counts the change of size to the level that it leads to.
        level = part.level - 1 if part.where == "up" else part.level
        side, name = (
            ("enc", _ENCODER[part.where]) if part.where in _ENCODER else ("dec", _DECODER.get(part.where, "up"))
        )
        # The middle is two blocks, of which the first holds the attention between them.
        half = 1 if part.index == len(net.middle) - 1 else 0
        return f"{side}.{size >> level}x{size >> level}_{name.format(index=part.index, half=half)}"

    def aux(part: Part, side: str, name: str) -> str:
        return f"{side}.{size >> part.level}x{size >> part.level}_aux_{name}"

    def head(ours: str, norm: str, conv: str) -> list[Rule]:
        return [*pair(f"{ours}.norm", norm), *pair(f"{ours}.conv", conv)]

    def picture(part: Part, ours: str) -> list[Rule]:
        return head(ours, aux(part, "dec", "norm"), aux(part, "dec", "conv"))

    conditioning = net.conditioning
    rules = [*pair("conditioning.hidden", "map_layer0"), *pair("conditioning.out", "map_layer1")]
    if isinstance(conditioning.features, FourierFeatures):
        rules.append(Rule("conditioning.features.frequencies", ("map_noise.freqs",)))
    if conditioning.classes is not None:
        rules.append(_class_rows(conditioning.num_classes, bias=song))
    if conditioning.augment is not None:
        rules.append(Rule("conditioning.augment.weight", ("map_augment.weight",)))
    return rules + by_class(
        net,
        {
            nn.Conv2d: lambda part: pair(part.ours, place(part)),
            ResidualBlock: lambda part: _BLOCK.rules(part.ours, part.module, place(part)),
            SelfAttention: lambda part: _attention(part.ours, part.module, place(part)),
            InputSkip: lambda part: pair(f"{part.ours}.conv", aux(part, "enc", "skip")),
            InputResidual: lambda part: pair(f"{part.ours}.down.conv", aux(part, "enc", "residual")),
            OutputSkip: lambda part: picture(part, f"{part.ours}.picture"),
            Head: lambda part: picture(part, part.ours) if song else head(part.ours, "out_norm", "out_conv"),
        },
    )


# --- configuration --------------------------------------------------------------------------------------------

_SHARED = {"channel_mult_emb": 4, "label_dropout": 0, "label_dim": 0, "augment_dim": 0, "dropout": 0.1}
_NETWORKS: dict[str, Settings] = {
    "SongUNet": {
        **_SHARED,
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
    },
    "DhariwalUNet": {
        **_SHARED,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}
_PRECONDITIONERS: dict[str, Settings] = {
    "EDMPrecond": {"model_type": "DhariwalUNet", "sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5},
    "VPPrecond": {"model_type": "SongUNet", "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"model_type": "SongUNet", "sigma_min": 0.02, "sigma_max": 100.0},
    "iDDPMPrecond": {"model_type": "DhariwalUNet", "C_1": 0.001, "C_2": 0.008, "M": 1000},
}
_PYRAMIDS = {"standard": "none", "skip": "skip", "residual": "residual"}
_DECODERS = {"standard": "none", "skip": "skip"}
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Between which EDM samples, whatever its preconditioner allows (Karras et al. 2022, Table 1)."""


def _network(name: str, settings: Settings) -> tuple[str, Settings]:
    needed(f"EDM {name}", settings, ("img_resolution",))
    defaults = choose("network of EDM", name, _NETWORKS)
    own = resolved(f"EDM {name}", settings, {**defaults, "img_resolution": 0, "in_channels": 3, "out_channels": 3})
    only("EDM", "channel_mult_emb", own["channel_mult_emb"], [4])
    options = {
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"],
        "image_size": own["img_resolution"],
        "channels": own["model_channels"],
        "multipliers": list(own["channel_mult"]),
        "blocks": own["num_blocks"],
        "attention_resolutions": list(own["attn_resolutions"]),
        "dropout": own["dropout"],
        "num_classes": own["label_dim"],
        "augment_dims": own["augment_dim"],
    }
    if name == "DhariwalUNet":
        return "dhariwal", options
    taps = [float(tap) for tap in own["resample_filter"]]
    return "songunet", {
        **options,
        "embedding": own["embedding_type"],
        "features": own["channel_mult_noise"],
        "taps": [] if taps == [1.0, 1.0] else taps,
        "input_pyramid": choose("encoder type of EDM", own["encoder_type"], _PYRAMIDS),
        "output_pyramid": choose("decoder type of EDM", own["decoder_type"], _DECODERS),
    }


def _edm_home(own: Settings) -> Settings:
    first = max(float(own["sigma_min"]), SIGMA_MIN)
    process = EDM(first, min(float(own["sigma_max"]), SIGMA_MAX))
    return {
        "process": process,
        "prediction": "edm",
        "label": "edm",
        "input_scale": "unit",
        "sigma_data": float(own["sigma_data"]),
    }


def _vp_home(own: Settings) -> Settings:
    only("EDM", "M", own["M"], [1000])
    process = VPSDE(own["beta_min"], own["beta_min"] + own["beta_d"])
    return {"process": process, "prediction": "eps", "label": "time"}


def _ve_home(own: Settings) -> Settings:
    process = VESDE(own["sigma_min"], own["sigma_max"])
    return {"process": process, "prediction": "sigma_score", "label": "log_half_sigma"}


def _iddpm_home(own: Settings) -> Settings:
    process = DiscreteVP.cosine(own["M"], s=own["C_2"], max_beta=1.0 - own["C_1"])
    return {"process": process, "prediction": "eps", "label": "nearest_index", "variance": "learned_range"}


_HOMES: dict[str, Callable[[Settings], Settings]] = {
    "EDMPrecond": _edm_home,
    "VPPrecond": _vp_home,
    "VEPrecond": _ve_home,
    "iDDPMPrecond": _iddpm_home,
}


def spec_of(config: Settings) -> tuple[NetworkSpec, bool]:
    """The spec of a configuration: the constructor's arguments and "cls", the class; and whether it is a SongUNet.

    A network without a preconditioner is taken to be EDM's own F. Raises UserError for what EDM does not have.
    """
    settings = dict(config)
    cls = str(settings.pop("cls", settings.pop("class_name", "EDMPrecond"))).rpartition(".")[2]
    if cls in _NETWORKS:
        settings, model, cls = {"model_type": cls, **settings}, cls, "EDMPrecond"
    own_keys = choose("preconditioner of EDM", cls, _PRECONDITIONERS)
    own = {key: settings.pop(key, default) for key, default in own_keys.items()}
    model = own["model_type"]
    settings.pop("use_fp16", None)
    channels = settings.pop("img_channels", settings.get("in_channels", 3))
    home = _HOMES[cls](own)
    doubled = 2 if home.get("variance") else 1
    network, options = _network(model, {**settings, "in_channels": channels, "out_channels": doubled * channels})
    size = options["image_size"]
    return NetworkSpec(shape=(channels, size, size), network=network, options=options, **home), model == "SongUNet"


# --- the file -------------------------------------------------------------------------------------------------


def _arguments(module: Persistent) -> Settings:
    """The constructor's arguments that an object carries, and its class; those of the network inside come first."""
    found = dict(module.state.get("_init_kwargs") or {})
    inner = module.state.get("_modules", {}).get("model")
    if isinstance(inner, Persistent):
        known = {*_NETWORKS.get(inner.class_name, {}), "img_resolution"}
        found = {**{k: v for k, v in (inner.state.get("_init_kwargs") or {}).items() if k in known}, **found}
    return {"cls": module.class_name, **found}


def _plain(found: Any) -> tuple[Settings, dict[str, Tensor]] | None:
    """Configuration and weights of a network that is stored as plain containers; None where there is none."""
    if not isinstance(found, Mapping) or not found:
        return None
    if all(isinstance(value, Tensor) for value in found.values()):
        return {}, dict(found)
    carried = (found[key] for key in ("config", "init_kwargs") if isinstance(found.get(key), Mapping))
    settings: Settings = dict(next(carried, {}))
    inner = (_plain(found[key]) for key in ("ema", "net", "state_dict", "model") if key in found)
    first = next((pair for pair in inner if pair is not None), None)
    return None if first is None else ({**settings, **first[0]}, first[1])


def read(path: Path, config: Settings | None) -> Foreign:
    """The averaged network of a .pkl file. Raises UserError for a file that is none of EDM's."""
    found = read_torch(path) if zipfile.is_zipfile(path) else read_edm_pickle(path)
    net = found.get("ema", found.get("net")) if isinstance(found, Mapping) else found
    plain = _plain(found)
    settings: Settings
    if isinstance(net, Persistent):
        settings, weights = {**_arguments(net), **(config or {})}, module_tensors(net)
    elif plain is not None:
        settings, weights = {**plain[0], **(config or {})}, plain[1]
        if not settings:
            raise UserError(f"{path.name} holds a state dict only: give the constructor's arguments, with 'cls'")
    else:
        raise UserError(f"{path} holds no network under 'ema', as files of EDM do")
    spec, song = spec_of(settings)
    weights = {key.removeprefix("model."): value for key, value in bare(weights).items()}
    network = outline(spec.network, spec.options)
    assert isinstance(network, Backbone)
    filters = [key for key in weights if key.endswith(".resample_filter")]
    averaged = isinstance(found, Mapping) and "ema" in found
    return Foreign(spec, network, unet_rules(network, song), weights, None, ("u", *filters), averaged=averaged)
