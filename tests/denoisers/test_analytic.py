"""The closed-form denoisers, against autograd, numerical posteriors and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import sde_diffusion as sd
from tests.proofs.cases import MIXTURES, PROCESSES, generator

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
LEVELS = (0.02, 0.3, 0.6, 0.95)


def noisy(mixture: sd.GaussianMixture, kernel: sd.Kernel, n: int = 32) -> Tensor:
    x0 = mixture.sample(n, generator=generator(0))
    return kernel.perturb(x0, torch.randn(x0.shape, generator=generator(1), dtype=torch.float64))


def marginal(mixture: sd.GaussianMixture, kernel: sd.Kernel) -> MixtureSameFamily:
    """The noisy marginal as torch.distributions has it."""
    std = ((kernel.alpha * mixture.stds) ** 2 + kernel.variance).sqrt()
    components = Independent(Normal(kernel.alpha * mixture.means, std), 1)
    return MixtureSameFamily(Categorical(mixture.weights), components)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("dims", MIXTURES)
def test_log_prob_and_score(dims: int, process: str) -> None:
    """log_prob is that of torch.distributions; the score of the denoiser is its gradient (Tweedie)."""
    mixture = MIXTURES[dims]
    for t in LEVELS:
        kernel = PROCESSES[process].kernel(t)
        x = noisy(mixture, kernel).requires_grad_(True)
        log_prob = mixture.log_prob(x, kernel)
        torch.testing.assert_close(log_prob, marginal(mixture, kernel).log_prob(x), **CLOSE)
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        torch.testing.assert_close(sd.score(mixture.denoiser(), x.detach(), kernel), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kernel", [sd.Kernel(0.9, 0.4), sd.Kernel(0.4, 0.9), sd.Kernel(1.0, 3.0)])
@pytest.mark.parametrize("dims", MIXTURES)
def test_x0_hat_is_the_posterior_mean(dims: int, kernel: sd.Kernel) -> None:
    """Importance sampling with samples of the data, weights N(x; alpha x_0, sigma^2), within four standard
    errors.

    x lies at two standard deviations of noise at most, so that there are enough effective samples; in 12
    dimensions the noise is widened for the same reason.
    """
    mixture = MIXTURES[dims]
    if dims > 2:
        kernel = sd.Kernel(kernel.alpha, 3.0 * kernel.sigma)
    x0 = mixture.sample(200_000, generator=generator(2))
    for x in noisy(mixture, kernel, 4):
        logits = -0.5 * ((x - kernel.alpha * x0) / kernel.sigma).square().sum(1)
        w = logits.softmax(0)
        assert 1.0 / float((w**2).sum()) > 1000, "too few effective samples"
        estimate = w @ x0
        error = ((w**2) @ (x0 - estimate) ** 2).sqrt()
        found = mixture.denoiser()(x[None], kernel)[0]
        assert float(((found - estimate) / error).abs().max()) < 4.0


def test_moments_and_samples() -> None:
    for mixture in MIXTURES.values():
        x = mixture.sample(100_000, generator=generator(3))
        se = (mixture.covariance.diag() / len(x)).sqrt()
        assert float(((x.mean(0) - mixture.mean) / se).abs().max()) < 4.0
        torch.testing.assert_close(torch.cov(x.T), mixture.covariance, rtol=0.03, atol=0.03)


def test_one_level_a_sample_is_each_level() -> None:
    mixture = MIXTURES[2]
    kernel = PROCESSES["SubVPSDE"].kernel(torch.tensor(LEVELS, dtype=torch.float64))
    x = noisy(mixture, kernel, 4)
    for i in range(4):
        one = mixture.denoiser()(x[i : i + 1], kernel[i])
        torch.testing.assert_close(mixture.denoiser()(x, kernel)[i : i + 1], one, **CLOSE)
        torch.testing.assert_close(
            mixture.log_prob(x, kernel)[i], mixture.log_prob(x[i : i + 1], kernel[i])[0], **CLOSE
        )


def test_shared_and_own_standard_deviations_and_any_shape() -> None:
    means = torch.randn(3, 2, 2, generator=generator(4), dtype=torch.float64)
    shared = sd.GaussianMixture(means, [0.2, 0.5, 1.0], [1.0, 2.0, 1.0])
    flat = sd.GaussianMixture(
        means.flatten(1), torch.tensor([0.2, 0.5, 1.0])[:, None].double().expand(3, 4), [0.25, 0.5, 0.25]
    )
    kernel = sd.Kernel(0.8, 0.5)
    x = torch.randn(5, 2, 2, generator=generator(5), dtype=torch.float64)
    found = shared.denoiser()(x, kernel)
    torch.testing.assert_close(found.flatten(1), flat.denoiser()(x.flatten(1), kernel), rtol=1e-6, atol=1e-7)
    assert shared.shape == (2, 2) and shared.sample(3, generator=generator(0)).shape == (3, 2, 2)


def test_the_finite_data_set_is_the_mixture_of_vanishing_width() -> None:
    data = torch.randn(9, 2, generator=generator(6), dtype=torch.float64)
    narrow = sd.GaussianMixture(data, torch.full((9,), 1e-9, dtype=torch.float64), torch.ones(9))
    exact = sd.EmpiricalDenoiser(data)
    for process in PROCESSES.values():
        for t in LEVELS:
            kernel = process.kernel(t)
            x = noisy(narrow, kernel)
            torch.testing.assert_close(exact(x, kernel), narrow.denoiser()(x, kernel), rtol=1e-8, atol=1e-8)


def test_the_finite_data_set_by_hand() -> None:
    """Two points at -1 and +1: E[x_0|x] = tanh(alpha x / sigma^2)."""
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    kernel = sd.Kernel(0.7, 0.6)
    found = sd.EmpiricalDenoiser(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))(x, kernel)
    torch.testing.assert_close(found, torch.tanh(0.7 * x / 0.36), **CLOSE)


def test_sampling_with_a_finite_data_set_returns_its_members() -> None:
    data = torch.randn(20, 3, generator=generator(7), dtype=torch.float64)
    out = sd.sample(
        sd.EmpiricalDenoiser(data),
        (50, 3),
        sd.make_grid(sd.VPSDE(), 200),
        generator=generator(8),
        dtype=torch.float64,
    )
    nearest = torch.cdist(out.x, data).min(1).values
    assert float(nearest.max()) < 1e-6


def test_low_noise_in_float32_keeps_its_argmax() -> None:
    """Logits of 1e8 at sigma = 1e-4: formed in float64, the nearest member still wins."""
    data = torch.randn(50, 4, generator=generator(9))
    found = sd.EmpiricalDenoiser(data)(data + 1e-4, sd.Kernel(1.0, 1e-4))
    torch.testing.assert_close(found, data)


def test_refusals() -> None:
    with pytest.raises(sd.UserError, match="K Gaussians"):
        sd.GaussianMixture([[0.0, 0.0]], [1.0, 1.0], [1.0])
    with pytest.raises(sd.UserError, match="positive"):
        sd.GaussianMixture([[0.0, 0.0]], [0.0], [1.0])
    with pytest.raises(sd.UserError, match="data set"):
        sd.EmpiricalDenoiser(torch.zeros(3))
