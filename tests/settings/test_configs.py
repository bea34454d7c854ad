"""Every configuration builds; those of the papers have the papers' figures."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

import sde_diffusion as sd
from sde_diffusion.core.grids import GRIDS, grid_options
from sde_diffusion.core.options import checked_options
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers.settings import PROCESS_BUILDERS
from sde_diffusion.nets.building import build_network
from sde_diffusion.samplers import SAMPLER_TABLE, SAMPLERS, sampler_options
from sde_diffusion.settings.root import Settings

settings_of = Settings.from_config

VARIANTS = [
    *("ddpmpp_cifar:deep", "ddpmpp_cifar:subvp", "ddpmpp_cifar:subvp,deep", "ncsnpp_cifar:deep"),
    *("edm_cifar:ve", "edm_cifar:cond", "edm_cifar:ve,cond"),
]
FILES = sorted(p.stem for p in (Path(__file__).parents[2] / "configs").glob("*.py"))
NAMES = [name for name in FILES if name not in ("__init__", "variants")] + VARIANTS
SHAPES = {"folder": (3, 32, 32), "digits": (1, 8, 8), "mnist5k": (1, 32, 32), "toy2d": (2,), "cifar10": (3, 32, 32)}
LEVELS = {"folder": 256, "digits": 17, "mnist5k": 256, "toy2d": None, "cifar10": 256}


def config_of(name: str) -> ConfigDict:
    file, _, variants = name.partition(":")
    get_config = importlib.import_module(f"configs.{file}").get_config
    config = get_config(variants) if variants else get_config()
    if name == "folder":  # which leaves to the pictures what they decide
        config.data.image_size, config.model.class_conditional = 32, True
    return config


def stand_in(config: ConfigDict) -> Dataset:
    shape, levels = SHAPES[config.data.dataset], LEVELS[config.data.dataset]
    dtype = torch.float32 if levels is None else torch.uint8
    return Dataset(torch.zeros(2, *shape, dtype=dtype), torch.tensor([0, 1]), levels, ("a", "b"), "stand-in")


@cache
def parameters(name: str) -> int:
    config = config_of(name)
    spec = settings_of(config).spec(stand_in(config))
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(spec.network, spec.options).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_builds(name: str) -> None:
    config = config_of(name)
    settings_of(config).check()
    spec = settings_of(config).spec(stand_in(config))
    assert sd.NetworkSpec.from_state(spec.state()).options == spec.options
    assert parameters(name) > 1000
    for sampler, steps, options in settings_of(config).sampling.gallery_entries():
        grid = settings_of(config).sampling.make_grid(spec.process, steps, sampler)
        assert grid.steps == steps and float(grid.times[0]) == 1.0
        settings_of(config).dry_run(sampler, steps, options)
    for trial in settings_of(config).compare.trials():
        settings_of(config).dry_run(trial.sampler, trial.grid_steps, trial.options)


def test_all_named_configurations_are_there() -> None:
    named = "base vpsde_digits vesde_digits subvpsde_digits vpsde_mnist vpsde_toy2d vpsde_cifar vesde_cifar"
    assert {*named.split(), "subvpsde_cifar", "ddpm_cifar", "iddpm_digits", "iddpm_cifar"} <= set(NAMES)
    assert {"ncsnpp_cifar", "ddpmpp_cifar", "edm_cifar", "dit_cifar"} <= set(NAMES)


def test_unconditional_cifar_networks_have_ddpm_size() -> None:
    """35.7 million parameters (Ho et al. 2020, section 4)."""
    assert abs(parameters("ddpm_cifar") / 35.7e6 - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "millions", "count"),
    [
        # Song et al. 2021 state no counts; these are their published checkpoints', the Fourier frequencies apart.
        ("ddpmpp_cifar", 61.8, 61_804_419),
        ("ddpmpp_cifar:deep", 106.6, 106_632_579),
        ("ddpmpp_cifar:subvp,deep", 106.6, 106_632_579),
        ("ncsnpp_cifar", 62.8, 62_758_787),
        ("ncsnpp_cifar:deep", 107.6, 107_586_947),
        ("edm_cifar", 55.7, 55_733_891),  # Karras et al. 2022, Table 7: 56 million
        ("edm_cifar:ve", 56.4, 56_397_827),
        ("iddpm_cifar", 52.5, 52_546_438),  # Nichol and Dhariwal 2021, "52.5M" in their code's documentation
        ("dit_cifar", 32.5, 32_477_208),  # Peebles and Xie 2023, Table 4: 33 million on latents told 1000 classes
    ],
)
def test_the_papers_networks_have_their_size(name: str, millions: float, count: int) -> None:
    found = parameters(name)
    assert round(found / 1e6, 1) == millions
    assert found == count


def test_variants_are_checked() -> None:
    with pytest.raises(sd.UserError, match="unknown variant 'dep'; did you mean 'deep'"):
        config_of("ncsnpp_cifar:dep")


def test_networks_take_their_own_options_only() -> None:
    config = config_of("edm_cifar")
    with config.unlocked():
        config.model.options.block = 3
    with pytest.raises(sd.UserError, match="network 'songunet' has no option 'block'; did you mean 'blocks'"):
        settings_of(config).check()
    config = config_of("ddpmpp_cifar")
    config.training.augment = 1.5
    with pytest.raises(sd.UserError, match="probability"):
        settings_of(config).check()
    config = config_of("iddpm_cifar")
    config.training.augment = 0.1
    with pytest.raises(sd.UserError, match=r"'adm' is not: choose one of .*songunet"):
        settings_of(config).check()


def test_ddpm_betas() -> None:
    """From 1e-4 to 0.02 in 1000 steps (Ho et al. 2020, section 4)."""
    process = settings_of(config_of("ddpm_cifar")).process.process()
    assert isinstance(process, sd.DiscreteVP) and len(process.betas) == 1000
    torch.testing.assert_close(process.betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


def test_configurations_share_one_set_of_keys() -> None:
    """The options of samplers, grids and networks are those of each; `Settings.check` knows them."""

    def keys(section: ConfigDict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in section.items():
            if prefix + key in ("sampling.options", "sampling.grid_options", "model.options"):
                continue
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
        ("likelihood.method", "rk_45", "did you mean 'rk45'"),
        ("training.learning_rate", 0.0, "must be positive"),
        ("training.ema_decay", 1.0, r"must lie in \[0, 1\)"),
        ("process.beta_min", 30.0, "beta_min < beta_max"),
        ("data.subtract_mean", "class", "needs model.class_conditional"),
        ("sampling.gallery", ("ddim:0",), "at least 1 step"),
        ("sampling.gallery", ("ode:5:rtoll=1e-3",), "did you mean 'rtol'"),
        ("sampling.gallery", ("ode:5:rtol=tight",), "option rtol of ode must be a number, got 'tight'"),
        ("sampling.options", ConfigDict({"eta": "much"}), "option eta of ddim must be a number, got 'much'"),
        ("sampling.options", ConfigDict({"etta": 1.0}), "sampler 'ddim' has no option 'etta'; did you mean 'eta'"),
        ("sampling.grid_options", ConfigDict({"rho": 7.0}), "grid 'uniform' has no option 'rho'; it takes no options"),
    ],
)
def test_values_that_cannot_be_used(key: str, value: object, says: str) -> None:
    config = config_of("base")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(sd.UserError, match=says):
        settings_of(config).check()


SCHEMA = {"flag": False, "count": 2, "size": 0.5, "word": "a", "cap": None}


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("flag", "True", True),
        ("count", "3", 3),
        ("count", "-1", -1),
        ("size", "1e-3", 1e-3),
        ("size", "inf", float("inf")),
        ("size", 2, 2.0),
        ("word", "10,10,5", "10,10,5"),
        ("word", "2", "2"),
        ("cap", "None", None),
        ("cap", "4", 4),
    ],
)
def test_options_are_read_in_the_type_of_their_default(name: str, given: object, read: object) -> None:
    (value,) = checked_options("sampler", "s", SCHEMA, {name: given}).values()
    assert value == read and type(value) is type(read)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("flag", "1", "True or False, got '1'"),
        ("flag", "true", "True or False, got 'true'"),
        ("count", "2.0", "a whole number, got '2.0'"),
        ("count", True, "a whole number, got True"),
        ("count", "{[]: 1}", "a whole number"),
        ("size", "True", "a number, got 'True'"),
        ("size", "(1, 2)", "a number"),
        ("size", "", "a number, got ''"),
        ("word", (10, 10, 5), r"text, got \(10, 10, 5\)"),
        ("cap", "0.5", "a whole number or None, got '0.5'"),
    ],
)
def test_options_of_another_type_are_refused(name: str, given: object, says: str) -> None:
    with pytest.raises(sd.UserError, match=f"option {name} of s must be {says}"):
        checked_options("sampler", "s", SCHEMA, {name: given})


def test_every_option_has_a_type() -> None:
    """Its default, as text and as it is, is a valid value that is read back."""
    for kind, owners, schema_of in (("sampler", SAMPLERS, sampler_options), ("grid", GRIDS, grid_options)):
        for owner in owners:
            schema = schema_of(owner)
            assert checked_options(kind, owner, schema, schema) == schema
            told = {name: str(default) for name, default in schema.items()}
            assert checked_options(kind, owner, schema, told) == schema


def test_gallery_options_may_hold_commas() -> None:
    config = config_of("base")
    config.sampling.gallery = ("lms:5:order=2,start=a,b,final_order=None",)
    assert settings_of(config).sampling.gallery_entries() == [
        ("lms", 5, {"order": 2, "start": "a,b", "final_order": None})
    ]


def test_trials_are_samplers_by_budgets() -> None:
    """Steps in an entry stand in for the budgets; tolerances for both, unless they are given."""
    config = config_of("base")
    config.compare.samplers = ("ddim", "ddim::eta=1", "pc:7", "ode", "ode::rtol=1e-3", "ode:3:method=rk4", "ddim")
    config.compare.steps = (2, 4)
    found = [(trial.label, trial.steps, trial.options) for trial in settings_of(config).compare.trials()]
    assert found == [
        ("ddim", 2, {}),
        ("ddim", 4, {}),
        ("ddim eta=1.0", 2, {"eta": 1.0}),
        ("ddim eta=1.0", 4, {"eta": 1.0}),
        ("pc", 7, {}),
        *(("ode", None, {"rtol": at, "atol": at}) for at in SAMPLER_TABLE["ode"].tolerances),
        ("ode rtol=0.001", None, {"rtol": 1e-3}),
        ("ode method=rk4", 3, {"method": "rk4"}),
    ]
    assert [trial.grid_steps for trial in settings_of(config).compare.trials()] == [
        2,
        4,
        2,
        4,
        7,
        2,
        2,
        2,
        2,
        2,
        3,
    ]


def test_adaptive_samplers_have_tolerances() -> None:
    for name, entry in SAMPLER_TABLE.items():
        assert bool(entry.tolerances) == ("adaptive" in entry.order)
        assert not entry.tolerances or {"rtol", "atol"} <= sampler_options(name).keys()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("steps", (5, 0), "compare.steps must be whole numbers of at least 1, got 0"),
        ("steps", (), "compare.steps is empty"),
        ("samplers", ("dimm",), "did you mean 'ddim'"),
        ("samplers", ("ode:5",), "ode has step sizes of its own; it takes tolerances in place of 5 steps"),
        ("metrics", ("fretchet",), "did you mean 'frechet'"),
        ("features", "clasifier", "did you mean 'classifier'"),
        ("split", "tests", "did you mean 'test'"),
        ("guidance", (-1.0,), "a guidance weight is 0"),
        ("flow_rtol", 0.0, "compare.flow_rtol must be positive"),
        ("bootstraps", 0, "compare.bootstraps must be at least 1"),
    ],
)
def test_comparisons_that_are_refused(key: str, value: object, says: str) -> None:
    config = config_of("base")
    config.compare[key] = value
    with pytest.raises(sd.UserError, match=says):
        settings_of(config).check()


@pytest.mark.parametrize("process", PROCESS_BUILDERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_rehearsal_accepts_what_can_be_sampled(sampler: str, process: str) -> None:
    config = config_of("base")
    config.process.name = process
    for steps in (1, 50):
        settings_of(config).dry_run(sampler, steps, {})


@pytest.mark.parametrize(
    ("sampler", "steps", "options", "says"),
    [
        ("dpmpp_2m", 50, {"order": 9}, "order of dpmpp_2m must be a whole number from 1 to"),
        ("unipc", 50, {"b": "b3"}, "did you mean"),
        ("ddim", 50, {"eta": 2.0}, r"eta must lie in \[0, 1\]"),
        ("ddim", 2000, {}, "choose 1 to 1000"),
    ],
)
def test_a_rehearsal_refuses_what_the_sampler_would(
    sampler: str, steps: int, options: dict[str, object], says: str
) -> None:
    config = config_of("ddpm_cifar")
    with pytest.raises(sd.UserError, match=says):
        settings_of(config).dry_run(sampler, steps, options)


def test_a_grid_that_cannot_be_laid_does_not_stop_a_training() -> None:
    config = config_of("ddpm_cifar")
    config.sampling.steps = 2000
    config.sampling.gallery = ("ddim",)
    settings_of(config).check()


def test_the_automatic_grid_is_the_samplers_own() -> None:
    """Measured: on a uniform grid the last step of a multistep sampler is an extrapolation, worse than DDIM."""
    config, process = config_of("vpsde_digits"), sd.VPSDE()
    assert config.sampling.grid == "auto"
    for sampler, entry in SAMPLER_TABLE.items():
        found = settings_of(config).sampling.make_grid(process, 12, sampler).times
        assert torch.equal(found, sd.make_grid(process, 12, entry.grid or "uniform").times)
    assert {entry.grid for entry in SAMPLER_TABLE.values()} == {"", "logsnr"}
    config.process.name = "EDM"
    assert [settings_of(config).sampling.grid_kind(s, sd.EDM()) for s in ("ddim", "unipc")] == ["karras", "logsnr"]
    config.sampling.grid = "karras"
    assert torch.equal(
        settings_of(config).sampling.make_grid(process, 12, "unipc").times,
        sd.make_grid(process, 12, "karras").times,
    )


def test_grid_options_and_snap_reach_the_grid() -> None:
    config = config_of("ddpm_cifar")
    process = settings_of(config).process.process()
    assert process.times is not None
    config.sampling.grid = "respaced"
    config.sampling.grid_options = ConfigDict({"sections": "10,10,5"})
    grid = settings_of(config).sampling.make_grid(process, 25, "ddim")
    assert torch.equal(grid.times, sd.make_grid(process, 25, "respaced", sections="10,10,5").times)
    config.sampling.grid, config.sampling.grid_options = "karras", ConfigDict()
    assert not torch.isin(settings_of(config).sampling.make_grid(process, 25, "ddim").times, process.times).all()
    config.sampling.snap = True
    assert torch.isin(settings_of(config).sampling.make_grid(process, 25, "ddim").times, process.times).all()
    with pytest.raises(sd.UserError, match="levels of a discrete process"):
        settings_of(config).sampling.make_grid(sd.VPSDE(), 25, "ddim")


def test_a_network_that_does_not_fit_the_data() -> None:
    config = config_of("vpsde_toy2d")
    config.model.network = "unet"
    with pytest.raises(sd.UserError, match="choose 'mlp'"):
        settings_of(config).spec(stand_in(config))
