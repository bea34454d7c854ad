"""Denoising score matching: each weighting is the published error, the truth minimises it, times follow their
laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.kernel import match
from sde_diffusion.losses import WEIGHTINGS
from sde_diffusion.times import TIME_SAMPLERS
from tests.proofs.cases import MIXTURES, PROCESSES, generator

MIXTURE = MIXTURES[2]
N = 4000
Error = Callable[[sd.SDE, Tensor, Tensor, Tensor, Tensor], Tensor]


def wrong(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
    """Any denoiser will do where an identity is at stake."""
    return torch.tanh(x) + 0.3


def _eps(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    return sd.eps(wrong, x, sde.kernel(t)) - noise


def _v(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return sd.v(wrong, x, k) - (match(k.alpha, x) * noise - match(k.sigma, x) * x0)


def _score(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return match(sde.diffusion(t), x) * (sd.score(wrong, x, k) + noise / match(k.sigma, x))


def _edm(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    """lambda(sigma) |D - y|^2 with lambda = (sigma^2 + 0.25)/(sigma 0.5)^2 (Karras et al. 2022, Table 1)."""
    k = sde.kernel(t)
    s = match(k.sigma / k.alpha, x)
    return (s**2 + 0.25).sqrt() / (0.5 * s) * (wrong(x, k) - x0)


def _min_snr(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return match((k.alpha / k.sigma).clamp_max(math.sqrt(5.0)), x) * (wrong(x, k) - x0)


ERRORS: dict[str, Error] = {"simple": _eps, "v": _v, "likelihood": _score, "edm": _edm, "min_snr": _min_snr}
"""The error whose mean square each weighting is."""


def draw(sde: sd.SDE, n: int) -> tuple[Tensor, Tensor, Tensor]:
    x0 = MIXTURE.sample(n, generator=generator(0))
    noise = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    t = 0.02 + 0.97 * torch.rand(n, generator=generator(2), dtype=torch.float64)
    return x0, noise, t


def test_every_weighting_and_time_sampler_is_tested() -> None:
    assert set(ERRORS) == set(WEIGHTINGS)
    assert set(TIME_SAMPLERS) == {"uniform", "stratified", "levels", "lognormal"}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", ERRORS)
def test_a_weighting_is_its_published_error(weighting: str, process: str) -> None:
    sde = PROCESSES[process]
    x0, noise, t = draw(sde, 64)
    x = sde.kernel(t).perturb(x0, noise)
    found = sd.denoising_score_matching(wrong, sde, x0, t, noise, weighting=weighting)
    expected = ERRORS[weighting](sde, t, x0, noise, x).square().mean(1)
    assert found.shape == (64,)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", ERRORS)
def test_the_truth_is_the_minimum(weighting: str, process: str) -> None:
    """A denoiser that is off by d(x) loses exactly E[w |d|^2] more: the cross term has mean zero at every t
    and x."""
    sde = PROCESSES[process]
    x0, noise, _ = draw(sde, N)
    t = sde.time_of(torch.linspace(-4.0, 4.0, N, dtype=torch.float64))
    truth = MIXTURE.denoiser()

    def loss(denoiser: Callable[..., Tensor]) -> Tensor:
        return sd.denoising_score_matching(denoiser, sde, x0, t, noise, weighting=weighting)

    weight = sd.denoising_score_matching(lambda x, k: x0 + 1.0, sde, x0, t, noise, weighting=weighting)
    offsets: dict[str, Callable[[Tensor], Tensor]] = {
        "constant": lambda x0_hat: torch.full_like(x0_hat, 0.3),
        "shrunk": lambda x0_hat: -0.3 * x0_hat,
        "bent": lambda x0_hat: 0.5 * torch.sin(3.0 * x0_hat),
    }
    true_loss = loss(truth)
    for name, offset in offsets.items():
        excess = loss(lambda x, k, o=offset: truth(x, k) + o(truth(x, k))) - true_loss
        d = offset(truth(sde.kernel(t).perturb(x0, noise), sde.kernel(t)))
        expected = weight * d.square().mean(1)
        cross = excess - expected
        error = cross.std() / math.sqrt(N)
        assert abs(float(cross.mean() / error)) < 4.0, name
        assert float(expected.mean()) > 0.0
        assert float(excess.mean() / (excess.std() / math.sqrt(N))) > 4.0, name


def test_the_loss_of_the_truth_is_the_posterior_variance() -> None:
    """For one Gaussian of variance s^2: E|x0_hat - x_0|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), here times
    the snr."""
    std, n, t = 0.7, 100_000, 0.3
    gaussian, sde = sd.GaussianMixture([[0.5]], [std], [1.0]), sd.VPSDE()
    x0 = gaussian.sample(n, generator=generator(0))
    noise = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    loss = sd.denoising_score_matching(
        gaussian.denoiser(), sde, x0, torch.full((n,), t, dtype=torch.float64), noise, weighting="simple"
    )
    k = sde.kernel(t)
    expected = float(k.snr * std**2 * k.variance / (k.alpha**2 * std**2 + k.variance))
    assert float(loss.mean()) == pytest.approx(expected, rel=4.0 * math.sqrt(2.0 / n))


def test_float32_at_the_smallest_time_is_finite() -> None:
    for sde in (sd.VPSDE(), sd.SubVPSDE(), sd.VESDE()):
        for weighting in WEIGHTINGS:
            x0 = torch.randn(4, 2, generator=generator(0))
            t = torch.full((4,), sde.t_train, dtype=torch.float64)
            loss = sd.denoising_score_matching(wrong, sde, x0, t, x0.flip(0), weighting=weighting)
            assert loss.dtype == torch.float32 and bool(loss.isfinite().all())


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
@pytest.mark.parametrize("t_min", [1e-5, 0.2])
def test_times_are_uniform(t_min: float, kind: str) -> None:
    t = sd.sample_times(sd.VPSDE(), 20_000, generator=generator(3), kind=kind, t_min=t_min)
    assert t.dtype == torch.float64 and float(t.min()) >= t_min and float(t.max()) <= 1.0
    assert kstest(((t - t_min) / (1.0 - t_min)).numpy(), "uniform").pvalue > 1e-3


def test_stratified_times() -> None:
    """One in each of n equal parts of the circle; each one alone is uniform over repetitions."""
    g = generator(4)
    rows = torch.stack([sd.sample_times(sd.VPSDE(), 8, generator=g, kind="stratified", t_min=0.0) for _ in range(3000)])
    gaps = torch.cat([rows, rows[:, :1] + 1.0], dim=1).diff(dim=1).remainder(1.0)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 8), rtol=0.0, atol=1e-12)
    for i in (0, 5):
        assert kstest(rows[:, i].numpy(), "uniform").pvalue > 1e-3


def test_default_smallest_time() -> None:
    """1 - (1 - t_min) u: the smallest of many lies just above the process's training time, never below."""
    t = sd.sample_times(sd.VESDE(), 200_000, generator=generator(5))
    assert 1e-5 <= float(t.min()) < 1e-4


@pytest.mark.parametrize("process", ["DiscreteVP", "DiscreteVE"])
def test_levels(process: str) -> None:
    """Every level of a table of 20 equally often: chi-square with 19 degrees of freedom below its 99.9%
    point."""
    sde = sd.DiscreteVP.linear(21) if process == "DiscreteVP" else sd.DiscreteVE.geometric(0.01, 50.0, 21)
    n = 21_000
    t = sd.sample_times(sde, n, generator=generator(6), kind="levels")
    assert sde.times is not None
    levels, counts = t.unique(return_counts=True)
    assert torch.equal(levels, sde.times)
    assert float((counts - n / 21).square().sum() / (n / 21)) < 45.3
    with pytest.raises(sd.UserError, match="discrete"):
        sd.sample_times(sd.VPSDE(), 4, generator=generator(0), kind="levels")


@pytest.mark.parametrize("process", ["EDM", "VPSDE", "RectifiedFlow"])
def test_lognormal_times_are_edms(process: str) -> None:
    """log(sigma/alpha) ~ N(-1.2, 1.2^2) (Karras et al. 2022, Table 1), under any process."""
    sde = PROCESSES[process]
    t = sd.sample_times(sde, 20_000, generator=generator(7), kind="lognormal", t_min=1e-7)
    k = sde.kernel(t)
    log_sigma = (k.sigma / k.alpha).log()
    assert kstest(((log_sigma + 1.2) / 1.2).numpy(), "norm").pvalue > 1e-3


def test_unknown_names() -> None:
    with pytest.raises(sd.UserError, match="did you mean 'likelihood'"):
        x = torch.zeros(1, 2)
        sd.denoising_score_matching(wrong, sd.VPSDE(), x, torch.ones(1), x, weighting="likelyhood")
    with pytest.raises(sd.UserError, match="did you mean 'uniform'"):
        sd.sample_times(sd.VPSDE(), 4, generator=generator(0), kind="unifrom")
