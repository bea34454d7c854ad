"""The tables that the proofs run over. A new process, mixture or sampler joins every proof by one row
here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
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


@cache
def quick_denoiser(mixture: sd.GaussianMixture) -> Denoise:
    """E[x_0 | x_t] of a mixture on vectors [B, d], written a second time and as matrix products.

    The proofs that take many steps use it: it costs a tenth of the oracle, and shares no code with it. With
    v_k = alpha^2 s_k^2 + sigma^2, log r_k = -x^2 . 1/(2 v_k) + x . alpha m_k/v_k + const and component k's
    posterior mean is (alpha s_k^2 x + sigma^2 m_k) / v_k.
    """
    means, variances, log_weights = mixture.means, mixture.stds**2, mixture.weights.log()

    @cache
    def factors(alpha: float, sigma: float) -> tuple[Tensor, ...]:
        """Of x^2, x and 1 in log r_k, and of r_k x and r_k in the mean: many proofs share their levels."""
        total = alpha**2 * variances + sigma**2
        tilt = alpha * means / total
        const = log_weights - 0.5 * (total.log() + alpha * tilt * means).sum(1)
        return (-0.5 / total).T, tilt.T, const, alpha * variances / total, sigma**2 * means / total

    def denoise(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        if kernel.alpha.ndim or x.dtype != torch.float64:  # the adaptive flow; float32
            return mixture.denoiser()(x, kernel)
        square, linear, const, slope, offset = factors(kernel.alpha.item(), kernel.sigma.item())
        r = torch.addmm(const, x * x, square).addmm_(x, linear).softmax(1)
        return x * (r @ slope) + r @ offset

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
    """What is claimed of a sampler under some options.

    nfe            evaluations over a grid of n nodes with finish="denoise"; None where tolerances decide it
    deterministic  draws no noise
    visits         calls on_step at every node; otherwise at the last one only, by the driver
    order          order of convergence: to the flow where it is deterministic, else of mean and covariance; None for
                   adaptive samplers and for those whose bias does not fall with the steps
    options        options under which all of this holds
    shrinking      options that depend on the number of steps, for the order
    steps          steps of the moment test
    excess         relative excess of the variance that the method itself has at these steps
    flow           a deterministic row whose ODE this stochastic sampler becomes, and the options that take its noise
    """

    nfe: Callable[[int], int] | None
    deterministic: bool = False
    visits: bool = True
    order: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shrinking: Callable[[int], Mapping[str, Any]] = field(default=lambda steps: {})
    steps: int = 500
    excess: float = 0.0
    flow: tuple[str, Mapping[str, Any]] | None = None


def one(n: int) -> int:
    """One evaluation a step."""
    return n


def two(n: int) -> int:
    """Two evaluations a step but for the last, to x0_hat."""
    return 2 * n - 1


def flow_row(order: int, nfe: Callable[[int], int] = one, /, **options: Any) -> SamplerRow:
    """A deterministic sampler."""
    return SamplerRow(nfe=nfe, deterministic=True, order=order, options=options, steps=1000 if order == 1 else 100)


def started(order: int) -> Callable[[int], int]:
    """One evaluation a step, and three more in the first order - 1 updates, as many of them as there are."""
    return lambda n: n + 3 * min(order - 1, n - 1)


SAMPLERS: dict[str, SamplerRow] = {
    "euler_maruyama": SamplerRow(nfe=one, order=1, flow=("euler", {})),
    "reverse_diffusion": SamplerRow(nfe=one, order=1),
    "ancestral": SamplerRow(nfe=one, order=1),
    "pc": SamplerRow(nfe=lambda n: 2 * n, order=1, shrinking=lambda n: {"snr_target": 0.3 * n**-0.5}),
    "annealed_langevin": SamplerRow(
        nfe=lambda n: 4 * n + 1, options={"langevin_steps": 4, "snr_target": 0.3}, steps=300, excess=0.1
    ),
    "ode": SamplerRow(nfe=None, deterministic=True, visits=False, steps=50),
    "adaptive_sde": SamplerRow(nfe=None, visits=False, steps=2),
    "ito": SamplerRow(nfe=one, order=1, flow=("euler", {"stochasticity": 0.0})),
    "ddpm": SamplerRow(nfe=one, order=1),
    "dpmpp_2m_sde": SamplerRow(nfe=one, order=1, steps=200, flow=("dpmpp_2m", {"eta": 0.0})),
    "euler": flow_row(1),
    "ddim": flow_row(1),
    "heun": flow_row(2, two),
    "dpmpp_2s": flow_row(2, two),
    "dpmpp_2m": flow_row(2),
    "dpmpp_3m": flow_row(3, started(3), start="runge_kutta"),
    "unipc": flow_row(2),
    "deis": flow_row(3, started(3), start="runge_kutta"),
    "lms": flow_row(4, started(4), start="runge_kutta"),
}
"""One row for every name in sd.SAMPLERS."""

VARIANTS: dict[str, SamplerRow] = {
    "ito flow": flow_row(1, stochasticity=0.0),
    "ito beyond": SamplerRow(nfe=one, order=1, options={"stochasticity": 1.5}, flow=("euler", {"stochasticity": 0.0})),
    "ddim eta=0.7": SamplerRow(nfe=one, order=1, options={"eta": 0.7}, flow=("ddim", {"eta": 0.0})),
    "ddpm beta": SamplerRow(nfe=one, order=1, options={"variance": "beta"}),
    "heun stages=1": flow_row(1, stages=1),
    "heun churn": SamplerRow(nfe=two, order=1, options={"churn": 20.0}, steps=200, flow=("heun", {"churn": 0.0})),
    "dpmpp_2s eta=1": SamplerRow(nfe=two, order=1, options={"eta": 1.0}, steps=300, flow=("dpmpp_2s", {"eta": 0.0})),
    "dpmpp_2m order=1": flow_row(1, order=1),
    "dpmpp_2m exact": flow_row(2, solver="exact"),
    "dpmpp_3m ramp": flow_row(2, order=3),
    "dpmpp_2m_sde exact": SamplerRow(nfe=one, order=1, options={"solver": "exact", "eta": 0.5}, steps=200),
    "unipc order=1": flow_row(1, order=1),
    "unipc b1": flow_row(2, b="b1"),
    "unipc eps": flow_row(2, output="eps"),
    "unipc order=3": flow_row(3, started(3), order=3, start="runge_kutta"),
    "unipc predictor": flow_row(3, started(3), order=3, start="runge_kutta", corrector=False),
    "deis order=1": flow_row(1, order=1),
    "deis order=2": flow_row(2, order=2),
    "deis order=4": flow_row(4, started(4), order=4, start="runge_kutta"),
    "deis t": flow_row(3, started(3), variable="t", start="runge_kutta"),
    "lms order=2": flow_row(2, order=2),
    "lms order=3": flow_row(3, started(3), order=3, start="runge_kutta"),
    "pc langevin": SamplerRow(nfe=lambda n: 3 * n, options={"corrector": "langevin", "corrector_steps": 2}),
    "pc euler_maruyama": SamplerRow(nfe=one, options={"predictor": "euler_maruyama", "corrector_steps": 0}),
    "pc ddim": SamplerRow(nfe=lambda n: 2 * n, options={"predictor": "ddim"}),
    "pc carry": SamplerRow(nfe=lambda n: n + 1, options={"predictor": "carry"}),
}
"""Samplers under other options; the first word is the sampler."""

ROWS: dict[str, SamplerRow] = {**SAMPLERS, **VARIANTS}


def in_turn(rows: Sequence[str], processes: Sequence[str]) -> list[tuple[str, int, str]]:
    """(row, dims, process): every row under every process, in 12 dimensions under one of them, in turn, in 2 elsewhere.

    What a sampler does is the same for all coordinates but for norms over them, which one process shows as well as all.
    """
    turns = [(index % len(processes), row) for index, row in enumerate(rows)]
    return [(row, 12 if at == turn else 2, process) for turn, row in turns for at, process in enumerate(processes)]


def at_two(rows: Sequence[str], processes: Sequence[str]) -> list[tuple[str, int, str]]:
    """(row, dims, process): every row under two of the processes in turn, in 12 dimensions and in 2."""
    turns = enumerate(rows)
    return [(row, dims, processes[(at + dims) % len(processes)]) for at, row in turns for dims in (12, 2)]


def run(row: str, denoiser: Denoise, *arguments: Any, **named: Any) -> sd.Sample:
    """`sd.sample` with the sampler and the options of a row."""
    return sd.sample(denoiser, *arguments, sampler=row.split()[0], **{**ROWS[row].options, **named})


def slope(sizes: list[float], errors: list[float]) -> float:
    """The least-squares slope of log error against log size: the measured order."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
