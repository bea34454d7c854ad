"""Latents against the flow written a second time, and what is said of codes, their circle and their temperature.

The reference is scipy's DOP853 at 1e-10 on the probability flow in its original variable, with the score and x0_hat of
a mixture in closed form, in numpy. It shares with the toolkit the schedules and their rates alone (tested in
tests/core/test_processes.py):

    dx/dt = alpha' x0_hat - (sigma^2)'/2 score(x)          (Song et al. 2021, equation 13, finite where alpha = 0)
    dy/dlog s = -s^2 score(y; s),  y = x/alpha, s = sigma/alpha     (Karras et al. 2022, equation 1)

The second is for DiscreteVP, whose rate jumps at each of a thousand levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.errors import TooManyEvaluations
from tests.proofs.cases import MIXTURES, PROCESSES, generator

Array = NDArray[np.float64]


def posterior(mixture: sd.GaussianMixture, x: Array, alpha: float, sigma: float) -> tuple[Array, Array]:
    """The score of the noisy marginal at x [B, d] and E[x_0 | x]."""
    means, variances = mixture.means.numpy(), mixture.stds.numpy() ** 2
    total = alpha**2 * variances + sigma**2
    away = x[:, None] - alpha * means
    logits = np.log(mixture.weights.numpy()) - 0.5 * (away**2 / total + np.log(total)).sum(2)
    r = np.exp(logits - logits.max(1, keepdims=True))
    r = (r / r.sum(1, keepdims=True))[:, :, None]
    return -(r * away / total).sum(1), (r * (means + alpha * variances / total * away)).sum(1)


def carried(field: Callable[[float, Array], Array], x: Array, start: float, end: float) -> Array:
    """x [B, d] along dx/du = field(u, x) from start to end."""
    solution = solve_ivp(
        lambda u, flat: field(u, flat.reshape(x.shape)).ravel(),
        (start, end),
        x.ravel(),
        method="DOP853",
        rtol=1e-10,
        atol=1e-10,
    )
    assert solution.success
    return solution.y[:, -1].reshape(x.shape)


@cache
def case(dims: int, process: str) -> tuple[Tensor, Tensor]:
    """Eight x at the smallest likelihood time and their latents by the reference."""
    mixture, sde = MIXTURES[dims], PROCESSES[process]
    x = mixture.sample(8, generator=generator(1))
    t_min = sde.t_likelihood

    def in_time(t: float, y: Array) -> Array:
        kernel = sde.kernel(t)
        score, x0_hat = posterior(mixture, y, float(kernel.alpha), float(kernel.sigma))
        return float(sde.alpha_rate(t)) * x0_hat - 0.5 * float(sde.variance_rate(t)) * score

    def in_log_sigma(u: float, y: Array) -> Array:
        return -math.exp(2.0 * u) * posterior(mixture, y, 1.0, math.exp(u))[0]

    if process != "DiscreteVP":
        return x, torch.as_tensor(carried(in_time, x.numpy(), t_min, 1.0))
    first, last = sde.kernel(t_min), sde.kernel(1.0)
    ends = [0.5 * -float(kernel.logsnr) for kernel in (first, last)]
    return x, last.alpha * torch.as_tensor(carried(in_log_sigma, (x / first.alpha).numpy(), ends[0], ends[1]))


every_case = pytest.mark.parametrize(
    ("dims", "process"), [(dims, process) for dims in MIXTURES for process in PROCESSES]
)


# --- codes --------------------------------------------------------------------------------------------------


@every_case
def test_a_code_is_the_end_of_the_exact_flow(dims: int, process: str) -> None:
    """`encode` and the likelihood's latent, to 1e-4 prior standard deviations. Measured: 4e-5."""
    mixture, sde = MIXTURES[dims], PROCESSES[process]
    x, exact = case(dims, process)
    found = {
        "encode": sd.encode(mixture.denoiser(), x, sde),
        "encode rk45": sd.encode(mixture.denoiser(), x, sde, method="rk45", rtol=1e-6, atol=1e-6),
        "likelihood": sd.log_likelihood(mixture.denoiser(), x, sde, rtol=1e-6, generator=generator(2)).latent,
    }
    assert float((exact / sde.prior_std - x).abs().max()) > 0.1
    for name, latent in found.items():
        assert float((latent - exact).abs().max()) / sde.prior_std < 1e-4, name


@every_case
def test_decoding_is_the_inverse(dims: int, process: str) -> None:
    """The reference's own latents are decoded to the x they came from."""
    mixture, sde = MIXTURES[dims], PROCESSES[process]
    x, exact = case(dims, process)
    tight = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(sd.decode(mixture.denoiser(), exact, sde, **tight), x, rtol=0.0, atol=1e-6)
    code = sd.encode(mixture.denoiser(), x, sde, **tight)
    torch.testing.assert_close(code / sde.prior_std, exact / sde.prior_std, rtol=0.0, atol=1e-6)


@every_case
def test_round_trip_returns_x_and_says_by_how_much(dims: int, process: str) -> None:
    """To 1e-3 at the default tolerances (measured: 4e-5); the error is the rms of what came back minus x."""
    mixture, sde = MIXTURES[dims], PROCESSES[process]
    x, exact = case(dims, process)
    counted = sd.CountingDenoiser(mixture.denoiser())
    trip = sd.round_trip(counted, x, sde)
    assert float((trip.decoded - x).abs().max()) < 1e-3
    assert float((trip.latent - exact).abs().max()) / sde.prior_std < 1e-4
    by_hand = [math.sqrt(sum(d * d for d in row) / dims) for row in (trip.decoded - x).tolist()]
    assert trip.error.tolist() == pytest.approx(by_hand, rel=1e-12)
    assert trip.nfe == counted.nfe
    loose = sd.round_trip(mixture.denoiser(), x, sde, rtol=1e-2, atol=1e-2)
    assert float(loose.error.mean()) > 10.0 * float(trip.error.mean())
    assert loose.nfe < trip.nfe


def test_the_last_step_may_be_rounded_beyond_the_end() -> None:
    """Where alpha(1) = 0 the angle ends at pi/2, and t + (1 - t) may be a little more: the end all the same.

    A hundred rows come to it by steps of different lengths. The exact code is x / s.
    """
    sde = sd.RectifiedFlow()
    for i in range(20):
        gaussian = sd.GaussianMixture([[0.0, 0.0]], [0.3 + 0.01 * i], [1.0])
        x = gaussian.sample(5, generator=generator(i))
        code = sd.encode(gaussian.denoiser(), x, sde)
        torch.testing.assert_close(code, x / (0.3 + 0.01 * i), rtol=1e-3, atol=1e-3)


def test_codes_of_the_data_are_normal() -> None:
    """400 samples of 12 numbers: mean 0, variance 1 and fourth moment 3, each within four standard errors.

    VP with beta_max = 60, whose p_1 is the prior.
    """
    mixture = MIXTURES[12]
    z = sd.encode(mixture.denoiser(), mixture.sample(400, generator=generator(3)), sd.VPSDE(0.1, 60.0), rtol=1e-4)
    count = z.numel()
    for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        assert float((z**power).mean()) == pytest.approx(mean, abs=4.0 * math.sqrt(variance / count)), power


def test_t_min_is_where_the_data_lie() -> None:
    """Of one Gaussian N(0, s^2), x at time t has the code x sqrt(v_1 / v_t), v = alpha^2 s^2 + sigma^2."""
    std, sde = 0.4, sd.VPSDE()
    gaussian = sd.GaussianMixture([[0.0, 0.0]], [std], [1.0])
    x = gaussian.sample(4, generator=generator(1))
    tight = {"rtol": 1e-9, "atol": 1e-9}

    def variance(t: float) -> Tensor:
        kernel = sde.kernel(t)
        return (kernel.alpha * std) ** 2 + kernel.variance

    for t in (1e-5, 0.02, 0.1):
        code = x * (variance(1.0) / variance(t)).sqrt()
        found = sd.encode(gaussian.denoiser(), x, sde, t_min=t, **tight)
        torch.testing.assert_close(found, code, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(sd.decode(gaussian.denoiser(), code, sde, t_min=t, **tight), x, rtol=1e-7, atol=1e-7)
        trip = sd.round_trip(gaussian.denoiser(), x, sde, t_min=t, **tight)
        torch.testing.assert_close(trip.latent, code, rtol=1e-7, atol=1e-7)
        assert float(trip.error.max()) < 1e-7


def test_codes_hold_no_graph_and_keep_the_dtype() -> None:
    """A network's parameters are left out, and float32 data have float32 codes, at float32's precision the same."""
    mixture, sde = MIXTURES[2], sd.VPSDE()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = mixture.sample(4, generator=generator(1))

    def denoiser(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        return mixture.denoiser()(x, kernel) * scale.to(x.dtype)

    wide = sd.round_trip(denoiser, x, sde)
    single = sd.round_trip(denoiser, x.float(), sde)
    assert not wide.latent.requires_grad and not wide.decoded.requires_grad and scale.grad is None
    assert single.latent.dtype == single.decoded.dtype == torch.float32
    torch.testing.assert_close(single.latent.double(), wide.latent, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("way", [sd.encode, sd.decode, sd.round_trip])
def test_what_cannot_be_carried_is_refused(way: Callable[..., object]) -> None:
    """Integers, times outside [0, 1], and the end without noise."""
    denoiser, x = MIXTURES[2].denoiser(), torch.ones(2, 2)
    if way is not sd.decode:  # a temperature makes numbers of integers
        with pytest.raises(sd.UserError, match=r"floating-point numbers, got torch.uint8"):
            way(denoiser, x.byte(), sd.EDM())
    for t in (-0.1, 2.0):
        with pytest.raises(sd.UserError, match=r"times lie in \[0, 1\], got "):
            way(denoiser, x, sd.VPSDE(), t_min=t)
    with pytest.raises(sd.UserError, match=r"begin or end at t = 0, where sigma = 0"):
        way(denoiser, x, sd.VPSDE(), t_min=0.0)


@pytest.mark.parametrize("way", [sd.encode, sd.decode, sd.round_trip])
def test_too_few_evaluations_say_how_far_they_came(way: Callable[..., object]) -> None:
    mixture = MIXTURES[12]
    with pytest.raises(TooManyEvaluations, match=r"more than 20 evaluations.* has come to t = "):
        way(mixture.denoiser(), mixture.sample(2, generator=generator(1)), sd.VPSDE(), max_nfe=20, rtol=1e-8)


# --- temperature --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_temperature_multiplies_the_data_of_a_centred_gaussian(process: str, temperature: float) -> None:
    """Its flow is linear, so that tau z is decoded to tau times what z is decoded to: x sqrt(v_t / v_1)."""
    std, sde = 0.4, PROCESSES[process]
    gaussian = sd.GaussianMixture([[0.0, 0.0, 0.0]], [std], [1.0])
    z = sde.prior_sample((5, 3), generator=generator(1), dtype=torch.float64)
    first, last = sde.kernel(sde.t_likelihood), sde.kernel(1.0)
    shrink = (((first.alpha * std) ** 2 + first.variance) / ((last.alpha * std) ** 2 + last.variance)).sqrt()
    found = sd.decode(gaussian.denoiser(), z, sde, temperature=temperature, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, temperature * shrink * z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", ["VPSDE", "EDM", "RectifiedFlow"])
def test_temperature_multiplies_the_code(process: str) -> None:
    mixture, sde = MIXTURES[12], PROCESSES[process]
    z = sde.prior_sample((4, 12), generator=generator(1), dtype=torch.float64)
    cool = sd.decode(mixture.denoiser(), z, sde, temperature=0.7)
    assert torch.equal(cool, sd.decode(mixture.denoiser(), 0.7 * z, sde))
    warm = sd.decode(mixture.denoiser(), z, sde)
    assert torch.equal(warm, sd.decode(mixture.denoiser(), z, sde, temperature=1.0))
    assert float((warm - cool).abs().max()) > 0.1


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(sd.UserError, match="the temperature must be positive, got"):
        sd.decode(MIXTURES[2].denoiser(), torch.zeros(1, 2), sd.VPSDE(), temperature=temperature)


# --- the great circle ---------------------------------------------------------------------------------------

WEIGHTS = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)


def normals(seed: int, n: int = 6, shape: tuple[int, ...] = (2, 3)) -> Tensor:
    return torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between the rows of [*, d], from their chord: exact for small angles too."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    return 2.0 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def test_interpolation_moves_at_a_steady_angle_on_the_sphere() -> None:
    """Between codes of one norm: that norm, in their plane, and w times their angle away from the first."""
    z0, z1 = normals(1), normals(2)
    z1 = z1 * (z0.flatten(1).norm(dim=1) / z1.flatten(1).norm(dim=1)).view(-1, 1, 1)
    path = sd.interpolate(z0, z1, WEIGHTS)
    assert path.shape == (9, *z0.shape)
    a, b, flat = z0.flatten(1), z1.flatten(1), path.flatten(2)
    torch.testing.assert_close(flat.norm(dim=2), a.norm(dim=1).expand(9, -1), rtol=1e-12, atol=1e-12)
    whole = angle(a, b)
    torch.testing.assert_close(angle(a.expand_as(flat), flat), WEIGHTS[:, None] * whole, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(angle(b.expand_as(flat), flat), (1.0 - WEIGHTS[:, None]) * whole, rtol=1e-7, atol=1e-10)


def test_interpolation_begins_and_ends_with_the_codes_of_any_norm() -> None:
    z0, z1 = 3.0 * normals(1), 0.5 * normals(2)
    ends = sd.interpolate(z0, z1, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends[0], z0, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(ends[1], z1, rtol=1e-15, atol=0.0)


def test_interpolation_of_normal_codes_is_normal() -> None:
    """4,000 rows of independent coordinates: variance 1 at w = 1/2, where the straight line would have 1/2.

    In 64 dimensions the angle is nearly a right one, with cos a of variance 1/64: E[1/(1 + cos a)] = 1 + 1/64.
    """
    middle = sd.interpolate(normals(1, 4000, (64,)), normals(2, 4000, (64,)), torch.tensor([0.5]))[0]
    assert float(middle.square().mean()) == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / (4000 * 64)) + 2e-3)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1.0 + 1e-9])
def test_parallel_codes_are_joined_by_the_straight_line(factor: float) -> None:
    z = normals(1)
    path = sd.interpolate(z, factor * z, WEIGHTS)
    expected = (1.0 + WEIGHTS * (factor - 1.0)).view(-1, 1, 1, 1) * z
    torch.testing.assert_close(path, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nudge", [1e-3, 1e-5, 1e-7, 1e-9])
def test_nearly_parallel_codes_meet_the_straight_line(nudge: float) -> None:
    """The chord and the arc differ by a^2/8 at most: nothing breaks where the formulas meet."""
    z, away = normals(1), normals(2)
    path = sd.interpolate(z, z + nudge * away, WEIGHTS)
    straight = z + nudge * WEIGHTS.view(-1, 1, 1, 1) * away
    assert float((path - straight).abs().max()) < 10.0 * nudge**2 + 1e-9


def test_antiparallel_and_zero_codes_give_numbers() -> None:
    """Opposite codes have no one great circle and a zero has no angle: the ends still are the codes."""
    z = normals(1)
    for z0, z1 in ((z, -z), (z, -2.0 * z), (z, torch.zeros_like(z)), (torch.zeros_like(z), torch.zeros_like(z))):
        path = sd.interpolate(z0, z1, WEIGHTS)
        assert bool(path.isfinite().all())
        torch.testing.assert_close(path[0], z0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(path[-1], z1, rtol=1e-12, atol=1e-12)
        largest = torch.maximum(z0.flatten(1).norm(dim=1), z1.flatten(1).norm(dim=1))
        assert bool((path.flatten(2).norm(dim=2) <= largest * (1.0 + 1e-12)).all())


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((2, 3), (2, 3, 1)), ((3,), (3,))])
def test_codes_of_other_shapes_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(sd.UserError, match=r"two batches \[B, \*D\] of one shape are needed, got \("):
        sd.interpolate(torch.ones(first), torch.ones(second), WEIGHTS)
