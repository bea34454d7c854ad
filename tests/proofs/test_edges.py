"""The edges: fewest and most steps, one sample, one dimension, images, float32, bad models and bad requests.

The grid of each process is uniform but for two. EDM's equal steps in sigma would jump over the data in the last one, so
there it is that of its paper. A CosineVPSDE's rate is 999 at t = 1, where Euler-Maruyama is unstable on the first of 25
equal steps in t, so there it is logsnr.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from sde_diffusion.core.noise import randn
from sde_diffusion.core.noise_sources import NoiseSource, WhiteNoise
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, SAMPLERS, Denoise, generator, quick_denoiser, run
from tests.proofs.test_moments import deviation

ADAPTIVE = [name for name, row in ROWS.items() if row.nfe is None]
FIXED = [name for name, row in ROWS.items() if row.nfe is not None]
DENOISER = quick_denoiser(MIXTURES[2])


def grid_of(process: str, steps: int, t_end: float | None = None) -> sd.TimeGrid:
    kind = {"EDM": "karras", "CosineVPSDE": "logsnr"}.get(process, "uniform")
    return sd.make_grid(PROCESSES[process], steps, kind, t_end=t_end)


def evaluations(row: str, grid: sd.TimeGrid) -> int:
    """The row's claim; a Runge-Kutta start is one step longer where the first node has no signal, hence no log-SNR."""
    claims = ROWS[row]
    assert claims.nfe is not None and (claims.order is not None or "start" not in claims.options)
    silent = float(grid.nodes[0].kernel.alpha) == 0.0 and claims.options.get("start") == "runge_kutta"
    return claims.nfe(grid.steps) + 3 * (silent and grid.steps > (claims.order or 0))


def finite_run(row: str, denoiser: Denoise, shape: tuple[int, ...], grid: sd.TimeGrid) -> sd.Sample:
    """A run whose x and x0_hat are looked at in every step; adaptive samplers take wide tolerances."""
    options = {"rtol": 0.2, "atol": 0.2} if row in ADAPTIVE else {}
    seen: list[int] = []

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        assert x.shape == x0_hat.shape == shape
        assert math.isfinite((x + x0_hat).abs().sum()), (index, node)
        seen.append(index)

    out = run(row, denoiser, shape, grid, generator=generator(0), dtype=torch.float64, on_step=on_step, **options)
    assert out.x.shape == shape and bool(out.x.isfinite().all())
    assert seen == (list(range(grid.steps)) if ROWS[row].visits else [grid.steps - 1])
    return out


# --- steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("row", FIXED)
def test_every_step_is_finite_and_counted(row: str, process: str) -> None:
    """1, 2, 3 and 10 steps on three kinds of grid; under other options than its own on one of them in turn."""
    kinds = ("uniform", "karras", "logsnr")
    for kind in kinds if row in SAMPLERS else kinds[(len(row) + len(process)) % 3 :][:1]:
        for steps in (1, 2, 3, 10):
            grid = sd.make_grid(PROCESSES[process], steps, kind)
            assert finite_run(row, DENOISER, (2, 2), grid).nfe == evaluations(row, grid)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("row", ADAPTIVE)
def test_an_adaptive_sampler_does_not_know_the_steps(row: str, process: str) -> None:
    """One step is x0_hat at the prior; otherwise the ends of the grid are all that it takes from it."""
    assert finite_run(row, DENOISER, (2, 2), grid_of(process, 1)).nfe == 1
    two, three = (finite_run(row, DENOISER, (2, 2), grid_of(process, steps)) for steps in (2, 3))
    assert torch.equal(two.x, three.x) and two.nfe == three.nfe > 2


@pytest.mark.parametrize("process", PROCESSES)
def test_one_step_is_the_denoised_prior(process: str) -> None:
    """A grid of one node leaves nothing to a sampler but a corrector's steps there."""
    grid = grid_of(process, 1)
    x = grid.sde.prior_sample((3, 2), generator=generator(0), dtype=torch.float64)
    x0_hat = DENOISER(x, grid.nodes[0].kernel)
    for row in ROWS:
        if row.split()[0] not in ("pc", "annealed_langevin"):
            torch.testing.assert_close(run(row, DENOISER, grid=grid, x=x).x, x0_hat, rtol=1e-12, atol=1e-12)


EVERYWHERE = ("euler_maruyama", "unipc order=3")
"""Rows that take 1,000 steps on every process; the others on one, in turn."""
THOUSAND = [(row, process) for row in EVERYWHERE for process in PROCESSES] + [
    (row, list(PROCESSES)[i % len(PROCESSES)]) for i, row in enumerate(FIXED) if row not in EVERYWHERE
]
MEAN, STD = 0.7, 1.3


def one_gaussian(x: Tensor, kernel: sd.Kernel) -> Tensor:
    """E[x_0 | x_t] for N(MEAN, STD^2 I)."""
    alpha, noise = kernel.alpha.item(), kernel.sigma.item() ** 2
    total = alpha**2 * STD**2 + noise
    return x * (alpha * STD**2 / total) + MEAN * noise / total


@pytest.mark.parametrize(("row", "process"), THOUSAND)
def test_a_thousand_steps(row: str, process: str) -> None:
    grid = grid_of(process, 1000)
    assert finite_run(row, one_gaussian, (4, 2), grid).nfe == evaluations(row, grid)


# --- shapes -------------------------------------------------------------------------------------------------


def image_mixture(*shape: int) -> sd.GaussianMixture:
    g = generator(4)
    means = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return sd.GaussianMixture(means, 0.3 + torch.rand(2, *shape, generator=g, dtype=torch.float64), [1.0, 2.0])


SHAPED = ("VPSDE", "SubVPSDE", "EDM", "RectifiedFlow", "DiscreteVE")


@pytest.mark.parametrize(
    ("row", "process"), [(row, SHAPED[(i + shift) % len(SHAPED)]) for i, row in enumerate(ROWS) for shift in (0, 2)]
)
def test_an_image_is_a_vector(row: str, process: str) -> None:
    """Images [3, 4, 4] and their pixels in a row, under the same noise, remain the same, also for a batch of one."""
    images = image_mixture(3, 4, 4)
    vectors = sd.GaussianMixture(images.means.flatten(1), images.stds.flatten(1), images.weights)
    grid = grid_of(process, 2 if row in ADAPTIVE else 8)
    for batch in (1,) if row in ADAPTIVE else (1, 2):
        image = finite_run(row, images.denoiser(), (batch, 3, 4, 4), grid)
        vector = finite_run(row, vectors.denoiser(), (batch, 48), grid)
        assert image.nfe == vector.nfe
        # The squares of a norm, and of a component's exponent, may be added in another order.
        torch.testing.assert_close(image.x.flatten(1), vector.x, rtol=1e-9, atol=1e-9)


ONE_NUMBER = [(row, [*PROCESSES][(i + shift) % len(PROCESSES)]) for i, row in enumerate(FIXED) for shift in (0, 3, 5)]
"""Each row under three processes, in turn."""


@pytest.mark.parametrize(("row", "process"), ONE_NUMBER)
def test_one_dimension(row: str, process: str) -> None:
    """Data [1] in a batch of one and of three."""
    for batch in (1, 3):
        finite_run(row, image_mixture(1).denoiser(), (batch, 1), grid_of(process, 8))


# --- float32 ------------------------------------------------------------------------------------------------


def same_noise(seed: int) -> NoiseSource:
    """White noise that is drawn in float64 for every dtype."""
    own = generator(seed)
    return lambda step, now, next, like: randn(like.shape, own, dtype=torch.float64).to(like)


def both_precisions(row: str, process: str, grid: sd.TimeGrid) -> tuple[sd.Sample, sd.Sample]:
    """Samples in float64 and in float32, from the same x."""
    x = PROCESSES[process].prior_sample((16, 12), generator=generator(1), dtype=torch.float64)
    denoiser = MIXTURES[12].denoiser()
    double, single = (
        run(row, denoiser, grid=grid, x=x.to(dtype), noise=same_noise(2)) for dtype in (torch.float64, torch.float32)
    )
    assert double.x.dtype == torch.float64 and single.x.dtype == torch.float32
    return double, single


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("row", [row for row in FIXED if row != "pc langevin"])
def test_float32_is_within_1e4_of_float64(row: str, process: str) -> None:
    """1e-4 of data of scale 1 (and of x itself where an option leaves it larger), after 25 steps."""
    double, single = both_precisions(row, process, grid_of(process, 25))
    assert double.nfe == single.nfe
    torch.testing.assert_close(single.x.double(), double.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_float32_of_the_langevin_corrector(process: str) -> None:
    """The same down to sigma/alpha = 0.05, where float32 can still tell the score of smooth data.

    The corrector's step divides by |score|^2, and score = (alpha x0_hat - x)/sigma^2 is a difference of numbers that
    agree up to sigma^2: with data of scale 1 its relative error is some 1e-7/sigma^2, which is 1 at sigma = 3e-4.
    """
    sde = PROCESSES[process]
    t_end = float(sde.time_of(-2.0 * torch.tensor(0.05, dtype=torch.float64).log()))
    double, single = both_precisions("pc langevin", process, grid_of(process, 25, t_end))
    torch.testing.assert_close(single.x.double(), double.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_float32_of_the_adaptive_flow(process: str) -> None:
    """Its step sizes follow its own errors, so that the two differ by its tolerance of 1e-5 as well."""
    double, single = both_precisions("ode", process, grid_of(process, 2))
    assert abs(double.nfe - single.nfe) <= 12
    torch.testing.assert_close(single.x.double(), double.x, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("process", ["VPSDE", "SubVPSDE", "VESDE", "RectifiedFlow"])
def test_float32_of_the_adaptive_sde(process: str) -> None:
    """Another rounding makes other steps, hence other noise: it is the law of the samples that stays.

    A step is refused by an error that is known to some 1e-5, and the next size depends on it without damping, so that
    after some 100 steps the paths of float32 and float64 have nothing in common.
    """
    mixture = MIXTURES[2]
    shape, grid = (1000, 2), grid_of(process, 2)
    out = run("adaptive_sde", mixture.denoiser(), shape, grid, generator=generator(7), dtype=torch.float32)
    assert out.x.dtype == torch.float32
    found = deviation(out.x.double(), mixture)
    assert found.mean < 4.0 and found.trace < 4.0 and found.entry < 5.0, found


# --- correctors ---------------------------------------------------------------------------------------------

SNR = 0.16
"""The default of snr_target."""
CORRECTORS: dict[str, tuple[dict[str, str], Callable[[int], float]]] = {
    "annealed": ({"corrector": "annealed"}, lambda dims: 1.0),
    "batch": ({"corrector": "langevin", "norm": "batch"}, lambda dims: 1.0 + SNR**2),
    "sample": ({"corrector": "langevin", "norm": "sample"}, lambda dims: (1.0 + SNR**2) * (1.0 + 2.0 / dims) ** 2),
}
"""Options of pc, and the variance of a Gaussian in units of the truth that they lead to."""


@pytest.mark.parametrize(
    ("corrector_steps", "process"), [*((1, process) for process in PROCESSES), (3, "SubVPSDE"), (3, "EDM")]
)
@pytest.mark.parametrize("corrector", CORRECTORS)
def test_correctors_keep_the_variance_of_a_gaussian(corrector: str, corrector_steps: int, process: str) -> None:
    """Within 5 per cent, three standard errors, at 300 steps on a wide Gaussian in 12 dimensions.

    The annealed step is of the size of sigma, small against the data, and leaves their variance. That of "langevin" is
    of the data's own size. On N(0, V I) in D dimensions it is x' = (1 - e) x + sqrt(2 e V) n, e = 2 r^2 V |n|^2/|x|^2:

        norm="batch"   e = 2 r^2 where the variance is V, and V/(1 - e/2) = V (1 + r^2) to first order is stationary
        norm="sample"  e depends on x and n. E|x'|^2 = E|x|^2 holds for E[V/|x|^2] = 1/((D + 2)(1 + r^2)), and with the
                       density tilted by 1/e, to chi^2 of D + 2 degrees of freedom, the variance is
                       V (1 + 2/D)^2 (1 + r^2): one factor is the tilt, the other that of |n|^2 n n^T
    """
    options, law = CORRECTORS[corrector]
    dims, std = 12, 2.0

    def denoiser(x: Tensor, kernel: sd.Kernel) -> Tensor:
        alpha, sigma = kernel.alpha.item(), kernel.sigma.item()
        return x * (alpha * std**2 / (alpha**2 * std**2 + sigma**2))

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        assert bool(x.isfinite().all() and x0_hat.isfinite().all()), index

    out = sd.sample(
        denoiser,
        (600, dims),
        grid_of(process, 300),
        sampler="pc",
        corrector_steps=corrector_steps,
        generator=generator(3),
        dtype=torch.float64,
        on_step=on_step,
        **options,
    )
    assert out.nfe == 300 * (corrector_steps + 1)
    assert float(out.x.square().mean()) / std**2 == pytest.approx(law(dims), rel=0.05)


# --- models that fail ---------------------------------------------------------------------------------------


def angle(kernel: sd.Kernel) -> Tensor:
    """atan(sigma/alpha): the noise level between 0 and pi/2, also where alpha = 0."""
    return torch.atan2(kernel.sigma, kernel.alpha)


class Failing:
    """A denoiser that fails below a noise level that is another for every sample, and remembers where it did first.

    This level depends on x, and so on the noise: the second look at the steps must meet the same noise.
    """

    def __init__(self) -> None:
        self.first: sd.Kernel | None = None

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        unit = x[:, 0] / torch.hypot(kernel.alpha, kernel.sigma)
        bad = angle(kernel) < 0.4 + 0.3 * unit.tanh()
        if self.first is None and bool(bad.any()):
            self.first = kernel
        return DENOISER(x, kernel).where(~bad[:, None], float("nan"))


@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "RectifiedFlow"])
@pytest.mark.parametrize("row", FIXED)
@pytest.mark.parametrize("each", [False, True])
def test_a_model_that_is_not_finite_is_named_with_its_step(each: bool, row: str, process: str) -> None:
    """The step and its noise level, with one generator or one for each sample."""
    grid, failing = grid_of(process, 16), Failing()
    g = sd.sample_generators(3, range(8)) if each else generator(3)
    with pytest.raises(sd.UserError) as caught:
        run(row, failing, (8, 2), grid, generator=g, dtype=torch.float64)
    assert failing.first is not None
    step = int((angle(grid.levels.kernel) > angle(failing.first) - 1e-9).sum())
    assert 1 < step <= 16
    assert str(caught.value) == (
        f"the denoiser returned values that are not finite in step {step} of 16 "
        f"(alpha = {float(failing.first.alpha):.4g}, sigma = {float(failing.first.sigma):.4g})"
    )


@pytest.mark.parametrize("row", ["ddim", "ancestral", "heun"])
@pytest.mark.parametrize("step", [1, 2, 11, 20])
def test_the_step_is_counted_from_one(step: int, row: str) -> None:
    """A model without values at the level of node i fails in step i + 1."""
    grid = grid_of("VPSDE", 20)
    node = grid.nodes[step - 1].kernel

    def denoiser(x: Tensor, kernel: sd.Kernel) -> Tensor:
        return x * float("nan") if kernel.sigma == node.sigma else DENOISER(x, kernel)

    with pytest.raises(sd.UserError, match=re.escape(f"in step {step} of 20 (alpha = {float(node.alpha):.4g},")):
        run(row, denoiser, (2, 2), grid, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("row", ADAPTIVE)
def test_an_adaptive_sampler_names_the_level_of_a_model_that_is_not_finite(row: str) -> None:
    def denoiser(x: Tensor, kernel: sd.Kernel) -> Tensor:
        return MIXTURES[2].denoiser()(x, kernel) * torch.where(kernel.sigma < 0.5, torch.nan, 1.0).reshape(-1, 1)

    with pytest.raises(sd.UserError, match=r"not finite in step 1 of 2 \(alpha = .*, sigma = 0\.[0-4]\d*\)"):
        run(row, denoiser, (4, 2), grid_of("VPSDE", 2), generator=generator(0))


def test_a_sampler_that_diverges_is_told_from_a_model_that_does() -> None:
    """An x0_hat that is finite, and so large that one step of Euler's method leaves the range of numbers."""
    with pytest.raises(sd.UserError, match=r"the sampler diverged before step 2 of 2 \(alpha = 1, .*take more steps"):
        sd.sample(
            lambda x, kernel: 1e308 + 0.0 * x,
            (2, 2),
            grid_of("VESDE", 2),
            sampler="euler",
            dtype=torch.float64,
        )


@pytest.mark.parametrize("row", ROWS)
def test_an_output_of_another_shape_is_named(row: str) -> None:
    with pytest.raises(sd.UserError) as caught:
        run(row, lambda x, kernel: x[:, :1], (3, 2), grid_of("VPSDE", 5), generator=generator(0))
    assert "the denoiser returned (3, 1) for x of shape (3, 2) in step 1 of 5" in str(caught.value)


class Elsewhere:
    """A denoiser on a device of its own."""

    device = torch.device("meta")

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        return x


def test_x_on_another_device_than_the_denoiser() -> None:
    with pytest.raises(sd.UserError, match=r"x is on cpu and the denoiser on meta; bring x there with x.to\('meta'\)"):
        sd.sample(Elsewhere(), grid=grid_of("VPSDE", 5), x=torch.zeros(2, 2))


# --- bad requests -------------------------------------------------------------------------------------------

ORDERS = {"dpmpp_2m": 2, "dpmpp_2m_sde": 2, "dpmpp_3m": 3, "unipc": 3, "deis": 4, "lms": 4}
"""The highest order of every sampler that has an option for it."""


def refused(sentence: str, sampler: str, process: str = "VPSDE", **options: Any) -> None:
    with pytest.raises(sd.UserError, match=re.escape(sentence)):
        sd.sample(DENOISER, (2, 2), grid_of(process, 5), sampler=sampler, generator=generator(0), **options)


def test_every_sampler_with_an_order_is_tested() -> None:
    assert {name for name in sd.SAMPLERS if "order" in sd.samplers.sampler_options(name)} == set(ORDERS)


@pytest.mark.parametrize(("sampler", "most"), ORDERS.items())
def test_an_order_out_of_range(sampler: str, most: int) -> None:
    for order in (0, -1, most + 1, 1.5):
        sentence = f"of {sampler} must be a whole number from 1 to {most}, got {order}"
        refused(f"order {sentence}", sampler, order=order)
        refused(f"final_order {sentence}", sampler, final_order=order)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("kind", sd.GRIDS)
def test_fewer_than_one_step(kind: str, steps: int) -> None:
    with pytest.raises(sd.UserError, match=f"at least 1 step is needed, got {steps}"):
        sd.make_grid(PROCESSES["DiscreteVP"], steps, kind)


@pytest.mark.parametrize("process", ["DiscreteVP", "DiscreteVE"])
@pytest.mark.parametrize("kind", ["strided", "respaced"])
def test_more_steps_than_levels(kind: str, process: str) -> None:
    assert sd.make_grid(PROCESSES[process], 1000, kind).steps == 1000
    with pytest.raises(sd.UserError, match="1001 steps of a process of 1000 levels; choose 1 to 1000"):
        sd.make_grid(PROCESSES[process], 1001, kind)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2s"])
@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_of_the_unit_interval(eta: float, sampler: str) -> None:
    refused(f"eta must lie in [0, 1], got {eta}", sampler, eta=eta)


def test_eta_below_zero() -> None:
    refused("eta must be 0 (the flow) or more, 1 being the reverse SDE, got -0.1", "dpmpp_2m_sde", eta=-0.1)


def test_level_below_zero() -> None:
    refused("stochasticity must be 0 (the flow) or more, 1 being the reverse SDE, got -0.5", "ito", stochasticity=-0.5)


@pytest.mark.parametrize("stages", [0, 3])
def test_stages_that_heun_does_not_have(stages: int) -> None:
    refused(f"heun has 1 or 2 stages, got {stages}", "heun", stages=stages)


@pytest.mark.parametrize("options", [{"churn": -1.0}, {"churn_noise": -1.0}, {"churn_min": 2.0, "churn_max": 1.0}])
def test_churn_below_zero(options: dict[str, float]) -> None:
    refused("churn and churn_noise must be at least 0 and churn_min at most churn_max, got", "heun", **options)


@pytest.mark.parametrize("options", [{"corrector_steps": -1}, {"snr_target": 0.0}])
def test_a_corrector_without_size(options: dict[str, float]) -> None:
    refused("corrector_steps must be at least 0 and snr_target positive, got", "pc", **options)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}])
def test_tolerances_that_are_not_positive(options: dict[str, float]) -> None:
    refused("rtol and atol must be positive, got", "adaptive_sde", **options)


@pytest.mark.parametrize("variable", ["logsnr", "logsnr_scaled"])
def test_a_variable_without_a_start(variable: str) -> None:
    sentence = f"{variable} is infinite at t = 1, where alpha = 0; choose 'log_angle' or 't'"
    refused(sentence, "ode", "RectifiedFlow", variable=variable)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ADAPTIVE])
def test_no_step_waits_for_the_values_of_a_tensor(row: str) -> None:
    """On the meta device, where tensors have shapes and no values, whatever would wait for a GPU is an error."""
    sampler, options = sd.SAMPLERS[row.split()[0]], ROWS[row].options
    x = torch.empty(4, 3, device="meta")
    seen = []

    def denoiser(x: Tensor, kernel: sd.Kernel) -> Tensor:
        seen.append(x.device.type)
        return torch.empty_like(x)

    for norm in ["sample", "batch"] if row == "pc langevin" else [None]:
        named = options if norm is None else {**options, "norm": norm}
        out = sampler(denoiser, x, grid_of("VPSDE", 6), noise=WhiteNoise(generator(0)), **named)
        assert out.device.type == "meta" and out.shape == x.shape
    assert set(seen) == {"meta"}


def test_churn_without_noise_still_moves_to_the_raised_level() -> None:
    """The limit of churn_noise -> 0 is the step without noise: x brought to the raised level's signal scale."""
    grid, x = grid_of("VPSDE", 12), torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    none, hardly = (
        sd.sample(DENOISER, grid=grid, x=x, sampler="heun", generator=generator(0), churn=6.0, churn_noise=noise).x
        for noise in (0.0, 1e-12)
    )
    torch.testing.assert_close(none, hardly, rtol=1e-9, atol=1e-9)


def test_what_a_denoiser_returns_takes_the_dtype_of_x() -> None:
    x, oracle = torch.randn(3, 2, generator=generator(1)), MIXTURES[2].denoiser()

    def half(x: Tensor, kernel: sd.Kernel) -> Tensor:
        return oracle(x, kernel).to(torch.bfloat16)

    assert sd.sample(half, grid=grid_of("VPSDE", 5), x=x).x.dtype == torch.float32
    out = sd.sample(oracle, grid=grid_of("VPSDE", 2), x=x.half(), sampler="ode", rtol=1e-3, atol=1e-3)
    assert out.x.dtype == torch.float16


def test_other_bad_requests_are_one_sentence() -> None:
    grid, x = grid_of("VPSDE", 5), torch.zeros(3, 2)
    with pytest.raises(sd.UserError, match="returned a tuple, not a tensor"):
        sd.sample(lambda x, kernel: (x, x), grid=grid, x=x)
    with pytest.raises(sd.UserError, match="starting point x holds values that are not finite"):
        sd.sample(DENOISER, grid=grid, x=x * float("nan"))
    with pytest.raises(sd.UserError, match="stochasticity must be"):
        sd.sample(DENOISER, grid=grid, x=x, sampler="ito", stochasticity=float("nan"))
    with pytest.raises(sd.UserError, match="refinements must be 0 or more, got -1"):
        sd.ddim_inversion(DENOISER, x, grid, refinements=-1)
    with pytest.raises(sd.UserError, match=r"a batch \[B, \*D\] is needed, got shape \(3,\)"):
        sd.ddim_inversion(DENOISER, x[:, 0], grid)
    with pytest.raises(sd.UserError, match=r"returned \(3, 1\)"):
        sd.ddim_inversion(lambda x, kernel: x[:, :1], x, grid)


# --- inversion on coarse grids ------------------------------------------------------------------------------

FAR_APART = sd.GaussianMixture([[-2.0, 0.0], [1.0, 1.0]], [0.3, 0.6], [0.4, 0.6])
NARROW = sd.GaussianMixture([[-2.0, 0.0], [1.0, 1.0]], [0.05, 0.1], [0.4, 0.6])
COARSE = [
    (FAR_APART, "VPSDE", 5, "logsnr"),
    (FAR_APART, "VPSDE", 40, "uniform"),
    (FAR_APART, "DiscreteVP", 20, "strided"),
    (MIXTURES[12], "EDM", 10, "karras"),
    (NARROW, "VPSDE", 20, "uniform"),
    (NARROW, "RectifiedFlow", 10, "uniform"),
]
"""Where the fixed-point iteration with theta = 1 grows, for most rows or for all."""


@pytest.mark.parametrize(("mixture", "process", "steps", "kind"), COARSE)
def test_refinements_never_lead_back_less_well(
    mixture: sd.GaussianMixture, process: str, steps: int, kind: str
) -> None:
    """Row by row, for any number of them; and forty come to rounding, 1e-6 of data of scale 1, on every grid."""
    grid, x = sd.make_grid(PROCESSES[process], steps, kind), mixture.sample(100, generator=generator(0))

    def error(refinements: int) -> Tensor:
        z = sd.ddim_inversion(mixture.denoiser(), x, grid, refinements=refinements)
        return (sd.sample(mixture.denoiser(), x=z, grid=grid, finish="none").x - x).norm(dim=1)

    plain = error(0)
    for refinements in (1, 3, 10):
        assert bool((error(refinements) <= plain * (1.0 + 1e-9) + 1e-12).all()), refinements
    assert float(error(40).max()) < 1e-6 < 1e-2 < float(plain.max())


def test_an_inversion_takes_the_evaluations_that_it_says() -> None:
    """Without refinements one a step; with them one more each, and one at the first node."""
    gaussian = sd.GaussianMixture([[0.5, 0.0]], [0.4], [1.0])
    grid, x = sd.make_grid(sd.VPSDE(), 6, "logsnr"), gaussian.sample(3, generator=generator(0))
    for refinements, nfe in ((0, 5), (1, 5 + 5 + 1 + 3 * 5), (20, None)):
        counted = sd.CountingDenoiser(gaussian.denoiser())
        sd.ddim_inversion(counted, x, grid, refinements=refinements)
        # One Gaussian's F is linear, with one slope: the second theta solves it, and the third change is rounding.
        assert counted.nfe == nfe if nfe else counted.nfe <= 5 + 3 * 5 + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inversion_carries_half_precision_in_float32(dtype: torch.dtype) -> None:
    """The latent is that of float32, rounded once."""
    grid, x = sd.make_grid(sd.VPSDE(), 40, "logsnr"), MIXTURES[2].sample(6, generator=generator(0)).to(dtype)
    out = sd.ddim_inversion(MIXTURES[2].denoiser(), x, grid, refinements=2)
    assert out.dtype == dtype
    assert torch.equal(out, sd.ddim_inversion(MIXTURES[2].denoiser(), x.float(), grid, refinements=2).to(dtype))


# --- devices without float64 --------------------------------------------------------------------------------


class NoFloat64(torch.Tensor):
    """A tensor of a device without float64, as MPS: what would be one there raises, unless it goes to the CPU first."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in (*args[1:], *kwargs.values()))
        out = super().__torch_function__(func, types, args, kwargs)
        if leaves:
            return out.as_subclass(torch.Tensor)
        if isinstance(out, NoFloat64) and out.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


X32 = MIXTURES[2].sample(4, generator=generator(1)).float()
ROUND = sd.GaussianMixture(MIXTURES[2].means, [0.3, 0.4, 0.5], [1.0, 1.0, 2.0])
GRID = sd.make_grid(sd.VPSDE(), 9, "logsnr")
LOOSE = {"rtol": 1e-3, "atol": 1e-3}
ORACLE = MIXTURES[2].denoiser()
EVERYTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "encode": lambda x: sd.encode(ORACLE, x, sd.VPSDE(), **LOOSE),
    "encode dopri5": lambda x: sd.encode(ORACLE, x, sd.VPSDE(), method="dopri5", **LOOSE),
    "encode rk45": lambda x: sd.encode(ORACLE, x, sd.VPSDE(), method="rk45", **LOOSE),
    "decode": lambda x: sd.decode(ORACLE, x, sd.VPSDE(), **LOOSE),
    "round trip": lambda x: sd.round_trip(ORACLE, x, sd.VPSDE(), **LOOSE).error,
    "interpolate": lambda x: sd.interpolate(x, x.flip(0), torch.tensor([0.3])),
    "log_likelihood": lambda x: sd.log_likelihood(ORACLE, x, sd.VPSDE(), **LOOSE).nats,
    "elbo": lambda x: sd.elbo(ORACLE, x, GRID, levels=None, generator=generator(2)).per_sample.total,
    "vlb": lambda x: sd.vlb(ORACLE, x, sd.VPSDE(), levels=None, points=3, generator=generator(2)).per_sample.total,
    "inversion": lambda x: sd.ddim_inversion(ORACLE, x, GRID, refinements=3),
    "score": lambda x: sd.score(MIXTURES[2].denoiser(), x, sd.VPSDE().kernel(torch.full((4,), 0.3))),
    "round mixture": lambda x: ROUND.denoiser()(x, sd.VPSDE().kernel(torch.full((4,), 0.3))),
    "density": lambda x: ROUND.log_prob(x),
    "finite set": lambda x: sd.EmpiricalDenoiser(X32.flip(1))(x, sd.VPSDE().kernel(0.3)),
}
"""What takes a batch on a device."""


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_device_without_float64_is_no_obstacle(name: str) -> None:
    """The result of the CPU, to float32's precision through the steps of a solver."""
    run_it, there = EVERYTHING[name], X32.as_subclass(NoFloat64)
    with pytest.raises(TypeError, match="float64"):
        there.double()
    found, expected = run_it(there).cpu(), run_it(X32)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-3, atol=2e-3)


# --- shapes of what is no sampler ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encode", "decode", "inversion", "log_likelihood", "elbo", "vlb"])
def test_samples_without_axes_are_a_sentence(name: str) -> None:
    with pytest.raises(sd.UserError, match=r"a batch \[B, \*D\] .*got shape \(4,\)"):
        EVERYTHING[name](X32[:, 0])


@pytest.mark.parametrize("name", ["encode", "decode", "inversion", "log_likelihood", "elbo", "vlb"])
def test_no_row_is_no_row_or_a_sentence(name: str) -> None:
    if name in ("encode", "decode", "inversion"):
        assert EVERYTHING[name](X32[:0]).shape == (0, 2)
    else:
        with pytest.raises(sd.UserError, match=r"a batch \[B, \*D\] .*got shape \(0, 2\)"):
            EVERYTHING[name](X32[:0])


def test_a_volume_is_a_vector() -> None:
    """[1, 2, 2, 3] and its twelve numbers in a row, one sample: one likelihood, code, bound, inversion and score."""
    volumes = sd.GaussianMixture(
        MIXTURES[12].means.view(2, 1, 2, 2, 3), MIXTURES[12].stds.view(2, 1, 2, 2, 3), [1.0, 2.0]
    )
    x, sde = volumes.sample(1, generator=generator(3)), sd.VPSDE()
    vectors = sd.GaussianMixture(MIXTURES[12].means, MIXTURES[12].stds, [1.0, 2.0])

    def numbers(mixture: sd.GaussianMixture, x: Tensor) -> list[Tensor]:
        d = mixture.denoiser()
        return [
            sd.log_likelihood(d, x, sde, divergence="exact", **LOOSE).nats,
            sd.encode(d, x, sde, **LOOSE),
            sd.vlb(d, x, sde, levels=None, points=3, generator=generator(2)).total,
            sd.ddim_inversion(d, x, GRID, refinements=1),
            sd.score(d, x, sde.kernel(0.3)),
        ]

    for volume, vector in zip(numbers(volumes, x), numbers(vectors, x.flatten(1)), strict=True):
        torch.testing.assert_close(volume.flatten(), vector.flatten(), rtol=1e-9, atol=1e-9)
