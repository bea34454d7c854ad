"""Conventions of the sources that no stored output shows: the case without a class, and diffusers' scaled levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sde_diffusion as sd
from tests.importers import writing
from tests.importers.golden import reference
from tests.nets.contract import randn

B0, B1, LEVELS = 0.00085, 0.012, 1000
"""Latent diffusion's first and last rate."""


@pytest.mark.parametrize("name", ["edm_songunet_ddpmpp_cond_aug", "edm_dhariwal_cond_aug"])
def test_edm_without_a_class_sees_a_vector_of_zeros(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDM multiplies zeros by W in place of a class, so that its bias alone is left: as any class where W = 0."""
    denoiser = sd.import_checkpoint(writing.edm_file(tmp_path / "net.pkl", name), "edm")
    blind = reference(name)
    (key,) = (key for key in blind.weights if key.endswith("map_label.weight"))
    blind.weights[key].zero_()
    monkeypatch.setattr(writing, "reference", lambda _: blind)
    without = sd.import_checkpoint(writing.edm_file(tmp_path / "blind.pkl", name), "edm")
    x, kernel = randn(3, *denoiser.spec.shape).float(), denoiser.spec.model_process.kernel(0.5)
    classes = torch.arange(3)
    torch.testing.assert_close(denoiser(x, kernel), without(x, kernel, labels=classes), rtol=1e-5, atol=1e-5)
    table, own = denoiser.net.conditioning.classes.weight, reference(name).weights
    bias = own.get(key.replace("weight", "bias"))
    torch.testing.assert_close(table[-1], torch.zeros_like(table[-1]) if bias is None else bias)
    told = denoiser(x, kernel, labels=classes)
    assert float((told - denoiser(x, kernel)).abs().amax(dim=(1, 2, 3)).min()) > 1e-3


def test_scaled_linear_levels_are_squares_of_equal_steps(tmp_path: Path) -> None:
    """beta_i = (sqrt(b0) + i/(N - 1) (sqrt(b1) - sqrt(b0)))^2, and alpha^2 the product of 1 - beta."""
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": B0, "beta_end": B1, "num_train_timesteps": LEVELS}
    folder = writing.diffusers_folder(tmp_path / "pipe", "diffusers_unet2d_ddpm_family", scheduler=scheduler)
    process = sd.import_checkpoint(folder, "diffusers").spec.process
    signal, expected = 1.0, []
    for i in range(LEVELS):
        signal *= 1.0 - (B0**0.5 + i / (LEVELS - 1) * (B1**0.5 - B0**0.5)) ** 2
        expected.append(signal)
    assert process.times is not None
    found = process.kernel(process.times).alpha ** 2
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0.0)
