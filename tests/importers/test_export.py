"""A network that is written as a folder of diffusers gives there what it gives here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.sizes import sides
from sde_diffusion.nets import NETWORKS
from sde_diffusion.nets.building import build_network

SMALL = {"in_channels": 3, "image_size": 16}
EQUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": (
        "ddpm",
        {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,), "dropout": 0.0},
    ),
    "unet": ("unet", {"channels": 128, "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (8,)}),
    "adm": (
        "adm",
        {"channels": 32, "multipliers": (1, 2), "blocks": 2, "attention_factors": (2,), "head_channels": 32}
        | {"num_classes": 5, "out_channels": 6},
    ),
    "adm_blocks": (
        "adm",
        {"channels": 32, "multipliers": (1, 1, 2), "blocks": 1, "attention_factors": (2,), "heads": 1}
        | {"resample_blocks": True, "scale_shift": False},
    ),
    "unet2d": (
        "unet2d",
        {"channels": (32, 64), "blocks": 1, "attention": (False, True), "up_attention": (True, False)}
        | {"groups": 8, "cosine_first": True, "shift": 0, "same_padding": False, "middle_attention": False},
    ),
}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_denoiser(network: str, options: dict[str, Any], **home: Any) -> sd.NetworkDenoiser:
    options = {**SMALL, **options}
    size = sides(options["image_size"])
    learned = options.get("out_channels", 3) == 6
    home = {"label": "index", "variance": "learned_range" if learned else "fixed"} | home
    process = home.pop("process", sd.DiscreteVP.linear(1000))
    spec = sd.NetworkSpec(process, shape=(3, *size), network=network, options=options, **home)
    net = build_network(spec.network, spec.options)
    for seed, parameter in enumerate(net.parameters()):
        scale = 0.1 if parameter.ndim < 2 else (parameter[0].numel()) ** -0.5
        parameter.data = scale * randn(*parameter.shape, seed=seed) + (1.0 if parameter.ndim == 1 and seed % 2 else 0.0)
    return sd.NetworkDenoiser(net.eval().requires_grad_(False), spec)


@pytest.mark.parametrize("name", EQUAL)
def test_diffusers_itself_gives_the_same_output(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    denoiser = random_denoiser(*EQUAL[name])
    sd.export_diffusers(denoiser, tmp_path / "out")
    theirs = UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet").eval()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in denoiser.net.parameters())
    x, label = randn(3, 3, 16, 16, seed=1), torch.tensor([0.0, 431.0, 999.0])
    classes = {"class_labels": torch.tensor([0, 4, 2])} if EQUAL[name][1].get("num_classes") else {}
    with torch.no_grad():
        expected = denoiser.net(x, label, *classes.values())
        found = theirs(x, label, **classes).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_diffusers_pipeline_samples_the_same_images(prediction: str, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, DDPMPipeline

    denoiser = random_denoiser(*EQUAL["ddpm"], process=sd.DiscreteVP.cosine(200), prediction=prediction)
    sd.export_diffusers(denoiser, tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    noise = randn(2, 3, 16, 16, seed=2)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    grid = sd.make_grid(denoiser.spec.process, 10, "strided", spacing="trailing")
    ours = sd.sample(denoiser, x=noise, grid=grid, sampler="ddim").x
    assert float(ours.std()) > 0.1
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4 * float(x.abs().max()))


def flow_denoiser() -> sd.NetworkDenoiser:
    return random_denoiser(*EQUAL["ddpm"], process=sd.RectifiedFlow(), prediction="velocity", label="thousand_time")


def flow_grid(steps: int, shift: float) -> sd.TimeGrid:
    """The nodes of diffusers' scheduler, which takes its smallest sigma from a table that is shifted already."""
    return sd.make_grid(sd.RectifiedFlow(), steps, t_end=shift * 1e-3 / (1.0 + (shift - 1.0) * 1e-3), shift=shift)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_samples_the_same_images(shift: float, tmp_path: Path) -> None:
    """diffusers' FlowMatchEulerDiscreteScheduler and `euler`: the same sigmas, timesteps and images; and back again."""
    from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler

    denoiser = flow_denoiser()
    sd.export_diffusers(denoiser, tmp_path / "out", shift=shift)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.shift == shift
    scheduler.set_timesteps(10)
    grid = flow_grid(10, shift)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), grid.times, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scheduler.timesteps.double(), 1000.0 * grid.times, rtol=1e-6, atol=1e-4)
    noise = randn(2, 3, 16, 16, seed=2)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    for ours in (denoiser, sd.import_checkpoint(tmp_path / "out", "diffusers")):
        found = sd.sample(ours, x=noise, grid=grid, sampler="euler").x
        assert float((found - noise).std()) > 0.1
        torch.testing.assert_close(found, x, rtol=0, atol=1e-4 * float(x.abs().max()))


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_samples_the_same_images(prediction: str, tmp_path: Path) -> None:
    """DDIM of diffusers from the level without signal, on the exported table and its own spacing."""
    from diffusers import DDIMScheduler, DDPMPipeline

    home = sd.DiscreteVP.linear(200, 0.1, 4.0).rescaled()
    denoiser = random_denoiser(*EQUAL["ddpm"], process=home, prediction=prediction)
    sd.export_diffusers(denoiser, tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=True)
    assert scheduler.config.timestep_spacing == "trailing"
    scheduler.set_timesteps(8)
    x = noise = randn(2, 3, 16, 16, seed=2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    grid = sd.make_grid(home, 8, "strided", spacing="trailing")
    for ours in (denoiser, sd.import_checkpoint(tmp_path / "out", "diffusers")):
        found = sd.sample(ours, x=noise, grid=grid, sampler="ddim").x
        torch.testing.assert_close(found, x, rtol=0, atol=2e-4 * float(x.abs().max()))


def test_there_and_back_again(tmp_path: Path) -> None:
    denoiser = random_denoiser(*EQUAL["adm"])
    sd.export_diffusers(denoiser, tmp_path / "out")
    again = sd.import_checkpoint(tmp_path / "out", "diffusers")
    x, kernel = randn(2, 3, 16, 16, seed=3), denoiser.spec.process.kernel(0.4)
    labels = torch.tensor([1, 3])
    torch.testing.assert_close(
        again(x, kernel, labels=labels), denoiser(x, kernel, labels=labels), rtol=1e-5, atol=1e-5
    )
    assert again.spec.variance == denoiser.spec.variance == "learned_range"


def test_a_network_of_rectangles_there_and_back_again(tmp_path: Path) -> None:
    """diffusers' own pipeline draws pictures of its size, and the size comes back."""
    from diffusers import DDPMPipeline

    denoiser = random_denoiser("ddpm", {**EQUAL["ddpm"][1], "image_size": (8, 16)})
    sd.export_diffusers(denoiser, tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 8, 16, 3)
    again = sd.import_checkpoint(tmp_path / "out", "diffusers")
    assert again.spec.shape == (3, 8, 16) and again.spec.options["image_size"] == [8, 16]
    x, label = randn(2, 3, 8, 16, seed=3), torch.tensor([3.0, 400.0])
    torch.testing.assert_close(again.net(x, label), denoiser.net(x, label), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        found = pipeline.unet(x, label).sample
    torch.testing.assert_close(found, denoiser.net(x, label), rtol=0, atol=2e-5 * float(found.abs().max()))


@pytest.mark.parametrize(
    ("network", "options", "says"),
    [
        ("ncsnpp", {"channels": 16, "multipliers": (1, 2), "blocks": 1}, "random features"),
        ("ddpmpp", {"channels": 16, "multipliers": (1, 2), "blocks": 1}, "rescaled sums"),
        (
            "ddpm",
            {"channels": 32, "multipliers": (1, 2), "last_attention": True, "attention_resolutions": (8,)},
            "some",
        ),
        ("ddpm", {"channels": 32, "multipliers": (1, 2), "convolutions": False}, "means and nearest"),
        ("unet", {"channels": 32, "multipliers": (1, 2)}, "one number of groups"),
        ("adm", {"channels": 32, "multipliers": (1, 2), "attention_factors": (1, 2)}, "one width of heads"),
        ("dit", {"width": 16, "depth": 1, "heads": 2}, "a DiT is no U-Net"),
    ],
)
def test_a_network_without_an_equal_is_refused_with_the_reason(
    network: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert network in NETWORKS
    with pytest.raises(sd.UserError, match=f"no network equal to this one: .*{says}"):
        sd.export_diffusers(random_denoiser(network, options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("home", "says"),
    [
        ({"process": sd.VPSDE(), "label": "time"}, "discrete betas, and this one is a VPSDE"),
        ({"label": "index_1000"}, "'index_1000'"),
        ({"prediction": "score"}, "no prediction 'score'"),
        ({"data_range": (0.0, 1.0), "input_scale": "centre"}, r"\[-1, 1\]"),
        ({"process": sd.RectifiedFlow(), "prediction": "velocity", "label": "time"}, "label is 1000 t.*'time'"),
        (
            {"process": sd.RectifiedFlow(), "prediction": "v", "label": "thousand_time"},
            "the velocity, and this one 'v'",
        ),
    ],
)
def test_a_home_without_an_equal_is_refused_with_the_reason(home: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(sd.UserError, match=f"no scheduler equal to this home: .*{says}"):
        sd.export_diffusers(random_denoiser(*EQUAL["ddpm"], **home), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_has_no_shift(tmp_path: Path) -> None:
    with pytest.raises(sd.UserError, match="its steps have no shift, and this one is 3; export with a shift of 1"):
        sd.export_diffusers(random_denoiser(*EQUAL["ddpm"]), tmp_path / "out", shift=3.0)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(sd.UserError, match="not an empty folder"):
        sd.export_diffusers(random_denoiser(*EQUAL["ddpm"]), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
