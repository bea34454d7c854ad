"""A network of any home under any sampler and any process: mean and covariance within the sampler's error.

A closed-form network stands in for a trained one. From (x, label) alone, as a trained one does, it computes what its
home would have it predict for a Gaussian mixture: the label gives the noise level, and that the prediction. Nothing of
it is shared with NetworkDenoiser, so that where the two disagree with the mixture's own denoiser, one is wrong.

The processes other than the homes keep to the noise levels that the homes know, beyond which no network can be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from tests.proofs.cases import ROWS, SAMPLERS, VARIANTS, generator, quick_denoiser, run
from tests.proofs.test_moments import deviation

MIXTURE = sd.GaussianMixture(
    [[-0.4, 0.3], [0.5, 0.1], [0.1, -0.6]], [[0.2, 0.3], [0.35, 0.15], [0.25, 0.2]], [1.0, 1.5, 2.0]
)
"""Data in model space [-1, 1], at the scale of images."""
IN_UNIT_RANGE = sd.GaussianMixture(0.5 * (MIXTURE.means + 1.0), 0.5 * MIXTURE.stds, MIXTURE.weights)
"""The same data brought to [0, 1]."""

Level = tuple[Tensor, Tensor]
"""alpha and sigma, [B, 1]."""

DDPM = sd.DiscreteVP.linear(1000)
LOG_ALPHAS = 0.5 * torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)
"""log alpha of DDPM's levels (Ho et al. 2020, section 4)."""


def of_index(label: Tensor) -> Level:
    """log alpha at a level, and linear in the label between levels."""
    lower = label.floor().clamp(0, 998).long()
    alpha = torch.lerp(LOG_ALPHAS[lower], LOG_ALPHAS[lower + 1], label - lower).exp()
    return alpha, (1.0 - alpha**2).sqrt()


def of_log_sigma(label: Tensor) -> Level:
    return torch.ones_like(label), label.exp()


def of_edm(label: Tensor) -> Level:
    """The label is log(sigma)/4."""
    return torch.ones_like(label), (4.0 * label).exp()


def posterior_mean(mixture: sd.GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x], [B, d]: sum_k r_k (m_k/s_k^2 + alpha x/sigma^2) / (1/s_k^2 + alpha^2/sigma^2)."""
    x, alpha, sigma = x[:, None], alpha[:, None], sigma[:, None]
    precision = mixture.stds**-2 + (alpha / sigma) ** 2
    each = (mixture.means * mixture.stds**-2 + alpha / sigma**2 * x) / precision
    marginal = torch.distributions.Normal(alpha * mixture.means, (alpha**2 * mixture.stds**2 + sigma**2).sqrt())
    r = (mixture.weights.log() + marginal.log_prob(x).sum(2)).softmax(1)
    return (r[:, :, None] * each).sum(1)


Output = Callable[[sd.GaussianMixture, Tensor, Tensor, Tensor], Tensor]


def eps_of(mixture: sd.GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - alpha * posterior_mean(mixture, x, alpha, sigma)) / sigma


def score_of(mixture: sd.GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return -eps_of(mixture, x, alpha, sigma) / sigma


def edm_of(mixture: sd.GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """F at c_in x, with c_in = 1/sqrt(sigma^2 + 0.25) (Karras et al. 2022, equation 7 and Table 1)."""
    total = sigma**2 + 0.25
    x = x * total.sqrt()
    return (posterior_mean(mixture, x, alpha, sigma) - 0.25 / total * x) / (0.5 * sigma / total.sqrt())


@dataclass
class Home:
    """A network's spec, its level from the label, its output, and the data that it was trained on."""

    spec: sd.NetworkSpec
    level: Callable[[Tensor], Level]
    output: Output
    data: sd.GaussianMixture = MIXTURE


VE = sd.NetworkSpec(sd.VESDE(), prediction="score", label="log_sigma")
EDM = sd.NetworkSpec(sd.EDM(), prediction="edm", label="edm", input_scale="unit")
HOMES: dict[str, Home] = {
    "ddpm": Home(sd.NetworkSpec(DDPM, prediction="eps", label="index"), of_index, eps_of),
    "ve score": Home(VE, of_log_sigma, score_of),
    "ve eps": Home(replace(VE, prediction="eps"), of_log_sigma, eps_of),
    "edm": Home(EDM, of_edm, edm_of),
    "edm in [0, 1]": Home(replace(EDM, data_range=(0.0, 1.0)), of_edm, edm_of, IN_UNIT_RANGE),
}


class ClosedForm(nn.Module):
    """The exact network of a home; it keeps the labels that it was given."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        alpha, sigma = self.home.level(label)
        return self.home.output(self.home.data, x, alpha[:, None], sigma[:, None])


def ported(home: str) -> sd.NetworkDenoiser:
    return sd.NetworkDenoiser(ClosedForm(HOMES[home]), HOMES[home].spec)


# --- every sampler on the home and elsewhere ----------------------------------------------------------------

VP = sd.VPSDE(beta_max=15.0)  # sigma/alpha from 0.0105 to 44
LOGSNR, UNIFORM, KARRAS = "logsnr", "uniform", "karras"
WAYS: dict[tuple[str, str], tuple[sd.SDE, str]] = {
    ("ddpm", "at home"): (DDPM, LOGSNR),
    ("ddpm", "under VESDE"): (sd.VESDE(), UNIFORM),
    ("ddpm", "under EDM"): (sd.EDM(sigma_min=0.011), KARRAS),
    ("ve score", "at home"): (sd.VESDE(), UNIFORM),
    ("ve score", "under VPSDE"): (VP, LOGSNR),
    ("ve eps", "under sub-VP"): (sd.SubVPSDE(beta_max=15.0), LOGSNR),
    ("edm", "at home"): (sd.EDM(), KARRAS),
    ("edm", "under VPSDE"): (VP, LOGSNR),
    ("edm", "under RectifiedFlow"): (sd.RectifiedFlow(), UNIFORM),
    ("edm in [0, 1]", "at home"): (sd.EDM(sigma_min=0.01), KARRAS),
    ("edm in [0, 1]", "under VPSDE"): (VP, LOGSNR),
}
"""(home, where) -> the process on which its network is sampled, and the kind of grid."""
MOMENTS = [way for way in WAYS if way[0] != "ve eps" and way[1] != "under RectifiedFlow"]


EVERYWHERE = [(row, *way) for row in SAMPLERS if row != "adaptive_sde" for way in WAYS]
OPTIONS_IN_TURN = [(row, *list(WAYS)[(i + shift) % len(WAYS)]) for i, row in enumerate(VARIANTS) for shift in (0, 3, 7)]
"""Samplers under other options at three ways in turn: the sampler is seen at all of them above."""


@pytest.mark.parametrize(("row", "home", "where"), EVERYWHERE + OPTIONS_IN_TURN)
def test_a_network_samples_as_the_mixture_itself(row: str, home: str, where: str) -> None:
    """From the same x and noise, to 1e-6, whatever the sampler: nothing is lost on the way through its clock."""
    sde, kind = WAYS[home, where]
    grid = sd.make_grid(sde, 15, kind)
    if isinstance(sde, sd.RectifiedFlow):  # no home knows a level without signal
        grid = sd.TimeGrid(sde, torch.linspace(0.98, 0.02, 15, dtype=torch.float64))
    elif where == "under sub-VP":
        grid = sd.make_grid(sde, 15, kind, t_end=0.05)  # sigma/alpha = 0.024
    x = float(grid.nodes[0].kernel.sigma) * torch.randn(8, 2, generator=generator(1), dtype=torch.float64)
    network, closed_form = (
        run(row, denoiser, grid=grid, x=x, generator=generator(2))
        for denoiser in (ported(home), quick_denoiser(MIXTURE))
    )
    assert network.nfe == closed_form.nfe
    torch.testing.assert_close(network.x, closed_form.x, rtol=1e-6, atol=1e-6)


STEPS: dict[str, int] = {"annealed_langevin": 100, "ode": 2, "adaptive_sde": 2, "euler": 400}
"""Steps where they are not 40 for order 2 and more, 150 for order 1, at which Euler's own error on VE is beyond that
of sampling."""


IN_TURN = [(s, *MOMENTS[(i + shift) % len(MOMENTS)]) for i, s in enumerate(sd.SAMPLERS) for shift in (0, 4)]
"""Each sampler at two homes in turn: that a network is the closed form to all samplers is the test above."""


@pytest.mark.parametrize(("sampler", "home", "where"), IN_TURN)
def test_every_sampler_draws_from_the_data(sampler: str, home: str, where: str) -> None:
    """Mean and covariance of 500 samples, within four standard errors of each mean and five of each covariance."""
    sde, kind = WAYS[home, where]
    claims = ROWS[sampler]
    steps = STEPS.get(sampler, 40 if (claims.order or 1) > 1 else 150)
    grid = sd.make_grid(sde, steps, kind)
    out = run(sampler, ported(home), (500, 2), grid, generator=generator(7), dtype=torch.float64)
    found = deviation(out.x, MIXTURE, claims.excess)
    assert found.mean < 4.0 and found.trace < 4.0 and found.entry < 5.0, found


def test_beyond_its_home_a_network_uses_its_nearest_level() -> None:
    """A VE network knows sigma/alpha up to 50; the VP-SDE starts at 152, where its x0_hat is the mean all the same."""
    sde = sd.VPSDE()
    start = sde.kernel(1.0)
    assert float(start.sigma / start.alpha) > 150.0
    x = torch.randn(500, 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(ported("ve score")(x, start), MIXTURE.denoiser()(x, start), rtol=0.0, atol=0.02)
    found = deviation(run("ddim", ported("ve score"), grid=sd.make_grid(sde, 200), x=x).x, MIXTURE)
    assert found.mean < 4.0 and found.trace < 4.0 and found.entry < 5.0, found


# --- labels of a snapped grid -------------------------------------------------------------------------------

LAST = float(DDPM.kernel(1.0).sigma / DDPM.kernel(1.0).alpha)
SNAPPED: dict[str, sd.SDE] = {
    "DiscreteVP": DDPM,
    "VPSDE": sd.VPSDE(),
    "VESDE": sd.VESDE(sigma_max=LAST),
    "EDM": sd.EDM(sigma_min=0.01, sigma_max=LAST),
}
"""Processes whose prior lies at DDPM's last level."""


def visits_nodes_only(row: str) -> bool:
    options = ROWS[row].options
    between = row.startswith("dpmpp_2s") or "churn" in options or options.get("start") == "runge_kutta"
    return ROWS[row].nfe is not None and not between


@pytest.mark.parametrize("process", SNAPPED)
@pytest.mark.parametrize(
    ("row", "kind"),
    [(row, ["uniform", "karras", "logsnr"][i % 3]) for i, row in enumerate(filter(visits_nodes_only, ROWS))],
)
def test_a_snapped_grid_shows_the_network_its_own_levels(row: str, kind: str, process: str) -> None:
    """Every label is whole to 1e-6; they descend from level 999, one for each of the steps."""
    grid, denoiser = sd.make_grid(SNAPPED[process], 12, kind, snap=DDPM), ported("ddpm")
    run(row, denoiser, (2, 2), grid, generator=generator(0), dtype=torch.float64)
    labels = torch.cat(denoiser.net.labels)
    assert float((labels - labels.round()).abs().max()) < 1e-6
    levels = labels.round().unique()
    assert len(levels) == 12 and float(levels[-1]) == 999.0


@pytest.mark.parametrize("kind", ["uniform", "logsnr"])
def test_without_snapping_the_labels_lie_between(kind: str) -> None:
    denoiser = ported("ddpm")
    run("ddim", denoiser, (2, 2), sd.make_grid(SNAPPED["VESDE"], 12, kind), generator=generator(0), dtype=torch.float64)
    labels = torch.cat(denoiser.net.labels)
    assert float((labels - labels.round()).abs().max()) > 0.1


def test_the_labels_are_those_of_their_papers() -> None:
    """At sigma/alpha = 1: the level of DDPM where alpha_bar = 1/2 (between 258 and 259), and log(sigma) = 0."""
    kernel, x = sd.Kernel(math.sqrt(0.5), math.sqrt(0.5)), torch.zeros(1, 2, dtype=torch.float64)
    for home, low, high in (("ddpm", 258.0, 259.0), ("ve score", -1e-9, 1e-9), ("edm", -1e-9, 1e-9)):
        denoiser = ported(home)
        denoiser(x, kernel)
        assert low <= float(denoiser.net.labels[0]) <= high
