"""Formulas of different papers that are one and the same, to 1e-9."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.kernel import match
from sde_diffusion.denoisers import priors
from tests.proofs.cases import MIXTURES, PROCESSES, SDES, generator, slope

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
TIMES = torch.linspace(0.013, 0.987, 41, dtype=torch.float64)
MIXTURE = MIXTURES[2]


def draw(sde: sd.SDE, grid: sd.TimeGrid, sampler: str, **options: object) -> Tensor:
    """Eight samples from the same seed every time, at the grid's last node."""
    return sd.sample(
        MIXTURE.denoiser(),
        (8, 2),
        grid,
        sampler=sampler,
        generator=generator(11),
        finish="none",
        dtype=torch.float64,
        **options,
    ).x


# --- samplers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_with_eta_1_is_ddpm(process: str) -> None:
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    torch.testing.assert_close(draw(sde, grid, "ddim", eta=1.0), draw(sde, grid, "ddpm"), **CLOSE)
    ancestral = draw(sde, grid, "ancestral", variance="posterior")
    torch.testing.assert_close(ancestral, draw(sde, grid, "ddpm"), **CLOSE)
    torch.testing.assert_close(draw(sde, grid, "ancestral"), draw(sde, grid, "ddpm", variance="beta"), **CLOSE)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_eta_multiplies_the_standard_deviation(eta: float) -> None:
    """The noise of one DDIM step is eta times DDPM's; its spread over draws from the same x is eta s."""
    sde = PROCESSES["VPSDE"]
    grid = sd.TimeGrid(sde, torch.tensor([0.5, 0.4], dtype=torch.float64))
    x = torch.tensor([[0.4, -0.7]], dtype=torch.float64).repeat(20_000, 1)
    spread = {}
    for value in (eta, 1.0):
        out = sd.sample(
            MIXTURE.denoiser(),
            grid=grid,
            x=x,
            sampler="ddim",
            generator=generator(2),
            finish="none",
            eta=value,
        )
        spread[value] = out.x.std(0)
    torch.testing.assert_close(spread[eta], eta * spread[1.0], **CLOSE)
    now, next = sde.kernel(0.5), sde.kernel(0.4)
    step_variance = now.sigma**2 - (now.alpha / next.alpha * next.sigma) ** 2
    std = eta * float((step_variance).sqrt() * next.sigma / now.sigma)
    assert float(spread[eta].mean()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "RectifiedFlow"])
def test_ddim_is_euler_in_sigma_over_alpha(process: str) -> None:
    """With y = x/alpha and s = sigma/alpha the flow is dy/ds = eps_hat (Song et al. 2020, equation 14)."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 40)
    x = sde.prior_sample((8, 2), generator=generator(3), dtype=torch.float64)
    kernels = [node.kernel for node in grid.nodes]
    y = x / kernels[0].alpha
    for now, next in itertools.pairwise(kernels):
        y = y + (next.sigma / next.alpha - now.sigma / now.alpha) * sd.eps(MIXTURE.denoiser(), now.alpha * y, now)
    out = sd.sample(MIXTURE.denoiser(), grid=grid, x=x, sampler="ddim", finish="none")
    torch.testing.assert_close(out.x, kernels[-1].alpha * y, **CLOSE)

    # The same levels under EDM's process, whose sigma is linear in its time: sd's own Euler.
    levels = torch.stack([k.sigma / k.alpha for k in kernels])
    edm = sd.EDM(sigma_min=1e-9, sigma_max=float(levels[0]))
    edm_grid = sd.TimeGrid(edm, levels / levels[0])
    euler = sd.sample(MIXTURE.denoiser(), grid=edm_grid, x=x / kernels[0].alpha, sampler="euler", finish="none")
    torch.testing.assert_close(kernels[-1].alpha * euler.x, out.x, **CLOSE)


def test_ddim_is_euler_on_straight_paths() -> None:
    """For rectified flow x = (1 - t) x_0 + t eps, so that DDIM's step is x + dt (eps_hat - x0_hat)."""
    grid = sd.make_grid(PROCESSES["RectifiedFlow"], 25)
    ddim, euler = (draw(PROCESSES["RectifiedFlow"], grid, name) for name in ("ddim", "euler"))
    torch.testing.assert_close(ddim, euler, **CLOSE)


def test_ddpm_is_the_textbook_formula() -> None:
    """Ho et al. (2020), equations 6, 7 and Algorithm 2 with beta-tilde, from betas and alphas_cumprod."""
    sde = sd.DiscreteVP.linear(200)
    betas = torch.linspace(0.1 / 200, 20.0 / 200, 200, dtype=torch.float64)
    alphas_cumprod = (1.0 - betas).cumprod(0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    denoiser, g = MIXTURE.denoiser(), generator(4)
    x = start = torch.randn(8, 2, generator=generator(5), dtype=torch.float64)
    for i in reversed(range(200)):
        x0 = denoiser(x, sd.Kernel(alphas_cumprod[i].sqrt(), (1.0 - alphas_cumprod[i]).sqrt()))
        mean = betas[i] * previous[i].sqrt() / (1.0 - alphas_cumprod[i]) * x0
        mean = mean + (1.0 - previous[i]) * (1.0 - betas[i]).sqrt() / (1.0 - alphas_cumprod[i]) * x
        beta_tilde = betas[i] * (1.0 - previous[i]) / (1.0 - alphas_cumprod[i])
        x = mean + beta_tilde.sqrt() * torch.randn(8, 2, generator=g, dtype=torch.float64) if i else mean
    grid = sd.make_grid(sde, 200, "strided")
    out = sd.sample(denoiser, grid=grid, x=start, sampler="ddpm", generator=generator(4))
    torch.testing.assert_close(out.x, x, **CLOSE)


def test_reverse_diffusion_and_ve_ancestral_are_the_papers_formulas() -> None:
    """One step each of Song et al. (2021), Appendix E (VP, equation 46; VE, equation 49) and F (equation
    48)."""
    x = torch.randn(8, 2, generator=generator(6), dtype=torch.float64)
    noise = torch.randn(8, 2, generator=generator(7), dtype=torch.float64)
    denoiser = MIXTURE.denoiser()

    vp, i = sd.DiscreteVP.linear(100), 60
    beta = vp.betas[i]
    score = sd.score(denoiser, x, vp.levels[i])
    grid = sd.TimeGrid(vp, vp.times[[i, i - 1]])
    found = sd.sample(denoiser, grid=grid, x=x, sampler="reverse_diffusion", generator=generator(7), finish="none")
    expected = (2.0 - (1.0 - beta).sqrt()) * x + beta * score + beta.sqrt() * noise
    torch.testing.assert_close(found.x, expected, **CLOSE)
    found = sd.sample(denoiser, grid=grid, x=x, sampler="ancestral", generator=generator(7), finish="none")
    expected = (x + beta * score) / (1.0 - beta).sqrt() + beta.sqrt() * noise
    torch.testing.assert_close(found.x, expected, **CLOSE)

    ve = sd.DiscreteVE.geometric(0.01, 50.0, 100)
    now, next = ve.sigmas[i], ve.sigmas[i - 1]
    score = sd.score(denoiser, x, ve.levels[i])
    grid = sd.TimeGrid(ve, ve.times[[i, i - 1]])
    found = sd.sample(denoiser, grid=grid, x=x, sampler="reverse_diffusion", generator=generator(7), finish="none")
    variance = now**2 - next**2
    torch.testing.assert_close(found.x, x + variance * score + variance.sqrt() * noise, **CLOSE)
    found = sd.sample(
        denoiser,
        grid=grid,
        x=x,
        sampler="ancestral",
        generator=generator(7),
        finish="none",
        variance="posterior",
    )
    expected = x + variance * score + (next**2 * variance / now**2).sqrt() * noise
    torch.testing.assert_close(found.x, expected, **CLOSE)


def test_euler_maruyama_is_the_papers_formula() -> None:
    """x - f dt + g^2 score dt + g sqrt(dt) n for VP, f and g from beta."""
    sde, t, dt = sd.VPSDE(), 0.6, 0.05
    beta = 0.1 + t * 19.9
    x = torch.randn(8, 2, generator=generator(6), dtype=torch.float64)
    noise = torch.randn(8, 2, generator=generator(7), dtype=torch.float64)
    grid = sd.TimeGrid(sde, torch.tensor([t, t - dt], dtype=torch.float64))
    found = sd.sample(
        MIXTURE.denoiser(), grid=grid, x=x, sampler="euler_maruyama", generator=generator(7), finish="none"
    )
    score = sd.score(MIXTURE.denoiser(), x, sde.kernel(t))
    expected = x + dt * (0.5 * beta * x + beta * score) + math.sqrt(beta * dt) * noise
    torch.testing.assert_close(found.x, expected, **CLOSE)


@pytest.mark.parametrize("corrector", ["annealed", "langevin"])
def test_correctors_are_the_papers_formulas(corrector: str) -> None:
    """Song et al. (2021), Algorithms 4 and 5 on one DDPM level: alpha = 1 - beta, each sample's own norms."""
    vp, i, r = sd.DiscreteVP.linear(100), 60, 0.13
    level, alpha = vp.levels[i], 1.0 - vp.betas[i]
    x = torch.randn(8, 2, generator=generator(6), dtype=torch.float64)
    noise = torch.randn(8, 2, generator=generator(7), dtype=torch.float64)
    score = sd.score(MIXTURE.denoiser(), x, level)
    if corrector == "langevin":
        size = 2.0 * alpha * (r * noise.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
    else:
        size = 2.0 * alpha * (r * level.sigma) ** 2

    def corrected_by(denoiser: sd.Denoiser) -> Tensor:
        return sd.sample(
            denoiser,
            grid=sd.TimeGrid(vp, vp.times[[i, i - 1]]),
            x=x,
            sampler="pc",
            generator=generator(7),
            finish="none",
            predictor="none",
            corrector=corrector,
            snr_target=r,
        ).x

    found = corrected_by(MIXTURE.denoiser())
    corrected = x + size * score + (2.0 * size).sqrt() * noise
    # The second node's correction follows; it is undone by comparing the state that the denoiser sees there.
    seen: list[Tensor] = []

    def watch(x: Tensor, kernel: sd.Kernel) -> Tensor:
        seen.append(x)
        return MIXTURE.denoiser()(x, kernel)

    again = corrected_by(watch)
    torch.testing.assert_close(seen[1], corrected, **CLOSE)
    torch.testing.assert_close(again, found, **CLOSE)


def test_annealed_langevin_is_pc_without_a_predictor() -> None:
    sde = sd.DiscreteVE.geometric(0.01, 50.0, 30)
    grid = sd.make_grid(sde, 30, "strided")
    langevin = draw(sde, grid, "annealed_langevin", langevin_steps=4, snr_target=0.2)
    corrected = draw(sde, grid, "pc", predictor="none", corrector="annealed", corrector_steps=4, snr_target=0.2)
    torch.testing.assert_close(langevin, corrected, **CLOSE)


ORDER_1: tuple[tuple[str, dict[str, object]], ...] = (
    ("dpmpp_2m", {"order": 1}),
    ("dpmpp_3m", {"order": 1}),
    ("dpmpp_2m_sde", {"order": 1, "eta": 0.0}),
    ("unipc", {"order": 1, "corrector": False}),
    ("unipc", {"order": 1, "corrector": False, "output": "eps"}),
    ("deis", {"order": 1}),
    ("lms", {"order": 1}),
)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("sampler", "options"), ORDER_1, ids=lambda value: str(value))
def test_every_exponential_method_of_order_1_is_ddim(sampler: str, options: dict[str, object], process: str) -> None:
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    torch.testing.assert_close(draw(sde, grid, sampler, **options), draw(sde, grid, "ddim"), **CLOSE)


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "RectifiedFlow"])
def test_ddim_is_the_exponential_euler_step(process: str) -> None:
    """x' = (sigma'/sigma) x + alpha' (1 - exp(lam - lam')) x0_hat, lam = log(alpha/sigma) (Lu et al. 2022b, eq. 8)."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    x = sde.prior_sample((8, 2), generator=generator(3), dtype=torch.float64)
    found = sd.sample(MIXTURE.denoiser(), grid=grid, x=x, sampler="ddim", finish="none").x
    for now, next in grid.pairs():
        a, b = now.kernel, next.kernel
        shrink = torch.exp((a.alpha / a.sigma).log() - (b.alpha / b.sigma).log())
        x = b.sigma / a.sigma * x + b.alpha * (1.0 - shrink) * MIXTURE.denoiser()(x, a)
    torch.testing.assert_close(found, x, **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_sde_dpm_solver_of_order_1_is_ddpm(process: str) -> None:
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    torch.testing.assert_close(draw(sde, grid, "dpmpp_2m_sde", order=1), draw(sde, grid, "ddpm"), **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_multistep_methods_that_are_one(process: str) -> None:
    """UniPC's predictor has the moments of DPM-Solver++, 2M with B_2(h) and 3M; DEIS in sigma/alpha is LMS."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    torch.testing.assert_close(draw(sde, grid, "unipc", corrector=False), draw(sde, grid, "dpmpp_2m"), **CLOSE)
    torch.testing.assert_close(draw(sde, grid, "deis", variable="sigma", order=4), draw(sde, grid, "lms"), **CLOSE)
    started = [draw(sde, grid, name, start="runge_kutta", **kw) for name, kw in THIRD]
    torch.testing.assert_close(*started, **CLOSE)


THIRD: tuple[tuple[str, dict[str, object]], ...] = (("dpmpp_3m", {}), ("unipc", {"order": 3, "corrector": False}))


def test_dpm_solver_2m_is_the_papers_algorithm() -> None:
    """D = (1 + 1/2r) x0_hat - 1/2r x0_hat of the step before, r = h_before/h (Lu et al. 2022b, Algorithm 2)."""
    sde, denoiser = PROCESSES["VPSDE"], MIXTURE.denoiser()
    grid = sd.make_grid(sde, 12, "quadratic")
    x = sde.prior_sample((8, 2), generator=generator(3), dtype=torch.float64)
    found = sd.sample(denoiser, grid=grid, x=x, sampler="dpmpp_2m", finish="none").x
    before, h_before = None, None
    for now, next in grid.pairs():
        x0_hat = denoiser(x, now.kernel)
        h = 0.5 * (next.kernel.logsnr - now.kernel.logsnr)
        d = x0_hat
        if before is not None:
            r = h_before / h
            d = (1.0 + 0.5 / r) * x0_hat - 0.5 / r * before
        x = next.kernel.sigma / now.kernel.sigma * x - next.kernel.alpha * torch.expm1(-h) * d
        before, h_before = x0_hat, h
    torch.testing.assert_close(found, x, **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_heun_of_one_stage_is_euler(process: str) -> None:
    """And under EDM's process that is x + (sigma' - sigma)(x - x0_hat)/sigma (Karras et al. 2022, Algorithm 1)."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 30)
    one = draw(sde, grid, "heun", stages=1)
    torch.testing.assert_close(one, draw(sde, grid, "euler"), **CLOSE)
    if process == "EDM":
        x = sde.prior_sample((8, 2), generator=generator(11), dtype=torch.float64)
        for now, next in grid.pairs():
            sigma = now.kernel.sigma
            x = x + (next.kernel.sigma - sigma) * (x - MIXTURE.denoiser()(x, now.kernel)) / sigma
        torch.testing.assert_close(one, x, **CLOSE)


def test_reverse_diffusion_tends_to_ddpm_as_1_over_n() -> None:
    """On all N levels, with the same noise: (2 - a) x and (x + v score)/a differ in the second order of beta."""
    sizes, errors = [100.0, 200.0, 400.0, 800.0], []
    for n in sizes:
        sde = sd.DiscreteVP.linear(int(n))
        grid = sd.make_grid(sde, int(n), "strided")
        pair = [draw(sde, grid, name, **kw) for name, kw in (("reverse_diffusion", {}), ("ddpm", {"variance": "beta"}))]
        errors.append(float((pair[0] - pair[1]).square().mean().sqrt()))
    assert -slope(sizes, errors) == pytest.approx(1.0, abs=0.2), errors


# --- the latents of DDIM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "RectifiedFlow"])
def test_refined_inversion_is_the_inverse_of_ddim(process: str) -> None:
    """On a grid fine enough for the fixed point to attract, DDIM leads back to the data to rounding."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 60, "logsnr")
    x = MIXTURE.sample(16, generator=generator(8))
    latent = sd.ddim_inversion(MIXTURE.denoiser(), x, grid, refinements=40)
    back = sd.sample(MIXTURE.denoiser(), grid=grid, x=latent, sampler="ddim", finish="none").x
    torch.testing.assert_close(back, x, **CLOSE)


@pytest.mark.parametrize("process", SDES)
def test_plain_inversion_errs_by_its_first_order(process: str) -> None:
    """And its latents tend to those of the exact flow in the same order."""
    sde, sizes = PROCESSES[process], [100.0, 200.0, 400.0, 800.0]
    x = MIXTURE.sample(16, generator=generator(8))
    errors: list[tuple[float, float]] = []
    for n in sizes:
        grid = sd.make_grid(sde, int(n) + 1, "logsnr")

        def field(t: Tensor, y: Tensor) -> Tensor:
            return sde.velocity(y, MIXTURE.denoiser()(y, sde.kernel(t)), t)

        exact = sd.integrate(field, x, grid.times[-1], grid.times[0], method="dop853", rtol=1e-9, atol=1e-9)
        latent = sd.ddim_inversion(MIXTURE.denoiser(), x, grid)
        back = sd.sample(MIXTURE.denoiser(), grid=grid, x=latent, sampler="ddim", finish="none").x
        errors.append((float((latent - exact).norm()), float((back - x).norm())))
    for found in zip(*errors, strict=True):
        assert -slope(sizes, list(found)) >= 0.75, errors


# --- learned variance ---------------------------------------------------------------------------------------


class WithFraction:
    """The mixture's denoiser with a learned variance that is one fraction everywhere."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        return MIXTURE.denoiser()(x, kernel)

    def moments(self, x: Tensor, kernel: sd.Kernel) -> tuple[Tensor, Tensor]:
        return self(x, kernel), torch.full_like(x, self.fraction)


@pytest.mark.parametrize("process", PROCESSES)
def test_learned_variance_runs_from_posterior_to_beta(process: str) -> None:
    """Fractions 0 and 1 are the two fixed variances; one half adds their geometric mean's noise."""
    sde = PROCESSES[process]
    grid = sd.make_grid(sde, 12)

    def drawn(fraction: float, grid: sd.TimeGrid = grid) -> Tensor:
        return sd.sample(
            sd.ClippedDenoiser(WithFraction(fraction), -50.0, 50.0),
            (8, 2),
            grid,
            prior="process",
            sampler="ddpm",
            generator=generator(11),
            finish="none",
            dtype=torch.float64,
            variance="learned",
        ).x

    torch.testing.assert_close(drawn(0.0), draw(sde, grid, "ddpm"), **CLOSE)
    torch.testing.assert_close(drawn(1.0), draw(sde, grid, "ddpm", variance="beta"), **CLOSE)
    step = sd.TimeGrid(sde, grid.times[3:5])
    now, next = (node.kernel for node in step.nodes)
    x = priors.draw("process", sde, now, (8, 2), generator=generator(11), dtype=torch.float64)
    pull = now.after(next).alpha * next.variance / now.variance
    mean = pull * x + (next.alpha - pull * now.alpha) * MIXTURE.denoiser()(x, now)
    low, middle, high = (drawn(fraction, step) - mean for fraction in (0.0, 0.5, 1.0))
    torch.testing.assert_close(middle.square(), low * high, **CLOSE)
    assert bool((high.abs() > low.abs()).all())


def test_learned_variance_needs_a_network_that_has_it() -> None:
    with pytest.raises(sd.UserError, match="learned it"):
        draw(PROCESSES["VPSDE"], sd.make_grid(PROCESSES["VPSDE"], 5), "ddpm", variance="learned")


# --- the process --------------------------------------------------------------------------------------------


def test_drift_and_diffusion_of_vp() -> None:
    """-beta/2 x and sqrt(beta) (Song et al. 2021, equation 11)."""
    sde, beta = sd.VPSDE(), 0.1 + 19.9 * TIMES
    x = torch.randn(len(TIMES), 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(sde.drift(x, TIMES), -0.5 * beta[:, None] * x, **CLOSE)
    torch.testing.assert_close(sde.diffusion(TIMES), beta.sqrt(), **CLOSE)


def test_drift_and_diffusion_of_sub_vp() -> None:
    """-beta/2 x and sqrt(beta (1 - exp(-2 int beta))) (ibid., equation 12)."""
    sde, beta = sd.SubVPSDE(), 0.1 + 19.9 * TIMES
    integral = 0.1 * TIMES + 0.5 * 19.9 * TIMES**2
    x = torch.randn(len(TIMES), 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(sde.drift(x, TIMES), -0.5 * beta[:, None] * x, **CLOSE)
    torch.testing.assert_close(sde.diffusion(TIMES), (beta * (1.0 - torch.exp(-2.0 * integral))).sqrt(), **CLOSE)
    torch.testing.assert_close(sde.kernel(TIMES).sigma, 1.0 - torch.exp(-integral), **CLOSE)


def test_drift_and_diffusion_of_ve() -> None:
    """0 and sigma sqrt(2 log(sigma_max/sigma_min)) (ibid., equations 9 and 30)."""
    sde = sd.VESDE(sigma_min=0.02, sigma_max=40.0)
    sigma = 0.02 * (40.0 / 0.02) ** TIMES
    x = torch.randn(len(TIMES), 2, generator=generator(1), dtype=torch.float64)
    assert bool((sde.drift(x, TIMES) == 0).all())
    torch.testing.assert_close(sde.diffusion(TIMES), sigma * math.sqrt(2.0 * math.log(40.0 / 0.02)), **CLOSE)


def test_drift_and_diffusion_of_edm_and_rectified_flow() -> None:
    """EDM: g^2 = 2 sigma sigma' (Karras et al. 2022, equation 6). Straight paths: f = -1/(1-t), g^2 =
    2t/(1-t)."""
    sigma = 80.0 * TIMES
    torch.testing.assert_close(sd.EDM().diffusion(TIMES), (2.0 * sigma * 80.0).sqrt(), **CLOSE)
    flow = sd.RectifiedFlow()
    torch.testing.assert_close(flow.dlog_alpha(TIMES), -1.0 / (1.0 - TIMES), **CLOSE)
    torch.testing.assert_close(flow.diffusion(TIMES), (2.0 * TIMES / (1.0 - TIMES)).sqrt(), **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_velocity_is_drift_minus_half_g2_score(process: str) -> None:
    """Song et al. (2021), equation 13; and the reverse drift takes the whole of g^2 (equation 6)."""
    sde = PROCESSES[process]
    x = MIXTURE.sample(len(TIMES), generator=generator(8))
    kernel = sde.kernel(TIMES)
    x = kernel.perturb(x, torch.randn(x.shape, generator=generator(9), dtype=torch.float64))
    x0_hat = MIXTURE.denoiser()(x, kernel)
    g2_score = match(sde.diffusion(TIMES) ** 2, x) * sd.score(MIXTURE.denoiser(), x, kernel)
    velocity = sde.velocity(x, x0_hat, TIMES)
    torch.testing.assert_close(velocity, sde.drift(x, TIMES) - 0.5 * g2_score, **CLOSE)
    torch.testing.assert_close(sde.reverse_drift(x, x0_hat, TIMES), sde.drift(x, TIMES) - g2_score, **CLOSE)
    torch.testing.assert_close(2.0 * velocity - sde.drift(x, TIMES), sde.reverse_drift(x, x0_hat, TIMES), **CLOSE)


# --- the discrete and the continuous view -------------------------------------------------------------------


def test_discrete_vp_tends_to_the_vp_sde() -> None:
    """max |log alpha_N - log alpha| over the times falls as 1/N."""
    sde, sizes = sd.VPSDE(), [100.0, 200.0, 400.0, 800.0, 1600.0]
    errors = [float((sd.DiscreteVP.linear(int(n)).log_alpha(TIMES) - sde.log_alpha(TIMES)).abs().max()) for n in sizes]
    assert -slope(sizes, errors) == pytest.approx(1.0, abs=0.1), errors
    assert errors[-1] < 0.05


def test_the_rates_of_discrete_vp_tend_to_those_of_the_vp_sde() -> None:
    sde, sizes = sd.VPSDE(), [200.0, 400.0, 800.0, 1600.0]
    errors = [float((sd.DiscreteVP.linear(int(n)).diffusion(TIMES) - sde.diffusion(TIMES)).abs().max()) for n in sizes]
    assert -slope(sizes, errors) == pytest.approx(1.0, abs=0.2), errors


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_discrete_ve_is_the_ve_sde_at_its_levels(n: int) -> None:
    ladder, sde = sd.DiscreteVE.geometric(0.01, 50.0, n), sd.VESDE(0.01, 50.0)
    torch.testing.assert_close(ladder.levels.sigma, sde.kernel(ladder.times).sigma, **CLOSE)
    torch.testing.assert_close(ladder.kernel(TIMES).sigma, sde.kernel(TIMES).sigma, **CLOSE)
    torch.testing.assert_close(ladder.diffusion(TIMES), sde.diffusion(TIMES), **CLOSE)


@pytest.mark.parametrize("n", [50, 1000])
def test_discrete_cosine_is_the_cosine_process_below_its_bound(n: int) -> None:
    """The product of 1 - beta telescopes to the cosine, up to the levels whose beta is clipped."""
    table, sde = sd.DiscreteVP.cosine(n), sd.CosineVPSDE()
    free = (table.betas < 0.999) & (table.times < 0.998)
    assert int(free.sum()) >= n - 3
    kernel, exact = table.levels[free], sde.kernel(table.times[free])
    torch.testing.assert_close(kernel.alpha, exact.alpha, **CLOSE)
    torch.testing.assert_close(kernel.sigma, exact.sigma, **CLOSE)
    angles = (table.times + 0.008) / 1.008 * math.pi / 2.0
    alpha_bar = angles.cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2.0) ** 2
    torch.testing.assert_close(kernel.alpha**2, alpha_bar[free], **CLOSE)


@pytest.mark.parametrize("sampler", ["euler_maruyama", "ddpm", "ddim", "euler"])
def test_a_sampler_gives_the_same_on_both_views_as_n_grows(sampler: str) -> None:
    """The same grid of times on DiscreteVP.linear(N) and on VPSDE: the samples approach as 1/N."""
    sde, sizes, errors = sd.VPSDE(), [250.0, 500.0, 1000.0, 2000.0], []
    for n in sizes:
        table = sd.DiscreteVP.linear(int(n))
        times = torch.linspace(1.0, 0.04, 25, dtype=torch.float64)
        pair = [draw(s, sd.TimeGrid(s, times), sampler) for s in (table, sde)]
        errors.append(float((pair[0] - pair[1]).square().mean().sqrt()))
    assert -slope(sizes, errors) == pytest.approx(1.0, abs=0.2), errors


# --- clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", SDES)
def test_eps_agrees_with_the_clipped_x0(process: str) -> None:
    """After clipping, alpha x0_hat + sigma eps_hat is x again, in sd.eps and inside DDIM's step."""
    sde = PROCESSES[process]
    clipped = sd.ClippedDenoiser(MIXTURE.denoiser(), -0.4, 0.5)
    now, next = sde.kernel(0.5), sde.kernel(0.4)
    x = now.perturb(
        MIXTURE.sample(16, generator=generator(1)),
        torch.randn(16, 2, generator=generator(2), dtype=torch.float64),
    )
    x0_hat = clipped(x, now)
    raw = MIXTURE.denoiser()(x, now)
    assert bool((x0_hat == raw.clamp(-0.4, 0.5)).all()) and bool((x0_hat != raw).any())
    torch.testing.assert_close(now.alpha * x0_hat + now.sigma * sd.eps(clipped, x, now), x, **CLOSE)
    grid = sd.TimeGrid(sde, torch.tensor([0.5, 0.4], dtype=torch.float64))
    out = sd.sample(clipped, grid=grid, x=x, sampler="ddim", finish="none")
    expected = next.alpha * x0_hat + next.sigma * (x - now.alpha * x0_hat) / now.sigma
    torch.testing.assert_close(out.x, expected, **CLOSE)
