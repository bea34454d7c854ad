"""EDM's training: preconditioning, log-normal times and augmentation that the network is told of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import sde_diffusion as sd
from configs import edm_cifar
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.settings.root import Settings
from sde_diffusion.training.losses import row_losses

settings_of = Settings.from_config


class Noting(nn.Module):
    """A network that puts out zero and notes what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(
        self, x: Tensor, label: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        self.seen.append((x, label, augment_labels))
        return torch.zeros_like(x)


def edm_config() -> ConfigDict:
    config = edm_cifar.get_config()
    settings_of(config).check()
    return config


def loss_with(config: ConfigDict, *, learn: bool, pictures: Tensor) -> tuple[float, Noting]:
    net = Noting()
    spec = sd.NetworkSpec(
        settings_of(config).process.process(),
        config.model.prediction,
        config.model.label,
        config.model.input_scale,
        shape=(3, 32, 32),
    )
    task = settings_of(config).task(DataTransform(256), spec, spec.process)
    rows, count = range(len(pictures)), len(pictures)
    losses = row_losses(task, NetworkDenoiser(net, spec), (pictures, {}), rows, count, 0, learn=learn)
    return float(losses.mean), net


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_loss_of_a_silent_network_is_its_closed_form() -> None:
    """With F = 0, D = c_skip (y + n): the loss is lambda |c_skip (y + n) - y|^2 (Karras et al. 2022, Table 1).

    Its expectation over n, with lambda = (s^2 + s_d^2) / (s s_d)^2, is (y^2 s^2 + s_d^4) / (s_d^2 (s^2 + s_d^2)).
    """
    config = edm_config()
    config.training.augment = 0.0
    data = pictures(256)
    found, net = loss_with(config, learn=True, pictures=data)
    ((_, label, told),) = net.seen
    assert told is None
    sigma, square = (4.0 * label.double()).exp(), (data.double() / 127.5 - 1.0).square().flatten(1).mean(1)
    expected = (square * sigma**2 + 0.5**4) / (0.5**2 * (sigma**2 + 0.5**2))
    assert found == pytest.approx(float(expected.mean()), rel=2e-3)  # 3072 numbers in each of 256 pictures


def test_noise_levels_are_log_normal() -> None:
    """log sigma ~ N(-1.2, 1.2^2): four standard errors of 100,000 draws."""
    config = edm_config()
    t, weight = settings_of(config).training.time_sampler(sd.EDM()).draw(100_000, torch.Generator().manual_seed(2))
    log_sigma = (config.process.sigma_max * t).log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / 100_000**0.5)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=4 * 1.2 / 200_000**0.5)
    assert bool((weight == 1.0).all())


def test_the_network_is_told_of_the_augmentation_that_its_pictures_had() -> None:
    """Half of the pictures are mirrored and told so, the others neither; held-out losses are about the pictures."""
    config = edm_config()
    config.training.augment = 1e-9  # next to never anything but the mirror, a fair coin
    config.training.p_mean, config.training.p_std = -6.0, 1e-3  # sigma 0.0025: the pictures are to be seen
    data = pictures(64)
    clean = data.float() / 127.5 - 1.0
    _, net = loss_with(config, learn=True, pictures=data)
    ((x, label, told),) = net.seen
    assert told is not None and told.shape == (64, 9)
    mirrored = told[:, 0] == 1.0
    assert 16 < int(mirrored.sum()) < 48 and not told[:, 1:].any()
    seen = x * (0.25 + (8.0 * label).exp()).sqrt()[:, None, None, None]  # c_in undone
    expected = torch.where(mirrored[:, None, None, None], clean.flip(3), clean)
    assert float((seen - expected).abs().max()) < 0.02
    _, net = loss_with(config, learn=False, pictures=data)
    ((x, label, told),) = net.seen
    assert told is None
    assert float((x * (0.25 + (8.0 * label).exp()).sqrt()[:, None, None, None] - clean).abs().max()) < 0.02
