"""Denoising score matching: each weighting is the published error, and the truth minimises it. L_vlb is the bound, and
L_hybrid's two parts train what they should."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.kernel import match
from sde_diffusion.likelihood.discrete import Chain
from sde_diffusion.objectives.losses import WEIGHTINGS
from tests.golden.reference import ReplayedNoise
from tests.proofs.cases import MIXTURES, PROCESSES, generator

MIXTURE = MIXTURES[2]
N = 4000
Error = Callable[[sd.SDE, Tensor, Tensor, Tensor, Tensor], Tensor]


def wrong(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
    """Any denoiser will do where an identity is at stake."""
    return torch.tanh(x) + 0.3


def _eps(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    return sd.eps(wrong, x, sde.kernel(t)) - noise


def _v(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return sd.v(wrong, x, k) - (match(k.alpha, x) * noise - match(k.sigma, x) * x0)


def _velocity(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    return sd.velocity(wrong, x, sde.kernel(t)) - (noise - x0)


def _score(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return match(sde.diffusion(t), x) * (sd.score(wrong, x, k) + noise / match(k.sigma, x))


def _edm(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    """lambda(sigma) |D - y|^2 with lambda = (sigma^2 + 0.25)/(sigma 0.5)^2 (Karras et al. 2022, Table 1)."""
    k = sde.kernel(t)
    s = match(k.sigma / k.alpha, x)
    return (s**2 + 0.25).sqrt() / (0.5 * s) * (wrong(x, k) - x0)


def _min_snr(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    k = sde.kernel(t)
    return match((k.alpha / k.sigma).clamp_max(math.sqrt(5.0)), x) * (wrong(x, k) - x0)


def _x0(sde: sd.SDE, t: Tensor, x0: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    return wrong(x, sde.kernel(t)) - x0


ERRORS: dict[str, Error] = {
    "simple": _eps,
    "v": _v,
    "velocity": _velocity,
    "likelihood": _score,
    "edm": _edm,
    "min_snr": _min_snr,
    "x0": _x0,
}
"""The error whose mean square each weighting is."""


def draw(sde: sd.SDE, n: int) -> tuple[Tensor, Tensor, Tensor]:
    x0 = MIXTURE.sample(n, generator=generator(0))
    noise = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    t = 0.02 + 0.97 * torch.rand(n, generator=generator(2), dtype=torch.float64)
    return x0, noise, t


def test_every_weighting_is_tested() -> None:
    assert set(ERRORS) == set(WEIGHTINGS)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", ERRORS)
def test_a_weighting_is_its_published_error(weighting: str, process: str) -> None:
    sde = PROCESSES[process]
    x0, noise, t = draw(sde, 64)
    x = sde.kernel(t).perturb(x0, noise)
    found = sd.denoising_score_matching(wrong, sde, x0, t, noise, weighting=weighting)
    expected = ERRORS[weighting](sde, t, x0, noise, x).square().mean(1)
    assert found.shape == (64,)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", ERRORS)
def test_the_truth_is_the_minimum(weighting: str, process: str) -> None:
    """A denoiser that is off by d(x) loses exactly E[w |d|^2] more: the cross term has mean zero at every t
    and x."""
    sde = PROCESSES[process]
    x0, noise, _ = draw(sde, N)
    t = sde.time_of(torch.linspace(-4.0, 4.0, N, dtype=torch.float64))
    truth = MIXTURE.denoiser()

    def loss(denoiser: Callable[..., Tensor]) -> Tensor:
        return sd.denoising_score_matching(denoiser, sde, x0, t, noise, weighting=weighting)

    weight = sd.denoising_score_matching(lambda x, k: x0 + 1.0, sde, x0, t, noise, weighting=weighting)
    offsets: dict[str, Callable[[Tensor], Tensor]] = {
        "constant": lambda x0_hat: torch.full_like(x0_hat, 0.3),
        "shrunk": lambda x0_hat: -0.3 * x0_hat,
        "bent": lambda x0_hat: 0.5 * torch.sin(3.0 * x0_hat),
    }
    true_loss = loss(truth)
    for name, offset in offsets.items():
        excess = loss(lambda x, k, o=offset: truth(x, k) + o(truth(x, k))) - true_loss
        d = offset(truth(sde.kernel(t).perturb(x0, noise), sde.kernel(t)))
        expected = weight * d.square().mean(1)
        cross = excess - expected
        error = cross.std() / math.sqrt(N)
        assert abs(float(cross.mean() / error)) < 4.0, name
        assert float(expected.mean()) > 0.0
        assert float(excess.mean() / (excess.std() / math.sqrt(N))) > 4.0, name


def test_the_loss_of_the_truth_is_the_posterior_variance() -> None:
    """For one Gaussian of variance s^2: E|x0_hat - x_0|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), here times
    the snr."""
    std, n, t = 0.7, 100_000, 0.3
    gaussian, sde = sd.GaussianMixture([[0.5]], [std], [1.0]), sd.VPSDE()
    x0 = gaussian.sample(n, generator=generator(0))
    noise = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    loss = sd.denoising_score_matching(
        gaussian.denoiser(), sde, x0, torch.full((n,), t, dtype=torch.float64), noise, weighting="simple"
    )
    k = sde.kernel(t)
    expected = float(k.snr * std**2 * k.variance / (k.alpha**2 * std**2 + k.variance))
    assert float(loss.mean()) == pytest.approx(expected, rel=4.0 * math.sqrt(2.0 / n))


def test_float32_at_the_smallest_time_is_finite() -> None:
    for sde in (sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.RectifiedFlow()):
        for weighting in WEIGHTINGS:
            x0 = torch.randn(4, 2, generator=generator(0))
            t = torch.full((4,), sde.t_train, dtype=torch.float64)
            loss = sd.denoising_score_matching(wrong, sde, x0, t, x0.flip(0), weighting=weighting)
            assert loss.dtype == torch.float32 and bool(loss.isfinite().all())


def test_the_loss_of_a_velocity_is_that_of_the_networks_output() -> None:
    """|out - (eps - x_0)|^2 to rounding, and its gradient 2 (out - u)/D, from the smallest time to pure noise."""
    flow, n = sd.RectifiedFlow(), 6
    out = torch.nn.Parameter(torch.randn(n, 3, generator=generator(0)))

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return out

    denoiser = sd.NetworkDenoiser(Net(), sd.NetworkSpec(flow, "velocity", "time"))
    x0, noise = torch.randn(2, n, 3, generator=generator(1))
    t = torch.tensor([flow.t_train, 1e-3, 0.2, 0.7, 0.999, 1.0], dtype=torch.float64)
    loss = sd.denoising_score_matching(denoiser, flow, x0, t, noise, weighting="velocity")
    error = out.detach() - (noise - x0)
    (gradient,) = torch.autograd.grad(loss.sum(), out)
    # At t = 1e-5 a hundred thousandth of the rounding of x is seen.
    torch.testing.assert_close(loss[1:], error.square().mean(1)[1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient[1:], 2.0 * error[1:] / 3.0, rtol=1e-3, atol=1e-3)
    assert bool(loss.isfinite().all() and gradient.isfinite().all())
    assert float((gradient[0] - 2.0 * error[0] / 3.0).abs().max()) < 0.05


def test_edms_weighting_is_told_the_std_of_the_data() -> None:
    """(sigma^2 + s_d^2)/(sigma s_d)^2 (Karras et al. 2022, Table 1)."""
    sde, data = sd.EDM(), 0.2
    x0, noise, t = draw(sde, 16)
    found = sd.denoising_score_matching(wrong, sde, x0, t, noise, weighting="edm", sigma_data=data)
    k = sde.kernel(t)
    weight = (k.variance + data**2) / (k.sigma * data) ** 2
    expected = weight * (wrong(k.perturb(x0, noise), k) - x0).square().mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --- L_vlb and L_hybrid ----------------------------------------------------------------------------------------

CHAIN = Chain.of(sd.DiscreteVP.cosine(30))
GREY = torch.randint(0, 256, (30, 3), generator=generator(8))
X0 = 2.0 * GREY.double() / 255.0 - 1.0


@dataclass
class Leaves:
    """A denoiser that returns two leaves of the graph, whatever it is asked: x0_hat and the learned fraction."""

    x0_hat: Tensor
    fraction: Tensor

    def __call__(self, x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        return self.x0_hat

    def moments(self, x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor]:
        return self.x0_hat, self.fraction


@pytest.mark.parametrize("weighting", ["simple", "v"])
def test_the_two_gradients_of_l_hybrid(weighting: str) -> None:
    """x0_hat learns from the weighted loss alone, and the variance from vlb_weight L_vlb alone (Nichol and Dhariwal
    2021, section 3.1), at every level of the chain."""
    sde, t, share = sd.DiscreteVP.cosine(30), CHAIN.times, 0.03
    noise = torch.randn(X0.shape, generator=generator(1), dtype=torch.float64)
    leaves = Leaves(*(torch.rand(X0.shape, generator=generator(i), dtype=torch.float64) for i in (2, 3)))
    both = (leaves.x0_hat.requires_grad_(), leaves.fraction.requires_grad_())

    def gradients(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss.sum(), both, allow_unused=True))

    hybrid = sd.hybrid_loss(leaves, sde, CHAIN, X0, t, noise, weighting=weighting, vlb_weight=share)
    simple = sd.denoising_score_matching(leaves, sde, X0, t, noise, weighting=weighting)
    vlb = sd.variational_loss(leaves, CHAIN, X0, t, noise)
    torch.testing.assert_close(hybrid, simple + share * vlb)
    (to_mean, to_variance), (of_simple, none), (of_vlb, expected) = map(gradients, (hybrid, simple, vlb))
    assert none is None and of_simple is not None and expected is not None
    torch.testing.assert_close(to_mean, of_simple)
    torch.testing.assert_close(to_variance, share * expected)
    assert bool((of_simple != 0.0).all() and (expected != 0.0).all())
    assert of_vlb is not None and bool((of_vlb != 0.0).all())  # in L_vlb itself x0_hat is not fixed


def test_the_published_share() -> None:
    leaves = Leaves(0.5 * X0, 0.0 * X0 + 0.3)
    arguments = (CHAIN, X0, CHAIN.times, X0.flip(0))
    default = sd.hybrid_loss(leaves, sd.DiscreteVP.cosine(30), *arguments)
    simple = sd.denoising_score_matching(leaves, sd.DiscreteVP.cosine(30), X0, CHAIN.times, X0.flip(0))
    torch.testing.assert_close(default - simple, 1e-3 * sd.variational_loss(leaves, *arguments))


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_l_vlb_is_the_bound(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over all levels it is what `elbo` sums, but for the prior's term: the same noise at each level."""
    levels, x = len(CHAIN), X0[:5]
    noise = torch.randn(levels, *x.shape, generator=generator(1), dtype=torch.float64)
    # The bound is evaluated from noise to data, and the loss one level after the other.
    monkeypatch.setattr(import_module("sde_diffusion.likelihood.discrete"), "randn", ReplayedNoise(noise.flip(0)))
    denoiser = Leaves(0.9 * x, 0.0 * x + 0.3)
    bound = sd.elbo(denoiser, GREY[:5], sd.DiscreteVP.cosine(30), variance=variance, dtype=torch.float64)
    each = [
        sd.variational_loss(denoiser, CHAIN, x, t.repeat(5), noise[i], variance=variance)
        for i, t in enumerate(CHAIN.times)
    ]
    expected = bound.per_sample.total - bound.per_sample.prior
    torch.testing.assert_close(torch.stack(each).mean(0), expected, rtol=1e-10, atol=1e-10)


def test_times_between_the_levels_go_to_the_nearest() -> None:
    """L_vlb looks up the level of a time that was rounded on its way."""
    half = 0.5 / len(CHAIN)
    for shift in (-0.9 * half, 0.0, 0.9 * half):
        assert CHAIN.index_of(CHAIN.times + shift).tolist() == list(range(30))


@pytest.mark.parametrize("loss", ["variational", "hybrid"])
def test_a_variance_that_was_not_learned(loss: str) -> None:
    process, arguments = sd.DiscreteVP.cosine(30), (CHAIN, X0, CHAIN.times, X0)
    with pytest.raises(sd.UserError, match="needs a network that learned it"):
        if loss == "variational":
            sd.variational_loss(wrong, *arguments)
        else:
            sd.hybrid_loss(wrong, process, *arguments)


def test_unknown_weighting() -> None:
    with pytest.raises(sd.UserError, match="did you mean 'likelihood'"):
        x = torch.zeros(1, 2)
        sd.denoising_score_matching(wrong, sd.VPSDE(), x, torch.ones(1), x, weighting="likelyhood")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_clean_data_have_a_loss_where_its_weight_is_finite(weighting: str) -> None:
    """At t = 0 weights of x0 are 1 and min(inf, 5); the others are infinite, and a sentence."""
    sde, x0 = sd.VPSDE(), torch.ones(2, 3, dtype=torch.float64)
    t, finite = torch.tensor([0.5, 0.0]), {"x0": 1.0, "min_snr": 5.0}

    def halved(x: torch.Tensor, kernel: sd.Kernel) -> torch.Tensor:
        return 0.5 * x

    def loss() -> torch.Tensor:
        return sd.denoising_score_matching(halved, sde, x0, t, torch.zeros_like(x0), weighting=weighting)

    if weighting in finite:
        assert float(loss()[1]) == pytest.approx(0.25 * finite[weighting], rel=1e-12)
    else:
        with pytest.raises(sd.UserError, match=f"weighting '{weighting}' does not exist at t = 0: .*take t >= 1e-5"):
            loss()
    # Rectified flow has no signal at t = 1: every weight is finite there.
    flow, one = sd.RectifiedFlow(), torch.ones(2)
    assert bool(sd.denoising_score_matching(halved, flow, x0, one, x0, weighting=weighting).isfinite().all())
