"""Every sampler draws from the data: mean and covariance on Gaussian mixtures, within the sampling error.

The standard errors are those of the true distribution: with y = x - E[x], Var[y_i y_j] = E[y_i^2 y_j^2] -
C_ij^2, and for component k of a mixture, whose coordinates are independent with offset d and variance v,
E[y_i^2 y_j^2] = (d_i^2 + v_i)(d_j^2 + v_j) + [i = j] (4 d_i^2 v_i + 2 v_i^2).

A wrong factor in the noise or the drift moves a variance by tens of per cent; at 3000 samples four standard
errors are ten per cent of one variance, and five of the trace in 12 dimensions.

Annealed Langevin dynamics is biased by construction: each step's discretisation adds up to snr_target^2, and
the samples lag behind the levels. Its row allows for that, and its formula is proved by the exact law of its
variance on a single Gaussian, on which it is linear.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, SAMPLERS, SDES, at_two, generator, quick_denoiser, run

SAMPLES = {2: 3000, 12: 1500}


class Deviation(NamedTuple):
    """The largest deviations of a sample from the truth, in standard errors."""

    mean: float
    entry: float
    trace: float


def deviation(x: Tensor, mixture: sd.GaussianMixture, excess: float = 0.0) -> Deviation:
    """Mean, covariance entries and trace of samples [n, d] against the mixture's.

    excess: a relative error of the variances that is the method's own and is taken off first.
    """
    n = len(x)
    covariance = mixture.covariance
    offsets, variances = mixture.means - mixture.mean, mixture.stds**2
    second = offsets**2 + variances
    fourth = torch.einsum("k,ki,kj->ij", mixture.weights, second, second)
    fourth = fourth + (mixture.weights @ (4.0 * offsets**2 * variances + 2.0 * variances**2)).diag()
    y = x - mixture.mean
    measured = y.T @ y / n
    mean_error = (covariance.diag() / n).sqrt()
    entry_error = ((fourth - covariance**2) / n).sqrt()
    trace_error = ((fourth.sum() - covariance.trace() ** 2) / n).sqrt()
    scale = covariance.diag().sqrt()
    beyond = (measured - covariance).abs() - excess * torch.outer(scale, scale)
    return Deviation(
        float((y.mean(0).abs() / mean_error).max()),
        float((beyond / entry_error).max()),
        float(((measured - covariance).trace().abs() - excess * covariance.trace()) / trace_error),
    )


def test_every_sampler_has_a_row() -> None:
    assert set(SAMPLERS) == set(sd.SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_table_of_samplers_says_what_is_proven(sampler: str) -> None:
    """`--mode samplers` prints it: the order and the noise are those of the rows."""
    entry, row = sd.samplers.SAMPLER_TABLE[sampler], SAMPLERS[sampler]
    assert (entry.noise == "drawn") is not row.deterministic
    if row.order is not None:
        assert str(row.order) in entry.order
    assert ("adaptive" in entry.order) is (row.nfe is None)
    if entry.evaluations in ("1", "2") and row.nfe is not None and "start" not in row.options:
        assert row.nfe(11) - row.nfe(10) == int(entry.evaluations)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("dims", MIXTURES)
def test_the_quick_denoiser_is_the_oracle(dims: int, process: str) -> None:
    mixture, sde = MIXTURES[dims], PROCESSES[process]
    for t in (0.01, 0.3, 0.9):
        kernel = sde.kernel(t)
        x0 = mixture.sample(200, generator=generator(3))
        x = kernel.perturb(x0, torch.randn(x0.shape, generator=generator(4), dtype=torch.float64))
        quick, oracle = quick_denoiser(mixture)(x, kernel), mixture.denoiser()(x, kernel)
        torch.testing.assert_close(quick, oracle, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", MIXTURES)
def test_the_yardstick_itself(dims: int) -> None:
    """True samples pass the bounds; samples whose variance is 15% off, or one mean 0.15 off, do not."""
    mixture = MIXTURES[dims]
    x = mixture.sample(SAMPLES[dims], generator=generator(0))
    fine = deviation(x, mixture)
    assert fine.mean < 4.0 and fine.entry < 5.0 and fine.trace < 4.0
    wide = mixture.mean + 1.15**0.5 * (x - mixture.mean)
    assert deviation(wide, mixture).trace > 4.0
    moved = x.clone()
    moved[:, 0] += 0.15
    assert deviation(moved, mixture).mean > 4.0


ALSO = ("ito beyond", "heun churn", "dpmpp_2s eta=1", "ddpm beta")
"""Rows besides those of SAMPLERS whose noise is another."""


@pytest.mark.parametrize(("row", "dims", "process"), at_two([*SAMPLERS, *ALSO], SDES))
def test_mean_and_covariance(row: str, dims: int, process: str) -> None:
    """Four standard errors of each mean coordinate and of the trace, five of each of up to 78 covariances."""
    mixture, claims = MIXTURES[dims], ROWS[row]
    grid = sd.make_grid(PROCESSES[process], claims.steps)
    shape = SAMPLES[dims], dims
    out = run(row, quick_denoiser(mixture), shape, grid, generator=generator(7), dtype=torch.float64)
    found = deviation(out.x, mixture, claims.excess)
    assert found.mean < 4.0, found
    assert found.trace < 4.0, found
    assert found.entry < 5.0, found


@pytest.mark.parametrize("process", SDES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_annealed_langevin_on_a_gaussian_has_the_variance_of_its_recursion(scale: float, process: str) -> None:
    """x + e score + sqrt(2 e) n with score = -(x - m)/v maps a variance V to (1 - e/v)^2 V + 2 e, exactly.

    Four standard errors of the variance of 40,000 samples are 2.8%; the recursion's distance from the data's
    variance is larger than that, so that it is the law of this sampler and of no other that is tested.
    """
    sde, repeats, target, n = PROCESSES[process], 4, 0.22, 20_000
    gaussian = sd.GaussianMixture([[0.0, 0.0]], [scale], [1.0])
    grid = sd.make_grid(sde, 40)
    alphas = [float(node.kernel.alpha) for node in grid.nodes] + [1.0]
    variance = sde.prior_std**2
    for i, node in enumerate(grid.nodes):
        a, noise = alphas[i] / alphas[i + 1], float(node.kernel.variance)
        e, v = 2.0 * a**2 * target**2 * noise, (alphas[i] * scale) ** 2 + noise
        for _ in range(repeats):
            variance = (1.0 - e / v) ** 2 * variance + 2.0 * e
        if i + 1 < grid.steps:
            variance /= a**2
    out = sd.sample(
        quick_denoiser(gaussian),
        (n, 2),
        grid,
        sampler="annealed_langevin",
        generator=generator(3),
        finish="none",
        dtype=torch.float64,
        langevin_steps=repeats,
        snr_target=target,
    )
    measured = float(out.x.square().mean())
    assert measured == pytest.approx(variance, rel=4.0 * (2.0 / (2 * n)) ** 0.5)
    truth = float((grid.nodes[-1].kernel.alpha * scale) ** 2 + grid.nodes[-1].kernel.variance)
    assert abs(variance / truth - 1.0) > 0.03
