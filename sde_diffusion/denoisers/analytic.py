"""Closed-form denoisers: data distributions whose noisy marginals, scores and likelihoods are known exactly.

For p_0 = sum_k w_k N(m_k, diag s_k^2) and x = alpha x_0 + sigma eps, component k of the marginal is
N(alpha m_k, v_k) with v_k = alpha^2 s_k^2 + sigma^2, its responsibility is r_k, and

    E[x_0 | x] = sum_k r_k ( m_k + alpha s_k^2 / v_k (x - alpha m_k) ).

A finite data set is the limit s_k = 0 with equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import CLEAN, Kernel, match, widened
from sde_diffusion.core.noise import Generators, fresh, randn
from sde_diffusion.denoisers.base import Denoiser

Values = Tensor | Sequence[float] | Sequence[Sequence[float]]


class GaussianMixture:
    """p_0 = sum_k w_k N(m_k, diag s_k^2): means [K, *D], stds [K] or [K, *D], weights [K] (normalised here)."""

    def __init__(self, means: Values, stds: Values, weights: Values) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        stds, weights = (torch.as_tensor(value, dtype=torch.float64) for value in (stds, weights))
        count = len(self.means)
        if self.means.ndim < 2 or weights.shape != (count,) or stds.shape not in ((count,), self.means.shape):
            raise UserError(
                "a mixture of K Gaussians needs means [K, *D], stds [K] or [K, *D] and weights [K]; got "
                f"{tuple(self.means.shape)}, {tuple(stds.shape)} and {tuple(weights.shape)}"
            )
        if not bool((stds > 0).all() and (weights >= 0).all() and weights.sum() > 0):
            raise UserError("stds must be positive, weights non-negative and not all zero")
        self._radii = stds**2 if stds.ndim == 1 else None
        self.stds = match(stds, self.means).expand_as(self.means) if stds.ndim == 1 else stds
        self.weights = weights / weights.sum()

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return tuple(self.means.shape[1:])

    @property
    def mean(self) -> Tensor:
        """E[x_0], [*D]."""
        return torch.tensordot(self.weights, self.means, 1)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_0] of the flattened data, [d, d]."""
        means, variances = self.means.flatten(1), self.stds.flatten(1) ** 2
        centred = means - self.weights @ means
        return torch.einsum("k,ki,kj->ij", self.weights, centred, centred) + (self.weights @ variances).diag()

    def sample(self, n: int, *, generator: Generators = None, dtype: torch.dtype = torch.float64) -> Tensor:
        """n independent samples, [n, *D]."""
        generator = fresh(generator)
        one = generator if isinstance(generator, torch.Generator) else generator[0]
        index = torch.multinomial(self.weights, n, replacement=True, generator=one)
        return (self.means[index] + self.stds[index] * randn((n, *self.shape), generator, like=self.means)).to(dtype)

    def _components(self, x: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha, m_k, s_k^2 and v_k, broadcasting to [B, K, *D], and log(w_k N(x; alpha m_k, v_k)), [B, K]."""
        each = x.unsqueeze(1)
        means, variances, weights = (value.to(x) for value in (self.means, self.stds**2, self.weights))
        alpha, noise = match(kernel.alpha, each), match(kernel.variance, each)
        total = alpha**2 * variances + noise
        quadratic = (each - alpha * means) ** 2 / total + total.log() + math.log(2.0 * math.pi)
        return alpha, means, variances, total, weights.log() - 0.5 * quadratic.flatten(2).sum(2)

    def log_prob(self, x: Tensor, kernel: Kernel = CLEAN) -> Tensor:
        """log p_t(x), the density of the noisy marginal (of the data without a kernel), in nats, [B]."""
        return self._components(x, kernel)[-1].logsumexp(1)

    def denoiser(self) -> Denoiser:
        """E[x_0 | x_t], exact."""
        return self._isotropic if self._radii is not None else self._denoise

    def _denoise(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        alpha, means, variances, total, logits = self._components(x, kernel)
        posterior = means + alpha * variances / total * (x.unsqueeze(1) - alpha * means)
        weights = logits.softmax(1)
        return (weights.reshape(*weights.shape, *(1,) * (x.ndim - 1)) * posterior).sum(1)

    def _isotropic(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        """The same where s_k is one number: matrix products, with shrink_k = alpha s_k^2 / v_k.

        x0_hat = (sum_k r_k shrink_k) x + sum_k r_k (1 - alpha shrink_k) m_k.
        """
        assert self._radii is not None
        # The squared distances are differences of large numbers at low noise, so they are formed in float64.
        flat = x.flatten(1)
        wide, means = widened(flat), self.means.flatten(1)
        means, alpha, noise, variances = (
            value.to(wide.device) for value in (means, kernel.alpha, kernel.variance, self._radii)
        )
        alpha, noise = (value.reshape(-1, 1) for value in (alpha, noise))  # [B, 1] or [1, 1]
        total = alpha**2 * variances + noise
        squares = wide.square().sum(1, keepdim=True) - 2.0 * alpha * (wide @ means.T) + alpha**2 * means.square().sum(1)
        logits = self.weights.log().to(wide.device) - 0.5 * (squares / total + flat.shape[1] * total.log())
        weights, shrink = logits.softmax(1), alpha * variances / total
        pull = (weights * (1.0 - alpha * shrink)).to(x) @ means.to(x)
        return torch.addcmul(pull, (weights * shrink).sum(1, keepdim=True).to(x), flat).reshape(x.shape)


MIXTURE_SEED = 2


def drawn_mixture(dims: int, components: int) -> GaussianMixture:
    """A mixture in `dims` dimensions, always the same: not isotropic, not centred, and not of unit variance.

    Means are standard normal, standard deviations uniform between 0.3 and 1.3, weights proportional to 1, 2, 3, ...
    """
    g = torch.Generator().manual_seed(MIXTURE_SEED)
    means = torch.randn(components, dims, generator=g, dtype=torch.float64)
    stds = 0.3 + torch.rand(components, dims, generator=g, dtype=torch.float64)
    return GaussianMixture(means, stds, torch.arange(1.0, components + 1.0))


class EmpiricalDenoiser:
    """The exact denoiser of a finite data set [N, *D]: a softmax average of its samples.

    It is what a network of unlimited capacity would learn; sampling with it returns the training set.
    """

    def __init__(self, data: Tensor) -> None:
        if data.ndim < 2 or not len(data):
            raise UserError(f"a data set [N, *D] is needed, got {tuple(data.shape)}")
        self.data = data

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        # The logits are differences of large numbers at low noise, so they are formed in float64.
        flat = widened(x).flatten(1)
        data = widened(self.data).flatten(1).to(flat.device)
        alpha, variance = match(kernel.alpha, flat), match(kernel.variance, flat)
        logits = (alpha * (flat @ data.T) - 0.5 * alpha**2 * (data**2).sum(1)) / variance
        return (logits.softmax(1) @ data).to(x).reshape(x.shape)
