"""Ancestral sampling and DDIM: steps through the exact posterior of the forward process.

The forward transition from the next (less noisy) node, N(a x_next, v), and x_next's own kernel (alpha', sigma') give

    q(x_next | x, x_0) = N( alpha' x_0 + a sigma'^2/sigma^2 (x - alpha x_0),  s^2 ),     s^2 = v sigma'^2 / sigma^2

(Ho et al. 2020, equations 6 and 7). Ancestral sampling draws from it with x0_hat for x_0, and with one of two
variances, the best choices for data of unit variance and for a single point (ibid., section 3.2): "beta", v itself,
or "posterior", s^2. In terms of eps_hat the mean is alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat. DDIM (Song et al.
2020, equation 12) scales the noise by eta, as a standard deviation:

    x_next = alpha' x0_hat + sqrt(sigma'^2 - eta^2 s^2) eps_hat + eta s n.

So eta = 1 is ancestral sampling with the posterior variance, which is DDPM; and eta = 0 draws no noise and is the
Euler step of the probability flow for x/alpha in the variable sigma/alpha (ibid., equation 14). That step also runs
upwards, from less noise to more: it takes data to the latents from which DDIM makes them again (ibid., section 4.3).

A network may learn the variance: its logarithm is interpolated between those of "posterior" and "beta" by a
fraction for every element of x (Nichol and Dhariwal 2021, equation 15).

Written with the score, the mean is (x + v score)/a, the form of Song et al. (2021), Appendix F; there VP models use
the variance "beta" and VE models "posterior".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import Kernel, beside, check_batch, combine, lifted
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser, moments
from sde_diffusion.denoisers.wrappers import CheckedDenoiser
from sde_diffusion.samplers.march import Coefficients, OneStep, OnStep, as_table, ignore_step, march, sample_norm, table


def _posterior_variance(now: Kernel, next: Kernel) -> Tensor:
    return now.after(next).variance * next.variance / now.variance


VARIANCES = {"beta": lambda now, next: now.after(next).variance, "posterior": _posterior_variance}


def ancestral_row(sde: SDE, now: Node, next: Node, *, variance: str = "posterior") -> Coefficients:
    """A draw from q(x_next | x, x0_hat) with the chosen variance."""
    a, b = now.kernel, next.kernel
    pull = a.after(b).alpha * b.variance / a.variance
    return pull, b.alpha - pull * a.alpha, choose("variance", variance, VARIANCES)(a, b).sqrt()


def check_eta(eta: float) -> None:
    """Raises UserError for an eta outside of [0, 1]."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must lie in [0, 1], got {eta}")


def ddim_row(sde: SDE, now: Node, next: Node, *, eta: float) -> Coefficients:
    """alpha' x0_hat + sqrt(sigma'^2 - eta^2 s^2) eps_hat + eta s n."""
    variance = eta**2 * _posterior_variance(now.kernel, next.kernel)
    keep = (next.kernel.variance - variance).clamp_min(0.0).sqrt() / now.kernel.sigma
    return keep, next.kernel.alpha - keep * now.kernel.alpha, variance.sqrt()


def ddim_flow_row(sde: SDE, now: Node, next: Node) -> Coefficients:
    """alpha' x0_hat + sigma' eps_hat, DDIM's step with eta = 0."""
    keep = next.kernel.sigma / now.kernel.sigma
    return keep, next.kernel.alpha - keep * now.kernel.alpha


def ancestral_rule(*, variance: str) -> OneStep:
    """The rule of `ancestral`."""
    choose("variance", variance, VARIANCES)
    return OneStep(partial(ancestral_row, variance=variance))


def ddpm_rule(*, variance: str) -> OneStep:
    """The rule of `ddpm`."""
    choose("variance", variance, dict.fromkeys([*VARIANCES, "learned"]))
    learned = variance == "learned"
    return OneStep(partial(ancestral_row, variance="posterior" if learned else variance), learned)


def ddim_rule(*, eta: float) -> OneStep:
    """The rule of `ddim`."""
    check_eta(eta)
    return OneStep(partial(ddim_row, eta=eta) if eta else ddim_flow_row)


def log_stds(now: Kernel, next: Kernel) -> Coefficients:
    """The log standard deviations of a step by beta and by the posterior, between which the variance is learned."""
    return tuple(0.5 * of(now, next).log() for of in VARIANCES.values())


def learned_std(ends: Sequence[float], fraction: Tensor) -> Tensor:
    """s_posterior^(1 - fraction) s_beta^fraction of every element, [B, *D]. ends: the two logarithms, beta's first."""
    beta, posterior = ends
    return torch.exp(posterior + (beta - posterior) * fraction)


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    variance: str = "beta",
) -> Tensor:
    """Ancestral sampling of any process; one evaluation a step, stochastic. variance: "beta" or "posterior"."""
    return march(ancestral_rule(variance=variance).row, denoiser, x, grid, noise, on_step)


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    variance: str = "posterior",
) -> Tensor:
    """DDPM's sampler (Ho et al. 2020, Algorithm 2): ancestral sampling, by default with the posterior variance.

    variance: "posterior", "beta", or "learned" where the network has it. x: [B, *D].
    """
    rule = ddpm_rule(variance=variance)
    if rule.learned:
        return _with_learned_variance(denoiser, x, grid, noise, on_step)
    return march(rule.row, denoiser, x, grid, noise, on_step)


def _with_learned_variance(
    denoiser: Denoiser, x: Tensor, grid: TimeGrid, noise: NoiseSource, on_step: OnStep | None
) -> Tensor:
    """DDPM with the standard deviation that the network says."""
    notify = on_step or ignore_step
    now, next = grid.levels[:-1], grid.levels[1:]
    means = as_table(ancestral_row(grid.sde, now, next)[:2])
    between = as_table(log_stds(now.kernel, next.kernel))
    for index, ((node, after), mean, ends) in enumerate(zip(grid.pairs(), means, between)):
        x0_hat, fraction = moments(denoiser, x, node.kernel)
        if fraction is None:
            raise UserError("variance='learned' needs a network that learned it; choose 'posterior' or 'beta'")
        notify(index, node, x, x0_hat)
        x = combine(mean, x, x0_hat).addcmul_(learned_std(ends, fraction), noise(index, node, after, x))
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM; one evaluation a step, order 1 for eta = 0, where no noise is drawn; eta = 1 is DDPM. x: [B, *D]."""
    return march(ddim_rule(eta=eta).row, denoiser, x, grid, noise, on_step)


@torch.no_grad()
def ddim_inversion(denoiser: Denoiser, x: Tensor, grid: TimeGrid, *, refinements: int = 0) -> Tensor:
    """The latent at the grid's first node of data x [B, *D] at its last node: DDIM's step, upwards.

    Each step takes x0_hat at the node where it starts, one evaluation, so that DDIM leads back to x up to its own
    first-order error. With refinements it is taken again at the node where the step ends, as DDIM will, `refinements`
    times at most, each one evaluation: the steps of a solver whose limit DDIM inverts exactly, on coarse grids too,
    where ten are enough for most and thirty for all of the mixtures that were tried. No row is led back to x less well
    than without refinements: where some step of the batch has not come to rounding, three more walks along the grid
    find out which of its two latents is the better one.

    Data of 16 bits are carried in float32, and come back in their dtype. Raises UserError for a negative number of
    refinements, for what is no batch, and for a denoiser that returns another shape or values that are not finite.
    """
    if refinements < 0:
        raise UserError(f"refinements must be 0 or more, got {refinements}")
    check_batch(x)
    denoiser, start = CheckedDenoiser(denoiser, grid.place, finite=True), lifted(x)
    latent, exact = _upwards(denoiser, start, grid, refinements)
    if not exact:
        both = _upwards(denoiser, start, grid, 0)[0], latent
        plain, refined = (sample_norm(march(ddim_flow_row, denoiser, z, grid, FRESH_NOISE, None) - start) for z in both)
        latent = torch.where(beside(refined < plain, x), latent, both[0])
    return latent.to(x.dtype)


def _upwards(denoiser: Denoiser, x: Tensor, grid: TimeGrid, refinements: int) -> tuple[Tensor, bool]:
    """The latent of x, and whether DDIM's step from each node leads back to rounding, or nothing was refined.

    DDIM's step down from z is keep z + pull x0_hat(z), and misses x by keep F(z),

        F(z) = z + (pull x0_hat(z) - x)/keep.

    As dx0_hat/dz is a covariance times alpha/sigma^2 for the exact denoiser, symmetric and not negative, F is the
    gradient of a convex function, and z - theta F(z) nears its one zero where theta is small enough. theta = 1, the
    fixed-point iteration of Pan et al. (2023), is not where a step is long in log-SNR. So each row takes its own, 1 at
    first and then that of the last change s of z and y of F,

        theta = s.y / y.y    (Barzilai and Borwein 1988, equation 5),

    and stays where it is if F has not become smaller, with the theta that the failure has taught.
    """
    nodes = grid.nodes
    up = as_table(ddim_flow_row(grid.sde, grid.levels[1:], grid.levels[:-1]))
    down = table(ddim_flow_row, grid)
    exact = True
    x0_hat = denoiser(x, nodes[-1].kernel) if up else x
    for index in reversed(range(len(up))):
        kernel, (keep, pull) = nodes[index].kernel, down[index]
        z = combine(up[index], x, x0_hat)
        if refinements or index:
            x0_hat = denoiser(z, kernel)
        if refinements:
            solve = (1.0, pull / keep, -1.0 / keep)
            missed = combine(solve, z, x0_hat, x)
            size, theta = sample_norm(missed), torch.ones_like(sample_norm(missed))
            rounding = 16.0 * torch.finfo(x.dtype).eps * (sample_norm(z) + sample_norm(x) / keep)
            for _ in range(refinements):
                if bool((size <= rounding).all()):
                    break
                trial = torch.addcmul(z, beside(theta, z), missed, value=-1.0)
                told = denoiser(trial, kernel)
                trial_missed = combine(solve, trial, told, x)
                moved, changed = (trial - z).flatten(1), (trial_missed - missed).flatten(1)
                trial_size = sample_norm(trial_missed)
                better = trial_size < size
                secant = (moved * changed).sum(1) / changed.square().sum(1)
                theta = torch.where((secant > 0.0) & (secant <= 1.0), secant, torch.where(better, theta, 0.5 * theta))
                size = torch.where(better, trial_size, size)
                here = beside(better, z)
                z, x0_hat = torch.where(here, trial, z), torch.where(here, told, x0_hat)
                missed = torch.where(here, trial_missed, missed)
            exact = exact and bool((size <= rounding).all())
        x = z
    return x, exact
