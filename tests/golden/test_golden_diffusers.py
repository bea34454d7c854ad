"""The schedulers of diffusers: whole trajectories of our samplers on the same levels.

Those of DDPM, DDIM and the exponential methods step in the process of the model, DiscreteVP; Euler's, Heun's, LMS and
the ancestral one in x/alpha and sigma/alpha, which is EDM's process. A run to sigma = 0 ends in x0_hat for all of them
but LMS; one to sigma_min ends at level 0. Lower orders at the end are our final_order: of runs to x0_hat the last
order, 1, is that step itself. KDPM2, PNDM and the singlestep method of order 3 are other algorithms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from sde_diffusion.core.kernel import CLEAN, Kernel
from sde_diffusion.core.noise_sources import FRESH_NOISE
from sde_diffusion.core.prediction import to_x0
from sde_diffusion.samplers.adams import OUTPUTS, VARIABLES, Adams, Moments, Scheme, multistep
from sde_diffusion.samplers.ancestral import ddim_flow_row
from sde_diffusion.samplers.multistep import midpoint, published_3m
from tests.golden.reference import (
    DIMS,
    Arrays,
    Recording,
    Replay,
    Trajectory,
    arrays,
    case_of,
    cases,
    close,
    grid_of,
    mixture,
    singlestep,
    step,
)

CASES = cases("samplers/diffusers_schedulers_2d")
NAMES = [name for name in CASES if name.startswith(("ddpm", "ddim"))]
EXPLICIT = ("ddim_linspace_eta0", "ddim_clip_eta0", "ddim_zerosnr_vpred_trailing")
"""Cases of DDIM that do on purpose what the library's sampler does not; see their own tests."""

both_dims = pytest.mark.parametrize("dims", DIMS)
PROCESS = sd.DiscreteVP.linear(1000)


def load(dims: int, name: str) -> tuple[dict[str, Any], Arrays, sd.GaussianMixture]:
    """The case, its arrays without its name in front, and the data."""
    file = f"samplers/diffusers_schedulers_{dims}d"
    return *case_of(file, name), mixture(arrays(file), dims)


def model(case: dict[str, Any], oracle: sd.GaussianMixture) -> sd.Denoiser:
    denoiser = oracle.denoiser()
    return sd.ClippedDenoiser(denoiser) if case["config"]["clip_sample"] else denoiser


def zero_snr_alphas() -> Tensor:
    """The signal scales shifted and stretched so that the last is 0 (Lin et al. 2024, Algorithm 1)."""
    alphas = PROCESS.levels.alpha
    return (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])


def level_kernel(name: str, levels: Tensor) -> Kernel:
    if "zerosnr" not in name:
        return PROCESS.levels[levels]
    alphas = zero_snr_alphas()[levels]
    return Kernel(alphas, (1.0 - alphas**2).sqrt())


PREDICTIONS: dict[str, tuple[str, Callable[[sd.Denoiser, Tensor, Kernel], Tensor]]] = {
    "epsilon": ("eps", sd.eps),
    "sample": ("x0", lambda denoiser, x, kernel: denoiser(x, kernel)),
    "v_prediction": ("v", sd.v),
}


@both_dims
@pytest.mark.parametrize("name", NAMES)
def test_model_output(dims: int, name: str) -> None:
    """eps, x0 or v of the exact denoiser at every step, and x0_hat found again from it."""
    case, own, oracle = load(dims, name)
    prediction, output = PREDICTIONS[case["config"].get("prediction_type", "epsilon")]
    x = own["trajectory"][:-1].flatten(0, 1)
    kernel = level_kernel(name, own["timesteps"].long().repeat_interleave(own["trajectory"].shape[1]))
    close(kernel.alpha, own["model_alpha_sigma"][:, 0].repeat_interleave(own["trajectory"].shape[1]))
    close(kernel.sigma, own["model_alpha_sigma"][:, 1].repeat_interleave(own["trajectory"].shape[1]))
    out = own["model_output"].flatten(0, 1)
    close(output(oracle.denoiser(), x, kernel), out)
    close(to_x0(prediction, out, x, kernel), oracle.denoiser()(x, kernel))


@both_dims
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ddpm")])
def test_ddpm(dims: int, name: str) -> None:
    """fixed_small is the posterior variance, fixed_large beta, of the transitions between visited levels."""
    case, own, oracle = load(dims, name)
    variance = {"fixed_small": "posterior", "fixed_large": "beta"}[case["config"]["variance_type"]]
    noise, visited = Replay(own["noise"]), Trajectory()
    out = sd.sample(
        model(case, oracle),
        noise=noise,
        grid=sd.TimeGrid(PROCESS, PROCESS.times[own["timesteps"].long()]),
        sampler="ddpm",
        x=own["trajectory"][0],
        on_step=visited,
        variance=variance,
    )
    assert out.nfe == case["steps"] and noise.unused == case["n_noise"] - (case["steps"] - 1)
    last = out.x
    if noise.unused:
        # It never meets level 0, the only one without noise: its least variance, 1e-20, is added.
        last = last + 1e-10 * own["noise"][-1]
    close(visited.stacked(last), own["trajectory"])


@both_dims
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ddim") and name not in EXPLICIT])
def test_ddim(dims: int, name: str) -> None:
    """Every spacing is a grid of the visited levels; without set_alpha_to_one it ends at level 0."""
    case, own, oracle = load(dims, name)
    eta, to_clean = case["step_kwargs"]["eta"], case["config"].get("set_alpha_to_one", True)
    levels = own["timesteps"].long()
    levels = levels if to_clean else torch.cat([levels, torch.tensor([0])])
    visited = Trajectory()
    noise = Replay(own["noise"] if eta else own["trajectory"][:0])
    out = sd.sample(
        model(case, oracle),
        noise=noise,
        grid=sd.TimeGrid(PROCESS, PROCESS.times[levels]),
        sampler="ddim",
        x=own["trajectory"][0],
        finish="denoise" if to_clean else "none",
        on_step=visited,
        eta=eta,
    )
    assert out.nfe == case["steps"] and noise.unused == (1 if eta else 0)
    close(visited.stacked(out.x), own["trajectory"])


Update = Callable[[Node, Node, Tensor, Tensor], Tensor]


def flow_step(now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
    return step(ddim_flow_row, PROCESS, now, next, x, x0_hat)


def replayed(name: str, own: Arrays, denoiser: sd.Denoiser, update: Update = flow_step) -> Tensor:
    """The trajectory over explicit pairs: from each visited level to one a stride below, or clean data."""
    levels, x, visited = own["timesteps"].long(), own["trajectory"][0], []
    stride = 1000 // len(levels)
    for level in levels:
        now = Node(PROCESS.times[level], level_kernel(name, level))
        below = level_kernel(name, level - stride) if level >= stride else CLEAN
        visited.append(x)
        x = update(now, Node(now.t - stride / 1000.0, below), x, denoiser(x, now.kernel))
    return torch.stack([*visited, x])


@both_dims
@pytest.mark.parametrize("name", ["ddim_leading_eta0", "ddim_trailing_eta0"])
def test_replay_is_the_sampler_where_strides_meet(dims: int, name: str) -> None:
    _, own, oracle = load(dims, name)
    close(replayed(name, own, oracle.denoiser()), own["trajectory"])


@both_dims
def test_ddim_linspace(dims: int) -> None:
    """The source steps 100 levels down although its visited levels are 111 apart.

    Our grids step from node to node, so that none expresses this case; its updates, between the pairs of
    levels that it looks up, are ours.
    """
    name = "ddim_linspace_eta0"
    _, own, oracle = load(dims, name)
    close(replayed(name, own, oracle.denoiser()), own["trajectory"])
    ours = sd.sample(
        oracle.denoiser(), grid=sd.make_grid(PROCESS, 10, "strided"), sampler="ddim", x=own["trajectory"][0]
    )
    assert float((ours.x - own["trajectory"][-1]).abs().max()) > 1e-3


@both_dims
def test_ddim_clip(dims: int) -> None:
    """After clipping x0_hat the source keeps the network's eps; ours derives eps again from x0_hat."""
    name = "ddim_clip_eta0"
    case, own, oracle = load(dims, name)

    def keep_eps(now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
        return flow_step(now, next, x, x0_hat) + next.kernel.alpha * (x0_hat.clamp(-1.0, 1.0) - x0_hat)

    close(replayed(name, own, oracle.denoiser(), keep_eps), own["trajectory"])

    # Our sampler's own step from the source's last x but one, where x0_hat is clipped.
    levels, x, clipped = own["timesteps"].long()[-2:], own["trajectory"][-3], model(case, oracle)
    now, next = (PROCESS.levels[level] for level in levels)
    x0_hat, kept = clipped(x, now), sd.eps(oracle.denoiser(), x, now)
    again = (x - now.alpha * x0_hat) / now.sigma
    grid = sd.TimeGrid(PROCESS, PROCESS.times[levels])
    out = sd.sample(clipped, grid=grid, x=x, sampler="ddim", finish="none")
    close(out.x, next.alpha * x0_hat + next.sigma * again)
    close(own["trajectory"][-2], next.alpha * x0_hat + next.sigma * kept)
    assert float((again - kept).abs().max()) > 1e-3


@both_dims
def test_ddim_zero_snr(dims: int) -> None:
    """The first level has alpha = 0: DiscreteVP has no such table, but DDIM's step takes any kernel."""
    name = "ddim_zerosnr_vpred_trailing"
    _, own, oracle = load(dims, name)
    assert float(level_kernel(name, own["timesteps"].long())[0].alpha) == 0.0
    close(replayed(name, own, oracle.denoiser()), own["trajectory"])


# --- the solvers ----------------------------------------------------------------------------------------------


def solver_grid(own: Arrays) -> tuple[sd.TimeGrid, str]:
    """The grid of a run of one evaluation a step, and how it ends: in x0_hat or at level 0."""
    sigmas, kernel = own["sigmas"], own["model_alpha_sigma"]
    close(sigmas[:-1], kernel[:, 1] / kernel[:, 0])
    if float(sigmas[-1]) == 0.0:
        return grid_of(PROCESS, sigmas[:-1]), "denoise"
    close(sigmas[-1], (-0.5 * PROCESS.levels[0].logsnr).exp())
    return grid_of(PROCESS, sigmas), "none"


# Its name, our sampler and our options.
SOLVERS: list[tuple[str, str, dict[str, Any]]] = [
    ("dpmpp_1", "ddim", {}),
    ("dpmpp_1", "dpmpp_2m", {"order": 1}),
    ("dpmpp_2m_midpoint", "dpmpp_2m", {}),
    ("dpmpp_2m_heun", "dpmpp_2m", {"solver": "exact"}),
    ("dpmpp_2m_trailing", "dpmpp_2m", {}),
    ("dpmpp_2m_karras", "dpmpp_2m", {}),
    ("dpmpp_2m_sigma_min_nolof", "dpmpp_2m", {}),
    ("dpmpp_3m", "dpmpp_3m", {"solver": "published", "final_order": 2}),
    ("sde_dpmpp_2m", "dpmpp_2m_sde", {}),
    ("unipc_bh2_o2", "unipc", {}),
    ("unipc_bh2_o3", "unipc", {"order": 3, "final_order": 2}),
    ("unipc_bh1_o3_sigma_min", "unipc", {"order": 3, "b": "b1", "final_order": 1}),
    ("unipc_bh2_o3_eps", "unipc", {"order": 3, "output": "eps", "final_order": 1}),
    ("deis_o2", "deis", {"order": 2, "final_order": 1}),
    ("deis_o3", "deis", {"order": 3, "final_order": 1}),
]


@both_dims
@pytest.mark.parametrize(("name", "sampler", "options"), SOLVERS)
def test_solver(dims: int, name: str, sampler: str, options: dict[str, Any]) -> None:
    """Every evaluation's input. With a corrector that is the state before its correction."""
    case, own, oracle = load(dims, name)
    (grid, finish), denoiser = solver_grid(own), Recording(oracle.denoiser())
    noise = Replay(own["noise"] if case["n_noise"] else own["trajectory"][:0])
    out = sd.sample(denoiser, grid=grid, sampler=sampler, x=own["trajectory"][0], finish=finish, noise=noise, **options)
    assert out.nfe == case["steps"] and noise.unused == min(case["n_noise"], 1)
    close(torch.stack([*denoiser.inputs, out.x]), own["trajectory"])


@both_dims
@pytest.mark.parametrize(("name", "moments"), [("dpm_2m", midpoint), ("dpm_3m", published_3m)])
def test_noise_prediction(dims: int, name: str, moments: Moments) -> None:
    """dpmsolver, without ++: the same methods on eps."""
    case, own, oracle = load(dims, name)
    (grid, _), denoiser = solver_grid(own), Recording(oracle.denoiser())
    method, order = Adams(OUTPUTS["eps"], VARIABLES["logsnr"], moments), case["config"]["solver_order"]
    x = multistep(Scheme(method, order, final_order=1), denoiser, own["trajectory"][0], grid, FRESH_NOISE, None)
    close(torch.stack([*denoiser.inputs, x]), own["trajectory"])


@both_dims
def test_dpmpp_2s(dims: int) -> None:
    """Its intermediate level is a grid node, ours half way in log-SNR: an Adams step through that node."""
    _, own, oracle = load(dims, "dpmpp_2s")
    (grid, _), denoiser = solver_grid(own), Recording(oracle.denoiser())
    method = Adams(OUTPUTS["x0"], VARIABLES["logsnr"], midpoint)
    x = singlestep(method, denoiser, own["trajectory"][0], grid)[-1]
    close(torch.stack([*denoiser.inputs, x]), own["trajectory"])
    coarse = sd.TimeGrid(PROCESS, grid.times[::2])
    ours = sd.sample(oracle.denoiser(), grid=coarse, sampler="dpmpp_2s", x=own["trajectory"][0], finish="none")
    assert float((ours.x - x).abs().max()) > 1e-3


# --- in x/alpha and sigma/alpha -------------------------------------------------------------------------------

EULER = ["euler_linspace", "euler_leading", "euler_trailing", "euler_karras"]
SIGMA_SPACE: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "euler", {}) for name in EULER),
    *((name, "ddim", {}) for name in EULER),
    ("euler_ancestral_linspace", "ddim", {"eta": 1.0}),
    ("heun_linspace", "heun", {}),
    ("heun_karras", "heun", {}),
]


@both_dims
@pytest.mark.parametrize(("name", "sampler", "options"), SIGMA_SPACE)
def test_sigma_space(dims: int, name: str, sampler: str, options: dict[str, Any]) -> None:
    case, own, oracle = load(dims, name)
    process = sd.EDM(sigma_max=float(own["sigmas"][0]))
    sigmas = own["sigmas"].unique().flip(0)  # both stages of Heun have theirs
    grid, denoiser = grid_of(process, sigmas[:-1]), Recording(oracle.denoiser())
    noise = Replay(own["noise"] if case["n_noise"] else own["trajectory"][:0])
    out = sd.sample(denoiser, grid=grid, sampler=sampler, x=own["trajectory"][0], noise=noise, **options)
    assert out.nfe == len(own["timesteps"]) and noise.unused == min(case["n_noise"], 1)
    close(torch.stack([*denoiser.inputs, out.x]), own["trajectory"])


@both_dims
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in EULER), ("euler_ancestral_linspace", {"eta": 1.0})],
)
def test_same_samplers_in_vp(dims: int, name: str, options: dict[str, Any]) -> None:
    """DDIM takes the same steps on alpha x, in the model's own process."""
    case, own, oracle = load(dims, name)
    (grid, _), denoiser = solver_grid(own), Recording(oracle.denoiser())
    alpha = grid.levels.kernel.alpha.reshape(-1, 1, 1, 1, 1)
    noise = Replay(own["noise"] if case["n_noise"] else own["trajectory"][:0])
    out = sd.sample(denoiser, grid=grid, sampler="ddim", x=alpha[0] * own["trajectory"][0], noise=noise, **options)
    close(torch.stack(denoiser.inputs) / alpha, own["trajectory"][:-1])
    close(out.x, own["trajectory"][-1])


@both_dims
def test_lms(dims: int) -> None:
    """sigma = 0 as a limit; its coefficients are integrals by adaptive quadrature, hence the tolerance."""
    _, own, oracle = load(dims, "lms_linspace")
    sigmas = own["sigmas"].clamp_min(1e-12)
    grid, denoiser = grid_of(sd.EDM(sigma_max=float(sigmas[0])), sigmas), Recording(oracle.denoiser())
    out = sd.sample(denoiser, grid=grid, sampler="lms", x=own["trajectory"][0], finish="none")
    close(torch.stack([*denoiser.inputs, out.x]), own["trajectory"], rtol=1e-7)
