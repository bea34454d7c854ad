"""State dicts as people store them: wrapped, prefixed, with and without an average; and what a Trainer's file tells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError
from sde_diffusion.importers import imported
from sde_diffusion.importers.lucidrains import SCHEDULES
from sde_diffusion.importers.wrapped import bare, states
from tests.importers.golden import reference
from tests.importers.writing import AVERAGE, ddim_file, diffusers_folder, edm_file, lucidrains_file, openai_file

ONE, TWO = torch.ones(2), torch.zeros(3)
STATE, AVERAGED = {"a.weight": ONE, "b": TWO}, {"a.weight": 2 * ONE, "b": TWO}
PLACE = Path("FILE")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_prefixes_of_wrappers_are_left_out(prefix: str) -> None:
    found = bare({f"{prefix}a._orig_mod.weight": ONE, f"{prefix}b": TWO})
    assert list(found) == ["a.weight", "b"] and found["a.weight"] is ONE
    with pytest.raises(UserError, match="'b' twice"):
        bare({"module.b": ONE, "b": TWO})


OPTIMIZER = {"state": {0: {"exp_avg": ONE}}, "param_groups": [{"lr": 1.0}]}


@pytest.mark.parametrize(
    ("content", "averaged", "both"),
    [
        (STATE, False, False),
        ({"model": STATE, "optimizer": OPTIMIZER, "epoch": 3}, False, False),
        ({"state_dict": {"module": STATE}, "optimizer_state": {"w": {"exp_avg": ONE}}}, False, False),
        ({"ema": STATE}, True, False),
        ({"ema_model": {"state_dict": STATE}, "lr_scheduler": {"base": ONE}}, True, False),
        ({"model": STATE, "model_ema": AVERAGED}, False, True),
        ({"net": {"raw": STATE, "averaged": AVERAGED}}, False, True),
    ],
)
def test_weights_are_found_where_there_is_no_doubt(content: dict[str, Any], averaged: bool, both: bool) -> None:
    found = states(content, PLACE, "us")
    assert found.weights.keys() == STATE.keys() and found.averaged is averaged
    assert found.weights["a.weight"] is ONE
    assert (found.averages is not None) is both and (not both or found.averages["a.weight"] is AVERAGED["a.weight"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"G": STATE, "D": STATE}, "FILE holds several state dicts: G, D; save the one that is meant alone"),
        ({"model": STATE, "ema": {"a": STATE, "b": STATE}}, "several state dicts: model, ema.a, ema.b"),
        ({"epoch": 3, "optimizer": {"w": STATE}}, "FILE holds no state dict, as files of us do"),
        ([STATE], "FILE holds no state dict"),
    ],
)
def test_doubt_is_a_sentence(content: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        states(content, PLACE, "us")


def wrapped(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A state dict of improved-diffusion in a training's own dictionary, behind two wrappers."""
    weights = torch.load(path)
    torch.save({"state_dict": {f"module._orig_mod.{key}": value for key, value in weights.items()}, "step": 3}, path)
    return path, weights


def test_files_without_an_average_stamp_raw(tmp_path: Path) -> None:
    """Files with one set of weights have one, called what they call it; the usual one is taken."""
    name = "iddpm_unet_noss_uncond"
    path, weights = wrapped(openai_file(tmp_path / "file.pt", name))
    config = {**reference(name).config, "image_size": 16}
    found = imported(path, "openai", config)
    assert list(found.weights) == ["raw"]
    assert torch.equal(found.weights["raw"]["stem.weight"], weights["input_blocks.0.0.weight"])
    sd.import_checkpoint(path, "openai", config, folder=tmp_path / "run")
    assert torch.equal(sd.load(tmp_path / "run").net.stem.weight, weights["input_blocks.0.0.weight"])
    with pytest.raises(UserError, match="unknown weights 'ema'; Valid names: raw"):
        sd.load(tmp_path / "run", weights="ema")
    assert list(imported(edm_file(tmp_path / "file.pkl", "edm_precond_edm"), "edm").weights) == ["ema"]
    folder = diffusers_folder(tmp_path / "ddpm", "diffusers_unet2d_ddpm_family", pickled=True)
    assert list(imported(folder, "diffusers").weights) == ["raw"]


def test_ddim(tmp_path: Path) -> None:
    """A training's list has both weights, a converted model what its name says; the configuration is YAML."""
    name, config = "ddim_model", tmp_path / "own.yml"
    config.write_text(json.dumps(reference(name).config))  # JSON is YAML
    found = imported(ddim_file(tmp_path / "ckpt.pth", name), "ddim", config)
    assert found.step == 7 and list(found.weights) == ["raw", "ema"]
    raw, ema = (found.weights[key]["stem.weight"] for key in ("raw", "ema"))
    torch.testing.assert_close(ema, AVERAGE * raw, rtol=0, atol=0)
    spec = found.spec
    assert (spec.network, spec.prediction, spec.label, spec.data_range) == ("ddpm", "eps", "index", (-1.0, 1.0))
    assert torch.equal(spec.process.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    torch.save(reference(name).weights, tmp_path / "ema_mine.ckpt")
    assert list(imported(tmp_path / "ema_mine.ckpt", "ddim", config).weights) == ["ema"]
    for text, says in (
        ("[1]", "should hold a YAML mapping"),
        ("data: {image_size: 16, sise: 3}", "unknown key 'sise'"),
        ("data: {image_size: 16}\nmodel: {type: bayesian}", "model.type = 'bayesian' is not supported"),
        ("data: {image_size: 16}\nmodel: {ch: 64}", "the weights do not fit the configuration"),
        ("model: {}", "the ddim configuration lacks image_size"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=says):
            imported(tmp_path / "ckpt.pth", "ddim", config)
    with pytest.raises(UserError, match="does not say its configuration"):
        imported(tmp_path / "ckpt.pth", "ddim")


LUCID = "lucid_release_1_9"
OWN = {"image_size": 16, "resnet_block_groups": 4}


@pytest.mark.parametrize(("objective", "prediction"), [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")])
@pytest.mark.parametrize("gamma", [math.inf, 5.0])
def test_lucidrains_tells_what_is_predicted(objective: str, prediction: str, gamma: float, tmp_path: Path) -> None:
    found = imported(lucidrains_file(tmp_path / "model-1.pt", LUCID, objective, gamma), "lucidrains", OWN)
    assert found.spec.prediction == prediction and found.step == 7 and list(found.weights) == ["raw", "ema"]
    assert torch.equal(found.spec.process.betas, DiscreteVP.linear(1000).betas)
    torch.testing.assert_close(
        found.weights["ema"]["stem.weight"], AVERAGE * found.weights["raw"]["stem.weight"], rtol=0, atol=0
    )


def test_lucidrains_schedules() -> None:
    """The sigmoid's signal falls from 1 to 0 about its middle; a table of another schedule stays itself."""
    levels = SCHEDULES["sigmoid"](100).levels
    alpha_bar = levels.alpha**2
    assert float(alpha_bar[49]) == pytest.approx(0.5, abs=1e-12)  # after 50 of 100 steps
    torch.testing.assert_close(alpha_bar[48], 1.0 - alpha_bar[50], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        ({}, {}, "does not say the size of its pictures"),
        ({}, {**OWN, "dim_mult": (1,)}, "unknown key 'dim_mult'"),
        ({"init_conv.weight": torch.zeros(16, 6, 7, 7)}, OWN, "is told its own former prediction"),
        ({"time_mlp.0.weights": torch.zeros(8)}, OWN, "learned or random sinusoidal features are not supported"),
        ({"downs.0.3.weight": torch.zeros(16, 16, 4, 4)}, OWN, "from before release 0.32"),
        ({"mid_block1.mlp.1.bias": torch.zeros(3)}, OWN, "of another shape: mid_block1.mlp.1.bias"),
        ({"mid_block1.mlp.1.bias": None}, OWN, "missing: mid_block1.mlp.1.bias"),
        ({"init_conv.weight": None}, OWN, "none of denoising-diffusion-pytorch's Unet: init_conv.weight are missing"),
    ],
)
def test_lucidrains_broken_files(change: dict[str, Any], config: dict[str, Any], says: str, tmp_path: Path) -> None:
    weights = {**reference(LUCID).weights, **change}
    model = {f"model.{key}": value for key, value in weights.items() if value is not None}
    betas = {"betas": torch.linspace(1e-4, 0.02, 10), "loss_weight": torch.ones(10)}
    path = lucidrains_file(tmp_path / "model-1.pt", LUCID, model={**model, **betas}, ema=None)
    with pytest.raises(UserError, match=says):
        imported(path, "lucidrains", config)


def test_lucidrains_s_network_alone_needs_its_diffusion(tmp_path: Path) -> None:
    path = tmp_path / "unet.pt"
    torch.save({"state_dict": reference(LUCID).weights}, path)
    with pytest.raises(UserError, match="the lucidrains configuration lacks beta_schedule"):
        imported(path, "lucidrains", OWN)
    own = {**OWN, "beta_schedule": "sigmoid", "objective": "pred_v", "timesteps": 50}
    found = imported(path, "lucidrains", own)
    assert found.spec.prediction == "v" and len(found.spec.process.betas) == 50
