"""Every process: its rates are the derivatives of its kernel, its clock inverts, its prior is what it
says."""

from __future__ import annotations

import json

import pytest
import torch
from torch.distributions import Normal

import sde_diffusion as sd
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.processes import process_from_state, process_state
from tests.proofs.cases import PROCESSES, generator

TIMES = torch.linspace(0.0103, 0.9967, 61, dtype=torch.float64)
"""Between the levels of the discrete processes, and below the kink of the cosine process."""
VARIANCE_PRESERVING = ("VPSDE", "CosineVPSDE", "DiscreteVP")


def test_every_process_has_a_row() -> None:
    assert {name: type(sde) for name, sde in PROCESSES.items()} == sd.PROCESSES


@pytest.mark.parametrize("process", PROCESSES)
def test_rates_are_the_derivatives_of_the_kernel(process: str) -> None:
    """Central differences of alpha and sigma^2, over 2e-7: within a segment of a table."""
    sde, h = PROCESSES[process], 1e-7
    before, after = sde.kernel(TIMES - h), sde.kernel(TIMES + h)
    close = {"rtol": 1e-5, "atol": 1e-6 * max(1.0, sde.prior_std**2)}
    torch.testing.assert_close(sde.alpha_rate(TIMES), (after.alpha - before.alpha) / (2 * h), **close)
    torch.testing.assert_close(sde.variance_rate(TIMES), (after.variance - before.variance) / (2 * h), **close)
    log_alpha = (after.alpha.log() - before.alpha.log()) / (2 * h)
    log_sigma = (after.sigma.log() - before.sigma.log()) / (2 * h)
    torch.testing.assert_close(sde.dlog_alpha(TIMES), log_alpha, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sde.dlog_sigma(TIMES), log_sigma, rtol=1e-4, atol=1e-5)
    g2 = 2.0 * before.variance * (log_sigma - log_alpha)
    torch.testing.assert_close(sde.diffusion(TIMES) ** 2, g2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_time_of_inverts_logsnr(process: str) -> None:
    sde = PROCESSES[process]
    least = max(1e-4, float(sde.times[0]) if sde.times is not None else 0.0)
    times = torch.cat([torch.logspace(-4, -1, 40, dtype=torch.float64).clamp_min(least), TIMES])
    times = torch.cat([times, torch.tensor([0.9985, 0.9999, 1.0], dtype=torch.float64)])
    torch.testing.assert_close(sde.time_of(sde.kernel(times).logsnr), times, rtol=1e-7, atol=1e-10)
    logsnr = sde.kernel(TIMES).logsnr
    torch.testing.assert_close(sde.kernel(sde.time_of(logsnr)).logsnr, logsnr, rtol=1e-8, atol=1e-8)
    assert bool((sde.kernel(times.sort().values.unique()).logsnr.diff() < 0).all())


@pytest.mark.parametrize("process", PROCESSES)
def test_a_float_a_scalar_and_a_batch_agree(process: str) -> None:
    sde = PROCESSES[process]
    batch = sde.kernel(TIMES)
    for i in (0, 30, 60):
        for t in (float(TIMES[i]), TIMES[i]):
            k = sde.kernel(t)
            assert k.alpha.shape == () and k.alpha.dtype == torch.float64
            assert float(k.alpha) == float(batch.alpha[i]) and float(k.sigma) == float(batch.sigma[i])
            assert float(sde.diffusion(t)) == float(sde.diffusion(TIMES)[i])


@pytest.mark.parametrize("process", VARIANCE_PRESERVING)
def test_variance_preserving(process: str) -> None:
    k = PROCESSES[process].kernel(TIMES)
    torch.testing.assert_close(k.alpha**2 + k.variance, torch.ones_like(TIMES), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_kernel_solves_the_moment_equations_of_the_sde(process: str) -> None:
    """m' = f m and V' = 2 f V + g^2, integrated from t = 0.2 to 0.9, lead from kernel to kernel.

    With f constant over a step h, m grows by exp(f h) and V to exp(2 f h) V + g^2 (exp(2 f h) - 1)/(2 f).
    Rates are taken in the middle of 700 steps (second order), each of which is one level of the tables of
    1000.
    """
    sde, n = PROCESSES[process], 700
    h = 0.7 / n
    times = 0.2 + h * (torch.arange(n, dtype=torch.float64) + 0.5)
    growth = sde.dlog_alpha(times) * h
    noise = sde.diffusion(times) ** 2 * h
    variance = sde.kernel(0.2).variance
    for f, g2 in zip(growth, noise, strict=True):
        variance = (2.0 * f).exp() * variance + g2 * f.exp()
    torch.testing.assert_close(sde.kernel(0.2).alpha * growth.sum().exp(), sde.kernel(0.9).alpha, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(variance, sde.kernel(0.9).variance, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_prior(process: str) -> None:
    sde = PROCESSES[process]
    x = sde.prior_sample((20_000, 2), generator=generator(0), dtype=torch.float64)
    assert float(x.std()) == pytest.approx(sde.prior_std, rel=4 / (2 * 40_000) ** 0.5)
    assert float(x.mean()) == pytest.approx(0.0, abs=4 * sde.prior_std / 200)
    images = sde.prior_sample((5, 2, 3, 4), generator=generator(1), dtype=torch.float64)
    expected = Normal(0.0, torch.tensor(sde.prior_std, dtype=torch.float64)).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(sde.prior_logp(images), expected, rtol=1e-12, atol=1e-12)
    # At t = 1 what is left of the data is at most 2% of the noise.
    end = sde.kernel(1.0)
    assert float(end.alpha / end.sigma) <= 0.0201
    assert float(end.sigma) == pytest.approx(sde.prior_std, rel=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_state_round_trip(process: str) -> None:
    sde = PROCESSES[process]
    again = process_from_state(json.loads(json.dumps(process_state(sde))))
    assert type(again) is type(sde)
    assert torch.equal(again.kernel(TIMES).alpha, sde.kernel(TIMES).alpha)
    assert torch.equal(again.kernel(TIMES).sigma, sde.kernel(TIMES).sigma)


def test_parameters_survive_the_round_trip() -> None:
    assert process_from_state(process_state(sd.VPSDE(0.2, 15.0))) == sd.VPSDE(0.2, 15.0)
    assert process_from_state(process_state(sd.VESDE(0.02, 90.0))) == sd.VESDE(0.02, 90.0)
    with pytest.raises(sd.UserError, match="did you mean 'VPSDE'"):
        process_from_state({"name": "VPSDEE"})


def test_ddpm_tables() -> None:
    """The betas of Ho et al. (2020) and of Nichol and Dhariwal (2021), and the levels at their times."""
    linear = sd.DiscreteVP.linear(1000)
    assert float(linear.betas[0]) == pytest.approx(1e-4, rel=1e-12)
    assert float(linear.betas[-1]) == pytest.approx(0.02, rel=1e-12)
    alpha_bar = (1.0 - linear.betas).cumprod(0)
    torch.testing.assert_close(linear.levels.alpha**2, alpha_bar, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(linear.levels.variance, 1.0 - alpha_bar, rtol=1e-10, atol=0.0)
    assert float(sd.DiscreteVP.cosine(1000).betas.max()) == 0.999
    ladder = sd.DiscreteVE(torch.tensor([0.1, 0.5, 3.0]))
    torch.testing.assert_close(ladder.kernel(ladder.times).sigma, ladder.sigmas, rtol=1e-12, atol=0.0)
    geometric = sd.DiscreteVE.geometric(0.01, 50.0, 100).sigmas
    ratios = geometric[1:] / geometric[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(99), rtol=1e-10, atol=0.0)
    assert float(geometric[0]) == pytest.approx(0.01) and float(geometric[-1]) == pytest.approx(50.0)


def test_the_cosine_bound_is_the_limit_of_the_papers() -> None:
    """beta(t) <= 999, reached at t = 0.998, and log alpha is continuous there with that slope beyond."""
    sde = sd.CosineVPSDE()
    t = torch.linspace(0.99, 1.0, 100_001, dtype=torch.float64)
    beta = sde.beta(t)
    assert float(beta.max()) == pytest.approx(999.0, rel=1e-9)
    assert float(t[beta >= 999.0 * (1 - 1e-12)][0]) == pytest.approx(0.998, abs=1e-4)
    slopes = sde.log_alpha(t).diff() / t.diff()
    assert float(slopes.min()) == pytest.approx(-999.0 / 2, rel=1e-5)
    torch.testing.assert_close(slopes, -0.25 * (beta[1:] + beta[:-1]), rtol=1e-3, atol=0.0)


def test_smallest_times() -> None:
    """Three of them: training 1e-5, sampling 1e-3 (VP, sub-VP) or 1e-5 (VE), likelihood 1e-5."""
    for sde, sample in ((sd.VPSDE(), 1e-3), (sd.SubVPSDE(), 1e-3), (sd.VESDE(), 1e-5)):
        assert (sde.t_train, sde.t_sample, sde.t_likelihood) == (1e-5, sample, 1e-5)
    assert float(sd.EDM().kernel(sd.EDM().t_sample).sigma) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.VPSDE(20.0, 0.1),
        lambda: sd.VESDE(0.0, 1.0),
        lambda: sd.EDM(2.0, 1.0),
        lambda: sd.CosineVPSDE(s=0.0),
        lambda: sd.DiscreteVP(torch.tensor([1.0, 0.1])),
        lambda: sd.DiscreteVP.linear(10),
        lambda: sd.DiscreteVE(torch.tensor([1.0, 0.5])),
        lambda: sd.DiscreteVE.geometric(0.01, 50.0, 1),
    ],
)
def test_impossible_parameters_are_refused(make: object) -> None:
    with pytest.raises(sd.UserError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_ends_are_finite_or_a_sentence(process: str) -> None:
    """Flow and reverse drift need noise at t = 0, the drift none.

    At t = 1 all are finite, and rectified flow's velocity is x - x0_hat.
    """
    sde, x = PROCESSES[process], torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    noisy = bool(sde.kernel(0.0).sigma > 0)
    for name, rate in (("the flow's velocity", sde.velocity), ("the flow's velocity", sde.reverse_drift)):
        assert bool(rate(x, 0.5 * x, 1.0).isfinite().all())
        if noisy:
            assert bool(rate(x, 0.5 * x, 0.0).isfinite().all())
            continue
        for t in (0.0, torch.tensor([0.0])):
            with pytest.raises(UserError, match=rf"{name} does not exist at t = 0: .*take t >= 1e-5"):
                rate(x, 0.5 * x, t)
    assert bool(sde.drift(x, 0.0).isfinite().all() and sde.drift(x, 1.0).isfinite().all())
    if process == "RectifiedFlow":
        torch.testing.assert_close(sde.velocity(x, 0.5 * x, 1.0), 0.5 * x)
