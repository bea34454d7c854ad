"""Multistep samplers: what each continues over the step, and its moments. See adams.py for the method.

    deis          eps, u = lam or t, exact moments                     Zhang and Chen 2023, AB-DEIS
    lms           eps, u = sigma/alpha, exact moments, which makes it Adams-Bashforth for x/alpha
    dpmpp_2m      x0, u = lam, m_1 = m_0/2 ("midpoint") or exact       Lu et al. 2022b, Algorithm 2
    dpmpp_3m      x0, u = lam, exact, or m_2/2 ("published")           the same authors' code
    dpmpp_2m_sde  dpmpp_2m on the reverse SDE                          Lu et al. 2022b, SDE-DPM-Solver++
    unipc         x0 or eps, u = lam, m_1 = B(h)/2 where there are two moments, otherwise exact, with the corrector;
                  B_1(h) = h, B_2(h) = m_0                             Zhao et al. 2023, Algorithms 1 and 2

The published third-order formula gives the second difference half its weight, and so has order 2 at best, which the
figures of its own code base show. The exact one has order 3.
"""

from __future__ import annotations

from torch import Tensor, cat

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import TimeGrid
from sde_diffusion.core.noise_sources import FRESH_NOISE, NoiseSource
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.samplers.adams import OUTPUTS, VARIABLES, Adams, Moments, Scheme, check_orders, exact, multistep
from sde_diffusion.samplers.march import OnStep


def midpoint(h: Tensor, moments: Tensor) -> Tensor:
    """m_1 = m_0/2, as if f changed at once, in the middle of the step's weight."""
    return cat([moments[:, :1], 0.5 * moments[:, :1]], dim=1)


def published_3m(h: Tensor, moments: Tensor) -> Tensor:
    """Half of m_2 in the third order, and the midpoint's moments in the second."""
    return midpoint(h, moments) if moments.shape[1] == 2 else cat([moments[:, :2], 0.5 * moments[:, 2:]], dim=1)


def unipc_b1(h: Tensor, moments: Tensor) -> Tensor:
    """m_1 = h/2 where there are two moments."""
    return cat([moments[:, :1], 0.5 * h[:, None]], dim=1) if moments.shape[1] == 2 else moments


def unipc_b2(h: Tensor, moments: Tensor) -> Tensor:
    """m_1 = m_0/2 where there are two moments."""
    return midpoint(h, moments) if moments.shape[1] == 2 else moments


SOLVERS_2M: dict[str, Moments] = {"midpoint": midpoint, "exact": exact}
SOLVERS_3M: dict[str, Moments] = {"exact": exact, "published": published_3m}
UNIPC_B: dict[str, Moments] = {"b1": unipc_b1, "b2": unipc_b2}


def dpmpp_2m_rule(*, order: int, solver: str, final_order: int | None) -> Scheme:
    """The rule of `dpmpp_2m`."""
    check_orders("dpmpp_2m", order, 2, final_order)
    method = Adams(OUTPUTS["x0"], VARIABLES["logsnr"], choose("solver", solver, SOLVERS_2M))
    return Scheme(method, order, final_order=final_order)


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 2,
    solver: str = "midpoint",
    final_order: int | None = None,
) -> Tensor:
    """DPM-Solver++(2M); one evaluation a step, deterministic, order 2 (order=1 is DDIM).

    solver: "midpoint", or "exact" (called "heun" or "taylor" elsewhere). final_order: lowers the last steps to it.
    x: [B, *D].
    """
    rule = dpmpp_2m_rule(order=order, solver=solver, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)


def dpmpp_3m_rule(*, order: int, solver: str, start: str, final_order: int | None) -> Scheme:
    """The rule of `dpmpp_3m`."""
    check_orders("dpmpp_3m", order, 3, final_order)
    method = Adams(OUTPUTS["x0"], VARIABLES["logsnr"], choose("solver", solver, SOLVERS_3M))
    return Scheme(method, order, start, final_order)


def dpmpp_3m(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 3,
    solver: str = "exact",
    start: str = "ramp",
    final_order: int | None = None,
) -> Tensor:
    """DPM-Solver++(3M); one evaluation a step, deterministic, order 3 with start="runge_kutta", otherwise 2.

    solver: "exact", or "published" for the formula of its authors' code, of order 2. start: "ramp" or "runge_kutta".
    final_order: lowers the last steps to it. x: [B, *D].
    """
    rule = dpmpp_3m_rule(order=order, solver=solver, start=start, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)


def dpmpp_2m_sde_rule(*, order: int, solver: str, eta: float, final_order: int | None) -> Scheme:
    """The rule of `dpmpp_2m_sde`."""
    check_orders("dpmpp_2m_sde", order, 2, final_order)
    if not eta >= 0:
        raise UserError(f"eta must be 0 (the flow) or more, 1 being the reverse SDE, got {eta}")
    method = Adams(OUTPUTS["x0"], VARIABLES["logsnr"], choose("solver", solver, SOLVERS_2M), eta)
    return Scheme(method, order, final_order=final_order)


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 2,
    solver: str = "midpoint",
    eta: float = 1.0,
    final_order: int | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M); one evaluation a step, stochastic.

    eta multiplies the variance of the noise: 1 is the reverse SDE, 0 is dpmpp_2m and draws none. x: [B, *D].
    """
    rule = dpmpp_2m_sde_rule(order=order, solver=solver, eta=eta, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)


def unipc_rule(
    *,
    order: int,
    b: str,
    corrector: bool,
    output: str,
    start: str,
    final_order: int | None,
) -> Scheme:
    """The rule of `unipc`."""
    check_orders("unipc", order, 3, final_order)
    method = Adams(choose("output", output, OUTPUTS), VARIABLES["logsnr"], choose("B(h)", b, UNIPC_B))
    return Scheme(method, order, start, final_order, corrector)


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 2,
    b: str = "b2",
    corrector: bool = True,
    output: str = "x0",
    start: str = "ramp",
    final_order: int | None = None,
) -> Tensor:
    """UniPC; one evaluation a step, deterministic, of at least the given order 1 to 3.

    b: "b1" or "b2", the function B(h). corrector: find x again at each node once x0_hat is known there. output: "x0" or
    "eps". start: "ramp", or "runge_kutta", without which order 3 is not reached. final_order: lowers the last steps to
    it. x: [B, *D].
    """
    rule = unipc_rule(order=order, b=b, corrector=corrector, output=output, start=start, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)


def deis_rule(*, order: int, variable: str, start: str, final_order: int | None) -> Scheme:
    """The rule of `deis`."""
    check_orders("deis", order, 4, final_order)
    method = Adams(OUTPUTS["eps"], choose("variable", variable, VARIABLES))
    return Scheme(method, order, start, final_order)


def deis(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 3,
    variable: str = "logsnr",
    start: str = "ramp",
    final_order: int | None = None,
) -> Tensor:
    """DEIS, exponential Adams-Bashforth on eps; one evaluation a step, deterministic, of the given order 1 to 4.

    variable: what eps is a polynomial in: "logsnr", "t", or "sigma" (sigma/alpha). start: "ramp", or "runge_kutta",
    without which orders 3 and 4 are not reached. final_order: lowers the last steps to it. x: [B, *D].
    """
    rule = deis_rule(order=order, variable=variable, start=start, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)


def lms_rule(*, order: int, start: str, final_order: int | None) -> Scheme:
    """The rule of `lms`."""
    check_orders("lms", order, 4, final_order)
    return Scheme(Adams(OUTPUTS["eps"], VARIABLES["sigma"]), order, start, final_order)


def lms(
    denoiser: Denoiser,
    x: Tensor,
    grid: TimeGrid,
    *,
    noise: NoiseSource = FRESH_NOISE,
    on_step: OnStep | None = None,
    order: int = 4,
    start: str = "ramp",
    final_order: int | None = None,
) -> Tensor:
    """Linear multistep (Adams-Bashforth) in sigma/alpha; one evaluation a step, deterministic, of order 1 to 4.

    It is deis with variable="sigma". start: "ramp", or "runge_kutta", without which orders 3 and 4 are not reached.
    final_order: lowers the last steps to it. x: [B, *D].
    """
    rule = lms_rule(order=order, start=start, final_order=final_order)
    return multistep(rule, denoiser, x, grid, noise, on_step)
