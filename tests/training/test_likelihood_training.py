"""Training for the likelihood: objectives and time samplers of a configuration, and what a resumed run remembers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

import run_lib
import sde_diffusion as sd
from sde_diffusion.data import toy2d
from sde_diffusion.likelihood.decoder import GREY_LEVELS
from sde_diffusion.likelihood.discrete import Chain
from sde_diffusion.objectives.losses import OBJECTIVES, ObjectiveOptions, objective
from sde_diffusion.settings.root import Settings, fresh_network
from sde_diffusion.storage.checkpoint import read_checkpoint
from tests.proofs.cases import generator

settings_of = Settings.from_config

TABLE = sd.DiscreteVP.cosine(25)


def tiny(name: str, steps: int, **training: object) -> ConfigDict:
    """A named configuration with a small network."""
    config: ConfigDict = import_module(f"configs.{name}").get_config()
    config.device = "cpu"
    config.model.unet.channels = 8
    config.model.unet.multipliers = (1, 2)
    settings = {"steps": steps, "cooldown_steps": 0, "batch_size": 32, "sample_every": 0, "held_out_batches": 1}
    for key, value in (settings | training).items():
        config.training[key] = value
    return config


class Learned:
    """A denoiser with a learned variance, the same for every time."""

    def __call__(self, x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        return self.moments(x, kernel)[0]

    def moments(self, x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), torch.sigmoid(2.0 * x)


def test_objectives_are_the_losses_of_their_names() -> None:
    x0 = torch.randint(0, 256, (25, 3), generator=generator(0)).double() / 127.5 - 1.0
    noise, t = torch.randn(25, 3, generator=generator(1), dtype=torch.float64), TABLE.times
    settings, chain = ObjectiveOptions(weighting="v", vlb_weight=0.5, variance="learned"), Chain.of(TABLE)
    expected = {
        "score_matching": sd.denoising_score_matching(Learned(), TABLE, x0, t, noise, weighting="v"),
        "vlb": sd.variational_loss(Learned(), chain, x0, t, noise, variance="learned"),
        "hybrid": sd.hybrid_loss(Learned(), TABLE, chain, x0, t, noise, weighting="v", vlb_weight=0.5),
    }
    assert set(expected) == set(OBJECTIVES)
    for kind, values in expected.items():
        found = objective(TABLE, kind, settings)(Learned(), x0, t, noise, GREY_LEVELS)
        torch.testing.assert_close(found, values, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("vpsde_digits", {"training.loss": "vbl"}, "did you mean 'vlb'"),
        ("vpsde_digits", {"training.loss": "vlb"}, "VPSDE has no discrete levels"),
        ("vpsde_digits", {"training.loss": "hybrid"}, "needs model.variance='learned_range'"),
        ("vpsde_digits", {"training.times": "loss_aware"}, "those of a discrete process"),
        ("iddpm_digits", {"training.times": "uniform"}, "needs training.times='levels' or 'loss_aware', not 'uniform'"),
        ("vpsde_digits", {"model.variance": "learned"}, "did you mean 'learned_range'"),
        ("vpsde_digits", {"likelihood.figures": ("oed",)}, "did you mean 'ode'"),
        ("vpsde_digits", {"likelihood.figures": ()}, "likelihood.figures is empty"),
        ("vpsde_digits", {"likelihood.dequantizer": "unifrom"}, "did you mean 'uniform'"),
        ("vpsde_digits", {"likelihood.levels": 1}, "likelihood.levels must be at least 2"),
    ],
)
def test_configurations_that_cannot_be_trained(name: str, changes: dict[str, object], says: str) -> None:
    config = import_module(f"configs.{name}").get_config()
    for key, value in changes.items():
        section, _, last = key.partition(".")
        config[section][last] = value
    with pytest.raises(sd.UserError, match=says):
        settings_of(config).check()


def test_a_learned_variance_doubles_the_channels_of_every_network() -> None:
    data = settings_of(tiny("iddpm_digits", 1)).splits().train
    for network in ("unet", "mlp"):
        config = tiny("iddpm_digits", 1)
        config.model.network = network
        spec = settings_of(config).spec(data)
        denoiser = sd.NetworkDenoiser(fresh_network(spec, 0), spec)
        x = torch.randn(2, 1, 8, 8, generator=generator(0))
        x0_hat, fraction = denoiser.moments(x, spec.process.kernel(0.5))
        assert fraction is not None and x0_hat.shape == fraction.shape == x.shape
        # The networks begin at zero: half way between the two bounds.
        assert torch.equal(fraction, torch.full_like(x, 0.5))


def test_a_resumed_training_remembers_the_losses_of_each_level(tmp_path: Path) -> None:
    """20 steps, and 10 and then 10 more, end with the same weights and the same memory, bit for bit."""

    def config(steps: int) -> ConfigDict:
        found = tiny("iddpm_digits", steps, loss="vlb", times="loss_aware", checkpoint_every=10, warmup_steps=5)
        found.process.levels = 10
        return found

    for steps, folder in ((20, "whole"), (10, "halved"), (20, "halved")):
        run_lib.train(settings_of(config(steps)), tmp_path / folder, settings_of(config(steps)).engine())
    whole, halved = (read_checkpoint(tmp_path / name) for name in ("whole", "halved"))
    assert int(whole.times["seen"].min()) >= 10  # warm, so that the levels were drawn by their losses
    assert whole.weights.keys() == halved.weights.keys()
    for part in (*whole.weights, "times"):
        ours, theirs = ({**found.weights, "times": found.times}[part] for found in (whole, halved))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE"])
def test_likelihood_weighted_training_comes_near_the_truth(process: str, tmp_path: Path) -> None:
    """The weighted loss is that of the true denoiser plus KL in nats (Song et al. 2021, ScoreFlow, theorem 1).

    Points of a mixture whose denoiser is known; at fixed times and noise, four fifths of that and more are unlearned.
    """
    config: ConfigDict = import_module("configs.vpsde_toy2d").get_config()
    config.device, config.data.shape, config.process.name = "cpu", "mixture", process
    config.model.mlp.width, config.model.mlp.blocks = 64, 2
    settings = {"steps": 400, "cooldown_steps": 300, "warmup_steps": 5, "sample_every": 0, "held_out_batches": 4}
    for key, value in (settings | {"weighting": "likelihood", "times": "importance"}).items():
        config.training[key] = value
    run_lib.train(settings_of(config), tmp_path, settings_of(config).engine())
    trained = read_checkpoint(tmp_path)
    truth = sd.GaussianMixture(toy2d.MIXTURE_MEANS, toy2d.MIXTURE_STDS, toy2d.MIXTURE_WEIGHTS).denoiser()
    untrained = sd.NetworkDenoiser(fresh_network(trained.spec, config.seed), trained.spec)
    x0 = settings_of(config).splits().test.samples
    t, weight = settings_of(config).training.time_sampler(trained.spec.process).draw(len(x0), generator(0))
    noise = torch.randn(x0.shape, generator=generator(1))

    def loss(denoiser: sd.Denoiser) -> float:
        values = sd.denoising_score_matching(denoiser, trained.spec.process, x0, t, noise, weighting="likelihood")
        return float((weight * values.detach()).mean())

    least, before, after = loss(truth), loss(untrained), loss(sd.load(tmp_path, weights="raw"))
    assert least < after < least + 0.2 * (before - least)
