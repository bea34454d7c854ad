"""Where a sampling starts: the noise of its first node, priors, data; dtypes of the state; derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from sde_diffusion.denoisers import priors
from sde_diffusion.nets import NETWORKS
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, generator, quick_denoiser, run

DENOISER = quick_denoiser(MIXTURES[2])
FIXED = [name for name, row in ROWS.items() if row.nfe is not None]


def first_state(grid: sd.TimeGrid, **named: object) -> Tensor:
    """x at the first node."""
    seen: list[Tensor] = []

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        seen.append(x)

    named = {"shape": (4000, 2), "generator": generator(3), "dtype": torch.float64, **named}
    sd.sample(DENOISER, grid=grid, on_step=on_step, **named)  # type: ignore[arg-type]
    return seen[0]


# --- the noise of the first node ----------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_a_start_has_the_noise_of_its_own_node(process: str) -> None:
    """From t = 1 the process's prior; below it the same normals, smaller as sigma is."""
    sde = PROCESSES[process]
    whole = sd.make_grid(sde, 40, "logsnr")
    normals = torch.randn(4000, 2, generator=generator(3), dtype=torch.float64)
    assert torch.equal(first_state(whole), sde.prior_std * normals)
    low = whole.levels.kernel.snr <= 0.1
    for index in (1, int(low.sum()) - 1):
        grid = sd.TimeGrid(sde, whole.times[index:])
        std = sde.prior_std * float(grid.nodes[0].kernel.sigma / sde.kernel(1.0).sigma)
        torch.testing.assert_close(first_state(grid), std * normals, rtol=1e-12, atol=1e-12)
    with pytest.raises(sd.UserError, match=r"starts at log-SNR .*below log-SNR -2\.3, from data .* or name a prior"):
        sd.sample(DENOISER, (3, 2), sd.TimeGrid(sde, whole.times[int(low.sum()) :]))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_published_spacings_start_at_their_own_level(spacing: str) -> None:
    ve = sd.DiscreteVE.geometric()
    for grid in (sd.make_grid(ve, 10, "strided", spacing=spacing), sd.make_grid(ve, 10, "respaced", sections="ddim10")):
        sigma = float(grid.nodes[0].kernel.sigma)
        assert abs(float(first_state(grid).std()) / sigma - 1.0) < 0.05


def test_a_named_prior_is_taken_anywhere() -> None:
    sde = sd.VESDE()
    grid = sd.TimeGrid(sde, sd.make_grid(sde, 20, "logsnr").times[12:])
    kernel, normals = grid.nodes[0].kernel, torch.randn(4000, 2, generator=generator(3), dtype=torch.float64)
    for prior in ("process", sd.ProcessPrior()):
        torch.testing.assert_close(first_state(grid, prior=prior), float(kernel.sigma) * normals, rtol=1e-12, atol=0)
    data = MIXTURES[2].sample(5000, generator=generator(1))
    fitted = sd.GaussianPrior.fit(data)
    std = (data.std(0) ** 2 + kernel.variance).sqrt()
    x = first_state(grid, prior=fitted)
    torch.testing.assert_close(x, data.mean(0) + std * normals, rtol=1e-12, atol=1e-12)
    truth = torch.distributions.Normal(data.mean(0), std).log_prob(x).sum(1)
    torch.testing.assert_close(priors.log_prob(fitted, sde, kernel, x), truth, rtol=1e-12, atol=1e-12)


def test_the_priors_density_is_that_of_its_draws() -> None:
    """alpha enters the fitted one: mean alpha m and variance alpha^2 s^2 + sigma^2, under a VP process."""
    sde, x = sd.VPSDE(), torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    mean, std = torch.tensor([0.3, -0.2, 1.0]).double(), torch.tensor([0.5, 1.5, 0.1]).double()
    kernel = sde.kernel(0.4)
    own = torch.distributions.Normal(kernel.alpha * mean, ((kernel.alpha * std) ** 2 + kernel.variance).sqrt())
    found = priors.log_prob(sd.GaussianPrior(mean, std), sde, kernel, x)
    torch.testing.assert_close(found, own.log_prob(x).sum(1), rtol=1e-12, atol=1e-12)
    for process in PROCESSES.values():
        found = priors.log_prob("process", process, process.kernel(1.0), x)
        torch.testing.assert_close(found, process.prior_logp(x), rtol=1e-12, atol=1e-12)


def test_a_likelihood_with_the_fitted_prior_is_exact_for_one_gaussian() -> None:
    """Data of N(m, s^2) have exactly the fitted prior's law at t = 1, however much signal is left there."""
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.7, 2.0]).double()
    gaussian, sde = sd.GaussianMixture(mean[None], std[None], [1.0]), sd.VESDE(0.01, 1.5)
    x = gaussian.sample(4, generator=generator(1))
    own, fitted = (
        sd.log_likelihood(gaussian.denoiser(), x, sde, prior=prior, rtol=1e-9, atol=1e-9).nats
        for prior in ("process", sd.GaussianPrior(mean, std))
    )
    truth = gaussian.log_prob(x, sde.kernel(sde.t_likelihood))
    torch.testing.assert_close(fitted, truth, rtol=1e-7, atol=1e-7)
    assert float((own - truth).abs().min()) > 0.1


def test_priors_that_are_none() -> None:
    grid, x = sd.make_grid(sd.VPSDE(), 5), torch.zeros(2, 2)
    with pytest.raises(sd.UserError, match="did you mean 'process'"):
        sd.sample(DENOISER, (2, 2), grid, prior="proces")
    with pytest.raises(sd.UserError, match=r"made from data: give sd\.GaussianPrior\.fit"):
        sd.sample(DENOISER, (2, 2), grid, prior="gaussian")
    with pytest.raises(sd.UserError, match="x is given"):
        sd.sample(DENOISER, grid=grid, x=x, prior="process")
    with pytest.raises(sd.UserError, match="two samples or more"):
        sd.GaussianPrior.fit(x[:1])


def test_edit_is_a_start_from_data_with_noise() -> None:
    sde = sd.VPSDE()
    grid = sd.TimeGrid(sde, sd.make_grid(sde, 30, "logsnr").times[12:])
    x0 = MIXTURES[2].sample(5, generator=generator(1))
    noise = torch.randn(5, 2, generator=(g := generator(2)), dtype=torch.float64)
    x = grid.nodes[0].kernel.perturb(x0, noise)
    by_hand = sd.sample(DENOISER, grid=grid, x=x, sampler="ddpm", generator=g)
    out = sd.edit(DENOISER, x0, grid, sampler="ddpm", generator=generator(2))
    assert torch.equal(out.x, by_hand.x) and out.nfe == by_hand.nfe
    assert sd.edit(MIXTURES[2].denoiser(), x0.bfloat16(), grid, generator=generator(2)).x.dtype == torch.bfloat16


# --- dtypes of the state ------------------------------------------------------------------------------------


HALVES = [
    (row, list(PROCESSES)[(i + shift) % len(PROCESSES)], dtype)
    for i, row in enumerate(ROWS)
    for shift, dtype in ((0, torch.bfloat16), (3, torch.bfloat16), (5, torch.float16))
]


@pytest.mark.parametrize(("row", "process", "dtype"), HALVES)
def test_a_state_of_16_bits_is_float32_on_its_way(row: str, process: str, dtype: torch.dtype) -> None:
    """The samples of the same start in float32, rounded: from x, and from a drawn one."""
    grid = sd.make_grid(PROCESSES[process], 2 if ROWS[row].nfe is None else 6, "logsnr")
    options = {"rtol": 1.0, "atol": 1.0} if ROWS[row].nfe is None else {}
    denoiser = MIXTURES[2].denoiser()
    x = PROCESSES[process].prior_sample((3, 2), generator=generator(1)).to(dtype)
    half, single = (
        run(row, denoiser, grid=grid, x=start, generator=generator(2), **options) for start in (x, x.float())
    )
    assert half.x.dtype == dtype and torch.equal(half.x, single.x.to(dtype)) and half.nfe == single.nfe
    half, single = (
        run(row, denoiser, (3, 2), grid, dtype=kind, generator=generator(2), **options).x for kind in (dtype, None)
    )
    assert torch.equal(half, single.to(dtype))


class Clock(nn.Module):
    """A network that keeps what it is told, in its own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor, labels: Tensor | None = None) -> Tensor:
        assert x.dtype == self.weight.dtype
        self.labels.append(label)
        return x * self.weight


@pytest.mark.parametrize("network", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.bfloat16, torch.float32, torch.float64])
def test_a_network_sees_its_own_dtype_and_a_clock_that_tells_every_level(
    network: torch.dtype, state: torch.dtype
) -> None:
    sde, net = sd.DiscreteVP.linear(1000), Clock().to(network)
    denoiser = sd.NetworkDenoiser(net, sd.NetworkSpec(sde, "v", "index", shape=(2,)))
    x = torch.randn(1000, 2, generator=generator(0)).to(state)
    one = sd.sample(denoiser, grid=sd.make_grid(sde, 3), x=x)
    assert one.x.dtype == state
    each = denoiser(x, sde.kernel(sde.times))
    assert each.dtype == state and net.labels[-1].dtype == torch.promote_types(network, torch.float32)
    assert len(net.labels[-1].unique()) == 1000
    for level in (0, 1, 513, 999):
        denoiser(x[:1], sde.kernel(sde.times[level]))
        assert float(net.labels[-1]) == pytest.approx(level, abs=1e-3)


def test_a_float64_state_loses_nothing_but_in_the_network() -> None:
    """Of a network that gives zero, x0_hat is c_skip x, in float64."""
    options = {"shape": (2,), "width": 8, "blocks": 1}
    net = NETWORKS["mlp"](**options)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    denoiser = sd.NetworkDenoiser(net, sd.NetworkSpec(sd.VPSDE(), "v", shape=(2,), network="mlp", options=options))
    x, kernel = torch.randn(4, 2, generator=generator(0), dtype=torch.float64), sd.VPSDE().kernel(0.3)
    torch.testing.assert_close(denoiser(x, kernel), kernel.alpha * x, rtol=1e-14, atol=0)


# --- shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sd.SAMPLERS)
def test_samples_without_axes_and_without_rows(sampler: str) -> None:
    grid = sd.make_grid(sd.VPSDE(), 5, "logsnr")
    with pytest.raises(sd.UserError, match=r"\[B, \*D\], got shape \(4,\): B single numbers are \[B, 1\]"):
        sd.sample(DENOISER, (4,), grid, sampler=sampler)
    with pytest.raises(sd.UserError, match=r"\[B, \*D\]"):
        sd.sample(DENOISER, grid=grid, x=torch.zeros(4), sampler=sampler)
    empty = sd.sample(DENOISER, (0, 2), grid, sampler=sampler)
    assert empty.x.shape == (0, 2) and empty.nfe == 0
    with pytest.raises(sd.UserError, match=r"floating-point numbers, got torch\.int64"):
        sd.sample(DENOISER, grid=grid, x=torch.zeros(4, 2, dtype=torch.int64), sampler=sampler)


# --- derivatives --------------------------------------------------------------------------------------------


def smooth(x: Tensor, kernel: sd.Kernel) -> Tensor:
    """A denoiser with a derivative of its own: of no distribution, and as steep as one."""
    return torch.tanh(0.7 * x) * float(1.0 / (1.0 + kernel.sigma))


@pytest.mark.parametrize("process", ["VPSDE", "RectifiedFlow"])
@pytest.mark.parametrize("row", FIXED)
def test_the_derivative_by_the_start(row: str, process: str) -> None:
    """Against central differences, under the same noise: a Jacobian-vector product of the whole sampling."""
    grid = sd.make_grid(PROCESSES[process], 6, "logsnr")
    x, along, weight = torch.randn(3, 2, 3, generator=generator(4), dtype=torch.float64)

    def total(start: Tensor) -> Tensor:
        return (run(row, smooth, grid=grid, x=start, generator=generator(2)).x * weight).sum()

    (slope,) = torch.autograd.grad(total(leaf := x.clone().requires_grad_()), leaf)
    h = 1e-5
    difference = (total(x + h * along) - total(x - h * along)) / (2.0 * h)
    assert float((slope * along).sum()) == pytest.approx(float(difference), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "unipc"])
def test_the_derivative_by_the_networks_parameters(sampler: str) -> None:
    options = {"shape": (2,), "width": 8, "blocks": 1}
    net = NETWORKS["mlp"](**options).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator(parameter.numel()))
    denoiser = sd.NetworkDenoiser(net, sd.NetworkSpec(sd.VPSDE(), "v", shape=(2,), network="mlp", options=options))
    grid, x = sd.make_grid(sd.VPSDE(), 5), torch.randn(3, 2, generator=generator(4), dtype=torch.float64)

    def draw(grad: bool | None = None) -> sd.Sample:
        return sd.sample(denoiser, grid=grid, x=x, sampler=sampler, generator=generator(2), grad=grad)

    parameters = list(net.parameters())
    assert not draw().x.requires_grad
    out = draw(grad=True)
    assert out.nfe == draw().nfe and torch.equal(out.x.detach(), draw().x)
    slopes = torch.autograd.grad(out.x.square().sum(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        along, h, totals = torch.randn(parameter.shape, generator=generator(9), dtype=torch.float64), 1e-5, []
        with torch.no_grad():
            for step in (h, -2.0 * h):
                parameter += step * along
                totals.append(float(draw().x.square().sum()))
            parameter += h * along
        difference = (totals[0] - totals[1]) / (2.0 * h)
        assert float((slope * along).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_evaluations_are_computed_again_in_place_of_being_kept() -> None:
    """Twice as many calls with the backward pass, none of which is counted; nothing under no_grad."""
    calls = 0

    def counting(x: Tensor, kernel: sd.Kernel) -> Tensor:
        nonlocal calls
        calls += 1
        return smooth(x, kernel)

    grid, x = sd.make_grid(sd.VPSDE(), 7), torch.ones(1, 2, requires_grad=True)
    out = sd.sample(counting, grid=grid, x=x)
    assert out.nfe == calls == 7
    out.x.sum().backward()
    assert calls == 14 and bool((x.grad != 0.0).all())
    with torch.no_grad():
        assert not sd.sample(counting, grid=grid, x=x).x.requires_grad
        with pytest.raises(sd.UserError, match=r"grad=True .* under torch\.no_grad"):
            sd.sample(counting, grid=grid, x=x, grad=True)
    assert not sd.sample(counting, grid=grid, x=x, grad=False).x.requires_grad
    assert math.isfinite(float(x.grad.sum()))
