"""The processes against score_sde: kernels, rates, priors, reverse drifts and both discretisations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.samplers.euler_maruyama import euler_row
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion_row
from tests.golden.reference import SongProcess, arrays, cases, close, step, x0_from_score

FILE = "sde/score_sde_math"
CASES = cases(FILE)
VECTORS = arrays(FILE)
T, X, Z, SCORE = (VECTORS[name] for name in ("t", "x", "z", "score"))

every_case = pytest.mark.parametrize("name", CASES)
# What does not depend on the number of levels is stored for one N only.
continuous_case = pytest.mark.parametrize("name", [name for name in CASES if name.endswith("_N1000")])


def song(name: str) -> SongProcess:
    return SongProcess.of(CASES[name])


def column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def reverse_step(process: SongProcess, score: Tensor, noise: Tensor | None = None) -> Tensor:
    return process.predict("reverse_diffusion", X, score, T, noise)


@continuous_case
def test_kernel(name: str) -> None:
    kernel = song(name).sde.kernel(T)
    close(kernel.alpha, VECTORS[f"{name}_mean_coeff"])
    close(kernel.sigma, VECTORS[f"{name}_std"])
    close(kernel.perturb(X, torch.zeros_like(X)), VECTORS[f"{name}_mean"])


@continuous_case
def test_drift_and_diffusion(name: str) -> None:
    sde = song(name).sde
    close(sde.drift(X, T), VECTORS[f"{name}_drift"])
    close(sde.diffusion(T), VECTORS[f"{name}_diffusion"])


@continuous_case
def test_prior_log_density(name: str) -> None:
    close(song(name).sde.prior_logp(Z), VECTORS[f"{name}_prior_logp"])


@every_case
def test_reverse_drift_and_flow(name: str) -> None:
    sde = song(name).sde
    x0_hat = x0_from_score(SCORE, X, sde.kernel(T))
    close(sde.reverse_drift(X, x0_hat, T), VECTORS[f"{name}_rev_drift_pf0"])
    close(sde.velocity(X, x0_hat, T), VECTORS[f"{name}_rev_drift_pf1"])


@every_case
def test_forward_discretisation(name: str) -> None:
    """x_{i+1} = x_i + f + G n."""
    process = song(name)
    if process.kind == "subvp":  # Euler with dt = 1/N
        drift = process.sde.drift(X, T) / process.n
        diffusion = process.sde.diffusion(T) / process.n**0.5
    else:
        now, lower = process.level_pair(T)
        transition = now.kernel.after(lower.kernel)
        drift, diffusion = column(transition.alpha - 1.0) * X, transition.sigma
    close(drift, VECTORS[f"{name}_disc_f"])
    close(diffusion, VECTORS[f"{name}_disc_G"])


@every_case
def test_reverse_discretisation(name: str) -> None:
    """x_i = x_{i+1} - f + G n."""
    still = reverse_step(song(name), SCORE)
    close(still, X - VECTORS[f"{name}_rev_disc_f_pf0"])
    close(reverse_step(song(name), SCORE, Z) - still, column(VECTORS[f"{name}_rev_disc_G_pf0"]) * Z)


@every_case
def test_probability_flow_discretisation(name: str) -> None:
    """x_i = x_{i+1} - f: no variant of our reverse diffusion, but its step with half the score, no noise."""
    process, still = song(name), X - VECTORS[f"{name}_rev_disc_f_pf1"]
    assert not VECTORS[f"{name}_rev_disc_G_pf1"].any()
    close(reverse_step(process, 0.5 * SCORE), still)
    if process.kind == "subvp":  # Euler's step of the flow, which we have
        now, next = process.euler_pair(T)
        close(step(euler_row, process.sde, now, next, X, x0_from_score(SCORE, X, now.kernel)), still)


@pytest.mark.parametrize("name", ["subvp0_N1000", "subvp1_N100"])
def test_sub_vp_reverse_diffusion_differs_on_purpose(name: str) -> None:
    """Ours has the exact transition of two kernels, score_sde an Euler step; they meet as dt -> 0."""
    process = song(name)
    inner = T[(T > 0.05) & (T < 0.99)]  # two orders of magnitude of dt from either end
    x, score = (value[: len(inner)] for value in (X, SCORE))

    def gap(n: int) -> float:
        steps = SongProcess(process.kind, process.params, n)
        now, next = steps.euler_pair(inner)
        next = type(next)(next.t, process.sde.kernel(next.t))
        ours = step(reverse_diffusion_row, process.sde, now, next, x, x0_from_score(score, x, now.kernel))
        euler = steps.predict("reverse_diffusion", x, score, inner)
        return float((ours - euler).abs().max())

    assert 1e-9 < gap(4000) < 0.3 * gap(2000)  # a local error of second order: a factor of 4


# --- tables of levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("j", "params"), [(0, (0.1, 20.0)), (1, (0.05, 12.0))])
def test_vp_tables(j: int, params: tuple[float, float]) -> None:
    process = sd.DiscreteVP.linear(1000, *params)
    close(process.betas, VECTORS[f"vp{j}_discrete_betas"])
    close(process.levels.alpha**2, VECTORS[f"vp{j}_alphas_cumprod"])


def test_ddpm_tables() -> None:
    process = sd.DiscreteVP.linear()
    close(process.betas, VECTORS["ddpm_betas"])
    close(process.levels.alpha**2, VECTORS["ddpm_alphas_cumprod"])


@pytest.mark.parametrize(("j", "params"), [(0, (0.01, 50.0)), (1, (0.02, 100.0))])
def test_ve_table(j: int, params: tuple[float, float]) -> None:
    close(sd.DiscreteVE.geometric(*params, 1000).sigmas, VECTORS[f"ve{j}_discrete_sigmas"])


def test_ncsn_table() -> None:
    close(sd.DiscreteVE.geometric(0.01, 50.0, 232).sigmas.flip(0), VECTORS["ncsn_sigmas_232"])
