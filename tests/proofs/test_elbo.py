"""The variational bounds against closed forms: the decoder is a distribution, the terms are their expectations, and
the bounds lie above the true negative log likelihood and reach it where they should.

Three kinds of data have a known likelihood. A finite set of 8 grey-level images has -log2 P = 3 bits for each of them;
its posterior at high log-SNR is one image, so that every decoder of small variance is right. One Gaussian N(0, s^2) has
E|x_0 - x0_hat|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), and with it every term of the bound in closed form. A mixture
has a density for each x.

What is random is compared within 4 standard errors, or 4.5 for the largest of many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import erfcx, ndtr
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import sde_diffusion as sd
from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.core.spacings import logsnr_ends
from sde_diffusion.likelihood.decoder import CDFS
from tests.golden.reference import ReplayedNoise
from tests.proofs.cases import MIXTURES, PROCESSES, generator, quick_denoiser

F64 = torch.float64
LEVELS = 17
IMAGES = torch.randint(0, LEVELS, (8, 1, 2, 2), generator=generator(0))
"""The finite set: 8 different images of 4 pixels."""
TRUTH = math.log2(8) / 4
"""-log2 P of each of them, a dimension."""


def in_model_space(grey: Tensor, levels: int = LEVELS) -> Tensor:
    return 2.0 * grey.double() / (levels - 1) - 1.0


FINITE = sd.EmpiricalDenoiser(in_model_space(IMAGES))


def standard_errors(samples: Tensor, expected: Tensor | float) -> Tensor:
    """How many standard errors the mean of samples [B, ...] is above what is expected."""
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


@dataclass
class WithFractions:
    """A denoiser that learned a variance: at each of some levels [T] a fraction [T] of the way to beta."""

    denoiser: Callable[..., Tensor]
    levels: Kernel
    fractions: Tensor

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return self.denoiser(x, kernel)

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor]:
        index = (self.levels.logsnr - kernel.logsnr[..., None]).abs().argmin(-1)
        return self(x, kernel), match(self.fractions[index], x).expand_as(x)


def levels_of(process: sd.SDE | sd.TimeGrid) -> Kernel:
    """The kernels of a chain's levels [T], from data to noise."""
    if isinstance(process, sd.TimeGrid):
        return process.sde.kernel(process.times.flip(0))
    assert process.times is not None
    return process.kernel(process.times)


def sde_of(process: sd.SDE | sd.TimeGrid) -> sd.SDE:
    return process.sde if isinstance(process, sd.TimeGrid) else process


def step_variances(levels: Kernel) -> tuple[Tensor, Tensor]:
    """beta_i and the posterior's s_i^2 of levels 1 .. T-1, [T - 1], by Ho et al. (2020), equations 6 and 7."""
    (below, above), (less, more) = ((v[:-1], v[1:]) for v in (levels.alpha, levels.variance))
    beta = more - (above / below) ** 2 * less
    return beta, beta * less / more


# --- the decoder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cdf", CDFS)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_decoder_is_a_distribution(levels: int, cdf: str, dtype: torch.dtype) -> None:
    """Its probabilities sum to one wherever the mean is, to 1e-6.

    Two bins that meet compute their border twice. In float32 the two differ by an eps, eps/std standard deviations,
    and a mean beside the border turns these into probability: of std 1e-4 that is 2e-4. The bound is in float64.
    """
    x = in_model_space(torch.arange(levels), levels).to(dtype)[:, None, None]
    means = torch.tensor([-40.0, -3.0, -1.02, -1.0, -0.3, 0.0, 0.123, 0.9, 1.0, 1.5, 40.0], dtype=dtype)[:, None]
    stds = torch.logspace(-4.0, math.log10(3.0), 12, dtype=dtype)
    x, means, stds = torch.broadcast_tensors(x, means, stds)
    logs = sd.discretized_gaussian(x, means, stds.log(), levels, cdf)
    assert logs.dtype == dtype and bool(logs.isfinite().all()) and bool((logs <= 0.0).all())
    off = (logs.double().exp().sum(0) - 1.0).abs()
    # tanh is never below 1e-12: 256 levels add up to 256e-12.
    allowed = 1e-9 if dtype == F64 else 1e-5 + torch.finfo(dtype).eps / stds[0].double()
    assert bool((off < allowed).all()), off.max()


def reference_log_mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log(Phi(high) - Phi(low)): in a tail exp(-low^2/2)/2 (erfcx(low/r) - exp((low^2 - high^2)/2) erfcx(high/r)), r
    the root of 2; across 0 the plain difference."""
    low, high = np.where(low + high < 0.0, -high, low), np.where(low + high < 0.0, -low, high)
    tail = np.maximum(low, 0.0)
    ratio = np.exp(0.5 * (tail - high) * (tail + high))
    mass = 0.5 * (erfcx(tail / math.sqrt(2.0)) - ratio * erfcx(high / math.sqrt(2.0)))
    return np.log(np.where(low > 0.0, mass, ndtr(high) - ndtr(low))) - 0.5 * tail**2


@pytest.mark.parametrize(("levels", "std"), [(17, 0.002), (256, 0.01), (256, 0.3), (2, 0.5)])
def test_exact_decoder_in_far_tails(levels: int, std: float) -> None:
    """Bins down to 1e-300000 against scaled complementary error functions; the outer bins reach to infinity."""
    x = in_model_space(torch.arange(levels), levels)[:, None]
    means = torch.tensor([-0.95, -0.3, 0.01, 0.4, 1.0], dtype=F64)
    x, means = torch.broadcast_tensors(x, means)
    found = sd.discretized_gaussian(x, means, torch.full_like(x, math.log(std)), levels)
    half = 1.0 / (levels - 1)
    low, high = (((x - means + side) / std).numpy().copy() for side in (-half, half))
    low[0], high[-1] = -1e6, 1e6
    expected = torch.from_numpy(reference_log_mass(low, high))
    assert float(expected.min()) < {0.002: -1e5, 0.01: -1e4, 0.3: -15.0, 0.5: -2.0}[std]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cdf", CDFS)
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_the_variance_of_the_decoder(variance: str, cdf: str) -> None:
    """Of grey levels "published" is that of the step at level 0: the posterior's of level 1, or learned, a part of the
    way to sigma_0^2; "level" is the noise there, sigma_0^2/alpha_0^2, whatever the steps'."""
    process, guess = sd.DiscreteVP.linear(30), 0.9 * in_model_space(IMAGES)
    step = float(step_variances(process.levels)[1][0])
    learned = step**0.7 * float(process.levels.variance[0]) ** 0.3
    published = learned if variance == "learned" else step
    denoiser = WithFractions(lambda x, kernel: guess, process.levels, torch.full((30,), 0.3, dtype=F64))
    arguments: dict[str, Any] = {"levels": LEVELS, "variance": variance, "cdf": cdf, "dtype": F64}
    for decoder, v in (("published", published), ("level", 1.0 / float(process.levels.snr[0]))):
        bound = sd.elbo(denoiser, IMAGES, process, decoder=decoder, terms=1, generator=generator(1), **arguments)
        logs = sd.discretized_gaussian(
            in_model_space(IMAGES), guess, torch.full_like(guess, 0.5 * math.log(v)), LEVELS, cdf
        )
        expected = -logs.flatten(1).mean(1) / math.log(2.0)
        torch.testing.assert_close(bound.per_sample.reconstruction, expected, rtol=1e-10, atol=1e-12)


# --- the finite set: a bound, and how it falls ------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_the_bound_of_a_finite_set(table: str, variance: str) -> None:
    """It lies above 3 bits of 4 pixels for every number of steps, and falls towards them."""
    x, gaps, errors = IMAGES.repeat(64, 1, 1, 1), [], []
    for steps in (30, 100, 300, 1000):
        process = getattr(sd.DiscreteVP, table)(steps)
        bound = sd.elbo(FINITE, x, process, levels=LEVELS, variance=variance, generator=generator(1), dtype=F64)
        gaps.append(float(bound.total) - TRUTH)
        errors.append(float(bound.standard_error))
        assert gaps[-1] > -3.0 * errors[-1]
    for i in range(3):
        assert gaps[i + 1] < gaps[i] + 3.0 * math.hypot(errors[i], errors[i + 1]), gaps
    assert gaps[-1] < 0.6 * gaps[0]
    if variance == "posterior":  # the variance of a step to one image, which the data are at high log-SNR
        assert gaps[-1] < 0.02


@pytest.mark.parametrize("process", PROCESSES)
def test_the_continuous_bound_of_a_finite_set(process: str) -> None:
    """3 bits of 4 pixels, under every process."""
    x = IMAGES.repeat(400, 1, 1, 1)
    bound = sd.vlb(FINITE, x, PROCESSES[process], levels=LEVELS, generator=generator(5), dtype=F64)
    each = bound.per_sample.total
    assert float(standard_errors(each, TRUTH)) > -4.0
    assert float(standard_errors(each, TRUTH + 2e-3)) < 4.0  # the prior's gap is below 2e-3
    assert float(bound.standard_error) < 8e-3
    assert bound.nfe == 100 and abs(float(bound.reconstruction)) < 1e-6


# --- one Gaussian: every term in closed form ----------------------------------------------------------------------

STD, DIMS = 0.5, 3
GAUSSIAN = sd.GaussianMixture([[0.0] * DIMS], [STD], [1.0])
CHAINS: dict[str, sd.SDE | sd.TimeGrid] = {
    "DiscreteVP": sd.DiscreteVP.cosine(40),
    "DiscreteVE": sd.DiscreteVE.geometric(0.01, 50.0, 40),
    "SubVPSDE grid": sd.make_grid(sd.SubVPSDE(), 40),
    "EDM grid": sd.make_grid(sd.EDM(), 40, "karras"),
}


def least_error(kernel: Kernel) -> Tensor:
    """E|x_0 - x0_hat|^2 a dimension."""
    return STD**2 * kernel.variance / (kernel.alpha**2 * STD**2 + kernel.variance)


def variances_of(levels: Kernel, fraction: float) -> tuple[Tensor, Tensor]:
    """v_i [T], `fraction` of the way from the posterior's to beta in the logarithm, and s_i^2 of levels 1 .. T-1.

    At level 0 the posterior's is that of level 1, and beta is sigma_0^2.
    """
    beta, posterior = step_variances(levels)
    low, high = torch.cat([posterior[:1], posterior]), torch.cat([levels.variance[:1], beta])
    return torch.exp(torch.lerp(low.log(), high.log(), fraction)), posterior


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_term_of_a_gaussian(chain: str, variance: str) -> None:
    """With E = E|x_0 - x0_hat|^2 step i costs 1/2 (log v/s^2 + s^2 (1 + (snr_{i-1} - snr_i) E)/v - 1): for v = s^2
    half the fall of the SNR times E (Kingma et al. 2021, equation 14). The decoder's is 1/2 (log 2 pi v + E/v), of
    continuous data with v = sigma^2/alpha^2."""
    process, n = CHAINS[chain], 4000
    levels = levels_of(process)
    v, posterior = variances_of(levels, {"posterior": 0.0, "beta": 1.0, "learned": 0.4}[variance])
    error, snr = least_error(levels), levels.snr
    ratio = posterior / v[1:]
    step = 0.5 * (-ratio.log() + ratio * (1.0 + (snr[:-1] - snr[1:]) * error[1:]) - 1.0)
    decoder = 0.5 * ((2.0 * math.pi / snr[0]).log() + snr[0] * error[0])

    denoiser = WithFractions(GAUSSIAN.denoiser(), levels, torch.full_like(v, 0.4))
    x = GAUSSIAN.sample(n, generator=generator(1))
    bound = sd.elbo(denoiser, x, process, levels=None, variance=variance, generator=generator(2))
    each = bound.per_sample
    assert bound.nfe == len(levels.alpha) and bool((each.denoising[:, 0] == 0.0).all())
    assert float(standard_errors(each.denoising[:, 1:], step / math.log(2.0)).abs().max()) < 4.5
    assert abs(float(standard_errors(each.reconstruction, decoder / math.log(2.0)))) < 4.0
    assert float(standard_errors(each.x0_mse, error).abs().max()) < 4.5


@pytest.mark.parametrize("chain", CHAINS)
def test_the_best_variance_lies_between_and_closes_the_gap(chain: str) -> None:
    """For Gaussian data p(x_{i-1} | x_i) is Gaussian. Its variance 1/(1/V + a^2/beta), V that of x_{i-1}, is above the
    posterior's, and below beta where (1 - a^2) V < beta, in VP for data of less than unit variance (Ho et al. 2020,
    section 3.2). A network that learned it pays nothing for having 40 steps: its bound is the true density but for
    the prior and the decoder, whose variance is not E but sigma^2/alpha^2, and below what either of the two pays."""
    process, n = CHAINS[chain], 20_000
    levels = levels_of(process)
    of_x, a = levels.alpha**2 * STD**2 + levels.variance, levels.alpha[1:] / levels.alpha[:-1]
    beta, _ = step_variances(levels)
    best = torch.cat([least_error(levels)[:1], 1.0 / (1.0 / of_x[:-1] + a**2 / beta)])
    low, high = (variances_of(levels, fraction)[0] for fraction in (0.0, 1.0))
    fractions = (best / low).log() / (high / low).log()
    below = (1.0 - a**2) * of_x[:-1] < beta
    assert bool((fractions[1:] > 0.0).all()) and torch.equal(fractions[1:] < 1.0, below)
    assert bool(below.all()) or chain == "SubVPSDE grid"

    x = GAUSSIAN.sample(n, generator=generator(1))
    end = (Normal(torch.zeros((), dtype=F64), std) for std in (of_x[-1].sqrt(), sde_of(process).prior_std))
    decoder = (least_error(levels)[0].sqrt(), (-0.5 * levels.logsnr[0]).exp())
    ends = (Normal(torch.zeros((), dtype=F64), std) for std in decoder)
    missed = (kl_divergence(*end) + kl_divergence(*ends)) / math.log(2.0)
    truth = -GAUSSIAN.log_prob(x) / (DIMS * math.log(2.0))

    def gap(variance: str) -> Tensor:
        denoiser = WithFractions(GAUSSIAN.denoiser(), levels, fractions)
        bound = sd.elbo(denoiser, x, process, levels=None, variance=variance, generator=generator(2))
        return bound.per_sample.total - truth

    learned = gap("learned")
    assert abs(float(standard_errors(learned, missed))) < 4.0
    assert float(learned.std()) / math.sqrt(n) < 1e-2
    for variance in ("posterior", "beta"):
        assert float(standard_errors(gap(variance) - learned, 0.0)) > 4.0


@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "RectifiedFlow"])
def test_every_section_of_the_integral_of_a_gaussian(process: str) -> None:
    """snr E = s^2 e^lam / (1 + s^2 e^lam), whose half integrates to log(1 + s^2 e^lam)/2."""
    sde, n, points = PROCESSES[process], 4000, 25
    least, most = logsnr_ends(sde, 1e-3)
    ends = torch.lerp(most, least, torch.linspace(0.0, 1.0, points + 1, dtype=F64))
    section = -torch.log1p(STD**2 * ends.exp()).diff() / (2.0 * math.log(2.0))
    x = GAUSSIAN.sample(n, generator=generator(1))
    arguments: dict[str, Any] = {"levels": None, "points": points, "t_min": 1e-3}
    bound = sd.vlb(GAUSSIAN.denoiser(), x, sde, generator=generator(2), **arguments)
    assert bound.denoising.shape == (points,) and bound.nfe == points
    assert float(standard_errors(bound.per_sample.denoising, section).abs().max()) < 4.5
    # The entropy of N(z_0/alpha, sigma^2/alpha^2) at t_min.
    entropy = 0.5 * (math.log(2.0 * math.pi * math.e) - sde.kernel(1e-3).logsnr) / math.log(2.0)
    torch.testing.assert_close(bound.reconstruction, entropy, rtol=1e-9, atol=1e-9)


# --- mixtures -------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[int], sd.SDE | sd.TimeGrid]] = {
    "VP": sd.DiscreteVP.cosine,
    "VE": lambda steps: sd.DiscreteVE.geometric(0.01, 50.0, steps),
    "VPSDE grid": lambda steps: sd.make_grid(sd.VPSDE(), steps),
    "VPSDE logsnr grid": lambda steps: sd.make_grid(sd.VPSDE(), steps, "logsnr"),
}


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dims", MIXTURES)
def test_a_bound_on_the_density(dims: int, table: str, variance: str) -> None:
    """Of continuous data the mean bound lies above the mean of -log p of the same samples, the more steps or fewer."""
    mixture = MIXTURES[dims]
    x = mixture.sample(1000, generator=generator(1))
    truth = -mixture.log_prob(x) / (dims * math.log(2.0))
    for steps in (10, 100):
        process, denoiser = TABLES[table](steps), quick_denoiser(mixture)
        bound = sd.elbo(denoiser, x, process, levels=None, variance=variance, generator=generator(2))
        assert float(standard_errors(bound.per_sample.total - truth, 0.0)) > -3.0


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "EDM"])
def test_many_steps_reach_the_density(process: str, variance: str) -> None:
    """Equal steps of log-SNR cost a mixture 1/T: the sum of T terms of size 1/T^2. x given x_0' is about
    N(x_0'/alpha, sigma^2/alpha^2) at level 0, which is the variance of the decoder of continuous data."""
    mixture, sde, n = MIXTURES[2], PROCESSES[process], 2000
    x = mixture.sample(n, generator=generator(1))
    truth = -mixture.log_prob(x) / (2 * math.log(2.0))
    gaps, errors = [], []
    for steps in (50, 150, 450):
        grid = sd.make_grid(sde, steps, "logsnr")
        denoiser = quick_denoiser(mixture)
        bound = sd.elbo(denoiser, x, grid, levels=None, variance=variance, generator=generator(2))
        gap = bound.per_sample.total - truth
        gaps.append(float(gap.mean()))
        errors.append(float(gap.std()) / math.sqrt(n))
    assert gaps[-1] > -3.0 * errors[-1]
    for few, many, error in zip(gaps, gaps[1:], errors[1:]):
        assert many < 0.5 * few + 4.0 * error, gaps
    assert gaps[-1] < 0.2


@pytest.mark.parametrize("process", PROCESSES)
def test_the_continuous_bound_is_the_density_of_each_x(process: str) -> None:
    """Not of the mean alone. With z_0, z_1 the states at the ends it is exactly

        E[-log p_0(z_0 / alpha_0) | x] + E[log p_1(z_1) - log prior(z_1) | x],

    p_0 and p_1 the densities there, by quadrature; which is -log p(x) to 1e-3 bits/dim, the gaps of t_min and the
    prior.
    """
    mixture, sde, count, repeats = MIXTURES[2], PROCESSES[process], 4, 2500
    x = mixture.sample(count, generator=generator(3))
    nodes, weights = (torch.from_numpy(values) for values in hermegauss(40))
    noise, weight = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()

    def expected(kernel: Kernel, of: Callable[[Tensor], Tensor]) -> Tensor:
        """E[of(z) | x], [count]."""
        z = (kernel.alpha * x[:, None] + kernel.sigma * noise).flatten(0, 1)
        return of(z).reshape(count, -1) @ weight / weight.sum()

    last, first = (sde.kernel(sde.time_of(logsnr)) for logsnr in logsnr_ends(sde, 1e-4))
    end = expected(last, lambda z: mixture.log_prob(z, last) - sde.prior_logp(z))
    start = expected(first, lambda z: -mixture.log_prob(z, first) - 2.0 * first.alpha.log())
    bits = 1.0 / (2.0 * math.log(2.0))
    assert float((start + end + mixture.log_prob(x)).abs().max()) * bits < 1e-3

    bound = sd.vlb(
        mixture.denoiser(),
        x.repeat_interleave(repeats, 0),
        sde,
        levels=None,
        t_min=1e-4,
        points=40,
        generator=generator(5),
    )
    each = bound.per_sample.total.reshape(count, repeats).T
    assert float(standard_errors(each, bits * (start + end)).abs().max()) < 4.0
    assert float(each.std(0).max()) / math.sqrt(repeats) < 0.02


# --- how it is estimated --------------------------------------------------------------------------------------


def test_some_terms_stand_for_all() -> None:
    """One level of each section of levels 1 .. 40, weighted by the section's length: unbiased at every level."""
    n, steps, terms = 4000, 41, 7
    process, x = sd.DiscreteVP.cosine(steps), IMAGES[:1].expand(4000, -1, -1, -1)
    arguments: dict[str, Any] = {"levels": LEVELS, "dtype": F64}
    full = sd.elbo(FINITE, x, process, generator=generator(1), **arguments)
    some = sd.elbo(FINITE, x, process, generator=generator(2), terms=terms, **arguments)
    assert (full.nfe, some.nfe) == (steps, terms + 1)
    assert bool(((some.per_sample.x0_mse[:, 1:] > 0.0).sum(1) <= terms).all())
    for name in ("denoising", "x0_mse"):
        found, expected = getattr(some.per_sample, name), getattr(full.per_sample, name)
        error = (found.var(0) + expected.var(0)).div(n).sqrt()
        # At the highest log-SNR the denoiser is exact: 0 in both.
        ratio = (found.mean(0) - expected.mean(0)) / error.clamp_min(1e-12)
        assert float(ratio.abs().max()) < 4.5, name
    error = math.hypot(float(full.standard_error), float(some.standard_error))
    assert abs(float(some.total - full.total)) < 4.0 * error
    # One in each section: the k-th of the evaluated levels is not above the section's end.
    ends = torch.linspace(1, steps, terms + 1, dtype=F64).round()
    wrong = sd.elbo(lambda x, kernel: x + 1.0, x, process, generator=generator(3), terms=terms, **arguments)
    levels = wrong.per_sample.denoising.nonzero()[:, 1].reshape(n, terms)
    assert bool(((levels >= ends[:-1]) & (levels < ends[1:])).all())
    assert set(levels.unique().tolist()) == set(range(1, steps))


def replayed(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    monkeypatch.setattr(import_module("sde_diffusion.likelihood.discrete"), "randn", ReplayedNoise(noise))


def test_draws_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two draws of the noise at every level are the average of one and the other."""
    process = sd.DiscreteVP.cosine(12)
    noise = torch.randn(24, *IMAGES.shape, generator=generator(1), dtype=F64)

    def bound(noise: Tensor, draws: int) -> sd.Bound:
        replayed(monkeypatch, noise)
        return sd.elbo(FINITE, IMAGES, process, levels=LEVELS, draws=draws, dtype=F64)

    both, first, second = bound(noise, 2), bound(noise[0::2], 1), bound(noise[1::2], 1)
    assert (both.nfe, first.nfe) == (24, 12)
    for name in ("prior", "denoising", "reconstruction", "x0_mse"):
        one, other = getattr(first.per_sample, name), getattr(second.per_sample, name)
        torch.testing.assert_close(getattr(both.per_sample, name), 0.5 * (one + other), rtol=1e-12, atol=1e-14)


BOUNDS: dict[str, Callable[..., sd.Bound]] = {
    "all": lambda x, g: sd.elbo(FINITE, x, sd.DiscreteVP.cosine(12), levels=LEVELS, generator=g, dtype=F64),
    "some": lambda x, g: sd.elbo(FINITE, x, sd.DiscreteVP.cosine(12), levels=LEVELS, generator=g, dtype=F64, terms=3),
    "vlb": lambda x, g: sd.vlb(FINITE, x, sd.VPSDE(), levels=LEVELS, generator=g, dtype=F64, points=10),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_row_is_independent_of_its_batch(kind: str) -> None:
    """With a generator a sample its terms are its own."""
    batch = BOUNDS[kind](IMAGES, sd.sample_generators(7, range(8))).per_sample
    alone = BOUNDS[kind](IMAGES[3:4], sd.sample_generators(7, [3])).per_sample
    for name in ("prior", "denoising", "reconstruction", "x0_mse", "total"):
        torch.testing.assert_close(getattr(batch, name)[3:4], getattr(alone, name), rtol=1e-10, atol=1e-13)


class Predicts(nn.Module):
    """x0_hat = tanh(x) as the output of a network of another prediction, told the log-SNR of a VP process."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = (match(torch.sigmoid(sign * logsnr).sqrt(), x) for sign in (1.0, -1.0))
        x0_hat = torch.tanh(x)
        eps = (x - alpha * x0_hat) / sigma
        return {"x0": x0_hat, "eps": eps, "v": alpha * eps - sigma * x0_hat}[self.prediction]


def test_the_bound_of_a_network_is_that_of_what_it_says() -> None:
    """The same function predicted as x0, eps and v."""
    process, totals = sd.DiscreteVP.cosine(30), []
    for prediction in ("x0", "eps", "v"):
        spec = sd.NetworkSpec(process=process, prediction=prediction, label="logsnr")
        denoiser = sd.NetworkDenoiser(Predicts(prediction), spec)
        totals.append(sd.elbo(denoiser, IMAGES, process, levels=LEVELS, generator=generator(1), dtype=F64).per_sample)
    for other in totals[1:]:
        torch.testing.assert_close(other.total, totals[0].total, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other.denoising, totals[0].denoising, rtol=1e-8, atol=1e-8)


def test_the_ends_of_a_learned_variance() -> None:
    """Fraction 0 is "posterior" and 1 is "beta", but for level 0: "beta" has the posterior's there, and 1 is beta's."""
    process = sd.DiscreteVP.linear(30)

    def bound(variance: str, fraction: float = 0.0) -> sd.Bound:
        denoiser = WithFractions(FINITE, process.levels, torch.full((30,), fraction, dtype=F64))
        return sd.elbo(denoiser, IMAGES, process, levels=LEVELS, variance=variance, generator=generator(1), dtype=F64)

    def same(one: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    same(bound("learned", 0.0).per_sample.total, bound("posterior").per_sample.total)
    same(bound("learned", 1.0).per_sample.denoising, bound("beta").per_sample.denoising)
    same(bound("beta").reconstruction, bound("posterior").reconstruction)
    assert abs(float(bound("learned", 1.0).reconstruction - bound("beta").reconstruction)) > 1e-3


# --- the contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["DiscreteVP", "DiscreteVE"])
def test_shapes_and_sums(process: str) -> None:
    sde = PROCESSES[process]
    bound = sd.elbo(FINITE, IMAGES, sde, levels=LEVELS, terms=5, generator=generator(1), dtype=F64)
    each = bound.per_sample
    assert bound.prior.shape == bound.reconstruction.shape == bound.total.shape == bound.standard_error.shape == ()
    assert bound.denoising.shape == (1000,) and each.denoising.shape == each.x0_mse.shape == (8, 1000)
    torch.testing.assert_close(bound.total, bound.prior + bound.denoising.sum() + bound.reconstruction)
    torch.testing.assert_close(bound.total, each.total.mean())
    torch.testing.assert_close(bound.standard_error, each.total.std() / math.sqrt(8.0))
    last = levels_of(sde)[-1:]
    divergence = kl_divergence(
        Normal(last.alpha * in_model_space(IMAGES), last.sigma), Normal(torch.zeros((), dtype=F64), sde.prior_std)
    )
    torch.testing.assert_close(each.prior, divergence.flatten(1).mean(1) / math.log(2.0), rtol=1e-6, atol=1e-12)
    alone = sd.elbo(FINITE, IMAGES[:1], sde, levels=LEVELS, terms=5, generator=generator(1), dtype=F64)
    assert bool(alone.standard_error.isnan()) and bool(alone.total.isfinite())


@pytest.mark.parametrize("bound", [sd.elbo, sd.vlb])
@pytest.mark.parametrize(
    "offset", [0.25, torch.linspace(-0.3, 0.5, 4, dtype=F64).reshape(1, 2, 2)], ids=["all", "each"]
)
def test_an_offset_moves_the_data_and_the_decoder(offset: Tensor | float, bound: Callable[..., sd.Bound]) -> None:
    """A model of x - offset pays what one of x does: the same denoising and decoder for the same noise, and a prior
    that sees the data elsewhere."""
    process = sd.DiscreteVP.cosine(40)

    def shifted(x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return FINITE(x + match(kernel.alpha, x) * offset, kernel) - offset

    plain = bound(FINITE, IMAGES, process, levels=LEVELS, generator=generator(1), dtype=F64).per_sample
    moved = bound(shifted, IMAGES, process, levels=LEVELS, generator=generator(1), dtype=F64, offset=offset).per_sample
    for name in ("denoising", "reconstruction", "x0_mse"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name), rtol=1e-7, atol=1e-9)
    x = in_model_space(IMAGES)
    fall = (x**2 - (x - offset) ** 2).flatten(1).mean(1)
    last = process.kernel(1.0).alpha
    torch.testing.assert_close(plain.prior - moved.prior, 0.5 * last**2 * fall / math.log(2.0), rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize("bound", [sd.elbo, sd.vlb])
def test_bins_of_a_density(bound: Callable[..., sd.Bound]) -> None:
    """-log2 of a density times the width of a bin."""
    x, process = GAUSSIAN.sample(4, generator=generator(1)), sd.DiscreteVP.cosine(20)
    one, other = (
        bound(GAUSSIAN.denoiser(), x, process, levels=None, bin_width=width, generator=generator(2))
        for width in (1.0, 2.0 / 255.0)
    )
    torch.testing.assert_close(other.per_sample.total - one.per_sample.total, torch.full((4,), 6.994353, dtype=F64))


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    keep = lambda done, total: seen.append((done, total))  # noqa: E731
    sd.elbo(FINITE, IMAGES, sd.DiscreteVP.cosine(4), levels=LEVELS, on_level=keep)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    sd.elbo(FINITE, IMAGES, sd.DiscreteVP.cosine(30), levels=LEVELS, terms=2, on_level=keep)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    sd.vlb(FINITE, IMAGES, sd.VPSDE(), levels=LEVELS, points=2, on_level=keep)
    assert seen == [(1, 2), (2, 2)]


VP = sd.DiscreteVP.linear(30)
REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: sd.elbo(FINITE, in_model_space(IMAGES), VP), "as integers, got torch.float64"),
    "vlb floats": (lambda: sd.vlb(FINITE, in_model_space(IMAGES), VP), "as integers, got torch.float64"),
    "booleans": (lambda: sd.elbo(FINITE, IMAGES > 3, VP), "as integers, got torch.bool"),
    "above": (lambda: sd.elbo(FINITE, IMAGES, VP, levels=8), "must be 0 to 7, got 0 to 16"),
    "below": (lambda: sd.elbo(FINITE, IMAGES - 1, VP), "must be 0 to 255, got -1 to 15"),
    "one level": (lambda: sd.elbo(FINITE, 0 * IMAGES, VP, levels=1), "at least 2 grey levels"),
    "NaN": (lambda: sd.elbo(FINITE, torch.full((1, 4), math.nan), VP, levels=None), "finite floating-point"),
    "integers": (lambda: sd.elbo(FINITE, IMAGES, VP, levels=None), "finite floating-point"),
    "vector": (lambda: sd.elbo(FINITE, IMAGES.flatten(), VP), "a batch"),
    "empty": (lambda: sd.elbo(FINITE, IMAGES[:0], VP), "a batch"),
    "continuous": (lambda: sd.elbo(FINITE, IMAGES, sd.VPSDE()), "VPSDE has no discrete levels: give a discrete"),
    "variance": (lambda: sd.elbo(FINITE, IMAGES, VP, variance="posteriour"), "did you mean 'posterior'"),
    "cdf": (lambda: sd.elbo(FINITE, IMAGES, VP, cdf="tan"), "did you mean 'tanh'"),
    "decoder": (lambda: sd.elbo(FINITE, IMAGES, VP, decoder="publish"), "did you mean 'published'"),
    "learned": (lambda: sd.elbo(FINITE, IMAGES, VP, variance="learned"), "needs a network that learned it"),
    "no terms": (lambda: sd.elbo(FINITE, IMAGES, VP, terms=0), "from 1 to the number of steps, 29, or None; got 0"),
    "many terms": (lambda: sd.elbo(FINITE, IMAGES, VP, terms=30), "from 1 to the number of steps, 29, or None; got 30"),
    "draws": (lambda: sd.elbo(FINITE, IMAGES, VP, draws=0), "draws must be a whole number from 1"),
    "bin": (lambda: sd.elbo(FINITE, IMAGES, VP, bin_width=0.0), "bin_width positive"),
    "generators": (lambda: sd.elbo(FINITE, IMAGES, VP, generator=[generator(0)]), "1 generators for a batch of 8"),
    "points": (lambda: sd.vlb(FINITE, IMAGES, VP, points=0), "points must be at least 1"),
    "t_min": (lambda: sd.vlb(FINITE, IMAGES, VP, t_min=1.0), "t_min in"),
    "no noise": (lambda: sd.vlb(FINITE, IMAGES, sd.VPSDE(), t_min=0.0), "no noise at t_min = 0.0"),
}


@pytest.mark.parametrize("request_", REFUSALS)
def test_refusals(request_: str) -> None:
    """What has no bound is refused in one sentence that says what would have one."""
    ask, says = REFUSALS[request_]
    with pytest.raises(sd.UserError, match=says) as refused:
        ask()
    assert "\n" not in str(refused.value)


def test_a_bin_width_is_for_densities() -> None:
    """Grey levels have probabilities already: the volume of a bin would be counted twice."""
    denoiser, levels = sd.GaussianMixture([[0.0, 0.0]], [0.5], [1.0]).denoiser(), torch.tensor([[3, 200]])
    for bound in (
        lambda: sd.elbo(denoiser, levels, sd.make_grid(sd.VPSDE(), 10, "logsnr"), bin_width=2 / 255),
        lambda: sd.vlb(denoiser, levels, sd.VPSDE(), bin_width=2 / 255),
    ):
        with pytest.raises(sd.UserError, match="bin_width is for densities, levels=None"):
            bound()
