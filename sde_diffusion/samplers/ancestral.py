"""Ancestral sampling and DDIM: steps through the exact posterior of the forward process.

The forward transition from the next (less noisy) node, N(a x_next, v), and x_next's own kernel (alpha', sigma') give

    q(x_next | x, x_0) = N( alpha' x_0 + a sigma'^2/sigma^2 (x - alpha x_0),  s^2 ),     s^2 = v sigma'^2 / sigma^2

(Ho et al. 2020, equations 6 and 7). Ancestral sampling draws from it with x0_hat for x_0, and with one of two
variances, the best choices for data of unit variance and for a single point (ibid., section 3.2): "beta", v itself,
or "posterior", s^2. In terms of eps_hat the mean is alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat. DDIM (Song et al.
2020, equation 12) scales the noise by eta, as a standard deviation:

    x_next = alpha' x0_hat + sqrt(sigma'^2 - eta^2 s^2) eps_hat + eta s n.

So eta = 1 is ancestral sampling with the posterior variance, which is DDPM; and eta = 0 draws no noise and is the
Euler step of the probability flow for x/alpha in the variable sigma/alpha (ibid., equation 14).

Written with the score, the mean is (x + v score)/a, the form of Song et al. (2021), Appendix F; there VP models use
the variance "beta" and VE models "posterior".
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError, choose
from sde_diffusion.grids import Node, TimeGrid
from sde_diffusion.kernel import Kernel, match
from sde_diffusion.noise import Generators
from sde_diffusion.prediction import eps_from_x0
from sde_diffusion.samplers.march import OnStep, march, march_flow
from sde_diffusion.sde import SDE


def _posterior_variance(now: Kernel, next: Kernel) -> Tensor:
    return now.after(next).variance * next.variance / now.variance


VARIANCES = {"beta": lambda now, next: now.after(next).variance, "posterior": _posterior_variance}


def ancestral_step(
    sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor, *, variance: str = "posterior"
) -> Tensor:
    """A draw from q(x_next | x, x0_hat) with the chosen variance, [B, *D]."""
    a, b = now.kernel, next.kernel
    pull = a.after(b).alpha * b.variance / a.variance
    mean = match(b.alpha - pull * a.alpha, x) * x0_hat + match(pull, x) * x
    return mean + match(choose("variance", variance, VARIANCES)(a, b).sqrt(), x) * noise


def ddim_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor, *, eta: float) -> Tensor:
    """alpha' x0_hat + sqrt(sigma'^2 - eta^2 s^2) eps_hat + eta s noise, [B, *D]."""
    variance = eta**2 * _posterior_variance(now.kernel, next.kernel)
    direction = (next.kernel.variance - variance).clamp_min(0.0).sqrt()
    mean = match(next.kernel.alpha, x) * x0_hat + match(direction, x) * eps_from_x0(x0_hat, x, now.kernel)
    return mean + match(variance.sqrt(), x) * noise


def ddim_flow_step(sde: SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor) -> Tensor:
    """alpha' x0_hat + sigma' eps_hat, DDIM's step with eta = 0, [B, *D]."""
    eps_hat = eps_from_x0(x0_hat, x, now.kernel)
    return match(next.kernel.alpha, x) * x0_hat + match(next.kernel.sigma, x) * eps_hat


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
    variance: str = "beta",
) -> Tensor:
    """Ancestral sampling of any process; one evaluation a step, stochastic. variance: "beta" or "posterior"."""
    return march(partial(ancestral_step, variance=variance), denoiser, x, grid, generator, on_step)


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
    variance: str = "posterior",
) -> Tensor:
    """DDPM's sampler (Ho et al. 2020, Algorithm 2): ancestral sampling, by default with the posterior variance."""
    return march(partial(ancestral_step, variance=variance), denoiser, x, grid, generator, on_step)


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    generator: Generators = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM; one evaluation a step, order 1 for eta = 0, where no noise is drawn; eta = 1 is DDPM. x: [B, *D]."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must lie in [0, 1], got {eta}")
    if eta == 0.0:
        return march_flow(ddim_flow_step, denoiser, x, grid, on_step)
    return march(partial(ddim_step, eta=eta), denoiser, x, grid, generator, on_step)
