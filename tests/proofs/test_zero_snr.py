"""Tables that end without signal (Lin et al. 2023): nothing is NaN where alpha = 0, and everything is as right as
elsewhere.

The table is DDPM's, rescaled: alpha falls to 0 at its last level, and between the last two alpha is linear in t.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.core.grids import GRIDS, has_ends
from sde_diffusion.core.kernel import match
from sde_diffusion.core.prediction import PREDICTIONS
from sde_diffusion.core.spacings import logsnr_ends
from sde_diffusion.denoisers.c_noise import C_NOISES
from tests.proofs.cases import MIXTURES, SAMPLERS, generator, quick_denoiser, run
from tests.proofs.test_moments import deviation

MIXTURE = MIXTURES[2]
LEVELS = 1000
ZERO = sd.DiscreteVP.linear(LEVELS).rescaled()
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
BEGIN = 1.0 - 1.0 / LEVELS
FADING = torch.linspace(BEGIN, 1.0, 9, dtype=torch.float64)
"""Times from the last level with a signal to the one without."""


def test_rescaling_is_algorithm_1() -> None:
    """alpha moved by its last value and scaled back to its first; one that ends at 0 already stays."""
    alpha = sd.DiscreteVP.linear(LEVELS).levels.alpha
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    torch.testing.assert_close(ZERO.levels.alpha, expected, rtol=1e-9, atol=1e-15)
    assert float(ZERO.betas[-1]) == 1.0 and float(ZERO.levels.alpha[-1]) == 0.0 and float(ZERO.levels.sigma[-1]) == 1.0
    torch.testing.assert_close(ZERO.rescaled().betas, ZERO.betas, rtol=1e-9, atol=1e-12)
    for betas in ([0.1, 1.0, 0.2], [0.1, 1.0, 1.0], [0.1, 1.1], [0.0, 0.1]):
        with pytest.raises(sd.UserError, match="strictly between 0 and 1, but for the last one, which may be 1"):
            sd.DiscreteVP(torch.tensor(betas))


def test_between_the_last_two_levels_alpha_is_linear() -> None:
    """With its rates: those of the flow up to alpha = 0, and the SDE's f held at its value at the beginning."""
    k, left = ZERO.kernel(FADING), (1.0 - FADING) * LEVELS
    first = ZERO.levels.alpha[-2]
    torch.testing.assert_close(k.alpha, first * left, **CLOSE)
    torch.testing.assert_close(k.alpha**2 + k.variance, torch.ones_like(FADING), **CLOSE)
    inside = FADING[1:]
    torch.testing.assert_close(ZERO.alpha_rate(inside), (-first * LEVELS).expand(8), **CLOSE)
    torch.testing.assert_close(ZERO.variance_rate(inside), 2.0 * first**2 * LEVELS * left[1:], **CLOSE)
    torch.testing.assert_close(ZERO.dlog_alpha(inside), torch.full((8,), -1.0 * LEVELS, dtype=torch.float64), **CLOSE)
    for value in (*ZERO.flow(inside), *ZERO.reverse(inside), ZERO.diffusion(inside)):
        assert bool(value.isfinite().all())
    torch.testing.assert_close(ZERO.time_of(k.logsnr), FADING, rtol=1e-12, atol=0.0)
    assert float(ZERO.time_of(-math.inf)) == 1.0
    assert float(ZERO.kernel(1.0).alpha) == float(ZERO.kernel(torch.tensor(1.01)).alpha) == 0.0


@pytest.mark.parametrize("kind", [kind for kind in GRIDS if kind != "given"])
def test_grids_begin_without_signal(kind: str) -> None:
    grid = sd.make_grid(ZERO, 20, kind)
    assert float(grid.times[0]) == 1.0 and float(grid.levels.kernel.alpha[0]) == 0.0
    assert bool((grid.levels.kernel.logsnr[1:].isfinite()).all())
    assert float(logsnr_ends(ZERO, 1e-3)[0]) == float(ZERO.levels.logsnr[-2])
    if has_ends(kind):
        snapped = sd.make_grid(ZERO, 20, kind, snap=ZERO)
        assert float(snapped.times[0]) == 1.0 and bool(torch.isin(snapped.times, ZERO.times).all())
        moved = sd.make_grid(ZERO, 20, kind, shift=2.0)
        expected = grid.levels.kernel.logsnr - 2.0 * math.log(2.0)
        torch.testing.assert_close(moved.levels.kernel.logsnr, expected, rtol=1e-8, atol=1e-8)
        with pytest.raises(
            sd.UserError, match="last level of the home has no signal, alpha = 0, which VPSDE always has"
        ):
            sd.make_grid(sd.VPSDE(), 20, kind, snap=ZERO)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_data(sampler: str) -> None:
    """Mean and covariance of 1,000 samples within 4.5 of their standard errors, from the first level of alpha = 0."""
    row = SAMPLERS[sampler]
    options = {"rtol": 0.1, "atol": 0.1} if sampler == "adaptive_sde" else {}
    grid = sd.make_grid(ZERO, 200, "uniform")
    out = run(sampler, quick_denoiser(MIXTURE), (1000, 2), grid, generator=generator(3), dtype=torch.float64, **options)
    assert bool(out.x.isfinite().all())
    assert max(deviation(out.x, MIXTURE, row.excess)) < 4.5


def test_the_likelihood_is_the_mixtures() -> None:
    x = MIXTURE.sample(6, generator=generator(1))
    found = sd.log_likelihood(MIXTURE.denoiser(), x, ZERO, divergence="exact", rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.nats, MIXTURE.log_prob(x), rtol=0.0, atol=1e-3)


def test_the_bounds() -> None:
    """Nothing of the data is left at the last level: the prior's term is 0. With the exact denoiser the bound in
    continuous time is -log p, and that in discrete time is a little above it."""
    x = MIXTURE.sample(400, generator=generator(1))
    nats = -MIXTURE.log_prob(x).mean() / (2.0 * math.log(2.0))
    discrete = sd.elbo(MIXTURE.denoiser(), x, ZERO, levels=None, terms=60, generator=generator(2))
    continuous = sd.vlb(MIXTURE.denoiser(), x, ZERO, levels=None, generator=generator(2))
    assert float(discrete.prior) == 0.0
    for bound, slack in ((discrete, 0.08), (continuous, 0.0)):
        noise = float((bound.per_sample.total + MIXTURE.log_prob(x) / (2.0 * math.log(2.0))).std()) / 20.0
        assert -4.0 * noise < float(bound.total - nats) < 4.0 * noise + slack


class Perfect(nn.Module):
    """The exact output at home of a network that is told the index of its level."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        k = ZERO.kernel((label.double() + 1.0) / LEVELS)
        c_skip, c_out = PREDICTIONS[self.prediction](k, 0.5)
        return (MIXTURE.denoiser()(x, k) - match(c_skip, x) * x) / match(c_out, x)


@pytest.mark.parametrize("prediction", ["v", "x0", "velocity"])
def test_a_network_of_such_a_table(prediction: str) -> None:
    """At home, where x at the last level is noise and x0_hat the mean of the data; a finite loss at every level."""
    spec = sd.NetworkSpec(ZERO, prediction, "index", shape=(2,))
    spec.check_first_level()
    denoiser = sd.NetworkDenoiser(Perfect(prediction), spec)
    x = torch.randn(LEVELS, 2, generator=generator(0), dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, ZERO.levels), MIXTURE.denoiser()(x, ZERO.levels), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(denoiser(x[:1], ZERO.kernel(1.0))[0], MIXTURE.mean, rtol=1e-7, atol=1e-7)
    x0, weighting = MIXTURE.sample(LEVELS, generator=generator(1)), prediction
    assert bool(sd.denoising_score_matching(denoiser, ZERO, x0, ZERO.times, x, weighting=weighting).isfinite().all())


@pytest.mark.parametrize("prediction", ["eps", "score", "sigma_score"])
def test_a_pair_that_is_blind_there(prediction: str) -> None:
    spec = sd.NetworkSpec(ZERO, prediction, "index")
    with pytest.raises(sd.UserError, match=f"DiscreteVP has no signal, alpha = 0, where prediction '{prediction}'"):
        spec.check_first_level()
    sd.NetworkSpec(sd.DiscreteVP.linear(LEVELS), prediction, "index").check_first_level()


def test_labels_that_count_levels() -> None:
    for label in ("index", "nearest_index"):
        torch.testing.assert_close(
            C_NOISES[label](ZERO, ZERO.times), torch.arange(LEVELS, dtype=torch.float64), rtol=0.0, atol=1e-7
        )
