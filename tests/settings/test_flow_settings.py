"""The keys of rectified flow's configurations: checked before anything is done, and passed on to what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sde_diffusion as sd
from configs import base, rectified_digits
from run_lib import MODES
from sde_diffusion.data import Dataset
from sde_diffusion.likelihood.decoder import GREY_LEVELS
from sde_diffusion.settings.root import Settings

settings_of = Settings.from_config

DIGITS = Dataset(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), 17, tuple("0123456789"), "digits")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("sampling.shift", 0.0, "a shift is a factor of sigma/alpha above 0, 1 for none, got 0.0"),
        ("training.shift", -1.0, "a shift is a factor of sigma/alpha above 0, 1 for none, got -1.0"),
        ("sampling.t_start", 0.0, r"t_start must lie in \(0, 1\], got 0.0"),
        ("sampling.t_start", 1.5, r"t_start must lie in \(0, 1\], got 1.5"),
        ("model.sigma_data", 0.0, "model.sigma_data, a standard deviation, must be positive, got 0.0"),
    ],
)
def test_a_value_that_is_none(key: str, value: float, says: str) -> None:
    config = base.get_config()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(sd.UserError, match=says):
        settings_of(config).check()


def test_a_grid_of_levels_is_not_shifted() -> None:
    config = base.get_config()
    config.process.name, config.sampling.grid, config.sampling.shift = "DiscreteVP", "strided", 2.0
    with pytest.raises(sd.UserError, match="a strided grid has the nodes that it says"):
        settings_of(config).check()


def test_a_configuration_reaches_what_it_is_about() -> None:
    config = rectified_digits.get_config()
    config.sampling.t_start, config.sampling.shift, config.training.shift, config.model.sigma_data = 0.9, 2.0, 3.0, 0.3
    sde = settings_of(config).process.process()
    found = settings_of(config).sampling.make_grid(sde, 7, "euler").times
    assert torch.equal(found, sd.make_grid(sde, 7, t_start=0.9, shift=2.0).times)
    drawn = settings_of(config).training.time_sampler(sde).draw(9, torch.Generator().manual_seed(0))[0]
    law = {"kind": "logit_normal", "p_mean": -0.6, "p_std": 1.2, "shift": 3.0}
    assert torch.equal(drawn, sd.sample_times(sde, 9, generator=torch.Generator().manual_seed(0), **law))
    spec = settings_of(config).spec(DIGITS)
    assert (spec.prediction, spec.label, spec.sigma_data) == ("velocity", "thousand_time", 0.3)
    assert Settings().as_trained(spec).model.sigma_data == 0.3
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    config.training.weighting = "edm"

    def zero(x: torch.Tensor, kernel: sd.Kernel, **conditioning: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    t = torch.full((3,), 0.5, dtype=torch.float64)  # where sigma/alpha is 1
    loss = settings_of(config).training.objective(sde, "posterior", 0.3)(zero, x0, t, noise, GREY_LEVELS)
    torch.testing.assert_close(loss, (1.0 + 0.3**-2) * x0.square().mean(1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prediction": "eps"}, "RectifiedFlow has no signal.* prediction 'eps'.*choose 'v', 'x0' or 'velocity'"),
        ({"label": "logsnr"}, "RectifiedFlow has no signal.* label 'logsnr' is infinite: choose one that is not"),
    ],
)
def test_an_impossible_pair_is_refused_before_training(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = rectified_digits.get_config()
    config.model.update(changes)
    settings_of(config).check()  # a network that begins later may be sampled with such a configuration
    with pytest.raises(sd.UserError, match=says):
        MODES["train"](settings_of(config), tmp_path / "run", settings_of(config).engine())
    assert not (tmp_path / "run").exists()
