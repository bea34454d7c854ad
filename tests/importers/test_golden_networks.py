"""Every reference network, read from its code base's kind of file, gives the outputs and gradients it gives there.

The leaves of the gradients are the source's own weights, so that they also flow through the rules of the conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.importers import SOURCES
from sde_diffusion.importers.foreign import Foreign
from sde_diffusion.importers.rules import converted
from sde_diffusion.nets.building import build_network
from tests.importers.golden import NAMES, Reference, reference
from tests.importers.writing import (
    ddim_file,
    diffusers_folder,
    edm_file,
    lucidrains_file,
    openai_file,
    score_sde_file,
)
from tests.nets.contract import perturbed, randn

FILES: dict[str, tuple[str, Callable[[Path, str], Path]]] = {
    "song": ("score_sde", score_sde_file),
    "edm": ("edm", edm_file),
    "iddpm": ("openai", openai_file),
    "adm": ("openai", openai_file),
    "diffusers": ("diffusers", diffusers_folder),
    "ddim": ("ddim", ddim_file),
    "lucid": ("lucidrains", lucidrains_file),
}
"""The first word of a name -> the code base, a key of SOURCES, and what writes its kind of file."""

FOURIER = "song_ncsnpp"
"""How the names of networks begin whose features are sines of several hundred, of which float32 keeps fewer digits."""

COUNTED_OTHERWISE = {
    "song_ncsnpp_skip": -16,  # Fourier frequencies, there a parameter that is never trained, here a buffer
    "song_ncsnpp_ve": -16,
    "edm_dhariwal_cond_aug": +128,  # the row of "no class", there the zero vector
}

# In double precision the two differ where the source does not leave float32.
TOLERANCE_FLOAT64 = {
    "edm_songunet_ddpmpp": 5e-6,  # frequencies of the label's features
    "edm": 2e-7,  # softmax of attention
    "lucid": 5e-6,  # frequencies of the label's features
    "": 1e-12,
}

Weights = dict[str, Tensor]


class Bound(nn.Module):
    """A network with some tensors in place of its own weights, to which gradients flow."""

    def __init__(self, net: nn.Module, state: Weights) -> None:
        super().__init__()
        self.net, self.state = net, state

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        out: Tensor = functional_call(self.net, self.state, args, kwargs)
        return out


# --- what a source's network does around ours ---------------------------------------------------------------------

Inputs = dict[str, Tensor]
Output = Callable[[nn.Module, Foreign, Tensor, Inputs], Tensor]


def song(net: nn.Module, found: Foreign, x: Tensor, given: Inputs) -> Tensor:
    """Centres data of [0, 1], and for VE takes the features of log sigma and divides by sigma."""
    spec, label = found.spec, given["labels"]
    if spec.input_scale == "centre":
        x = 2 * x - 1
    if spec.prediction != "sigma_score":
        return net(x, label)
    sigma = found.weights["sigmas"][label] if spec.label == "reversed_index" else label.to(x.dtype)
    out: Tensor = net(x, sigma.log() if spec.label == "log_sigma" else label)
    return out / match(sigma, out)


def edm(net: nn.Module, found: Foreign, x: Tensor, given: Inputs) -> Tensor:
    """Takes its class as a row that is 0 but for one 1."""
    conditioning: dict[str, Tensor] = {}
    if "class_labels" in given:
        conditioning["labels"] = given["class_labels"].argmax(1)
        conditioning["augment_labels"] = given["augment_labels"].to(x.dtype)
    return net(x, given["noise_labels"].to(x.dtype), **conditioning)


def edm_preconditioned(net: nn.Module, found: Foreign, x: Tensor, given: Inputs) -> Tensor:
    """Is the denoiser D(x; sigma)."""
    return NetworkDenoiser(net, found.spec)(x, Kernel(1.0, given["sigma"]))


def of_steps(net: nn.Module, found: Foreign, x: Tensor, given: Inputs) -> Tensor:
    return net(x, given["t"], given.get("y"))


OUTPUTS: dict[str, Output] = {
    "song": song,
    "edm_precond": edm_preconditioned,
    "edm": edm,
    "iddpm": of_steps,
    "adm": of_steps,
    "diffusers": of_steps,
    "ddim": of_steps,
    "lucid": of_steps,
}


def by_prefix(table: dict[str, Any], name: str) -> Any:
    """The entry of the first key that a name begins with."""
    return next(value for prefix, value in table.items() if name.startswith(prefix))


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    stored: Reference
    found: Foreign

    def run(self, dtype: torch.dtype) -> tuple[Tensor, Weights]:
        """The output at the stored inputs, and the source's weights of which it is made."""
        net = build_network(self.found.spec.network, self.found.spec.options).to(dtype).eval()
        leaves = {
            key: value.to(dtype, copy=True).requires_grad_() if value.is_floating_point() else value
            for key, value in self.found.weights.items()
        }
        bound = Bound(net, converted(leaves, self.found.rules, net, self.found.ignored))
        given = {key.removeprefix("in."): value for key, value in self.stored.io.items() if key.startswith("in.")}
        return by_prefix(OUTPUTS, self.name)(bound, self.found, given["x"].to(dtype), given), leaves

    def check(self, out: Tensor, expected: Tensor, tolerance: float) -> None:
        """Each sample by its own scale: division by sigma makes them differ a thousandfold."""
        for sample, wanted in zip(out, expected, strict=True):
            scale = wanted.abs().max().item()
            torch.testing.assert_close(sample.to(wanted), wanted, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, stored = request.param, reference(request.param)
    source, write = by_prefix(FILES, name)
    # The files of EDM and diffusers carry their configuration; improved-diffusion's network is not told the size.
    sized = {**stored.config, "image_size": stored.io["in.x"].shape[-1]}
    own = dict.fromkeys(("score_sde", "ddim", "lucidrains"), stored.config)
    config = {**own, "openai": sized}.get(source)
    path = write(tmp_path_factory.mktemp(name) / "file", name)
    return Case(name, stored, SOURCES[source].read(path, config))


def test_every_key_is_used_once_and_every_number_counted(case: Case) -> None:
    found = case.found
    used = [key for rule in found.rules for key in rule.theirs]
    assert sorted([*used, *(key for key in found.ignored if key in found.weights)]) == sorted(found.weights)
    assert sorted(rule.ours for rule in found.rules) == sorted(found.net.state_dict())
    count = sum(parameter.numel() for parameter in found.net.parameters())
    assert count == case.stored.parameters + COUNTED_OTHERWISE.get(case.name, 0)


def test_output(case: Case) -> None:
    with torch.no_grad():
        out, _ = case.run(torch.float32)
    case.check(out, case.stored.io["out"], 5e-5 if case.name.startswith(FOURIER) else 1e-5)


def test_output_in_double_precision(case: Case) -> None:
    expected = case.stored.io.get("out_float64")
    with torch.no_grad():
        out, _ = case.run(torch.float64)
    if expected is None:  # the source runs in single precision only
        case.check(out, case.stored.io["out"], 1e-5)
    else:
        case.check(out, expected, by_prefix(TOLERANCE_FLOAT64, case.name))


def test_gradients(case: Case) -> None:
    """Where a norm is below 1e-6 of the largest, the gradient is zero but for rounding.

    So it is for what normalisations of single channels remove, and for the bias of keys, which softmax does.
    """
    out, leaves = case.run(torch.float32)
    expected = {key.removeprefix("model."): norm for key, norm in case.stored.grad_norms.items()}
    gradients = torch.autograd.grad(out.square().mean(), [leaves[key] for key in expected])
    zero = 1e-6 * max(expected.values())
    for (key, norm), gradient in zip(expected.items(), gradients, strict=True):
        if norm < zero:
            assert gradient.norm() < zero, key
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), key


@pytest.mark.parametrize(
    "config",
    [
        {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None},
        {"add_attention": False, "layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "num_class_embeds": 5}
        | {"downsample_type": "resnet", "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}
        | {"upsample_type": "resnet", "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")},
    ],
)
def test_diffusers_itself(config: dict[str, Any], tmp_path: Path) -> None:
    """In double precision but for its features of the step, 1e-6 apart.

    The stored network has groups of one channel, which remove all that its label adds.
    """
    import diffusers

    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    theirs = diffusers.UNet2DModel(**{**sizes, **blocks, **config}).eval()
    perturbed(theirs)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"num_train_timesteps": 1000}')
    found = SOURCES["diffusers"].read(tmp_path, None)
    net = build_network(found.spec.network, found.spec.options).double().eval()
    net.load_state_dict(converted(found.weights, found.rules, net, found.ignored))
    x, t = randn(4, 3, 8, 8), torch.tensor([0, 3, 141, 999])
    labels = torch.tensor([0, 4, 2, 2]) if "num_class_embeds" in config else None
    with torch.no_grad():
        expected = theirs(x, t, class_labels=labels).sample
        torch.testing.assert_close(net(x, t, labels), expected, rtol=0, atol=5e-6 * expected.abs().max().item())
