"""The conversion table: every row undoes its own definition, on every kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.core.prediction import (
    PREDICTIONS,
    blind_without_signal,
    eps_from_x0,
    score_from_x0,
    to_x0,
    v_from_x0,
    velocity_from_x0,
)
from tests.proofs.cases import PROCESSES, generator

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SIGMA_DATA = 0.7


def _edm_target(x0: Tensor, noise: Tensor, k: Kernel) -> Tensor:
    """F of Karras et al. (2022), Table 1, on y = x_0 + s eps with s = sigma/alpha: (x_0 - c_skip y) /
    c_out."""
    s = match(k.sigma / k.alpha, x0)
    y = x0 + s * noise
    c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
    c_out = s * SIGMA_DATA / (s**2 + SIGMA_DATA**2).sqrt()
    return (x0 - c_skip * y) / c_out


TARGETS: dict[str, Callable[[Tensor, Tensor, Kernel], Tensor]] = {
    "x0": lambda x0, noise, k: x0,
    "eps": lambda x0, noise, k: noise,
    "score": lambda x0, noise, k: -noise / match(k.sigma, x0),
    "sigma_score": lambda x0, noise, k: -noise,
    "v": lambda x0, noise, k: match(k.alpha, x0) * noise - match(k.sigma, x0) * x0,
    "velocity": lambda x0, noise, k: noise - x0,
    "edm": _edm_target,
}
"""What each network is trained to put out, from its definition."""
INVERSES = {"eps": eps_from_x0, "score": score_from_x0, "v": v_from_x0, "velocity": velocity_from_x0}
KERNELS: dict[str, Kernel] = {
    name: sde.kernel(torch.linspace(0.05, 0.95, 7, dtype=torch.float64)) for name, sde in PROCESSES.items()
} | {"arbitrary": Kernel(torch.logspace(-2, 1, 7), torch.logspace(1, -2, 7))}


def draw() -> tuple[Tensor, Tensor]:
    x0, noise = torch.randn(2, 7, 3, generator=generator(0), dtype=torch.float64)
    return x0, noise


def test_every_prediction_has_a_row() -> None:
    assert set(TARGETS) == set(PREDICTIONS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("prediction", TARGETS)
def test_a_row_recovers_x0_from_its_target(prediction: str, kernel: str) -> None:
    k, (x0, noise) = KERNELS[kernel], draw()
    out = TARGETS[prediction](x0, noise, k)
    found = to_x0(prediction, out, k.perturb(x0, noise), k, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(found, x0, **CLOSE)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_inverses(kernel: str) -> None:
    k, (x0, noise) = KERNELS[kernel], draw()
    x = k.perturb(x0, noise)
    for name, inverse in INVERSES.items():
        torch.testing.assert_close(inverse(x0, x, k), TARGETS[name](x0, noise, k), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(to_x0(name, inverse(x0, x, k), x, k), x0, **CLOSE)


def test_edm_row_is_table_1_at_alpha_1() -> None:
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    for data in (0.5, 0.2):
        c_skip, c_out = PREDICTIONS["edm"](Kernel(1.0, sigma), data)
        torch.testing.assert_close(c_skip, data**2 / (sigma**2 + data**2), **CLOSE)
        torch.testing.assert_close(c_out, sigma * data / (data**2 + sigma**2).sqrt(), **CLOSE)


def test_edm_of_larger_data_is_edm_of_data_in_its_unit() -> None:
    """x = alpha s y_0 + sigma eps for x_0 = s y_0: the kernel (s alpha, sigma) of data of unit variance."""
    k, s = KERNELS["arbitrary"], 0.3
    (c_skip, c_out), (unit_skip, unit_out) = (
        PREDICTIONS["edm"](k, s),
        PREDICTIONS["edm"](Kernel(s * k.alpha, k.sigma), 1.0),
    )
    torch.testing.assert_close(c_skip, s * unit_skip, **CLOSE)
    torch.testing.assert_close(c_out, s * unit_out, **CLOSE)


def test_velocity_is_that_of_rectified_flow() -> None:
    """dx/dt = eps - x_0 for x = (1 - t) x_0 + t eps (Liu et al. 2022, equation 1): `SDE.velocity`, and x0 = x - t u."""
    flow, t = PROCESSES["RectifiedFlow"], torch.linspace(0.01, 1.0, 7, dtype=torch.float64)
    k, (x0, noise) = flow.kernel(t), draw()
    x = k.perturb(x0, noise)
    torch.testing.assert_close(velocity_from_x0(x0, x, k), flow.velocity(x, x0, t), **CLOSE)
    torch.testing.assert_close(to_x0("velocity", noise - x0, x, k), x - t[:, None] * (noise - x0), **CLOSE)


@pytest.mark.parametrize("prediction", TARGETS)
def test_without_signal(prediction: str) -> None:
    """Where alpha = 0 x is noise: x0, v, velocity and edm still say what x_0 is, eps and scores are refused by name."""
    k, (x0, noise) = Kernel(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 2.0])), draw()
    x0, noise = x0[:2], noise[:2]
    x = k.perturb(x0, noise)
    blind = prediction in ("eps", "score", "sigma_score")
    assert blind_without_signal(prediction) is blind
    if blind:
        with pytest.raises(
            UserError, match=f"predicts '{prediction}', which says nothing of x_0 where alpha = 0: start"
        ):
            to_x0(prediction, TARGETS[prediction](x0, noise, k), x, k)
    else:  # EDM's F from x_0 itself, for its own s is infinite here
        c_skip, c_out = PREDICTIONS[prediction](k, 0.5)
        out = (x0 - match(c_skip, x) * x) / match(c_out, x)
        torch.testing.assert_close(to_x0(prediction, out, x, k), x0, **CLOSE)


def test_v_row_on_the_unit_circle_is_salimans_and_ho() -> None:
    """alpha x - sigma v for alpha^2 + sigma^2 = 1 (Appendix D)."""
    angle = torch.linspace(0.1, 1.4, 9, dtype=torch.float64)
    c_skip, c_out = PREDICTIONS["v"](Kernel(angle.cos(), angle.sin()), SIGMA_DATA)
    torch.testing.assert_close(c_skip, angle.cos(), **CLOSE)
    torch.testing.assert_close(c_out, -angle.sin(), **CLOSE)


def test_an_unknown_prediction_is_answered() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="did you mean 'score'"):
        to_x0("scores", x, x, Kernel(1.0, 1.0))


@pytest.mark.parametrize("sigma", [0.0, [0.3, 0.0]])
@pytest.mark.parametrize(
    ("name", "inverse"),
    [("eps", eps_from_x0), ("the score", score_from_x0), ("v", v_from_x0)],
    ids=["eps", "score", "v"],
)
def test_clean_data_have_no_noise_to_tell(
    name: str, inverse: Callable[[Tensor, Tensor, Kernel], Tensor], sigma: float | list[float]
) -> None:
    """Where sigma = 0, for one level and for one a sample; at any other level they are as before."""
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(UserError, match=rf"^{name} does not exist where sigma = 0.*take t >= 1e-5$"):
        inverse(x, x, Kernel(1.0, torch.tensor(sigma)))
    assert bool(inverse(x, x, Kernel(1.0, 1e-9)).isfinite().all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_alone_says_nothing_of_x0_but_by_v_and_x0(prediction: str) -> None:
    """alpha = 0: quotients by alpha are refused; the others are the network's own output, with their sign."""
    out = torch.full((2, 3), 0.7, dtype=torch.float64)
    at_one = {"x0": out, "v": -out, "edm": 0.5 * out, "velocity": 4.0 * out}
    if prediction in at_one:
        torch.testing.assert_close(to_x0(prediction, out, 5.0 * out, Kernel(0.0, 1.0)), at_one[prediction], **CLOSE)
    else:
        with pytest.raises(UserError, match=f"predicts '{prediction}', which says nothing of x_0 where alpha = 0"):
            to_x0(prediction, out, out, Kernel(0.0, 1.0))
