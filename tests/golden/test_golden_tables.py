"""DDPM tables against improved-diffusion (float64) and diffusers (float32)."""

from __future__ import annotations

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.likelihood.discrete import Chain, bound_term
from sde_diffusion.samplers.ancestral import VARIANCES, ancestral_row
from tests.golden.reference import arrays, close, one_below

IDDPM = arrays("iddpm/tables")
DIFFUSERS = arrays("samplers/diffusers_tables")
SPACED = [name.removeprefix("spaced_betas.") for name in IDDPM if name.startswith("spaced_betas.")]
LENGTHS = (100, 1000, 4000)


def pairs(levels: Kernel) -> tuple[Node, Node]:
    """All updates at once: the nodes [N] of ascending levels, and of the level below each."""
    times = torch.zeros_like(levels.alpha)
    return Node(times, levels), Node(times, one_below(levels))


@pytest.mark.parametrize("n", LENGTHS)
def test_iddpm_linear_betas(n: int) -> None:
    close(sd.DiscreteVP.linear(n).betas, IDDPM[f"betas_linear_{n}"])


@pytest.mark.parametrize("n", LENGTHS)
def test_iddpm_cosine_betas(n: int) -> None:
    close(sd.DiscreteVP.cosine(n).betas, IDDPM[f"betas_cosine_{n}"])


def test_iddpm_cosine_posterior() -> None:
    """q(x_{i-1} | x_i, x_0): the two coefficients of its mean, and its variance."""
    process = sd.DiscreteVP.cosine(1000)
    now, next = pairs(process.levels)
    close(process.levels.alpha**2, IDDPM["cosine_1000_alphas_cumprod"])
    of_x, of_x0, std = ancestral_row(process, now, next)
    close(of_x0, IDDPM["cosine_1000_posterior_mean_coef1"])
    close(of_x, IDDPM["cosine_1000_posterior_mean_coef2"])
    close(std**2, IDDPM["cosine_1000_posterior_variance"])
    close(VARIANCES["posterior"](now.kernel, next.kernel), IDDPM["cosine_1000_posterior_variance"])
    close(Chain.of(process).log_posterior, IDDPM["cosine_1000_posterior_log_variance_clipped"])


def test_iddpm_kl_of_two_gaussians() -> None:
    """A step of the bound is KL(N(m_1, v_1) || N(m_2, v_2)): here in a chain whose levels have these variances.

    Level 0, the decoder's, is left free.
    """
    mean1, mean2, log1, log2 = (IDDPM[f"kl_{name}"].flatten() for name in ("mean1", "mean2", "logvar1", "logvar2"))
    index = torch.arange(1, len(mean1) + 1)
    free = torch.zeros(1, dtype=torch.float64)
    log1, log2 = torch.cat([free, log1]), torch.cat([free, log2])
    ones = torch.ones_like(log1)
    chain = Chain(sd.VPSDE(), times=ones, levels=Kernel(ones, ones), draw=ones, log_posterior=log1, log_beta=log2)
    found = bound_term(chain, index, mean1[:, None], mean2[:, None], variance="beta")
    close(found[:, 0], IDDPM["kl"].flatten())


@pytest.mark.parametrize(("cdf", "name"), [("tanh", "dg_loglik"), ("exact", "dg_loglik_exact_cdf")])
def test_iddpm_decoder(cdf: str, name: str) -> None:
    """256 grey levels under a Gaussian, far tails included, where the two differ by tens of nats."""
    found = sd.discretized_gaussian(IDDPM["dg_x"], IDDPM["dg_mean"], IDDPM["dg_log_scale"], 256, cdf)
    close(found, IDDPM[name])


@pytest.mark.parametrize("spec", SPACED)
def test_iddpm_respaced_process(spec: str) -> None:
    """A grid of the retained levels needs no new table: its transitions have the respaced betas."""
    process = sd.DiscreteVP.linear(int(spec.split(".")[0]))
    grid = TimeGrid(process, process.times[IDDPM[f"spaced.{spec}"]].flip(0))
    levels = process.kernel(grid.times.flip(0))
    now, next = pairs(levels)
    close(levels.alpha**2, IDDPM[f"spaced_alphas_cumprod.{spec}"])
    close(now.kernel.after(next.kernel).variance, IDDPM[f"spaced_betas.{spec}"])


@pytest.mark.parametrize(
    ("name", "process"), [("linear", sd.DiscreteVP.linear()), ("squaredcos_cap_v2", sd.DiscreteVP.cosine())]
)
def test_diffusers_schedules(name: str, process: sd.DiscreteVP) -> None:
    """Its betas are rounded to float32 and its alpha_bar is a product of a thousand rounded factors."""
    close(process.betas, DIFFUSERS[f"betas_{name}"].double(), rtol=3e-7, atol=0.0)
    close(process.levels.alpha**2, DIFFUSERS[f"alphas_cumprod_{name}"].double(), rtol=3e-5, atol=0.0)


TABLES = ["linear", "squaredcos_cap_v2", "scaled_linear", "sigmoid", "linear_zero_snr"]


@pytest.mark.parametrize("name", TABLES)
def test_diffusers_alpha_bar_of_its_betas(name: str) -> None:
    """A table that has no builder here is given by its betas; a last beta of 1 (zero SNR) is left out."""
    betas, alpha_bar = DIFFUSERS[f"betas_{name}"].double(), DIFFUSERS[f"alphas_cumprod_{name}"].double()
    usable = betas < 1.0
    assert bool(usable[:-1].all()) and bool(usable[-1]) == (name != "linear_zero_snr")
    close(sd.DiscreteVP(betas[usable]).levels.alpha ** 2, alpha_bar[usable], rtol=3e-5, atol=0.0)


def test_zero_snr_table() -> None:
    """The table as it is, and that of the linear levels rescaled: beta = 1 at the last one."""
    alpha_bar = DIFFUSERS["alphas_cumprod_linear_zero_snr"].double()
    published = sd.DiscreteVP(DIFFUSERS["betas_linear_zero_snr"])
    for process in (published, sd.DiscreteVP(DIFFUSERS["betas_linear"]).rescaled()):
        close(process.levels.alpha**2, alpha_bar, rtol=3e-5, atol=3e-11)
        assert float(process.levels.alpha[-1]) == 0.0
