"""Likelihoods through the flow against the true density.

Two things stand between log p(x) of the flow and the density of the data, and both have a closed form here. x
is placed at t_min, where the density is p_{t_min} and not p_0; and the prior stands for p_1. The largest of
each over 500 samples of these mixtures, in bits/dim, for the default processes
(`test_the_gaps_of_the_default_processes`):

              t_min     prior
    VPSDE     4e-6      5e-3     alpha(1) = 0.0066: p_1 is a mixture about 0.0066 m_k
    SubVPSDE  4e-6      5e-3
    VESDE     5e-4      2e-2     sigma_min = 0.01 and sigma_max = 50 show

So the comparison with the TRUE data density, within 1e-4 bits/dim, is made where the process reaches its
prior: beta_max = 60 (alpha(1) = 3e-7), and sigma from 1e-4 to 1000 on a centred mixture; and with every process
against the exact marginal at t_min, the prior's term replaced by the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.core.errors import TooManyEvaluations
from sde_diffusion.nets import UNet
from sde_diffusion.solvers.flow import VARIABLES
from tests.proofs.cases import CENTRED, MIXTURES, PROCESSES, _mixture, generator, slope

WIDE = {**MIXTURES, 64: _mixture(64, 3, seed=3)}
"""Dimensions -> a mixture, 64 among them."""

REACHING: dict[str, sd.SDE] = {
    "VPSDE": sd.VPSDE(0.1, 60.0),
    "SubVPSDE": sd.SubVPSDE(0.1, 60.0),
    "VESDE": sd.VESDE(1e-4, 1000.0),
}
"""Processes whose p_{t_min} and p_1 are the data and the prior to far below 1e-4 bits/dim."""
TIGHT = {"method": "dop853", "rtol": 1e-8, "atol": 1e-8, "divergence": "exact"}
BOUND = 1e-4


def bits(nats: Tensor, dims: int) -> Tensor:
    return sd.bits_per_dim(nats, dims, 1.0)


@pytest.mark.parametrize("process", REACHING)
@pytest.mark.parametrize("dims", CENTRED)
def test_exact_trace_is_the_true_density(dims: int, process: str) -> None:
    mixture = CENTRED[dims]
    x = mixture.sample(24, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, REACHING[process], **TIGHT)
    assert out.standard_error is None
    gap = bits(out.nats, dims) - bits(mixture.log_prob(x), dims)
    assert float(gap.abs().max()) < BOUND, gap


def test_a_rectangle_of_pixels_has_the_density_of_its_numbers() -> None:
    """A mixture of pictures of 4 x 6 pixels, and the same as vectors of 24 numbers."""
    flat, sde = WIDE[64], REACHING["VPSDE"]
    means, stds = (value[:, :24] for value in (flat.means, flat.stds))
    pictures, vectors = (
        sd.GaussianMixture(means.reshape(-1, *shape), stds.reshape(-1, *shape), flat.weights)
        for shape in ((1, 4, 6), (24,))
    )
    x = pictures.sample(6, generator=generator(1))
    out = sd.log_likelihood(pictures.denoiser(), x, sde, **TIGHT)
    torch.testing.assert_close(bits(out.nats, 24), bits(pictures.log_prob(x), 24), rtol=0, atol=BOUND)
    same = sd.log_likelihood(vectors.denoiser(), x.flatten(1), sde, **TIGHT)
    torch.testing.assert_close(out.nats, same.nats, rtol=0, atol=1e-9)


def marginal_gap(out: sd.LogLikelihood, x: Tensor, mixture: sd.GaussianMixture, sde: sd.SDE) -> float:
    """The most, in bits/dim, by which log p_1(latent) + integral differs from log p_{t_min}(x).

    p_1 is the mixture's own marginal at t = 1, put in the place of the prior.
    """
    dims = x[0].numel()
    corrected = out.nats - sde.prior_logp(out.latent) + mixture.log_prob(out.latent, sde.kernel(1.0))
    gap = bits(corrected, dims) - bits(mixture.log_prob(x, sde.kernel(out.t_min)), dims)
    return float(gap.abs().max())


@pytest.mark.parametrize(("method", "dims"), [*(("per_sample", dims) for dims in WIDE), ("rk45", 12)])
@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_gives_the_exact_marginal(dims: int, process: str, method: str) -> None:
    """Measured: at most 1e-7 bits/dim."""
    mixture, sde = WIDE[dims], PROCESSES[process]
    x = mixture.sample(12, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, sde, method=method, rtol=1e-7, divergence="exact")
    assert out.t_min == sde.t_likelihood and out.probes == 0
    assert marginal_gap(out, x, mixture, sde) < 1e-5


@pytest.mark.parametrize(
    ("process", "start", "prior"), [("VPSDE", 4e-6, 5e-3), ("SubVPSDE", 4e-6, 5e-3), ("VESDE", 5e-4, 2e-2)]
)
def test_the_gaps_of_the_default_processes(process: str, start: float, prior: float) -> None:
    """What t_min and the prior each cost, in bits/dim: the reason for `REACHING`."""
    sde = PROCESSES[process]
    for dims, mixture in MIXTURES.items():
        x = mixture.sample(500, generator=generator(1))
        early = bits(mixture.log_prob(x, sde.kernel(sde.t_likelihood)), dims) - bits(mixture.log_prob(x), dims)
        end = sde.kernel(1.0)
        y = end.perturb(x, torch.randn(x.shape, generator=generator(2), dtype=torch.float64))
        late = bits(mixture.log_prob(y, end), dims) - bits(sde.prior_logp(y), dims)
        assert float(early.abs().max()) < start
        assert BOUND < float(late.abs().max()) < prior


@pytest.mark.parametrize("method", ["per_sample", "rk45", "dopri5"])
def test_every_kind_of_solver(method: str) -> None:
    mixture, sde = CENTRED[2], REACHING["VPSDE"]
    x = mixture.sample(16, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, sde, method=method, rtol=1e-7, atol=1e-7, divergence="exact")
    gap = bits(out.nats, 2) - bits(mixture.log_prob(x), 2)
    assert float(gap.abs().max()) < BOUND


@pytest.mark.parametrize("process", ["VPSDE", "VESDE"])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_lies_within_its_standard_error(probe: str, process: str) -> None:
    """Three standard errors of the exact trace, for at least 97% of 64 samples in 12 dimensions.

    Between two modes the Jacobian has one large eigenvalue along d, and the estimate's (d . p)^2 is skewed:
    with 16 or 32 probes the mean is not normal yet and 2 to 6% of the samples lie outside, with 128 under 1%.
    Pooled over the samples, whose probes are independent, the estimate is unbiased.
    """
    mixture, sde = MIXTURES[12], PROCESSES[process]
    x = mixture.sample(64, generator=generator(1))
    loose = {"rtol": 1e-4, "atol": 1e-4}
    exact = sd.log_likelihood(mixture.denoiser(), x, sde, divergence="exact", **loose)
    out = sd.log_likelihood(mixture.denoiser(), x, sde, probes=128, probe=probe, generator=generator(31), **loose)
    assert out.standard_error is not None
    error = out.nats - exact.nats
    ratio = error / out.standard_error
    assert float((ratio.abs() < 3.0).double().mean()) >= 0.97, ratio
    assert 0.75 < float(ratio.square().mean().sqrt()) < 1.25  # neither too small nor too large: unit variance
    pooled = error.sum() / out.standard_error.square().sum().sqrt()
    assert abs(float(pooled)) < 3.0
    assert float((out.latent - exact.latent).abs().max()) < 1e-2 * sde.prior_std


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_standard_error_falls_as_one_over_root_k(probe: str) -> None:
    mixture, sde, counts = MIXTURES[12], sd.VPSDE(), [8, 32, 128]
    x = mixture.sample(256, generator=generator(1))
    errors = []
    for probes in counts:
        out = sd.log_likelihood(
            mixture.denoiser(), x, sde, probes=probes, probe=probe, generator=generator(3), method="rk4", steps=5
        )
        assert out.standard_error is not None
        errors.append(float(out.standard_error.square().mean().sqrt()))
    assert slope([float(k) for k in counts], errors) == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize(("dims", "probes"), [(12, 32), (64, 64)])
def test_the_interval_covers_the_exact_trace(dims: int, probes: int, probe: str) -> None:
    """A 95 % interval holds the exact value in 90 to 99 % of 200 repeats, with each of four x: 800 intervals.

    Both take the same steps, so that nothing but the probes differs. Every row is a repeat with probes of its own.
    An interval without the factor 1/sqrt(K) would cover all, and one of half the length about 67 %. The spread of
    Rademacher estimates is skewed here, so that fewer than 95 % are covered while K is small.
    """
    mixture, sde, fixed = WIDE[dims], sd.VPSDE(), {"method": "rk4", "steps": 4}
    x = mixture.sample(4, generator=generator(1))
    exact = sd.log_likelihood(mixture.denoiser(), x, sde, divergence="exact", **fixed).nats.repeat(200)
    out = sd.log_likelihood(
        mixture.denoiser(), x.repeat(200, 1), sde, probes=probes, probe=probe, generator=generator(3), **fixed
    )
    low, high = out.interval(0.95)
    covered = float(((low <= exact) & (exact <= high)).double().mean())
    assert 0.90 <= covered <= 0.99, covered
    narrow = out.interval(0.5)
    inside = float(((narrow[0] <= exact) & (exact <= narrow[1])).double().mean())
    assert 0.42 <= inside <= 0.58, inside


def test_the_interval_is_students() -> None:
    """Of two probes, Student's t of one degree of freedom: tan(pi/2 level) standard errors each way."""
    mixture = MIXTURES[2]
    x = mixture.sample(4, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), probes=2, probe="gaussian", generator=generator(2))
    assert out.standard_error is not None
    for level in (0.5, 0.9, 0.95):
        low, high = out.interval(level)
        half = math.tan(0.5 * math.pi * level) * out.standard_error
        torch.testing.assert_close(high - out.nats, half, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.nats - low, half, rtol=1e-9, atol=1e-9)


def test_one_probe_has_no_standard_error() -> None:
    mixture = MIXTURES[2]
    x = mixture.sample(4, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), probes=1, generator=generator(2))
    assert out.standard_error is not None and bool(out.standard_error.isnan().all())
    exact = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), divergence="exact")
    for refused in (out, exact):
        with pytest.raises(sd.UserError, match="an interval over the probes needs two of them or more"):
            refused.interval()


# --- what an evaluation costs -------------------------------------------------------------------------------


class Watch:
    """A denoiser that counts its forward calls, and the backward passes through what it returned."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser, self.forward, self.backward = denoiser, 0, 0

    def _hook(self, gradient: Tensor) -> None:
        self.backward += 1

    def __call__(self, x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        self.forward += 1
        x0_hat = self.denoiser(x, kernel, **conditioning)
        x0_hat.register_hook(self._hook)
        return x0_hat


class OneByOne(torch.autograd.Function):
    """The identity, whose backward pass cannot be batched: it has no rule for vmap."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert gradient.sum().item() == gradient.sum().item()  # reading a number is what vmap forbids
        return gradient


@pytest.mark.parametrize("method", ["rk45", "per_sample", "dopri5", "rk4"])
def test_an_evaluation_is_one_forward_and_one_backward_pass(method: str) -> None:
    """And K probes share one batched backward pass."""
    mixture = MIXTURES[12]
    x = mixture.sample(3, generator=generator(1))
    for probes in (1, 3):
        watch = Watch(mixture.denoiser())
        counted = sd.CountingDenoiser(watch)
        out = sd.log_likelihood(counted, x, sd.VPSDE(), probes=probes, generator=generator(2), method=method)
        assert out.nfe == watch.forward == counted.nfe > 10
        assert watch.backward == watch.forward


def test_fixed_steps_take_their_number_of_evaluations() -> None:
    mixture = MIXTURES[2]
    x = mixture.sample(2, generator=generator(1))
    for method, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        out = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), method=method, steps=7, generator=generator(2))
        assert out.nfe == 7 * stages


def test_probes_that_cannot_be_batched_take_one_backward_pass_each() -> None:
    """Three for each evaluation; one more, the first time, finds it out."""
    mixture = MIXTURES[12]
    x = mixture.sample(3, generator=generator(1))

    def denoiser(x: Tensor, kernel: sd.Kernel) -> Tensor:
        return mixture.denoiser()(OneByOne.apply(x), kernel)

    watch, options = Watch(denoiser), {"probes": 3, "method": "rk4", "steps": 5}
    out = sd.log_likelihood(watch, x, sd.VPSDE(), generator=generator(2), **options)
    assert out.nfe == watch.forward == 20
    assert watch.backward == 3 * 20 + 1
    batched = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), generator=generator(2), **options)
    torch.testing.assert_close(out.nats, batched.nats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.standard_error, batched.standard_error, rtol=1e-10, atol=1e-12)


# --- networks -----------------------------------------------------------------------------------------------


def unet(dtype: torch.dtype) -> sd.NetworkDenoiser:
    """A small random U-Net, which changes smoothly with the noise level: its label is log(sigma)/4."""
    net = UNet(
        in_channels=1, image_size=4, channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), heads=2
    )
    g = generator(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=g)
    spec = sd.NetworkSpec(process=sd.VPSDE(), prediction="v", label="edm", shape=(1, 4, 4))
    return sd.NetworkDenoiser(net.to(dtype), spec)


def small_images(n: int, dtype: torch.dtype) -> Tensor:
    return (0.5 * torch.randn(n, 1, 4, 4, generator=generator(1), dtype=torch.float64)).to(dtype)


def test_parameters_get_no_gradient() -> None:
    denoiser, x = unet(torch.float64), small_images(2, torch.float64)
    for options in ({"divergence": "exact"}, {"probes": 1}, {"probes": 3}):
        sd.log_likelihood(denoiser, x, sd.VPSDE(), generator=generator(2), method="rk4", steps=2, **options)
    assert all(p.requires_grad and p.grad is None for p in denoiser.net.parameters())


def test_exact_trace_of_a_unet_is_the_sum_of_its_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Euler step from t_min to 1 in the variable t, where log p(x) = prior(x + h v) + h tr dv/dx.

    The diagonal is that of the Jacobian by central differences, which differentiate nothing. The U-Net's backward pass
    cannot be batched: after the first attempt, the products are taken one by one, 16 for the 16 dimensions.
    """
    denoiser, x, sde, t = unet(torch.float64), small_images(3, torch.float64), sd.VPSDE(), 0.3
    batched: list[bool] = []
    grad = torch.autograd.grad

    def watched(*arguments: Any, **named: Any) -> Any:
        batched.append(named["is_grads_batched"])
        return grad(*arguments, **named)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    options = {"divergence": "exact", "method": "euler", "steps": 1, "variable": "t", "t_min": t}
    out = sd.log_likelihood(denoiser, x, sde, **options)
    assert batched == [True] + [False] * 16

    @torch.no_grad()
    def velocity(x: Tensor) -> Tensor:
        return sde.velocity(x, denoiser(x, sde.kernel(t)), t)

    trace, step = torch.zeros(3, dtype=torch.float64), 1e-5
    for i in range(16):
        nudge = torch.zeros(16, dtype=torch.float64)
        nudge[i] = step
        change = velocity(x + nudge.view(1, 4, 4)) - velocity(x - nudge.view(1, 4, 4))
        trace += change.flatten(1)[:, i] / (2.0 * step)
    latent = x + (1.0 - t) * velocity(x)
    torch.testing.assert_close(out.latent, latent, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.nats, sde.prior_logp(latent) + (1.0 - t) * trace, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("at_once", [1, 7, 40, 4096])
def test_exact_trace_of_a_mixture_is_batched_in_parts_of_any_size(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 products on 3 rows, at most `at_once` rows together, equal the marginal's closed form whatever the parts."""
    mixture, sde, batched = MIXTURES[12], sd.VPSDE(), set()
    grad = torch.autograd.grad

    def watched(*arguments: Any, **named: Any) -> Any:
        batched.add(named["is_grads_batched"])
        return grad(*arguments, **named)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    monkeypatch.setattr(sd.likelihood.flow, "ROWS_AT_ONCE", at_once)
    x = mixture.sample(3, generator=generator(1))
    out = sd.log_likelihood(mixture.denoiser(), x, sde, divergence="exact", rtol=1e-7)
    assert marginal_gap(out, x, mixture, sde) < 1e-5
    assert (True in batched) == (at_once > 6) and (at_once < 4096 or batched == {True})


def test_a_row_of_a_mixture_does_not_depend_on_the_batch() -> None:
    """With a step size and a probe generator of its own, alone or in any batch, to rounding."""
    mixture, sde = MIXTURES[12], sd.VPSDE()
    x = mixture.sample(5, generator=generator(1))

    def run(rows: list[int]) -> Tensor:
        probes = sd.sample_generators(9, rows)
        out = sd.log_likelihood(mixture.denoiser(), x[rows], sde, method="per_sample", probes=3, generator=probes)
        return bits(out.nats, 12)

    whole = run([0, 1, 2, 3, 4])
    for rows in ([0], [3], [4, 0], [2, 1, 3]):
        torch.testing.assert_close(run(rows), whole[rows], rtol=0.0, atol=1e-11)
    # What the rows share otherwise is not negligible: one step size for the batch.
    shared = [
        sd.log_likelihood(mixture.denoiser(), x[rows], sde, method="rk45", divergence="exact").nats
        for rows in ([0], [0, 1, 2])
    ]
    assert float((shared[0][0] - shared[1][0]).abs()) > 1e-9


@pytest.mark.parametrize(
    ("dtype", "method"), [(torch.float64, "per_sample"), (torch.float32, "rk4"), (torch.float32, "per_sample")]
)
def test_a_row_of_a_network_does_not_depend_on_the_batch(dtype: torch.dtype, method: str) -> None:
    """To 1e-6 bits/dim. The last digits of float32 depend on the size of the batch, the step sizes on few of them."""
    denoiser, x = unet(dtype), small_images(5, dtype)

    def run(rows: list[int]) -> Tensor:
        probes = sd.sample_generators(9, rows)
        how = {"method": method, "steps": 6, "rtol": 1e-3, "probes": 2}
        out = sd.log_likelihood(denoiser, x[rows], sd.VPSDE(), generator=probes, **how)
        return bits(out.nats, 16)

    whole = run([0, 1, 2, 3, 4])
    for rows in ([0], [4, 0], [3, 1, 2]):
        torch.testing.assert_close(run(rows), whole[rows], rtol=0.0, atol=1e-6)


# --- one answer by every way --------------------------------------------------------------------------------


STEADY: dict[str, sd.SDE] = {**PROCESSES, "DiscreteVP": sd.DiscreteVP(torch.full((1000,), 0.01))}
"""As PROCESSES, with equal betas: others make the rate jump a thousand times, at each of which an adaptive solver in t
stops. In the variables of the noise level there are no jumps."""


@pytest.mark.parametrize("process", STEADY)
def test_the_variable_does_not_matter(process: str) -> None:
    """The density of y = x/r and D log r change together, at both ends: the scales run from 1 to 1/alpha, to 80."""
    mixture, sde = MIXTURES[12 if process == "VPSDE" else 2], STEADY[process]
    x = mixture.sample(2, generator=generator(1))
    found = {}
    for variable in VARIABLES:
        if process == "RectifiedFlow" and variable.startswith("logsnr"):
            with pytest.raises(sd.UserError, match=r"logsnr.* is infinite at t = 1, where alpha = 0"):
                sd.log_likelihood(mixture.denoiser(), x, sde, variable=variable)
            continue
        found[variable] = sd.log_likelihood(
            mixture.denoiser(), x, sde, method="dop853", rtol=1e-8, divergence="exact", variable=variable
        )
    assert len(found) >= 2
    first = found["log_angle"]
    for out in found.values():
        torch.testing.assert_close(out.nats, first.nats, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(out.latent / sde.prior_std, first.latent / sde.prior_std, rtol=0.0, atol=1e-6)


@cache
def limit_of(process: str) -> sd.LogLikelihood:
    """The adaptive answer at a tight tolerance, of EIGHT."""
    return sd.log_likelihood(
        MIXTURES[2].denoiser(), EIGHT, PROCESSES[process], method="dop853", rtol=1e-11, divergence="exact"
    )


EIGHT = MIXTURES[2].sample(8, generator=generator(1))


@pytest.mark.parametrize(
    ("method", "order", "sizes"),
    [("euler", 1, (32, 64, 128)), ("midpoint", 2, (16, 32, 64)), ("rk4", 4, (12, 24, 48))],
)
@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "RectifiedFlow"])
def test_fixed_steps_converge_with_their_order(process: str, method: str, order: int, sizes: tuple[int, ...]) -> None:
    """To the adaptive answer, in nats and in the latent."""
    mixture, sde, x, limit = MIXTURES[2], PROCESSES[process], EIGHT, limit_of(process)
    nats, latents = [], []
    for steps in sizes:
        out = sd.log_likelihood(mixture.denoiser(), x, sde, method=method, steps=steps, divergence="exact")
        nats.append(float((out.nats - limit.nats).norm()))
        latents.append(float((out.latent - limit.latent).norm()))
    lengths = [1.0 / steps for steps in sizes]
    assert slope(lengths, nats) == pytest.approx(order, abs=0.3)
    assert slope(lengths, latents) == pytest.approx(order, abs=0.3)


# --- conditioning and the first time ------------------------------------------------------------------------


def test_a_condition_chooses_the_density_row_by_row() -> None:
    """Labels that choose between two mixtures: each row has the log density of its own."""
    mixtures, sde = [MIXTURES[2], _mixture(2, 2, seed=8)], sd.VPSDE()
    x = torch.cat([mixtures[0].sample(6, generator=generator(1)), mixtures[1].sample(6, generator=generator(2))])
    labels = torch.tensor([0, 1] * 6)

    def denoiser(x: Tensor, kernel: sd.Kernel, *, labels: Tensor) -> Tensor:
        both = torch.stack([mixture.denoiser()(x, kernel) for mixture in mixtures])
        return both[labels, torch.arange(len(x))]

    out = sd.log_likelihood(sd.ConditionedDenoiser(denoiser, labels=labels), x, sde, rtol=1e-7, divergence="exact")
    corrected = out.nats - sde.prior_logp(out.latent)

    def truth(mixture: sd.GaussianMixture) -> Tensor:
        return mixture.log_prob(x, sde.kernel(out.t_min)) - mixture.log_prob(out.latent, sde.kernel(1.0))

    one, other = (truth(mixture) for mixture in mixtures)
    expected = torch.where(labels == 0, one, other)
    assert float((one - other).abs().min()) > 0.01  # each row tells the two apart
    assert float(bits(corrected - expected, 2).abs().max()) < 1e-5


def test_sensitivity_is_the_change_of_the_density_from_t_min_to_twice_it() -> None:
    """log p at 2 t_min minus log p at t_min of the closed form, to 1e-5 nats; and nfe counts the first solve only."""
    mixture, sde, t = MIXTURES[2], sd.VPSDE(0.1, 60.0), 0.02
    x = mixture.sample(12, generator=generator(1))
    tight = {"method": "dop853", "rtol": 1e-9, "divergence": "exact", "t_min": t}
    counted = sd.CountingDenoiser(mixture.denoiser())
    out = sd.log_likelihood(counted, x, sde, sensitivity=True, **tight)
    plain = sd.log_likelihood(mixture.denoiser(), x, sde, **tight)
    assert plain.sensitivity is None and out.sensitivity is not None
    # beta_max = 60 takes p_1 to the prior, which both ends share: nothing of it is left in the difference.
    expected = mixture.log_prob(x, sde.kernel(2.0 * t)) - mixture.log_prob(x, sde.kernel(t))
    torch.testing.assert_close(out.sensitivity, expected, rtol=0.0, atol=1e-5)
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(out.nats, plain.nats, rtol=0.0, atol=0.0)
    assert out.nfe == plain.nfe < counted.nfe


def test_sensitivity_has_the_probes_of_the_estimate() -> None:
    """The difference of two estimates with the same probes, as two calls from one seed give it."""
    mixture, sde, t = MIXTURES[12], sd.VPSDE(), 0.01
    x = mixture.sample(6, generator=generator(1))
    options = {"probes": 2, "rtol": 1e-7}

    def run(t_min: float, **named: Any) -> sd.LogLikelihood:
        return sd.log_likelihood(mixture.denoiser(), x, sde, t_min=t_min, generator=generator(7), **options, **named)

    out = run(t, sensitivity=True)
    assert out.sensitivity is not None
    torch.testing.assert_close(out.sensitivity, run(2.0 * t).nats - run(t).nats, rtol=0.0, atol=1e-9)


# --- refusals -----------------------------------------------------------------------------------------------


def trivial(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
    return 0.5 * x


def quick(x: Tensor, denoiser: Callable[..., Tensor] = trivial, **named: Any) -> sd.LogLikelihood:
    """A likelihood of two Euler steps: enough to see whether the data are accepted."""
    return sd.log_likelihood(denoiser, x, sd.VPSDE(), **{"method": "euler", "steps": 2, **named})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(sd.UserError, match=f"{dtype} data must be dequantised first"):
        quick(torch.zeros(2, 2, dtype=dtype))


@pytest.mark.parametrize("levels", [17, 256])
def test_grey_levels_are_refused_and_dequantised_ones_accepted(levels: int) -> None:
    """On a lattice of up to 256 values the density would be infinite. Uniform noise on the bins is one."""
    count = torch.randint(0, levels, (4, 1, 32, 32), generator=generator(1))
    x = 2.0 * count.double() / (levels - 1) - 1.0
    distinct = len(torch.unique(x))
    assert distinct == levels
    with pytest.raises(sd.UserError, match=f"only {levels} different values in 4,096 numbers.*not dequantised"):
        quick(x)
    with pytest.raises(sd.UserError, match="not dequantised"):
        quick(x.float())
    noise = torch.rand(x.shape, generator=generator(2), dtype=torch.float64) - 0.5
    transform = sd.data.DataTransform(levels=levels)
    dequantised = [x + 2.0 / (levels - 1) * noise, transform.dequantize(count, generator=generator(3))]
    for accepted in dequantised:
        out = quick(accepted, generator=generator(4))
        assert out.nats.shape == (4,)


def test_a_lattice_of_points_is_accepted() -> None:
    """Vectors are no images: where a density is drawn on a grid, its coordinates take few values."""
    axis = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    mixture, sde = MIXTURES[2], sd.VPSDE()
    out = sd.log_likelihood(mixture.denoiser(), points, sde, rtol=1e-6, divergence="exact")
    assert marginal_gap(out, points, mixture, sde) < 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x = torch.zeros(2, 2)
    x[1, 0] = value
    with pytest.raises(sd.UserError, match="the data hold values that are not finite"):
        quick(x)


WRAPPERS: dict[str, Callable[[sd.NetworkDenoiser], Callable[..., Tensor]]] = {
    "network": lambda denoiser: denoiser,
    "conditioned": lambda denoiser: sd.ConditionedDenoiser(denoiser),
    "clipped": lambda denoiser: sd.ClippedDenoiser(denoiser),
    "counted and clipped": lambda denoiser: sd.CountingDenoiser(sd.ClippedDenoiser(denoiser)),
}
"""A network itself and behind others."""


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_network_refuses_data_of_another_shape_or_range(wrapper: str) -> None:
    denoiser = WRAPPERS[wrapper](unet(torch.float64))
    x = small_images(4, torch.float64)
    with pytest.raises(sd.UserError, match=r"of data of shape \(1, 4, 4\), and these have \(2, 4, 4\)"):
        quick(torch.randn(4, 2, 4, 4, generator=generator(1)), denoiser)
    with pytest.raises(sd.UserError, match=r"height and width multiples of 2; got \[4, 1, 5, 4\]"):
        quick(torch.rand(4, 1, 5, 4, generator=generator(1), dtype=torch.float64), denoiser)  # the network knows
    with pytest.raises(sd.UserError, match=r"of data of shape \(1, 4, 4\), and these have \(16,\)"):
        quick(x.flatten(1), denoiser)
    grey = 255.0 * torch.rand(x.shape, generator=generator(2), dtype=torch.float64)
    with pytest.raises(sd.UserError, match=r"images in model space lie in \[-1, 1\], and these run from"):
        quick(grey, denoiser)
    assert quick(x.clamp(-1.0, 1.0), denoiser, generator=generator(3)).nats.shape == (4,)


@pytest.mark.parametrize("x", [torch.zeros(4), torch.tensor(1.0), torch.zeros(0, 2)])
def test_what_is_no_batch_is_refused(x: Tensor) -> None:
    with pytest.raises(sd.UserError, match=r"a batch \[B, \*D\] (of data )?is needed, got shape"):
        quick(x)


@pytest.mark.parametrize("method", ["rk45", "per_sample", "dopri5", "dop853"])
def test_too_many_evaluations_say_how_far_they_came(method: str) -> None:
    """The time at which the slowest sample stands lies inside the interval."""
    mixture = MIXTURES[12]
    x = mixture.sample(4, generator=generator(1))
    with pytest.raises(
        TooManyEvaluations, match=r"more than 20 evaluations.*has come to t = [0-9.e-]+ \(\d+%"
    ) as found:
        sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), method=method, max_nfe=20, rtol=1e-6)
    assert 1e-5 <= float(str(found.value).split("t = ")[1].split()[0]) < 1.0


def test_an_exact_trace_in_many_dimensions_warns_of_its_cost() -> None:
    """3,072 products and one pass forward, against one and one: 1536.5 times. None for 512 dimensions."""
    x = 0.3 * torch.randn(1, 3, 32, 32, generator=generator(1), dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"in 3,072 dimensions takes 3,072 .* about 1,536 times"):
        out = quick(x, divergence="exact")
    # dx/dt of a linear denoiser has the same derivative in every dimension: one gives them all.
    single = quick(x.reshape(3072, 1), divergence="exact")
    assert float(out.nats) == pytest.approx(float(single.nats.sum()), rel=1e-9)
    quick(x.flatten(1)[:, :512], divergence="exact")  # a warning would be an error here


@pytest.mark.parametrize("t_min", [-0.1, 0.5, 1.0, math.nan])
def test_t_min_out_of_range_is_refused(t_min: float) -> None:
    with pytest.raises(sd.UserError, match=r"t_min must lie in \[0, 0.5\), got"):
        quick(torch.zeros(2, 2), t_min=t_min)


@pytest.mark.parametrize("probes", [0, -1])
def test_no_probes_are_refused(probes: int) -> None:
    with pytest.raises(sd.UserError, match=f"at least one probe is needed, got {probes}"):
        quick(torch.zeros(2, 2), probes=probes)


@pytest.mark.parametrize(
    ("option", "near"),
    [({"divergence": "exactt"}, "exact"), ({"probe": "gausian"}, "gaussian"), ({"variable": "logsnrs"}, "logsnr")],
)
def test_unknown_names_are_answered_with_the_nearest(option: dict[str, str], near: str) -> None:
    with pytest.raises(sd.UserError, match=f"did you mean '{near}'"):
        quick(torch.zeros(2, 2), **option)


# --- bits per dimension -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin_width", [2 / 255, 2 / 256, 0.05])
def test_bits_of_a_discretised_gaussian_sum_to_one_and_average_to_its_entropy(bin_width: float) -> None:
    """q_i = p(x_i) w = 2^(-bits): total 1, and sum q_i bits_i = log2(s sqrt(2 pi e) / w), through the whole
    flow."""
    std = 0.3
    gaussian = sd.GaussianMixture([[0.0]], [std], [1.0])
    lattice = torch.arange(-2.1, 2.1, bin_width, dtype=torch.float64)[:, None]
    out = sd.log_likelihood(gaussian.denoiser(), lattice, REACHING["VPSDE"], **TIGHT)
    found = sd.bits_per_dim(out.nats, 1, bin_width)
    q = torch.exp2(-found)
    assert float(q.sum()) == pytest.approx(1.0, abs=1e-5)
    entropy = math.log2(std * math.sqrt(2.0 * math.pi * math.e) / bin_width)
    assert float((q * found).sum()) == pytest.approx(entropy, abs=1e-4)


def test_bits_per_dim_counts_dimensions() -> None:
    """A product density: on a lattice in two dimensions 2^(-2 bits) sums to one."""
    width = 0.05
    gaussian = sd.GaussianMixture([[0.0, 0.1]], [[0.3, 0.5]], [1.0])
    axis = torch.arange(-3.5, 3.5, width, dtype=torch.float64)
    found = sd.bits_per_dim(gaussian.log_prob(torch.cartesian_prod(axis, axis)), 2, width)
    assert float(torch.exp2(-2.0 * found).sum()) == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(sd.UserError, match="bin_width"):
        sd.bits_per_dim(torch.zeros(1), 2, 0.0)


def test_uniform_noise_on_256_levels_is_eight_bits() -> None:
    """Density 1/2 on [-1, 1] with 256 levels 2/256 apart: exactly 8 bits for each dimension."""
    nats = torch.tensor([-3072 * math.log(2.0)], dtype=torch.float64)
    assert float(sd.bits_per_dim(nats, 3072, 2 / 256)) == pytest.approx(8.0, abs=1e-12)


def test_a_denoiser_without_a_gradient_is_refused() -> None:
    """Its divergence would be that of the linear part alone."""
    mixture = MIXTURES[2]
    x = mixture.sample(2, generator=generator(1))
    with pytest.raises(sd.UserError, match=r"no gradient: it must not run under torch.no_grad"):
        sd.log_likelihood(torch.no_grad()(mixture.denoiser()), x, sd.VPSDE())


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rtol"), [("per_sample", 1e-6), ("dopri5", 1e-7)])
def test_the_gradient_of_log_p_is_the_score(method: str, rtol: float) -> None:
    """Of the noisy marginal at t_min = 0.01, to 5e-5 of scores of size 1 to 10, where p_1 is the prior.

    The steps' lengths carry no gradient, which would be 100 times the solver's error.
    """
    mixture, sde, t = MIXTURES[2], REACHING["VPSDE"], 0.01
    x = mixture.sample(3, generator=generator(1)).requires_grad_()
    out = sd.log_likelihood(mixture.denoiser(), x, sde, method=method, rtol=rtol, divergence="exact", t_min=t)
    found, truth = (torch.autograd.grad(f.sum(), x)[0] for f in (out.nats, mixture.log_prob(x, sde.kernel(t))))
    torch.testing.assert_close(found, truth, rtol=0.0, atol=5e-5)


def test_hutchinsons_gradient_is_that_of_its_estimate() -> None:
    """Central differences of the same steps and probes, two batched ones, by x."""
    mixture, options = MIXTURES[12], {"method": "rk4", "steps": 3, "probes": 2}
    x, step = mixture.sample(2, generator=generator(1)), 1e-5

    def nats(x: Tensor) -> Tensor:
        return sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), generator=generator(2), **options).nats

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(nats(leaf).sum(), leaf)
    nudge = step * torch.nn.functional.one_hot(torch.tensor(5), 12)
    torch.testing.assert_close(found[:, 5], (nats(x + nudge) - nats(x - nudge)) / (2.0 * step), rtol=1e-6, atol=1e-6)


def tiny(dtype: torch.dtype = torch.float64) -> sd.NetworkDenoiser:
    """A random network of two numbers."""
    options: dict[str, Any] = {"shape": (2,), "width": 8, "blocks": 1}
    net, g = sd.nets.NETWORKS["mlp"](**options), generator(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=g)
    return sd.NetworkDenoiser(net.to(dtype), sd.NetworkSpec(sd.VPSDE(), "v", "time", shape=(2,)))


WAYS: dict[str, Callable[..., Tensor]] = {
    "log_likelihood": lambda *arguments, **named: sd.log_likelihood(*arguments, divergence="exact", **named).nats,
    "encode": sd.encode,
    "decode": sd.decode,
}
"""What has a gradient by the network's parameters."""


@pytest.mark.parametrize("way", WAYS)
def test_a_networks_parameters_have_a_gradient_where_it_is_asked_for(way: str) -> None:
    """Central differences by the first weight of each parameter, with the same five steps."""
    denoiser, x = tiny(), torch.randn(2, 2, generator=generator(1), dtype=torch.float64)
    parameters = [p for p in denoiser.net.parameters() if p.numel()]

    def value(**named: Any) -> Tensor:
        return WAYS[way](denoiser, x, sd.VPSDE(), method="per_sample", rtol=0.3, atol=0.3, **named).square().sum()

    found = torch.autograd.grad(value(grad=True), parameters, allow_unused=True)
    assert sum(g is not None and bool(g.abs().max() > 1e-3) for g in found) > 3
    for parameter, gradient in list(zip(parameters, found, strict=True))[:4]:
        first, step, ends = parameter.detach().view(-1), 1e-6, []
        for sign in (1.0, -1.0):
            first[0] += sign * step
            ends.append(float(value()))
            first[0] -= sign * step
        expected = (ends[0] - ends[1]) / (2.0 * step)
        assert float(0.0 if gradient is None else gradient.view(-1)[0]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_no_graph_is_built_for_those_who_do_not_ask(way: str) -> None:
    """Though the parameters require gradients; nor under torch.no_grad, whoever asks; and scipy's solvers have none."""
    denoiser, x = tiny(), torch.randn(2, 2, generator=generator(1), dtype=torch.float64)
    quick = {"rtol": 0.3, "atol": 0.3}
    assert not WAYS[way](denoiser, x, sd.VPSDE(), **quick).requires_grad
    with torch.no_grad():
        assert not WAYS[way](denoiser, x.clone().requires_grad_(), sd.VPSDE(), grad=True, **quick).requires_grad
    leaf = x.clone().requires_grad_()
    assert WAYS[way](denoiser, leaf, sd.VPSDE(), **quick).requires_grad
    assert not WAYS[way](denoiser, x, sd.VPSDE(), method="rk45", **quick).requires_grad
    for asked, named in ((leaf, {}), (x, {"grad": True})):
        with pytest.raises(sd.UserError, match="scipy's RK45 has no gradient: choose one of the solvers per_sample, "):
            WAYS[way](denoiser, asked, sd.VPSDE(), method="rk45", **quick, **named)


# --- dtypes and defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_carried_in_float32(dtype: torch.dtype) -> None:
    """Equal to float32 of the same numbers: nats stay float32, and the latent is rounded once."""
    x = MIXTURES[2].sample(3, generator=generator(1)).to(dtype)
    half, single = (sd.log_likelihood(MIXTURES[2].denoiser(), y, sd.VPSDE(), rtol=1e-3) for y in (x, x.float()))
    assert half.latent.dtype == dtype and half.nats.dtype == torch.float32
    assert torch.equal(half.nats, single.nats) and torch.equal(half.latent, single.latent.to(dtype))
    codes = [sd.encode(MIXTURES[2].denoiser(), y, sd.VPSDE(), rtol=1e-3) for y in (x, x.float())]
    assert codes[0].dtype == dtype and torch.equal(codes[0], codes[1].to(dtype))
    bounds = [
        sd.vlb(MIXTURES[2].denoiser(), y, sd.VPSDE(), levels=None, points=3, generator=generator(3))
        for y in (x, x.float())
    ]
    assert torch.equal(bounds[0].total, bounds[1].total)
    grid = sd.make_grid(sd.VPSDE(), 4, "logsnr")
    terms = [
        sd.elbo(MIXTURES[2].denoiser(), y, grid, levels=None, generator=generator(3)).total for y in (x, x.float())
    ]
    assert torch.equal(terms[0], terms[1])


def test_by_default_rows_stand_alone_and_say_their_error() -> None:
    """Exact up to eight dimensions; four probes and their error beyond; as many as are asked for."""
    for dims, probes in ((2, 0), (12, 4)):
        mixture = WIDE[dims]
        x, generators = mixture.sample(3, generator=generator(1)), [generator(i) for i in range(3)]
        out = sd.log_likelihood(mixture.denoiser(), x, sd.VPSDE(), rtol=1e-3, generator=generators)
        alone = sd.log_likelihood(mixture.denoiser(), x[2:], sd.VPSDE(), rtol=1e-3, generator=[generator(2)])
        assert out.probes == probes and (out.standard_error is None) == (probes == 0)
        torch.testing.assert_close(alone.nats, out.nats[2:], rtol=1e-12, atol=1e-12)
    x = MIXTURES[2].sample(3, generator=generator(1))
    assert sd.log_likelihood(MIXTURES[2].denoiser(), x, sd.VPSDE(), rtol=0.1, probes=3).probes == 3


def test_continuous_data_may_be_anything() -> None:
    """Latents beyond the pixels' range, and masks of two values: refused as images, in words that say what to say."""
    wide, masks = 9.0 * small_images(6, torch.float64), small_images(6, torch.float64).sign()
    for x, says in ((wide, "these run from"), (masks, "only 2 different values")):
        for named in ({}, {"space": "images"}):
            with pytest.raises(sd.UserError, match=f"{says}.*of data that are no images say space='continuous'"):
                quick(x, unet(torch.float64), **named)
        assert quick(x, unet(torch.float64), space="continuous").nats.shape == (6,)
    with pytest.raises(sd.UserError, match="only 2 different values"):
        quick(masks.flatten(1), space="images")  # three axes fewer: vectors by default
    with pytest.raises(sd.UserError, match="did you mean 'continuous'"):
        quick(masks, space="continous")
