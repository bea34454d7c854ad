"""A network away from home, and the denoisers around denoisers, all against closed forms.

`PerfectNetwork` is a network whose output at its home is exact: it knows nothing but its input and its label,
as a trained network does. Under any other process NetworkDenoiser must then give the oracle's x0_hat.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import match
from sde_diffusion.core.prediction import PREDICTIONS
from sde_diffusion.denoisers.base import moments
from sde_diffusion.denoisers.c_noise import C_NOISES
from sde_diffusion.denoisers.network import INPUT_SCALES
from sde_diffusion.denoisers.wrappers import WatchedDenoiser
from tests.proofs.cases import MIXTURES, PROCESSES, generator

MIXTURE = MIXTURES[2]
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


@dataclass(frozen=True)
class Home:
    """A kind of published network: its process, conventions, and its label read back as a kernel, written by
    hand."""

    process: sd.SDE
    prediction: str
    label: str
    input_scale: str
    decode: Callable[[Tensor], sd.Kernel]


def _ddpm(label: Tensor) -> sd.Kernel:
    """Label i in 0 .. N-1 is level i; log alpha is linear between levels."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
    low = label.floor().long().clamp(0, 998)
    value = torch.lerp(log_alpha[low], log_alpha[low + 1], label - low)
    return sd.Kernel(value.exp(), (-torch.expm1(2.0 * value)).sqrt())


def _vp_time(label: Tensor) -> sd.Kernel:
    t = label / 999.0
    log_alpha = -0.25 * t**2 * 19.9 - 0.05 * t
    return sd.Kernel(log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt())


def _vp_logsnr(label: Tensor) -> sd.Kernel:
    return sd.Kernel(torch.sigmoid(label).sqrt(), torch.sigmoid(-label).sqrt())


HOMES: dict[str, Home] = {
    "ddpm": Home(sd.DiscreteVP.linear(1000), "eps", "index", "none", _ddpm),
    "score_sde_vp": Home(sd.VPSDE(), "eps", "time", "none", _vp_time),
    "ncsnpp": Home(sd.VESDE(0.01, 50.0), "score", "log_sigma", "none", lambda c: sd.Kernel(1.0, c.exp())),
    "ncsn": Home(sd.DiscreteVE.geometric(0.01, 50.0), "score", "log_sigma", "none", lambda c: sd.Kernel(1.0, c.exp())),
    "ncsnpp_sigma": Home(sd.VESDE(0.01, 50.0), "sigma_score", "sigma", "none", lambda c: sd.Kernel(1.0, c)),
    "ncsnpp_half": Home(
        sd.VESDE(0.01, 100.0), "sigma_score", "log_half_sigma", "centre", lambda c: sd.Kernel(1.0, 2.0 * c.exp())
    ),
    "iddpm": Home(sd.DiscreteVP.linear(1000), "eps", "index_1000", "none", _ddpm),
    "edm": Home(sd.EDM(), "edm", "edm", "unit", lambda c: sd.Kernel(1.0, (4.0 * c).exp())),
    "v_cosine": Home(sd.CosineVPSDE(), "v", "logsnr", "none", _vp_logsnr),
    "x0_flow": Home(
        sd.RectifiedFlow(),
        "x0",
        "logsnr",
        "none",
        lambda c: sd.Kernel(torch.sigmoid(c / 2), torch.sigmoid(-c / 2)),
    ),
    "velocity_flow": Home(
        sd.RectifiedFlow(), "velocity", "thousand_time", "none", lambda c: sd.Kernel(1.0 - c / 1000.0, c / 1000.0)
    ),
}


LEVELS_ONLY = {"nearest_index", "reversed_index"}
"""Labels that are rounded: between its levels the network is told another noise level than there is."""


class PerfectNetwork(nn.Module):
    """The exact output of the mixture's denoiser at its home, from the network's own input and label [B]
    alone."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        k = self.home.decode(label.double())
        if self.home.input_scale == "unit":
            x = x * match((k.variance + 0.25 * k.alpha**2).sqrt(), x)
        if self.home.input_scale == "centre":
            x = (x + 1.0) / 2.0
        x0 = MIXTURE.denoiser()(x, k)
        c_skip, c_out = PREDICTIONS[self.home.prediction](k, 0.5)
        return (x0 - match(c_skip, x) * x) / match(c_out, x)


def at_home(name: str) -> sd.NetworkDenoiser:
    home = HOMES[name]
    spec = sd.NetworkSpec(home.process, home.prediction, home.label, home.input_scale, shape=(2,))
    return sd.NetworkDenoiser(PerfectNetwork(home), spec)


def shared_levels(sde: sd.SDE) -> Tensor:
    """Times of sde whose log-SNR every home knows: sigma/alpha from 0.02 to 40."""
    logsnr = -2.0 * torch.linspace(0.02, 40.0, 9, dtype=torch.float64).log()
    return sde.time_of(logsnr)


def noisy(kernel: sd.Kernel, n: int) -> Tensor:
    x0 = MIXTURE.sample(n, generator=generator(0))
    return kernel.perturb(x0, torch.randn(x0.shape, generator=generator(1), dtype=torch.float64))


def test_rounded_labels_are_those_of_the_nearest_level() -> None:
    ladder = sd.DiscreteVE.geometric(0.01, 50.0, 7)
    label = C_NOISES["reversed_index"](ladder, torch.tensor([0.0, 0.4, 0.45, 1.0], dtype=torch.float64))
    assert label.tolist() == [6.0, 4.0, 3.0, 0.0]  # of 6 steps of t, 2.4 and 2.7: NCSN counts from the most noise
    cosine = sd.DiscreteVP.cosine(1000)
    levels = cosine.levels
    ratios = levels.sigma / levels.alpha
    assert C_NOISES["nearest_index"](cosine, cosine.times).tolist() == list(range(1000))
    # The nearest in sigma/alpha, not in time: just below the middle between levels 500 and 501.
    middle = torch.lerp(ratios[500], ratios[501], 0.49)
    assert C_NOISES["nearest_index"](cosine, cosine.time_of(-2.0 * middle.log())) == 500
    with pytest.raises(UserError, match="discrete"):
        C_NOISES["nearest_index"](sd.VPSDE(), torch.tensor(0.5))


def test_a_thousand_levels_whatever_their_number() -> None:
    home = sd.DiscreteVP.cosine(4000)
    assert C_NOISES["index_1000"](home, home.times[[0, 4, 3999]]).tolist() == [0.0, 1.0, 999.75]


def test_the_home_in_model_space_scales_its_noise_with_the_data() -> None:
    for process in (sd.VESDE(0.01, 50.0), sd.EDM(0.002, 80.0), sd.DiscreteVE.geometric(0.01, 50.0, 5)):
        spec = sd.NetworkSpec(process, data_range=(0.0, 1.0))
        t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        torch.testing.assert_close(spec.model_process.kernel(t).sigma, 2.0 * process.kernel(t).sigma)
    assert sd.NetworkSpec(sd.VPSDE(), data_range=(0.0, 1.0)).model_process == sd.VPSDE()


def test_all_conventions_are_covered() -> None:
    assert {home.label for home in HOMES.values()} | LEVELS_ONLY == set(C_NOISES)
    assert {home.prediction for home in HOMES.values()} == set(PREDICTIONS)
    assert {home.input_scale for home in HOMES.values()} == set(INPUT_SCALES)


def test_the_std_of_the_data_is_the_specs() -> None:
    """EDM's preconditioning with s_d = 0.2 (Karras et al. 2022, Table 1), stored with it; else 0.5."""
    sigma, data = torch.logspace(-2.0, 1.0, 5, dtype=torch.float64), 0.2
    spec = sd.NetworkSpec(sd.EDM(), "edm", "edm", "unit", sigma_data=data)

    class Net(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return torch.tanh(x)

    x = torch.randn(5, 2, generator=generator(0), dtype=torch.float64)
    total = match(sigma**2 + data**2, x)
    f = torch.tanh(x / total.sqrt())
    expected = data**2 / total * x + data * match(sigma, x) / total.sqrt() * f
    torch.testing.assert_close(sd.NetworkDenoiser(Net(), spec)(x, sd.Kernel(1.0, sigma)), expected, **CLOSE)
    state = json.loads(json.dumps(spec.state()))
    assert sd.NetworkSpec.from_state(state).sigma_data == data
    del state["sigma_data"]
    assert sd.NetworkSpec.from_state(state).sigma_data == 0.5
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="sigma_data, a standard deviation, must be positive"):
            sd.NetworkSpec(sd.EDM(), sigma_data=wrong)


FLOW = sd.RectifiedFlow()


@pytest.mark.parametrize("prediction", ["eps", "score", "sigma_score"])
def test_a_pair_that_is_blind_at_its_first_level(prediction: str) -> None:
    """The spec may be built; training is refused, and so is sampling from pure noise, by name and with the remedy. A
    grid that begins later is sampled, and so is the network of another home there."""
    spec = sd.NetworkSpec(FLOW, prediction, "time")
    with pytest.raises(
        UserError, match=f"RectifiedFlow has no signal.* prediction '{prediction}'.*choose 'v', 'x0' or"
    ):
        spec.check_first_level()
    x = torch.randn(2, 2, generator=generator(0))

    class Net(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x

    denoiser = sd.NetworkDenoiser(Net(), spec)
    with pytest.raises(UserError, match=f"predicts '{prediction}', which says nothing.*t_start=0.99.*'velocity'"):
        sd.sample(denoiser, x=x, grid=sd.make_grid(FLOW, 5))
    assert bool(sd.sample(denoiser, x=x, grid=sd.make_grid(FLOW, 5, t_start=0.99)).x.isfinite().all())
    sd.NetworkSpec(sd.VPSDE(), prediction).check_first_level()
    elsewhere = sd.NetworkDenoiser(Net(), sd.NetworkSpec(sd.VPSDE(), prediction))
    assert bool(sd.sample(elsewhere, x=x, grid=sd.make_grid(FLOW, 5)).x.isfinite().all())


@pytest.mark.parametrize("label", ["logsnr", "log_sigma", "sigma", "edm", "log_half_sigma"])
def test_a_label_that_is_infinite_at_the_first_level(label: str) -> None:
    spec = sd.NetworkSpec(FLOW, "velocity", label)
    with pytest.raises(UserError, match=f"where label '{label}' is infinite: choose one that is not, such as 'time'"):
        spec.check_first_level()
    denoiser = sd.NetworkDenoiser(nn.Identity(), spec)
    with pytest.raises(UserError, match=f"told the noise level by '{label}', which is infinite where alpha = 0: start"):
        denoiser(torch.zeros(2, 2), FLOW.kernel(1.0))
    sd.NetworkSpec(FLOW, "velocity", "time").check_first_level()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("home", HOMES)
def test_a_network_is_exact_under_every_process(home: str, process: str) -> None:
    sde, denoiser = PROCESSES[process], at_home(home)
    times = shared_levels(sde)
    kernel = sde.kernel(times)
    x = noisy(kernel, len(times))
    torch.testing.assert_close(denoiser(x, kernel), MIXTURE.denoiser()(x, kernel), **CLOSE)
    for i in (0, 4, 8):  # one level for the whole batch
        x = noisy(kernel[i], 5)
        torch.testing.assert_close(denoiser(x, kernel[i]), MIXTURE.denoiser()(x, kernel[i]), **CLOSE)


@pytest.mark.parametrize("home", HOMES)
def test_the_label_at_home(home: str) -> None:
    """On its own levels the network is told exactly its own clock."""
    row, seen = HOMES[home], []

    class Watch(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            seen.append(label)
            return x

    spec = sd.NetworkSpec(row.process, row.prediction, row.label, row.input_scale)
    times = torch.tensor([0.011, 0.25, 0.5, 0.999], dtype=torch.float64)
    kernel = row.process.kernel(times)
    sd.NetworkDenoiser(Watch(), spec)(torch.zeros(4, 2, dtype=torch.float64), kernel)
    decoded = row.decode(seen[0])
    torch.testing.assert_close(decoded.sigma / decoded.alpha, kernel.sigma / kernel.alpha, rtol=1e-8, atol=0.0)


def test_ddpm_labels_are_the_integers_of_its_levels() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            seen.append(label)
            return x

    sde = sd.DiscreteVP.linear(1000)
    denoiser = sd.NetworkDenoiser(Watch(), sd.NetworkSpec(sde, "eps", "index"))
    denoiser(torch.zeros(1000, 2, dtype=torch.float64), sde.levels)
    torch.testing.assert_close(seen[0], torch.arange(1000, dtype=torch.float64), rtol=0.0, atol=1e-7)


def test_beyond_its_range_a_home_answers_at_its_nearest_level() -> None:
    """More noise than it knows: x scaled down to its most noisy level; less: x at its signal scale."""
    ve = at_home("ncsnpp")
    x = noisy(sd.Kernel(1.0, 80.0), 8)
    expected = MIXTURE.denoiser()(50.0 / 80.0 * x, sd.Kernel(1.0, 50.0))
    torch.testing.assert_close(ve(x, sd.Kernel(1.0, 80.0)), expected, **CLOSE)
    x = noisy(sd.Kernel(0.5, 1e-5), 8)
    least = HOMES["ncsnpp"].process.kernel(0.0)
    expected = MIXTURE.denoiser()(x / 0.5, least)
    torch.testing.assert_close(ve(x, sd.Kernel(0.5, 1e-5)), expected, **CLOSE)


@pytest.mark.parametrize("home", ["ddpm", "ncsnpp", "edm"])
@pytest.mark.parametrize("process", ["VPSDE", "VESDE", "RectifiedFlow"])
def test_a_network_samples_abroad_as_the_oracle_does(process: str, home: str) -> None:
    sde = PROCESSES[process]
    times = sde.time_of(-2.0 * torch.linspace(30.0, 0.05, 15, dtype=torch.float64).log())
    grid = sd.TimeGrid(sde, times)
    x = sde.kernel(times[0]).sigma * torch.randn(6, 2, generator=generator(2), dtype=torch.float64)
    for sampler in ("ddim", "heun", "ode"):
        ends = [sd.sample(d, grid=grid, x=x, sampler=sampler).x for d in (at_home(home), MIXTURE.denoiser())]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-6)


def test_float32_networks() -> None:
    denoiser = at_home("ddpm")
    kernel = PROCESSES["VESDE"].kernel(0.5)
    x = noisy(kernel, 4).float()
    assert denoiser(x, kernel).dtype == torch.float32
    torch.testing.assert_close(denoiser(x, kernel), MIXTURE.denoiser()(x, kernel), rtol=1e-3, atol=1e-3)


def test_spec_round_trip() -> None:
    for home in HOMES.values():
        spec = sd.NetworkSpec(
            home.process, home.prediction, home.label, home.input_scale, (0.0, 1.0), (3, 8, 8), "unet"
        )
        again = sd.NetworkSpec.from_state(json.loads(json.dumps(spec.state())))
        assert again.state() == spec.state() and again.shape == (3, 8, 8) and again.data_range == (0.0, 1.0)
    with pytest.raises(sd.UserError, match="did you mean 'score'"):
        sd.NetworkSpec(sd.VPSDE(), "scor")
    with pytest.raises(sd.UserError, match="label"):
        sd.NetworkSpec(sd.VPSDE(), "eps", "step")


# --- score, eps, v ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_the_views_of_a_denoiser(process: str) -> None:
    """x = alpha x0_hat + sigma eps_hat, score = -eps_hat/sigma, v = alpha eps_hat - sigma x0_hat."""
    k = PROCESSES[process].kernel(0.4)
    x, d = noisy(k, 16), MIXTURE.denoiser()
    x0, eps = d(x, k), sd.eps(d, x, k)
    torch.testing.assert_close(k.alpha * x0 + k.sigma * eps, x, **CLOSE)
    torch.testing.assert_close(sd.score(d, x, k), -eps / k.sigma, **CLOSE)
    torch.testing.assert_close(sd.v(d, x, k), k.alpha * eps - k.sigma * x0, **CLOSE)


# --- wrappers -----------------------------------------------------------------------------------------------


def test_a_data_range_of_0_to_1() -> None:
    """The mixture moved to y = (x + 1)/2: RangeDenoiser of its denoiser is the denoiser of the original."""
    moved = sd.GaussianMixture(0.5 * MIXTURE.means + 0.5, 0.5 * MIXTURE.stds, MIXTURE.weights)
    wrapped = sd.RangeDenoiser(moved.denoiser(), 0.0, 1.0)
    for process in PROCESSES.values():
        kernel = process.kernel(torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64))
        x = noisy(kernel, 3)
        torch.testing.assert_close(wrapped(x, kernel), MIXTURE.denoiser()(x, kernel), **CLOSE)
    same = sd.RangeDenoiser(MIXTURE.denoiser(), -1.0, 1.0)
    torch.testing.assert_close(same(x, kernel), MIXTURE.denoiser()(x, kernel), **CLOSE)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 4.0])
def test_guidance(weight: float) -> None:
    """(1 + w) conditional - w unconditional; the same for eps. w = 0 is the conditional, -1 the unconditional
    one."""
    conditional = sd.GaussianMixture(MIXTURE.means[:1], MIXTURE.stds[:1], [1.0]).denoiser()
    guided = sd.GuidedDenoiser(conditional, MIXTURE.denoiser(), weight)
    k = sd.Kernel(0.7, 0.5)
    x = noisy(k, 8)
    expected = (1.0 + weight) * conditional(x, k) - weight * MIXTURE.denoiser()(x, k)
    torch.testing.assert_close(guided(x, k), expected, **CLOSE)
    eps = (1.0 + weight) * sd.eps(conditional, x, k) - weight * sd.eps(MIXTURE.denoiser(), x, k)
    torch.testing.assert_close(sd.eps(guided, x, k), eps, **CLOSE)


def test_conditioning_reaches_the_network() -> None:
    def by_label(x: Tensor, kernel: sd.Kernel, *, labels: Tensor | None = None) -> Tensor:
        return x * 0 + (0.0 if labels is None else labels[:, None].to(x))

    x, k, labels = torch.zeros(3, 2), sd.Kernel(1.0, 1.0), torch.tensor([1, 2, 3])
    fixed = sd.ConditionedDenoiser(by_label, labels=labels)
    assert fixed(x, k)[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert fixed(x, k, labels=labels + 1)[:, 0].tolist() == [2.0, 3.0, 4.0]
    guided = sd.GuidedDenoiser(fixed, by_label, 1.0)
    assert guided(x, k)[:, 0].tolist() == [2.0, 4.0, 6.0]
    clipped = sd.ClippedDenoiser(fixed, 0.0, 1.5)
    assert clipped(x, k)[:, 0].tolist() == [1.0, 1.5, 1.5]


def test_counting() -> None:
    counted = sd.CountingDenoiser(MIXTURE.denoiser())
    x, k = torch.zeros(3, 2, dtype=torch.float64), sd.Kernel(0.5, 0.5)
    for n in (1, 2, 3):
        torch.testing.assert_close(counted(x, k), MIXTURE.denoiser()(x, k), **CLOSE)
        assert counted.nfe == n


class WithVariance(nn.Module):
    """A network of 2 C channels: eps = x, and in the second half v = tanh(x)."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x, x.tanh()], dim=1)


def test_watching() -> None:
    """Every evaluation of a short sampling; of a long one every second, fourth, ... and always the last."""
    x = torch.randn(5, 2, generator=generator(1), dtype=torch.float64)
    grid = sd.make_grid(sd.VPSDE(), 10, "logsnr")
    watched = WatchedDenoiser(MIXTURE.denoiser(), 3, most=64)
    out = sd.sample(watched, x=x, grid=grid, sampler="ddim").x
    assert [one.index for one in watched.seen] == list(range(10))
    assert watched.seen[0].x.equal(x[:3]) and watched.seen[-1].x0_hat.equal(out[:3])
    for one, node in zip(watched.seen, grid.nodes, strict=True):
        assert one.kernel.alpha == node.kernel.alpha
        assert one.x0_hat.allclose(MIXTURE.denoiser()(one.x, node.kernel))
    for steps in (11, 12, 40, 100):
        long = WatchedDenoiser(MIXTURE.denoiser(), 3, most=10)
        out = sd.sample(long, x=x, grid=sd.make_grid(sd.VPSDE(), steps, "logsnr"), sampler="ddim").x
        found = [one.index for one in long.seen]
        assert found == [*range(0, steps - 1, long.stride), steps - 1] or found == list(range(0, steps, long.stride))
        assert 5 <= len(found) <= 10 and found[-1] == steps - 1
        assert long.seen[-1].x0_hat.equal(out[:3])


def test_a_learned_variance_goes_through_every_wrapper() -> None:
    """The fraction is (v + 1)/2 of the network's own x; x0_hat is what each wrapper makes of it."""
    spec = sd.NetworkSpec(process=PROCESSES["DiscreteVP"], label="index", variance="learned_range", shape=(3, 2, 2))
    network = sd.NetworkDenoiser(WithVariance(), spec)
    kernel = PROCESSES["DiscreteVP"].kernel(0.4)
    x = torch.randn(5, 3, 2, 2, generator=generator(0), dtype=torch.float64)
    x0_hat, fraction = (x - kernel.sigma * x) / kernel.alpha, 0.5 * (x.tanh() + 1.0)
    for wrapped, expected in (
        (network, x0_hat),
        (sd.CountingDenoiser(network), x0_hat),
        (sd.ConditionedDenoiser(network), x0_hat),
        (sd.ClippedDenoiser(network, -0.3, 0.2), x0_hat.clamp(-0.3, 0.2)),
        (sd.GuidedDenoiser(network, lambda x, kernel: 0.0 * x, 1.5), 2.5 * x0_hat),
        (sd.RangeDenoiser(network, -1.0, 1.0), x0_hat),
    ):
        found = moments(wrapped, x, kernel)
        torch.testing.assert_close(found[0], expected, **CLOSE)
        torch.testing.assert_close(found[1], fraction, **CLOSE)
        torch.testing.assert_close(wrapped(x, kernel), expected, **CLOSE)
    assert moments(lambda x, kernel: x, x, kernel)[1] is None
    with pytest.raises(sd.UserError, match="did you mean 'learned_range'"):
        sd.NetworkSpec(process=PROCESSES["DiscreteVP"], variance="learned")


def test_a_learned_variance_is_used_by_ddpm() -> None:
    """A saturated v of +-1 is the variance beta or the posterior's."""
    spec = sd.NetworkSpec(process=PROCESSES["DiscreteVP"], label="index", variance="learned_range", shape=(2, 1, 1))

    class Saturated(nn.Module):
        def __init__(self, v: float) -> None:
            super().__init__()
            self.v = v

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return torch.cat([0.5 * x, torch.full_like(x, self.v)], dim=1)

    def drawn(v: float, variance: str) -> Tensor:
        denoiser = sd.NetworkDenoiser(Saturated(v), spec)
        grid = sd.make_grid(PROCESSES["DiscreteVP"], 20, "strided")
        options = {"sampler": "ddpm", "generator": generator(1), "dtype": torch.float64, "variance": variance}
        return sd.sample(denoiser, (4, 2, 1, 1), grid, **options).x

    torch.testing.assert_close(drawn(1.0, "learned"), drawn(0.0, "beta"), **CLOSE)
    torch.testing.assert_close(drawn(-1.0, "learned"), drawn(0.0, "posterior"), **CLOSE)
