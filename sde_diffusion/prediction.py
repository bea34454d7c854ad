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
| edm         | F of Karras et al. (2022), Table 1 | s_d^2 alpha / m         | sigma s_d / sqrt(m)       |

where m = sigma^2 + s_d^2 alpha^2 and s_d = 0.5 is EDM's standard deviation of the data. v is Salimans and
Ho (2022), Appendix D, here for any kernel: alpha x - sigma v = (alpha^2 + sigma^2) x_0. EDM's row is its
D(x; sigma) applied to x / alpha at noise level sigma / alpha. sigma_score is what NCSN's networks give
before they divide by sigma (Song and Ermon 2020, Technique 3).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sde_diffusion.errors import UserError, choose
from sde_diffusion.kernel import Kernel, match

EDM_SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM's preconditioning assumes (Karras et al. 2022, Table 1)."""

Row = Callable[[Kernel], tuple[Tensor, Tensor]]


def _x0(k: Kernel) -> tuple[Tensor, Tensor]:
    return k.alpha * 0.0, k.alpha * 0.0 + 1.0


def _eps(k: Kernel) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, -k.sigma / k.alpha


def _score(k: Kernel) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, k.variance / k.alpha


def _sigma_score(k: Kernel) -> tuple[Tensor, Tensor]:
    return 1.0 / k.alpha, k.sigma / k.alpha


def _v(k: Kernel) -> tuple[Tensor, Tensor]:
    norm = k.alpha**2 + k.variance
    return k.alpha / norm, -k.sigma / norm


def _edm(k: Kernel) -> tuple[Tensor, Tensor]:
    m = k.variance + (EDM_SIGMA_DATA * k.alpha) ** 2
    return EDM_SIGMA_DATA**2 * k.alpha / m, k.sigma * EDM_SIGMA_DATA / m.sqrt()


PREDICTIONS: dict[str, Row] = {
    "x0": _x0,
    "eps": _eps,
    "score": _score,
    "sigma_score": _sigma_score,
    "v": _v,
    "edm": _edm,
}


def to_x0(prediction: str, out: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """x0_hat = c_skip x + c_out out, for a network output of any type. Shapes [B, *D].

    Raises UserError for an unknown prediction type, and for one that says nothing of x_0 where alpha = 0.
    """
    c_skip, c_out = choose("prediction", prediction, PREDICTIONS)(kernel)
    if not bool(c_skip.isfinite().all() and c_out.isfinite().all()):
        raise UserError(
            f"a network that predicts {prediction!r} does not say x0_hat where alpha = 0, a level of noise alone: "
            "it is a quotient by alpha; predict v or x0, or begin below that level"
        )
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
