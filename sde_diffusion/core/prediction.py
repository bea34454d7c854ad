"""What a network may predict, and the one table that converts it to x0_hat = E[x_0 | x_t].

With x = alpha x_0 + sigma eps, each quantity is linear in (x, x_0), so that each network output `out` is one row

    x0_hat = c_skip x + c_out out

| prediction  | out                                | c_skip                  | c_out                     |
|-------------|------------------------------------|-------------------------|---------------------------|
| x0          | x_0                                | 0                       | 1                         |
| eps         | (x - alpha x_0) / sigma            | 1 / alpha               | -sigma / alpha            |
| score       | -eps / sigma                       | 1 / alpha               | sigma^2 / alpha           |
| sigma_score | -eps                               | 1 / alpha               | sigma / alpha             |
| v           | alpha eps - sigma x_0              | alpha / (a^2 + s^2)     | -sigma / (a^2 + s^2)      |
| velocity    | eps - x_0                          | 1 / (alpha + sigma)     | -sigma / (alpha + sigma)  |
| edm         | F of Karras et al. (2022), Table 1 | s_d^2 alpha / m         | sigma s_d / sqrt(m)       |

where m = sigma^2 + s_d^2 alpha^2 and s_d is the standard deviation of the data, 0.5 in the paper. v is Salimans
and Ho (2022), Appendix D, here for any kernel: alpha x - sigma v = (alpha^2 + sigma^2) x_0. The velocity is that of
rectified flow, dx/dt for its kernel alpha = 1 - t, sigma = t (Liu et al. 2022, equation 1; Lipman et al. 2022), here
for any kernel too: x - sigma u = (alpha + sigma) x_0. EDM's row is its D(x; sigma) applied to x / alpha at noise level
sigma / alpha. sigma_score is what NCSN's networks give before they divide by sigma (Song and Ermon 2020, Technique 3).

Where alpha = 0 the noise is all that x holds, so that eps and the scores say nothing of x_0: their rows are infinite
there, and a network that predicts them cannot begin at such a level.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, match

EDM_SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM's preconditioning assumes (Karras et al. 2022, Table 1)."""

Row = Callable[[Kernel, float], tuple[Tensor, Tensor]]
"""(kernel, standard deviation of the data) -> (c_skip, c_out)."""


def _x0(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    return k.alpha * 0.0, k.alpha * 0.0 + 1.0


def _eps(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, -k.sigma / k.alpha


def _score(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, k.variance / k.alpha


def _sigma_score(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, k.sigma / k.alpha


def _v(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    norm = k.alpha**2 + k.variance
    return k.alpha / norm, -k.sigma / norm


def _velocity(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    total = k.alpha + k.sigma
    return 1.0 / total, -k.sigma / total


def _edm(k: Kernel, sigma_data: float) -> tuple[Tensor, Tensor]:
    m = k.variance + (sigma_data * k.alpha) ** 2
    return sigma_data**2 * k.alpha / m, k.sigma * sigma_data / m.sqrt()


PREDICTIONS: dict[str, Row] = {
    "x0": _x0,
    "eps": _eps,
    "score": _score,
    "sigma_score": _sigma_score,
    "v": _v,
    "velocity": _velocity,
    "edm": _edm,
}


def blind_without_signal(prediction: str) -> bool:
    """Whether a prediction says nothing of x_0 where alpha = 0. Raises UserError for an unknown one."""
    c_skip, _ = choose("prediction", prediction, PREDICTIONS)(Kernel(0.0, 1.0), EDM_SIGMA_DATA)
    return not bool(c_skip.isfinite())


def to_x0(prediction: str, out: Tensor, x: Tensor, kernel: Kernel, *, sigma_data: float = EDM_SIGMA_DATA) -> Tensor:
    """x0_hat = c_skip x + c_out out, for a network output of any type. Shapes [B, *D].

    sigma_data: the standard deviation of the data, of which "edm" alone makes use. Raises UserError for an unknown
    prediction type, and for one that says nothing of x_0 at a level without signal.
    """
    if bool((kernel.alpha == 0.0).any()) and blind_without_signal(prediction):
        raise UserError(
            f"the network predicts {prediction!r}, which says nothing of x_0 where alpha = 0: start later, as with "
            "make_grid(..., t_start=0.99), or use a network that predicts 'v', 'x0' or 'velocity'"
        )
    c_skip, c_out = choose("prediction", prediction, PREDICTIONS)(kernel, sigma_data)
    return match(c_skip, x) * x + match(c_out, x) * out


def _noisy(quantity: str, kernel: Kernel) -> None:
    """Raises UserError where sigma = 0, and x holds no noise to tell."""
    if not bool((kernel.sigma > 0.0).all()):
        raise UserError(
            f"{quantity} does not exist where sigma = 0, the level of clean data at t = 0: it divides by sigma; take "
            "t >= 1e-5"
        )


def eps_from_x0(x0: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """eps = (x - alpha x_0) / sigma, the standard noise in x. Shapes [B, *D]. Raises UserError where sigma = 0."""
    _noisy("eps", kernel)
    return (x - match(kernel.alpha, x) * x0) / match(kernel.sigma, x)


def score_from_x0(x0: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """grad_x log p_t(x) = (alpha x_0 - x) / sigma^2 (Tweedie). Shapes [B, *D]. Raises UserError where sigma = 0."""
    _noisy("the score", kernel)
    return (match(kernel.alpha, x) * x0 - x) / match(kernel.variance, x)


def v_from_x0(x0: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022, Appendix D), [B, *D]. Raises UserError where sigma = 0."""
    _noisy("v", kernel)
    return match(kernel.alpha, x) * eps_from_x0(x0, x, kernel) - match(kernel.sigma, x) * x0


def velocity_from_x0(x0: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """u = eps - x_0 (Liu et al. 2022, equation 1), dx/dt of rectified flow, [B, *D]. UserError where sigma = 0."""
    _noisy("velocity", kernel)
    return eps_from_x0(x0, x, kernel) - x0
