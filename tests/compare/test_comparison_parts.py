"""The parts of a comparison that are formulas: distances to the flow, guidance, trajectories, what the stamps name."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.compare.evaluator import able_first, evaluator, flow_distance
from sde_diffusion.compare.runs import Run, write_trajectory
from sde_diffusion.compare.variants import oracle_variant
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.wrappers import Seen
from sde_diffusion.metrics.classifier import RECIPE
from sde_diffusion.metrics.scores import Judging
from sde_diffusion.pipelines.sampling import Drawn, Model, draw, network_model
from sde_diffusion.settings.root import Settings

settings_of = Settings.from_config
FEW = "64 samples are too few for the Fréchet distance by 64 features: 65 are needed"


def config_of(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def test_distance_to_the_flow() -> None:
    """rms over all numbers of the pairs there are; the interval covers the rms of many more in 95 of 100 cases."""
    ends, flow = np.array([[3.0, 0.0], [0.0, 0.0], [9.0, 9.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert flow_distance(ends, flow).value == pytest.approx(np.sqrt((9 + 16) / 4))
    assert flow_distance(ends[:2], torch.from_numpy(ends[:2])).value == 0.0
    g, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        found = flow_distance(torch.randn(64, 8, generator=g).numpy(), torch.zeros(64, 8))
        assert found.low is not None and found.high is not None
        covered += found.low < 1.0 < found.high
    assert 0.90 <= covered / 200 <= 0.99


class Told(torch.nn.Module):
    """Answers with the class that it is told, so that guidance is a sum of numbers."""

    def forward(self, x: Tensor, label: Tensor, labels: Tensor) -> Tensor:
        return (labels + 1.0).reshape(-1, 1, 1, 1).expand_as(x)


def test_guidance_is_a_difference_of_what_the_network_says() -> None:
    """(1 + w) (c + 1) - w (no class + 1), two calls for each evaluation."""
    config = config_of("vpsde_digits")
    spec = sd.NetworkSpec(process=sd.VPSDE(), prediction="x0", shape=(1, 2, 2), options={"num_classes": 3})
    network, transform = sd.NetworkDenoiser(Told(), spec), DataTransform(17)
    grid = sd.make_grid(sd.VPSDE(), 4, "logsnr")
    for weight, calls in ((0.0, 1), (1.5, 2)):
        model = network_model(settings_of(config), network, transform, ("a", "b", "c"), weight)
        drawn = draw(model, "ddim", grid, 0, range(6), {})
        expected = (1.0 + weight) * (torch.arange(6) % 3 + 1.0) - weight * 4.0
        assert drawn.x.mean(dim=(1, 2, 3)).allclose(expected, atol=1e-5) and drawn.nfe == calls * 4
    config.training.label_dropout = 0.0
    with pytest.raises(sd.UserError, match="label_dropout"):
        network_model(settings_of(config), network, transform, ("a", "b", "c"), 1.5)


def test_a_trajectory_shows_x_in_units_of_its_spread(tmp_path: Path) -> None:
    sde = sd.VESDE()
    kernels = [sde.kernel(t) for t in (1.0, 0.5, 0.1)]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = [Seen(3 * i, kernel.sigma * x, 0.1 * i + 0 * x, kernel) for i, kernel in enumerate(kernels)]
    model = Model(lambda labels: sd.EmpiricalDenoiser(x), sde, (2,), DataTransform(None))
    write_trajectory(tmp_path / "trajectory.npz", model, Drawn(x, {}, 7, seen))
    with np.load(tmp_path / "trajectory.npz") as trajectory:
        for shown, kernel in zip(trajectory["x"], kernels, strict=True):
            sigma = float(kernel.sigma)
            np.testing.assert_allclose(shown, x.numpy() * sigma / np.sqrt(1.0 + sigma**2), rtol=1e-5)
        np.testing.assert_allclose(trajectory["x0_hat"][2], 0.2, rtol=1e-6)
        assert trajectory["captions"][1].startswith("evaluation 4 of 7, log-SNR")


@pytest.mark.parametrize(
    ("count", "asked", "names", "said"),
    [
        (65, ("frechet", "kid", "recall"), ("frechet", "kid", "recall"), ()),
        (
            64,
            ("frechet", "kid", "recall"),
            ("kid", "recall", "frechet"),
            (f"{FEW}; the kernel distance decides instead",),
        ),
        (64, ("frechet",), ("kid", "frechet"), (f"{FEW}; the kernel distance decides instead",)),
        (64, ("recall", "frechet"), ("recall", "frechet"), (FEW,)),
        (64, ("nearest", "frechet"), ("kid", "nearest", "frechet"), (f"{FEW}; the kernel distance decides instead",)),
    ],
)
def test_what_cannot_judge_so_few_gives_way(
    count: int, asked: tuple[str, ...], names: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """At one sample above the number of features, and below; `nearest` ranks nothing, so that it decides nothing."""
    assert able_first(asked, (count, 1000), 64, Judging(), decided=False) == (names, said)
    if asked[0] == "frechet" and count == 64:  # of a closed form the error of the moments decides
        assert able_first(asked, (count, 1000), 64, Judging(), decided=True)[1] == (FEW,)


def test_a_run_of_before_keeps_the_name_of_its_trajectory(tmp_path: Path) -> None:
    settings = settings_of(config_of("oracle_gmm"))
    (variant,), _ = oracle_variant(settings, torch.device("cpu"))
    run = Run.of(settings, variant, settings.compare.trials()[0], tmp_path)
    assert run.trajectory == run.place / "trajectory.npz"
    run.place.mkdir()
    (run.place / "film.npz").touch()
    assert run.trajectory == run.place / "film.npz"


def test_a_classifier_knows_nothing_of_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever split figures compare with, the features are those of one network, trained on the training split."""
    monkeypatch.setitem(RECIPE, "updates", [4, 4])
    config = config_of("vpsde_digits")
    config.compare.cache = str(tmp_path)
    config.compare.bootstraps = 2
    (variant,), _ = oracle_variant(settings_of(config_of("oracle_gmm")), torch.device("cpu"))
    stamps = []
    for split in ("train", "test"):
        config.compare.split = split
        stamps.append(
            evaluator(settings_of(config), variant, settings_of(config).splits(), torch.device("cpu")).protocol
        )
    assert stamps[0]["features"] == stamps[1]["features"] and stamps[0]["reference"] != stamps[1]["reference"]
    assert [stamp["reference"]["samples"] for stamp in stamps] == [1497, 300]
    assert len(list(tmp_path.glob("**/classifier-*"))) == 1
