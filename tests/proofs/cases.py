"""The tables that the proofs run over. A new process, mixture or sampler joins every proof by one row
here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sde_diffusion as sd

Denoise = Callable[..., Tensor]


def generator(seed: int) -> torch.Generator:
    """A generator of its own for each use."""
    return torch.Generator().manual_seed(seed)


def _mixture(dims: int, components: int, seed: int, *, centred: bool = False) -> sd.GaussianMixture:
    """Means of size about 1, standard deviations 0.3 to 1.3 that differ in every coordinate, unequal
    weights."""
    g = generator(seed)
    means = torch.randn(components, dims, generator=g, dtype=torch.float64)
    stds = 0.3 + torch.rand(components, dims, generator=g, dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, components, dtype=torch.float64)
    if centred:
        means = means - (weights / weights.sum()) @ means
    return sd.GaussianMixture(means, stds, weights)


MIXTURES: dict[int, sd.GaussianMixture] = {2: _mixture(2, 3, seed=1), 12: _mixture(12, 2, seed=2)}
"""Dimensions -> a mixture of non-unit, anisotropic variance and a mean other than 0."""

CENTRED: dict[int, sd.GaussianMixture] = {
    2: _mixture(2, 3, seed=1, centred=True),
    12: _mixture(12, 2, seed=2, centred=True),
}
"""The same with mean 0."""


def quick_denoiser(mixture: sd.GaussianMixture) -> Denoise:
    """E[x_0 | x_t] of a mixture on vectors [B, d], written a second time and as matrix products.

    The proofs that take many steps use it: it costs a fifth of the oracle, and shares no code with it. With
    v_k = alpha^2 s_k^2 + sigma^2, log r_k = -x^2 . 1/(2 v_k) + x . alpha m_k/v_k + const and component k's
    posterior mean is (alpha s_k^2 x + sigma^2 m_k) / v_k.
    """
    means, variances, log_weights = mixture.means, mixture.stds**2, mixture.weights.log()

    def denoise(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        if kernel.alpha.ndim:  # one level a sample: the adaptive flow
            return mixture.denoiser()(x, kernel)
        alpha, noise = kernel.alpha, kernel.sigma**2
        total = alpha**2 * variances + noise
        tilt = alpha * means / total
        const = log_weights - 0.5 * (total.log() + alpha * tilt * means).sum(1)
        r = torch.addmm(const, x * x, (-0.5 / total).T).addmm_(x, tilt.T).softmax(1)
        return x * (r @ (alpha * variances / total)) + r @ (noise * means / total)

    return denoise


PROCESSES: dict[str, sd.SDE] = {
    "VPSDE": sd.VPSDE(),
    "SubVPSDE": sd.SubVPSDE(),
    "VESDE": sd.VESDE(),
    "CosineVPSDE": sd.CosineVPSDE(),
    "EDM": sd.EDM(),
    "RectifiedFlow": sd.RectifiedFlow(),
    "DiscreteVP": sd.DiscreteVP.linear(1000),
    "DiscreteVE": sd.DiscreteVE.geometric(0.01, 50.0, 1000),
}
"""One instance of every process in sd.PROCESSES."""

SDES = ("VPSDE", "SubVPSDE", "VESDE")
"""The three SDEs of Song et al. (2021)."""


@dataclass(frozen=True)
class SamplerRow:
    """What is claimed of a sampler.

    nfe            evaluations over a grid of n nodes with finish="denoise"; None where tolerances decide it
    deterministic  draws no noise
    visits         calls on_step at every node; otherwise at the last one only, by the driver
    order          order of convergence to the flow, None for stochastic and adaptive samplers
    options        options under which all of this holds
    steps          steps of the moment test
    excess         relative excess of the variance that the method itself has at these steps
    """

    nfe: Callable[[int], int] | None
    deterministic: bool = False
    visits: bool = True
    order: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1000
    excess: float = 0.0


SAMPLERS: dict[str, SamplerRow] = {
    "euler_maruyama": SamplerRow(nfe=lambda n: n),
    "reverse_diffusion": SamplerRow(nfe=lambda n: n),
    "ancestral": SamplerRow(nfe=lambda n: n),
    "pc": SamplerRow(nfe=lambda n: 2 * n),
    "annealed_langevin": SamplerRow(
        nfe=lambda n: 4 * n + 1, options={"langevin_steps": 4, "snr_target": 0.3}, steps=300, excess=0.1
    ),
    "ode": SamplerRow(nfe=None, deterministic=True, visits=False, steps=50),
    "euler": SamplerRow(nfe=lambda n: n, deterministic=True, order=1),
    "heun": SamplerRow(nfe=lambda n: 2 * n - 1, deterministic=True, order=2),
    "ddpm": SamplerRow(nfe=lambda n: n),
    "ddim": SamplerRow(nfe=lambda n: n, deterministic=True, order=1),
}
"""One row for every name in sd.SAMPLERS."""


def slope(sizes: list[float], errors: list[float]) -> float:
    """The least-squares slope of log error against log size: the measured order."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
