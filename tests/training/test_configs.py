"""Every configuration builds; those of the papers have the papers' figures."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

import sde_diffusion as sd
from sde_diffusion import build
from sde_diffusion.checkpoint import build_network
from sde_diffusion.data import Dataset

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "configs").glob("*.py") if p.stem != "__init__")
SHAPES = {"digits": (1, 8, 8), "mnist5k": (1, 32, 32), "toy2d": (2,), "cifar10": (3, 32, 32)}
LEVELS = {"digits": 17, "mnist5k": 256, "toy2d": None, "cifar10": 256}


def config_of(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def stand_in(config: ConfigDict) -> Dataset:
    shape, levels = SHAPES[config.data.dataset], LEVELS[config.data.dataset]
    dtype = torch.float32 if levels is None else torch.uint8
    return Dataset(torch.zeros(2, *shape, dtype=dtype), torch.tensor([0, 1]), levels, ("a", "b"), "stand-in")


def parameters(name: str) -> int:
    config = config_of(name)
    spec = build.spec(config, stand_in(config))
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(spec).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_builds(name: str) -> None:
    config = config_of(name)
    build.check(config)
    spec = build.spec(config, stand_in(config))
    assert sd.NetworkSpec.from_state(spec.state()).options == spec.options
    assert parameters(name) > 1000
    for _, steps, _ in build.gallery(config):
        grid = build.grid(config, spec.process, steps)
        assert grid.steps == steps and float(grid.times[0]) == 1.0


def test_all_named_configurations_are_there() -> None:
    named = "base vpsde_digits vesde_digits subvpsde_digits vpsde_mnist vpsde_toy2d vpsde_cifar vesde_cifar"
    assert {*named.split(), "subvpsde_cifar", "ddpm_cifar"} <= set(NAMES)


def test_unconditional_cifar_networks_have_ddpm_size() -> None:
    """35.7 million parameters (Ho et al. 2020, section 4)."""
    assert abs(parameters("ddpm_cifar") / 35.7e6 - 1) < 0.01


def test_ddpm_betas() -> None:
    """From 1e-4 to 0.02 in 1000 steps (Ho et al. 2020, section 4)."""
    process = build.process(config_of("ddpm_cifar"))
    assert isinstance(process, sd.DiscreteVP) and len(process.betas) == 1000
    torch.testing.assert_close(process.betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


def test_configurations_share_one_set_of_keys() -> None:
    def keys(section: ConfigDict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in section.items():
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key}
        return found

    base = keys(config_of("base"))
    assert all(keys(config_of(name)) == base for name in NAMES)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.weighting", "simpel", "did you mean 'simple'"),
        ("training.times", "level", "did you mean 'levels'"),
        ("sampling.grid", "karas", "did you mean 'karras'"),
        ("likelihood.method", "rk54", "did you mean 'rk45'"),
        ("training.learning_rate", 0.0, "must be positive"),
        ("training.ema_decay", 1.0, r"must lie in \[0, 1\)"),
        ("process.beta_min", 30.0, "beta_min < beta_max"),
        ("data.subtract_mean", "class", "needs model.class_conditional"),
        ("sampling.gallery", ("ddim:0",), "at least 1 step"),
        ("sampling.gallery", ("ode:5:rtoll=1e-3",), "did you mean 'rtol'"),
    ],
)
def test_values_that_cannot_be_used(key: str, value: object, says: str) -> None:
    config = config_of("base")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(sd.UserError, match=says):
        build.check(config)


def test_a_network_that_does_not_fit_the_data() -> None:
    config = config_of("vpsde_toy2d")
    config.model.network = "unet"
    with pytest.raises(sd.UserError, match="choose 'mlp'"):
        build.spec(config, stand_in(config))
