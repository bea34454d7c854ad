"""improved-diffusion: single DDPM and DDIM steps with every kind of mean and variance, bounds, losses and whole loops.

Its log-variances at step 0 stand in for log 0: the posterior one's is that of step 1, where it also takes the value of
FIXED_LARGE; no noise is added there, so that no sample depends on them. The bound does: they are its decoder's.
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.denoisers.base import moments
from sde_diffusion.likelihood.decoder import Space
from sde_diffusion.likelihood.discrete import Chain, bound_term
from sde_diffusion.samplers.ancestral import VARIANCES, ancestral_row, ddim_flow_row, ddim_row
from tests.golden.reference import (
    DIMS,
    Arrays,
    Replay,
    ReplayedNoise,
    Trajectory,
    arrays,
    case_of,
    cases,
    close,
    mixture,
    one_below,
    step,
    under,
)

SCHEDULES = {"linear": sd.DiscreteVP.linear, "cosine": sd.DiscreteVP.cosine}
OURS = {"FIXED_SMALL": "posterior", "FIXED_LARGE": "beta", "LEARNED_RANGE": "learned"}
STEPS, LOOPS = cases("iddpm/diffusion_2d"), cases("iddpm/loops_2d")
SPACE = Space(256, 0.0, "tanh")
"""The decoder of the source."""

both_dims = pytest.mark.parametrize("dims", DIMS)
every_step = pytest.mark.parametrize("name", STEPS)


class LearnedRange:
    """A denoiser with a learned variance, fraction (v + 1)/2 and v = tanh(0.7 x + 0.1 (t mod 7)) at level t."""

    def __init__(self, denoiser: sd.Denoiser, process: sd.DiscreteVP, clip: bool) -> None:
        self.denoiser: sd.Denoiser = sd.ClippedDenoiser(denoiser) if clip else denoiser
        self.levels = process.levels.logsnr

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return self.denoiser(x, kernel, **conditioning)

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor]:
        t = (self.levels - kernel.logsnr[..., None]).abs().argmin(-1)
        return self(x, kernel, **conditioning), 0.5 * (1.0 + torch.tanh(0.7 * x + match(0.1 * (t % 7).double(), x)))


def load(dims: int, file: str, name: str) -> tuple[dict[str, Any], Arrays, sd.DiscreteVP, LearnedRange]:
    case, own = case_of(f"iddpm/{file}_{dims}d", name)
    process = SCHEDULES[case["schedule"]](case["T"])
    oracle = mixture(arrays(f"iddpm/{file}_{dims}d"), dims)
    return case, own, process, LearnedRange(oracle.denoiser(), process, case["clip_denoised"])


# --- single steps ---------------------------------------------------------------------------------------------


def pair(process: sd.DiscreteVP, t: Tensor) -> tuple[Node, Node]:
    """The nodes [B] of levels t and of those below."""
    times, levels = process.times[t], process.levels
    return Node(times, levels[t]), Node(times - 1.0 / len(process.times), one_below(levels)[t])


@both_dims
@every_step
def test_posterior(dims: int, name: str) -> None:
    """q(x_t | x_0) and q(x_{t-1} | x_t, x_0)."""
    _, own, process, _ = load(dims, "diffusion", name)
    now, next = pair(process, own["t"])
    close(now.kernel.perturb(own["x0"], own["noise"]), own["xt"])
    close(step(ancestral_row, process, now, next, own["xt"], own["x0"]), own["q_mean"])
    variance = VARIANCES["posterior"]
    close(variance(now.kernel, next.kernel), own["q_variance"])
    now, next = pair(process, own["t"].clamp_min(1))
    close(variance(now.kernel, next.kernel).log(), own["q_log_variance_clipped"])


@both_dims
@every_step
def test_mean(dims: int, name: str) -> None:
    """x0_hat, clipped or not, and the step's mean, which the variance does not enter."""
    _, own, process, denoiser = load(dims, "diffusion", name)
    now, next = pair(process, own["t"])
    x0_hat = denoiser(own["xt"], now.kernel)
    close(x0_hat, own["p_pred_xstart"])
    for variance in VARIANCES:
        close(step(partial(ancestral_row, variance=variance), process, now, next, own["xt"], x0_hat), own["p_mean"])


def drawn(process: sd.DiscreteVP, denoiser: sd.Denoiser, level: int, x: Tensor, variance: str, noise: Replay) -> Tensor:
    """One step of our sampler between two levels, or its last step, from level 0 to x0_hat."""
    levels = process.times[torch.tensor([level, level - 1] if level else [0])]
    grid, finish = TimeGrid(process, levels), "none" if level else "denoise"
    return sd.sample(denoiser, grid=grid, sampler="ddpm", x=x, finish=finish, variance=variance, noise=noise).x


@both_dims
@every_step
def test_ddpm_step(dims: int, name: str) -> None:
    """A draw, and the variance from one with unit noise."""
    case, own, process, denoiser = load(dims, "diffusion", name)
    for i, level in enumerate(own["t"].tolist()):
        one = slice(i, i + 1)
        x, noise = own["xt"][one], own["p_sample_noise"][one]
        replayed = Replay(torch.stack([noise, torch.ones_like(x)]))
        sample = partial(drawn, process, denoiser, level, x, OURS[case["model_var_type"]], replayed)
        close(sample(), own["p_sample"][one])
        if level:
            variance = (sample() - own["p_mean"][one]) ** 2
            close(variance, own["p_variance"][one], atol=1e-12)
            close(variance.log(), own["p_log_variance"][one], atol=1e-7)
        assert replayed.unused == (0 if level else 2)


@both_dims
@every_step
def test_variance_of_step_0(dims: int, name: str) -> None:
    """Ours is 0 and beta; what the source has instead adds to no sample."""
    case, own, process, denoiser = load(dims, "diffusion", name)
    first = own["t"] == 0
    assert bool(first.any())
    zero, one = (pair(process, torch.tensor([level])) for level in (0, 1))
    floor, x = VARIANCES["posterior"](*(node.kernel for node in one)), own["xt"][first]
    beta = VARIANCES["beta"](*(node.kernel for node in zero))
    close(VARIANCES["posterior"](*(node.kernel for node in zero)), torch.zeros_like(floor))
    close(beta, process.betas[:1])
    fraction = denoiser.moments(x, zero[0].kernel)[1]
    logs = {
        "FIXED_SMALL": floor.log().expand_as(x),
        "FIXED_LARGE": floor.log().expand_as(x),
        "LEARNED_RANGE": torch.lerp(floor.log().expand_as(x), beta.log().expand_as(x), fraction),
    }[case["model_var_type"]]
    close(logs, own["p_log_variance"][first])
    close(logs.exp() * (case["model_var_type"] != "FIXED_SMALL"), own["p_variance"][first])
    close(own["p_sample"][first], own["p_mean"][first])


@both_dims
@every_step
def test_ddim_step(dims: int, name: str) -> None:
    """eps is derived from the clipped x0_hat; the reverse step goes up, from the last level to pure noise."""
    _, own, process, denoiser = load(dims, "diffusion", name)
    now, next = pair(process, own["t"])
    x, levels = own["xt"], process.levels
    x0_hat = denoiser(x, now.kernel)
    close(step(ddim_flow_row, process, now, next, x, x0_hat), own["ddim_eta0"])
    for eta in (0.0, 1.0):
        row = partial(ddim_row, eta=eta)
        close(step(row, process, now, next, x, x0_hat, own["ddim_noise"]), own[f"ddim_eta{eta:.0f}"])
    ones = torch.ones(1, dtype=torch.float64)
    above = Kernel(torch.cat([levels.alpha[1:], 0.0 * ones]), torch.cat([levels.sigma[1:], ones]))[own["t"]]
    close(step(ddim_flow_row, process, now, Node(now.t, above), x, x0_hat), own["ddim_reverse"])


@both_dims
@pytest.mark.parametrize("name", [name for name in STEPS if "clip0" in name])
def test_ddim_inversion(dims: int, name: str) -> None:
    """The sampler upwards, between two levels."""
    _, own, process, denoiser = load(dims, "diffusion", name)
    for i, level in enumerate(own["t"].tolist()):
        if level + 1 < len(process.times):
            grid = TimeGrid(process, process.times[torch.tensor([level + 1, level])])
            out = sd.samplers.ddim_inversion(denoiser, own["xt"][i : i + 1], grid)
            close(out, own["ddim_reverse"][i : i + 1])


# --- the bound and the losses -----------------------------------------------------------------------------------


@both_dims
@every_step
def test_bound_term(dims: int, name: str) -> None:
    """A step's KL divergence, or at step 0 the decoder's log-likelihood, in bits/dim, one level a sample."""
    case, own, process, denoiser = load(dims, "diffusion", name)
    x0_hat, fraction = moments(denoiser, own["xt"], process.levels[own["t"]])
    variance = OURS[case["model_var_type"]]
    term = bound_term(Chain.of(process), own["t"], own["x0"], x0_hat, fraction, variance=variance, space=SPACE)
    assert {0, 999} <= set(own["t"].tolist())
    close(term.flatten(1).mean(1) / math.log(2.0), own["vb"])


@both_dims
@every_step
def test_prior_matching(dims: int, name: str) -> None:
    """Its x0 are no grey levels, and prior matching asks for none."""
    _, own, process, denoiser = load(dims, "diffusion", name)
    close(sd.elbo(denoiser, own["x0"], process, levels=None, terms=1).per_sample.prior, own["prior_bpd"])


@both_dims
@pytest.mark.parametrize("name", [name for name in STEPS if "clip0" in name])
def test_losses(dims: int, name: str) -> None:
    """Of its four losses two are L_vlb, of one step (KL) and of all T (RESCALED_KL); the others are L_simple, or with a
    learned variance L_hybrid, in which L_vlb has the weight 1/T (MSE) or 1/1000 (RESCALED_MSE)."""
    case, own, process, denoiser = load(dims, "diffusion", name)
    chain, t, steps = Chain.of(process), process.times[own["t"]], case["T"]
    variance = OURS[case["model_var_type"]]
    vlb = sd.variational_loss(denoiser, chain, own["x0"], t, own["noise"], variance=variance, space=SPACE)
    close(vlb, own["loss_RESCALED_KL.loss"])
    close(vlb / steps, own["loss_KL.loss"])
    weighting = {"EPSILON": "simple", "START_X": "x0"}[case["model_mean_type"]]
    mse = sd.denoising_score_matching(denoiser, process, own["x0"], t, own["noise"], weighting=weighting)
    for kind, weight in (("MSE", 1.0 / steps), ("RESCALED_MSE", 1e-3)):
        stored = under(own, f"loss_{kind}.")
        close(mse, stored["mse"])
        if variance == "learned":
            hybrid = partial(sd.hybrid_loss, weighting=weighting, vlb_weight=weight, variance=variance, space=SPACE)
            close(hybrid(denoiser, process, chain, own["x0"], t, own["noise"]), stored["loss"])
            close(weight * vlb, stored["vb"])
        else:
            close(mse, stored["loss"])
            assert "vb" not in stored


# --- loops ----------------------------------------------------------------------------------------------------

SAMPLERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "p_sample_loop": ("ddpm", "p_sample_noise", {}),
    "ddim_loop_eta0": ("ddim", None, {}),
    "ddim_loop_eta1": ("ddim", "ddim_noise", {"eta": 1.0}),
}


@both_dims
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("loop", SAMPLERS)
def test_loop(dims: int, name: str, loop: str) -> None:
    """Respacing is a grid of the retained levels; the source draws at step 0 too, and leaves it out."""
    case, own, process, denoiser = load(dims, "loops", name)
    sampler, noises, options = SAMPLERS[loop]
    if sampler == "ddpm":
        options = {"variance": OURS[case["model_var_type"]]}
    noise = Replay(own[noises] if noises else own["x_T"][:0])
    grid = TimeGrid(process, process.times[own["model_t"].long()])
    visited = Trajectory()
    out = sd.sample(denoiser, grid=grid, sampler=sampler, x=own["x_T"], on_step=visited, noise=noise, **options)
    assert out.nfe == case["num_timesteps"] and noise.unused == (1 if noises else 0)
    close(visited.stacked(out.x), torch.cat([own["x_T"][None], own[loop]]))


@both_dims
@pytest.mark.parametrize("name", LOOPS)
def test_bound(dims: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole bound of 8-bit data, term by term, on all levels or on the retained ones."""
    case, own, process, denoiser = load(dims, "loops", name)
    noise = ReplayedNoise(own["bpd_noise"])
    monkeypatch.setattr(import_module("sde_diffusion.likelihood.discrete"), "randn", noise)
    grid = TimeGrid(process, process.times[own["model_t"].long()])
    grey = (127.5 * (own["x0"] + 1.0)).round().long()
    variance = OURS[case["model_var_type"]]
    bound = sd.elbo(denoiser, grey, grid, variance=variance, cdf="tanh", dtype=torch.float64)
    each = bound.per_sample
    assert bound.nfe == case["num_timesteps"] and noise.unused == 0
    # Theirs runs from noise to data, and ends in the decoder's term.
    close(torch.cat([each.denoising[:, 1:].flip(1), each.reconstruction[:, None]], 1), own["vb"])
    close(each.prior, own["prior_bpd"])
    close(each.total, own["total_bpd"])
    close(each.x0_mse.flip(1), own["xstart_mse"])
    close(grid.levels.kernel.snr * each.x0_mse.flip(1), own["mse"])
