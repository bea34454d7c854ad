"""Checkpoints as other code bases write them, of the reference networks.

Each function writes the file or the folder of one source and returns its path. The pickles of EDM are written without
its code: a pickle only names the classes that it was made from.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.importers.golden import reference


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- score_sde ------------------------------------------------------------------------------------------------

AVERAGE = 1.01
"""The averaged weights as a multiple of the raw ones."""


def score_sde_file(path: Path, name: str, **sections: Any) -> Path:
    """A .pth with the sections optimizer (of three weights), model, ema and step; `sections` replaces some of them."""
    network = reference(name)
    weights, trained = network.weights, list(network.grad_norms)
    fixed = [key for key in weights if key not in network.grad_norms]
    parameters = [nn.Parameter(weights[key].clone()) for key in trained[:3]]
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    shadow = [AVERAGE * weights[key] for key in trained]
    content = {
        "optimizer": optimizer.state_dict(),
        "model": {f"module.{key}": weights[key] for key in (*fixed, *trained)},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadow},
        "step": 7,
    }
    torch.save({**content, **sections}, path)
    return path


# --- EDM ------------------------------------------------------------------------------------------------------


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("this name is only ever written")


class EasyDict(dict[str, Any]):
    """As EDM's dictionaries, by name."""


class EDMModule(nn.Module):
    """A module that is pickled as EDM's are: the source code of its class, the class's name and its state."""

    module_src = "raise RuntimeError"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": self.module_src, "class_name": type(self).__name__}
        return _reconstruct_persistent_obj, (meta | {"state": self.__dict__},)


def edm_class(name: str) -> type[EDMModule]:
    """One of EDM's classes, by name."""
    return type(name, (EDMModule,), {})


@contextmanager
def edm_modules(*networks: type) -> Iterator[None]:
    """EDM's modules, as far as a pickle asks for them while it is written. networks: classes of training.networks."""
    things: dict[str, tuple[Any, ...]] = {
        "torch_utils.persistence": (_reconstruct_persistent_obj,),
        "training.networks": networks,
        "dnnlib.util": (EasyDict,),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in things.items():
            patch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
            patch.setitem(sys.modules, name, types.ModuleType(name))
            for thing in members:
                setattr(sys.modules[name], thing.__name__, thing)
                patch.setattr(thing, "__module__", name)
        yield


def edm_bytes(thing: Any, protocol: int = 4, networks: tuple[type, ...] = ()) -> bytes:
    with edm_modules(*networks):
        return pickle.dumps(thing, protocol)


def _grown(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module with the tensors inside, in modules of their dotted names."""
    for key, tensor in tensors.items():
        *path, last = key.split(".")
        place = module
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else edm_class("Layer")())
            place = getattr(place, part)
        if last in ("resample_filter", "freqs", "u"):
            place.register_buffer(last, tensor)
        else:
            place.register_parameter(last, nn.Parameter(tensor))
    return module


def edm_file(path: Path, name: str, cls: str = "EDMPrecond", doubled: str = "") -> Path:
    """A .pkl of a preconditioned network. cls: the preconditioner of a reference network that comes without one.

    doubled: the layer at the end, which then gives the prediction and its negative, as for a learned variance.
    """
    network = reference(name)
    settings, weights = {"label_dim": 0, **network.config}, network.weights
    kind = settings.pop("cls")
    if kind.endswith("Precond"):
        cls, model, channels = kind, settings.pop("model_type"), settings.pop("img_channels")
    else:
        model, channels = kind, settings.pop("in_channels")
        del settings["out_channels"]
        weights = {f"model.{key}": tensor for key, tensor in weights.items()}
    for key in (f"model.{doubled}.weight", f"model.{doubled}.bias") if doubled else ():
        weights[key] = torch.cat([weights[key], -weights[key]])
    if cls == "iDDPMPrecond":
        weights["u"] = torch.linspace(1.0, 0.0, 1001)  # its table of levels, which its arguments determine
    net = edm_class(cls)(model_type=model, img_channels=channels, **settings)
    settings.pop("sigma_data", None)
    out_channels = channels * (2 if doubled else 1)
    net.model = edm_class(model)(in_channels=channels, out_channels=out_channels, **settings)
    content = {"ema": _grown(net, weights), "loss_fn": None, "dataset_kwargs": EasyDict(path="images.zip")}
    return written(path, edm_bytes(content))


# --- OpenAI ---------------------------------------------------------------------------------------------------


def openai_file(path: Path, name: str) -> Path:
    """A .pt, the state dict alone."""
    torch.save(reference(name).weights, path)
    return path


# --- ddim and lucidrains --------------------------------------------------------------------------------------


def ddim_file(path: Path, name: str) -> Path:
    """A .pth of a training: a list [model, optimizer, epoch, step, ema]."""
    weights = reference(name).weights
    average = {key: AVERAGE * value for key, value in weights.items()}
    torch.save([{f"module.{key}": value for key, value in weights.items()}, {"state": {}}, 3, 7, average], path)
    return path


def lucidrains_file(path: Path, name: str, objective: str = "pred_v", gamma: float = math.inf, **sections: Any) -> Path:
    """A model-N.pt of a Trainer, of 1000 linear levels; `sections` replaces some. gamma: where the SNR is cut off."""
    weights = reference(name).weights
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1.0 - betas).cumprod(0)
    snr = alpha_bar / (1.0 - alpha_bar)
    scale = {"pred_noise": snr, "pred_x0": 1.0, "pred_v": snr + 1.0}[objective]
    tables = {"betas": betas, "alphas_cumprod": alpha_bar, "loss_weight": snr.clamp(max=gamma) / scale}
    stored = {key: value.float() for key, value in tables.items()}
    model = {**stored, **{f"model.{key}": value for key, value in weights.items()}}
    ema = {**stored, **{f"model.{key}": AVERAGE * value for key, value in weights.items()}}
    content = {
        "step": 7,
        "model": model,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "ema": {
            "initted": torch.tensor(True),
            "step": torch.tensor(7),
            **{f"online_model.{key}": value for key, value in model.items()},
            **{f"ema_model.{key}": value for key, value in ema.items()},
        },
        "scaler": None,
        "version": "1.9.0",
    }
    torch.save({**content, **sections}, path)
    return path


# --- diffusers ------------------------------------------------------------------------------------------------

FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Today's names of attention's layers, and those before release 0.18."""
UNET = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1"}
DDPM_SCHEDULER = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.42.1", "num_train_timesteps": 1000}


def diffusers_folder(
    folder: Path,
    name: str,
    *,
    flat: bool = False,
    former: bool = False,
    pickled: bool = False,
    config: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Path:
    """A folder of a pipeline, or a flat one, with some keys of its two configurations replaced.

    former: attention has the names that it had before release 0.18; pickled: the weights are a .bin file
    """
    network = reference(name)
    weights = network.weights
    for now, before in FORMER.items() if former else ():
        weights = {key.replace(f".{now}.", f".{before}."): tensor for key, tensor in weights.items()}
    unet, steps = (folder, folder) if flat else (folder / "unet", folder / "scheduler")
    for place in (unet, steps):
        place.mkdir(parents=True, exist_ok=True)
    (unet / "config.json").write_text(json.dumps({**UNET, **network.config, **(config or {})}))
    (steps / "scheduler_config.json").write_text(json.dumps({**DDPM_SCHEDULER, **(scheduler or {})}))
    if pickled:
        torch.save(weights, unet / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, unet / "diffusion_pytorch_model.safetensors")
    return folder


# --- files that would run code --------------------------------------------------------------------------------


class Call:
    """Pickles as the call function(*args); it can itself be the function of another."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        raise AssertionError("this object is only ever written")


def system_call(marker: Path) -> Call:
    """What would create the marker file."""
    return Call(os.system, f"touch {marker}")


def saved(thing: Any, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()
