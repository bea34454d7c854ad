"""Training times follow their laws, and weights keep the loss's expectation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.spacings import logsnr_ends
from sde_diffusion.objectives.times import HISTORY, TIME_SAMPLERS, UNIFORM_SHARE, LossAware
from tests.proofs.cases import MIXTURES, PROCESSES, generator

LAWS = ("uniform", "stratified", "levels", "lognormal", "logit_normal", "importance")
CONTINUOUS = ("VPSDE", "SubVPSDE", "VESDE", "CosineVPSDE", "EDM", "RectifiedFlow")


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


@pytest.mark.parametrize(("mean", "std"), [(None, None), (-0.4, 0.7)])
@pytest.mark.parametrize("process", ["RectifiedFlow", "VPSDE", "VESDE"])
def test_logit_normal_times(process: str, mean: float | None, std: float | None) -> None:
    """log(t/(1 - t)) ~ N(m, s^2) (Esser et al. 2024, equation 19), under any process; N(0, 1) unless it is given."""
    t = sd.sample_times(
        PROCESSES[process], 20_000, generator=generator(7), kind="logit_normal", t_min=1e-9, p_mean=mean, p_std=std
    )
    standard = (t.logit() - (mean or 0.0)) / (std or 1.0)
    assert kstest(standard.numpy(), "norm").pvalue > 1e-3


def test_logit_normal_is_log_normal_for_rectified_flow() -> None:
    """log(t/(1 - t)) is log(sigma/alpha) there: the same times."""
    flow, options = PROCESSES["RectifiedFlow"], {"p_mean": -0.6, "p_std": 1.2}
    times = [
        sd.time_sampler(flow, kind, **options).draw(1000, generator(1))[0] for kind in ("lognormal", "logit_normal")
    ]
    torch.testing.assert_close(*times, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("process", CONTINUOUS)
@pytest.mark.parametrize("kind", [kind for kind in LAWS if kind != "levels"])
def test_a_shift_of_times(kind: str, process: str) -> None:
    """log-SNR - 2 log s of the same draws, with the same weights, within [t_min, 1]; of log-normal ones a mean."""
    sde, t_min, s = PROCESSES[process], 0.01, 2.5
    plain, weights = sd.time_sampler(sde, kind, t_min=t_min).draw(500, generator(5))
    shifted, same = sd.time_sampler(sde, kind, t_min=t_min, shift=s).draw(500, generator(5))
    assert torch.equal(weights, same) and float(shifted.max()) <= 1.0
    least, ratio = sde.kernel(1.0).logsnr, math.log(s)
    inside = (plain > t_min) & (plain < 1.0)
    expected = (sde.kernel(plain).logsnr - 2.0 * ratio).clamp_min(least)
    torch.testing.assert_close(sde.kernel(shifted[inside]).logsnr, expected[inside], rtol=1e-8, atol=1e-8)
    if kind == "lognormal":
        moved = sd.time_sampler(sde, kind, t_min=t_min, p_mean=-1.2 + ratio).draw(500, generator(5))[0]
        torch.testing.assert_close(shifted, moved, rtol=1e-8, atol=1e-10)
    back = sd.time_sampler(sde, kind, t_min=t_min, shift=1e-6).draw(500, generator(5))[0]
    assert float(back.min()) == t_min


@pytest.mark.parametrize("kind", ["levels", "loss_aware"])
def test_levels_are_not_shifted(kind: str) -> None:
    with pytest.raises(sd.UserError, match=f"times '{kind}' are levels, which no shift moves"):
        sd.time_sampler(sd.DiscreteVP.linear(40), kind, shift=2.0)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(sd.UserError, match="a shift is a factor of sigma/alpha above 0"):
            sd.time_sampler(sd.VPSDE(), shift=wrong)


def test_every_time_sampler_is_tested() -> None:
    assert set(TIME_SAMPLERS) == {*LAWS, "loss_aware"}


@pytest.mark.parametrize("kind", [kind for kind in LAWS if kind != "importance"])
def test_laws_that_need_no_weights(kind: str) -> None:
    """They are the nominal law itself; a sampler that never learns has no state."""
    times = sd.time_sampler(sd.DiscreteVP.linear(40), kind)
    t, weights = times.draw(16, generator(0))
    assert t.shape == (16,) and t.dtype == torch.float64 and torch.equal(weights, torch.ones_like(t))
    times.learn(t, t)
    assert times.state() == {}
    times.load({})
    alone = sd.sample_times(sd.DiscreteVP.linear(40), 16, generator=generator(0), kind=kind)
    assert torch.equal(alone, t)


def test_one_stratified_time_in_each_section() -> None:
    """Of n equal sections of [t_min, 1], or for importance of the log-SNR."""
    sde, n, t_min = sd.VPSDE(), 64, 0.1
    g = generator(4)
    least, most = logsnr_ends(sde, t_min)
    for _ in range(20):
        t = sd.sample_times(sde, n, generator=g, kind="stratified", t_min=t_min)
        section = ((t - t_min) / (1.0 - t_min) * n).floor()
        assert section.sort().values.tolist() == list(range(n))
        t = sd.sample_times(sde, n, generator=g, kind="importance", t_min=t_min)
        section = ((most - sde.kernel(t).logsnr) / (most - least) * n).floor()
        assert section.sort().values.tolist() == list(range(n))


# --- importance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", CONTINUOUS)
def test_importance_is_uniform_in_the_log_snr(process: str) -> None:
    """Each time alone, over repetitions."""
    sde, t_min, g = PROCESSES[process], 1e-3, generator(4)
    t = torch.cat([sd.sample_times(sde, 2, generator=g, kind="importance", t_min=t_min)[:1] for _ in range(600)])
    least, most = logsnr_ends(sde, t_min)
    assert kstest(((sde.kernel(t).logsnr - least) / (most - least)).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("t_min", [0.05, 1e-3])
@pytest.mark.parametrize("process", CONTINUOUS)
def test_importance_keeps_the_expectation(process: str, t_min: float) -> None:
    """E[w L(t)] = 1/(1 - t_min) int L dt for a smooth L: equally spaced points of one law and of the other.

    RectifiedFlow has no log-SNR at t = 1, and its law ends where `logsnr_ends` does, at t = 0.999.
    """
    sde, n = PROCESSES[process], 100_000
    end = 0.999 if process == "RectifiedFlow" else 1.0
    middle = t_min + (end - t_min) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "constant": torch.ones_like,
        "wave": lambda t: 1.0 + torch.sin(5.0 * t),
        "early": lambda t: (-t / 0.1).exp(),
        "late": lambda t: t**6,
    }
    t, weights = sd.time_sampler(sde, "importance", t_min=t_min).draw(n, generator(6))
    assert float(t.min()) >= t_min and float(t.max()) <= end + 1e-12
    for name, loss in losses.items():
        expected = float(loss(middle).mean()) * (end - t_min) / (1.0 - t_min)
        assert float((weights * loss(t)).mean()) == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("process", CONTINUOUS)
def test_importance_takes_the_peak_of_the_likelihood_weighting(process: str) -> None:
    """w g^2/sigma^2 is the range of the log-SNR over that of t, at every t: what is left is |eps_hat - eps|^2.

    For an error of eps of about the same size everywhere the variance falls by a factor of 18 or more. In VESDE
    g^2/sigma^2 is constant, and the two laws are one.
    """
    sde, t_min, n = PROCESSES[process], 1e-4, 4000
    x0 = MIXTURES[2].sample(n, generator=generator(0))
    noise = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)

    def off(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        return x0 + 0.3 * (kernel.sigma / kernel.alpha)[:, None] * torch.tanh(x)

    def loss(t: Tensor, weighting: str) -> Tensor:
        return sd.denoising_score_matching(off, sde, x0, t, noise, weighting=weighting)

    t, weights = sd.time_sampler(sde, "importance", t_min=t_min).draw(n, generator(2))
    least, most = logsnr_ends(sde, t_min)
    found = weights * loss(t, "likelihood")
    constant = (most - least) / (1.0 - t_min)
    torch.testing.assert_close(found, constant * loss(t, "simple"), rtol=1e-7, atol=0.0)
    uniform = loss(sd.sample_times(sde, n, generator=generator(2), t_min=t_min), "likelihood")
    assert float(uniform.var() / found.var()) > (0.9 if process == "VESDE" else 8.0)


def test_importance_needs_noise() -> None:
    with pytest.raises(sd.UserError, match="need noise at the smallest time"):
        sd.sample_times(sd.VPSDE(), 4, generator=generator(0), kind="importance", t_min=0.0)


# --- loss_aware -------------------------------------------------------------------------------------------------

TABLE = sd.DiscreteVP.linear(25)


def learned(seed: int = 0, rounds: int = HISTORY) -> tuple[LossAware, Tensor]:
    """A sampler that saw some losses of each level, and these losses [rounds, T]."""
    times = sd.time_sampler(TABLE, "loss_aware")
    assert isinstance(times, LossAware)
    sizes = torch.logspace(-2.0, 1.0, 25, dtype=torch.float64)
    losses = sizes * torch.rand(rounds, 25, generator=generator(seed), dtype=torch.float64)
    for one in losses:
        order = torch.randperm(25, generator=generator(seed))
        times.learn(TABLE.times[order], one[order])
    return times, losses


def test_loss_aware_is_uniform_at_first() -> None:
    """Until ten losses of every level are known; one that misses its tenth is enough."""
    times, _ = learned(rounds=HISTORY - 1)
    rest = torch.arange(25) != 7
    times.learn(TABLE.times[rest].repeat(3), torch.full((72,), 5.0))
    even = torch.full((25,), 1.0 / 25.0, dtype=torch.float64)
    torch.testing.assert_close(times.probabilities, even)
    t, weights = times.draw(50, generator(1))
    assert t.unique(return_counts=True)[1].tolist() == [2] * 25
    torch.testing.assert_close(weights, torch.ones_like(weights))
    times.learn(TABLE.times[7:8], torch.ones(1))
    assert float((times.probabilities - even).abs().max()) > 1e-2


def test_loss_aware_follows_the_root_mean_square() -> None:
    """p_i in proportion to sqrt(mean L_i^2) of the last ten losses, a thousandth of it uniform (Nichol and Dhariwal
    2021, equation 18)."""
    times, losses = learned(rounds=HISTORY + 4)
    roots = losses[-HISTORY:].square().mean(0).sqrt()
    expected = (1.0 - UNIFORM_SHARE) * roots / roots.sum() + UNIFORM_SHARE / 25.0
    assert (HISTORY, UNIFORM_SHARE) == (10, 1e-3)
    torch.testing.assert_close(times.probabilities, expected)
    oldest = losses[:HISTORY].square().mean(0).sqrt()
    assert float((times.probabilities - oldest / oldest.sum()).abs().max()) > 1e-3


def test_loss_aware_of_losses_that_are_all_0() -> None:
    """There is nothing to be in proportion to."""
    times, _ = learned()
    for _ in range(HISTORY):
        times.learn(TABLE.times, torch.zeros(25))
    torch.testing.assert_close(times.probabilities, torch.full((25,), 1.0 / 25.0, dtype=torch.float64))


def test_loss_aware_draws_evenly_and_keeps_the_expectation() -> None:
    """Of n draws level i has n p_i, rounded up or down, with weight 1/(T p_i): sum_i p_i w_i L_i = mean_i L_i."""
    times, _ = learned()
    p, n = times.probabilities, 400
    for seed in range(10):
        t, weights = times.draw(n, generator(seed))
        index = (t * 25.0).round().long() - 1
        counts = torch.bincount(index, minlength=25)
        assert bool(((counts - n * p).abs() < 1.0 + 1e-9).all())
        torch.testing.assert_close(weights, 1.0 / (25.0 * p[index]))
    loss = torch.sin(TABLE.times) + 2.0
    every, weights = times.draw(2_000_000, generator(3))
    by_level = torch.zeros(25, dtype=torch.float64)
    by_level[(every * 25.0).round().long() - 1] = weights
    assert float((p * by_level * loss).sum()) == pytest.approx(float(loss.mean()), rel=1e-12)


def test_loss_aware_lowers_the_variance() -> None:
    """Its law is that of least variance: of w L with the losses that it saw, far less than of L."""
    times, losses = learned()
    mean = losses.square().mean(0).sqrt()
    p = times.probabilities
    weighted = float((mean**2 / (25.0**2 * p)).sum() - mean.mean() ** 2)
    assert weighted < 0.01 * float(mean.square().mean() - mean.mean() ** 2)


def test_loss_aware_state() -> None:
    """A stored state goes on where it was, and is a copy."""
    times, _ = learned()
    state = times.state()
    other = sd.time_sampler(TABLE, "loss_aware")
    other.load(state)
    assert all(map(torch.equal, other.draw(30, generator(1)), times.draw(30, generator(1))))
    before = {name: value.clone() for name, value in state.items()}
    for sampler in (times, other):
        sampler.learn(TABLE.times, torch.full((25,), 3.0, requires_grad=True))
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert all(torch.equal(value, times.state()[name]) for name, value in other.state().items())


def test_loss_aware_refusals() -> None:
    with pytest.raises(sd.UserError, match="'loss_aware' are those of a discrete process; VPSDE has none"):
        sd.time_sampler(sd.VPSDE(), "loss_aware")
    times, _ = learned()
    for other in (sd.time_sampler(sd.DiscreteVP.linear(26), "loss_aware"), sd.time_sampler(TABLE, "uniform")):
        with pytest.raises(sd.UserError, match="not those of 25 levels"):
            times.load(other.state())


def test_unknown_time_sampler() -> None:
    with pytest.raises(sd.UserError, match="did you mean 'uniform'"):
        sd.sample_times(sd.VPSDE(), 4, generator=generator(0), kind="unifrom")
