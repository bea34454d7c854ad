"""Dequantisers against their definition: noise on the bins, its density, and the probabilities that come out of it."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DEQUANTIZERS, DataTransform, Dequantizer, LogitNormal, Uniform
from sde_diffusion.settings.root import Settings

ALL: dict[str, Dequantizer] = {
    "uniform": Uniform(),
    "logit_normal": LogitNormal(),
    "narrow": LogitNormal(std=0.2),
    "aside": LogitNormal(mean=-0.7, std=1.0),
}
"""Those that a configuration can name, one that stays near its level, and one that is not symmetric."""
each_dequantizer = pytest.mark.parametrize("name", ALL)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(indices: range) -> list[torch.Generator]:
    return [seeded(100 + index) for index in indices]


def all_levels(levels: int, count: int = 64) -> Tensor:
    """Every level, in images of one level each, [levels, 1, count, count]."""
    return torch.arange(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, count, count)


def drawn(dequantizer: Dequantizer, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Independent draws on one bin: u and log q(u), float64 [count]."""
    u, log_q = dequantizer.noise(torch.zeros(count, 1, dtype=torch.float64), seeded(seed))
    return u[:, 0], log_q


def logit_normal_density(dequantizer: LogitNormal, v: float) -> float:
    """scipy's normal density of logit(v), times the derivative of the logit."""
    return float(norm.pdf(math.log(v / (1.0 - v)), dequantizer.mean, dequantizer.std) / (v * (1.0 - v)))


# --- the noise ------------------------------------------------------------------------------------------------


@each_dequantizer
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_noise_stays_on_its_bin(levels: int, name: str) -> None:
    """u lies in [-1/2, 1/2], and rounding gives the level back, but for draws that float32 puts on the very edge."""
    transform, stored = DataTransform(levels), all_levels(levels)
    u, _ = ALL[name].noise(stored.float(), seeded())
    assert u.min() >= -0.5 and u.max() <= 0.5
    x = transform.dequantized(stored, generator=seeded(), dequantizer=ALL[name]).x
    assert x.dtype == torch.float32 and x.shape == stored.shape
    assert transform.bin_width is not None
    position = (x.double() + 1.0) / transform.bin_width
    assert (position - stored).abs().max() <= 0.5 + 1e-4
    assert (position.round() != stored).double().mean() < 2e-5
    # It is noise, not the levels themselves.
    assert (position != stored).double().mean() > 0.99


def test_uniform_noise_is_uniform() -> None:
    """Its distribution function is the identity (Kolmogorov's distance below its 0.1% quantile), and log q is 0."""
    u, log_q = drawn(Uniform(), 20_000)
    ranks = torch.arange(1, len(u) + 1) / len(u)
    assert (u.sort().values + 0.5 - ranks).abs().max() < 1.95 / math.sqrt(len(u))
    assert torch.equal(log_q, torch.zeros(len(u), dtype=torch.float64))


@pytest.mark.parametrize("mean,std", [(0.0, 1.5), (0.0, 0.2), (-0.7, 1.0)])
def test_logit_normal_density(mean: float, std: float) -> None:
    """log q(u) is the density of sigmoid(N(mean, std^2)), which integrates to one, and u is distributed by it."""
    dequantizer = LogitNormal(mean, std)
    u, log_q = drawn(dequantizer, 20_000)
    v = (u + 0.5).numpy()
    expected = [math.log(logit_normal_density(dequantizer, float(value))) for value in v[:500]]
    np.testing.assert_allclose(log_q[:500], expected, atol=1e-9)
    middle = 1.0 / (1.0 + math.exp(-mean))
    mass, _ = quad(lambda value: logit_normal_density(dequantizer, value), 0.0, 1.0, points=[middle], limit=200)
    assert mass == pytest.approx(1.0, abs=1e-8)
    ranks = np.arange(1, len(v) + 1) / len(v)
    sorted_v = np.sort(v)
    theory = norm.cdf(np.log(sorted_v / (1.0 - sorted_v)), mean, std)
    assert np.abs(theory - ranks).max() < 1.95 / math.sqrt(len(v))


def test_the_density_that_is_told_integrates_to_one() -> None:
    """log q as the dequantiser itself states it, by the trapezoidal rule over its own sorted draws on (0, 1)."""
    u, log_q = drawn(LogitNormal(), 200_000)
    v, order = (u + 0.5).sort()
    mass = float(torch.trapezoid(log_q[order].exp(), v))
    # What lies beyond the outermost draws is of the order of one part in their number.
    assert mass == pytest.approx(1.0, abs=1e-4)


def test_log_q_of_an_image_is_the_sum_over_its_pixels() -> None:
    """An image's log q is that of its pixels as images of one pixel, under the same noise."""
    dequantizer = LogitNormal(0.3, 0.8)
    together = dequantizer.noise(torch.zeros(1, 3, 4, 5), seeded(7))
    alone = dequantizer.noise(torch.zeros(60, 1), seeded(7))
    assert torch.equal(together[0].flatten(), alone[0].flatten())
    assert together[1].shape == (1,) and together[1].dtype == torch.float64
    assert float(together[1]) == pytest.approx(float(alone[1].sum()), rel=1e-12)


# --- the Jacobian ---------------------------------------------------------------------------------------------


@each_dequantizer
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_log_volume_is_the_jacobian_less_log_q(levels: int, name: str) -> None:
    """log_volume = D log(bin_width) - log q(u), with the u that is in x, under any subtracted mean."""
    stored = torch.randint(levels, (5, 2, 3, 3), generator=seeded(1)).to(torch.uint8)
    mean = torch.linspace(-0.4, 0.4, 18).reshape(2, 3, 3)
    transform = DataTransform(levels, mean)
    found = transform.dequantized(stored, generator=seeded(2), dequantizer=ALL[name])
    u, log_q = ALL[name].noise(transform.encode(stored), seeded(2))
    assert torch.equal(found.log_volume, 18 * math.log(2.0 / (levels - 1)) - log_q)
    assert torch.allclose(found.x, transform.encode(stored) + 2.0 / (levels - 1) * u, atol=1e-7)
    assert transform.log_volume(18) == 18 * math.log(2.0 / (levels - 1))


WIDTH, STD = 2.0 / 16, (0.15, 0.08)
CENTRES = (-0.37, 0.61)


def log_density(x: Tensor) -> Tensor:
    """log p(x) of two independent pixels, each a Gaussian; [B]."""
    z = (x.double() - torch.tensor(CENTRES, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    return (-0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)).sum(1) - sum(math.log(s) for s in STD)


def probability(levels: tuple[int, int]) -> float:
    """P(k): the integral of the density over the bins of two of 17 grey levels, by scipy's distribution function."""
    found = 1.0
    for level, centre, std in zip(levels, CENTRES, STD):
        middle = WIDTH * level - 1.0
        found *= float(np.diff(norm.cdf([middle - WIDTH / 2, middle + WIDTH / 2], centre, std))[0])
    return found


@pytest.mark.parametrize("levels", [(5, 13), (4, 12), (6, 14)])
@pytest.mark.parametrize("name", [name for name in DEQUANTIZERS if name != "none"])
def test_the_mean_of_what_is_estimated_is_the_probability(name: str, levels: tuple[int, int]) -> None:
    """E_q[p(k + u)/q(u)] = P(k): exp(log p(x) + log_volume) averages to the mass of the bin, and its log is less.

    Tails: beyond six of its standard deviations, where logit-normal noise is never seen, lies 2e-4 of the bin.
    """
    transform, count = DataTransform(17), 400_000
    stored = torch.tensor(levels, dtype=torch.uint8).expand(count, 2)
    found = transform.dequantized(stored, generator=seeded(sum(levels)), dequantizer=DEQUANTIZERS[name])
    log_estimates = log_density(found.x) + found.log_volume
    estimates, exact = log_estimates.exp(), probability(levels)
    error = float(estimates.std()) / math.sqrt(count)
    assert error < 4e-3 * exact
    assert abs(float(estimates.mean()) - exact) < 4.0 * error
    # Jensen's inequality: what a single draw gives is, on average, a lower bound, by more than its own error.
    gap = math.log(exact) - float(log_estimates.mean())
    assert gap > 4.0 * float(log_estimates.std()) / math.sqrt(count)


def test_narrow_noise_has_the_lower_bound() -> None:
    """Noise that fills the bin as the density does is the better one; noise close to the level costs its entropy."""
    stored = torch.tensor((5, 13), dtype=torch.uint8).expand(20_000, 2)
    means = {}
    for name in ("uniform", "narrow"):
        found = DataTransform(17).dequantized(stored, generator=seeded(3), dequantizer=ALL[name])
        means[name] = float((log_density(found.x) + found.log_volume).mean())
    assert means["narrow"] < means["uniform"] < math.log(probability((5, 13)))


# --- the batch, continuous data, words ------------------------------------------------------------------------


@each_dequantizer
def test_one_generator_a_sample_makes_the_noise_independent_of_the_batch(name: str) -> None:
    """x and log_volume of six samples together are those of two and four, bit for bit."""
    transform = DataTransform(17)
    stored = torch.randint(17, (6, 1, 8, 8), generator=seeded()).to(torch.uint8)

    def of(rows: range) -> tuple[Tensor, Tensor]:
        part = stored[rows.start : rows.stop]
        found = transform.dequantized(part, generator=generators(rows), dequantizer=ALL[name])
        return found.x, found.log_volume

    x, volume = of(range(6))
    for rows in (range(2), range(2, 6)):
        assert torch.equal(of(rows)[0], x[rows.start : rows.stop])
        assert torch.equal(of(rows)[1], volume[rows.start : rows.stop])
    with pytest.raises(UserError, match="5 generators for a batch of 6"):
        transform.dequantized(stored, generator=generators(range(5)), dequantizer=ALL[name])


@each_dequantizer
def test_the_global_random_state_is_not_touched(name: str) -> None:
    before = torch.get_rng_state()
    DataTransform(17).dequantized(all_levels(17, 2), generator=seeded(), dequantizer=ALL[name])
    assert torch.equal(torch.get_rng_state(), before)


@each_dequantizer
def test_continuous_data_stay_as_they_are(name: str) -> None:
    """Without grey levels there is no bin: x is the data, log_volume 0, and no number is drawn."""
    vectors, generator = torch.randn(7, 3, generator=seeded()), seeded(1)
    before = generator.get_state()
    found = DataTransform(None).dequantized(vectors, generator=generator, dequantizer=ALL[name])
    assert torch.equal(found.x, vectors)
    assert torch.equal(found.log_volume, torch.zeros(7, dtype=torch.float64))
    assert torch.equal(generator.get_state(), before)
    assert DataTransform(None).log_volume(3) == 0.0


def test_the_space_is_said_in_words() -> None:
    transform = DataTransform(17)
    assert transform.space() == transform.space(Uniform()) == "17 grey levels, uniformly dequantised"
    assert transform.space(LogitNormal(0.5, 2.0)) == "17 grey levels, dequantised by logit-normal noise (0.5, 2)"
    assert transform.space(None) == "17 grey levels, discrete"
    for dequantizer in (*ALL.values(), None):
        assert DataTransform(None).space(dequantizer) == "a density of continuous vectors"
    # What is said tells apart whatever gives other numbers.
    assert len({transform.space(dequantizer) for dequantizer in ALL.values()}) == len(ALL)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_noise_without_width_is_refused(std: float) -> None:
    with pytest.raises(UserError, match="std of logit-normal noise must be positive"):
        LogitNormal(0.0, std)


@each_dequantizer
def test_what_is_not_a_grey_level_is_refused(name: str) -> None:
    """Floats (already dequantised?) and levels that the transform does not have are refused, never rounded."""
    transform = DataTransform(17)

    def give(samples: Tensor) -> None:
        transform.dequantized(samples, generator=seeded(), dequantizer=ALL[name])

    with pytest.raises(UserError, match="already encoded or dequantised"):
        give(torch.rand(2, 1, 4, 4))
    with pytest.raises(UserError, match="already encoded or dequantised"):
        give(transform.dequantize(all_levels(17, 2), generator=seeded()))
    with pytest.raises(UserError, match=r"grey levels must be 0\.\.16, not 0 to 17"):
        give(torch.tensor([[0, 17]], dtype=torch.uint8))
    with pytest.raises(UserError, match="-1 to 0"):
        give(torch.tensor([[-1, 0]]))


def test_none_is_for_continuous_data() -> None:
    """It leaves vectors as they are, with a volume of one; grey levels are refused."""
    vectors = torch.randn(4, 3, generator=seeded())
    found = DataTransform(None).dequantized(vectors, generator=seeded(), dequantizer=DEQUANTIZERS["none"])
    assert torch.equal(found.x, vectors) and not found.log_volume.any()
    with pytest.raises(UserError, match=r"grey levels need noise on their bins .* 'uniform' or 'logit_normal'"):
        DataTransform(17).dequantize(all_levels(17, 2), generator=seeded(), dequantizer=DEQUANTIZERS["none"])


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    config = importlib.import_module("configs.vpsde_digits").get_config()
    for name, dequantizer in DEQUANTIZERS.items():
        config.likelihood.dequantizer = name
        assert Settings.from_config(config).likelihood.dequantized_by() is dequantizer
    config.likelihood.dequantizer = "logitnormal"
    with pytest.raises(UserError, match=r"unknown dequantizer 'logitnormal'; did you mean 'logit_normal'\?"):
        Settings.from_config(config)
