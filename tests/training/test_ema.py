"""Averages of weights against their recursion, their impulse responses' moments, and score_sde's own numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from sde_diffusion.core.errors import UserError
from sde_diffusion.training.averages import WIDEST, Averages, Exponential, Power, Profile, power_gamma, relative_width

VECTORS = Path(__file__).parents[1] / "data" / "reference" / "score_sde_ema.npz"
PROFILES: dict[str, Profile] = {"short": Exponential(0.9), "ema": Exponential(0.9999), "power": Power(0.1)}


class Weights(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())


def small_net() -> nn.Module:
    """Parameters and buffers, of floats and of integers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def train_step(net: nn.Module, seed: int) -> None:
    """A step of gradient descent on noise, which also moves the buffers."""
    torch.manual_seed(seed)
    net.train()
    net.zero_grad()
    net(torch.randn(8, 3)).square().mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.3 * p.grad  # type: ignore[operator]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert list(a) == list(b)
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


def impulse_response(profile: Profile, updates: int) -> Tensor:
    """The share of theta_0, theta_1, ... in the average after so many updates, by feeding unit vectors."""
    units = torch.eye(updates + 1, dtype=torch.float64)
    net = Weights(units[0])
    averages = Averages(net, {"one": profile})
    for unit in units[1:]:
        net.values.data.copy_(unit)
        averages.update(net)
    return averages.weights()["one"]["values"]


# --- profiles -------------------------------------------------------------------------------------------------


def test_score_sde_shadow_parameters() -> None:
    """12 updates of 5 weights with decay min(0.999, (1 + n)/(10 + n)), n = 1, 2, ..."""
    with np.load(VECTORS) as arrays:
        first, weights, shadow = (torch.from_numpy(arrays[f"ema_{name}"]) for name in ("init", "params", "shadow"))
    net = Weights(first)
    averages = Averages(net, {"ema": Exponential(0.999)})
    for row, expected in zip(weights, shadow, strict=True):
        net.values.data.copy_(row)
        averages.update(net)
        torch.testing.assert_close(averages.weights()["ema"]["values"], expected, rtol=1e-12, atol=1e-14)


def test_the_exponential_profile_is_a_geometric_series_after_its_warm_up() -> None:
    rate, updates, warm = 0.5, 40, 8  # (1 + 8)/(10 + 8) = 0.5
    assert [Exponential(0.9).decay(n) for n in (1, 10, 1000)] == [2 / 11, 11 / 20, 0.9]
    shares = impulse_response(Exponential(rate), updates)
    m = torch.arange(warm, updates + 1, dtype=torch.float64)
    torch.testing.assert_close(shares[warm:], (1 - rate) * rate ** (updates - m), rtol=1e-12, atol=0)
    torch.testing.assert_close(shares.sum().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25, WIDEST])
def test_the_impulse_response_of_a_power_average_is_its_profile(sigma_rel: float) -> None:
    """Its shares are the profile's integrals from m-1 to m, and sigma_rel is its measured relative width."""
    updates = 400
    shares = impulse_response(Power(sigma_rel), updates)
    edges = torch.arange(updates + 1, dtype=torch.float64) / updates
    gamma = Power(sigma_rel).gamma
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], (edges ** (gamma + 1)).diff(), rtol=0, atol=1e-13)
    middle = (edges[1:] + edges[:-1]) / 2
    mean = (shares[1:] * middle).sum()
    width = (shares[1:] * (middle - mean).square()).sum().sqrt()
    torch.testing.assert_close(mean.item(), (gamma + 1) / (gamma + 2), rtol=2e-4, atol=0)
    torch.testing.assert_close(width.item(), sigma_rel, rtol=2e-3, atol=0)


def test_gamma_and_the_relative_width_are_inverse() -> None:
    for gamma in (1e-6, 0.1, 1.0, 6.94, 16.97, 100.0, 1e4):
        assert math.isclose(power_gamma(relative_width(gamma)), gamma, rel_tol=1e-9, abs_tol=1e-12)
    assert power_gamma(WIDEST) == pytest.approx(0.0, abs=1e-14)
    # Karras et al. 2024, section 3.1, name the lengths 5 % and 10 % by gamma = 16.97 and 6.94.
    assert (round(power_gamma(0.05), 2), round(power_gamma(0.10), 2)) == (16.97, 6.94)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, math.nan, math.inf])
def test_a_width_that_no_profile_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(UserError, match=r"sigma_rel must lie in \(0, 1/sqrt\(12\) = 0.2887\]"):
        Power(sigma_rel)


def test_a_rate_that_never_forgets_is_refused() -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 1\), got 1.0"):
        Exponential(1.0)


# --- averages -------------------------------------------------------------------------------------------------


def test_several_averages_follow_their_recursions() -> None:
    net = small_net()
    averages = Averages(net, PROFILES)
    expected = {name: copy.deepcopy(net.state_dict()) for name in PROFILES}
    for n in range(1, 6):
        train_step(net, n)
        averages.update(net)
        for name, profile in PROFILES.items():
            d = profile.decay(n)
            for key, value in net.state_dict().items():
                old = expected[name][key]
                expected[name][key] = d * old + (1 - d) * value if value.is_floating_point() else value.clone()
    assert averages.updates == 5
    for name in PROFILES:
        found = averages.weights()[name]
        assert list(found) == list(net.state_dict())
        assert found["1.num_batches_tracked"] == 5
        for key, value in found.items():
            torch.testing.assert_close(value, expected[name][key], rtol=1e-6, atol=1e-7)


def test_weights_that_stay_are_their_own_average() -> None:
    net = small_net()
    averages = Averages(net, PROFILES)
    for _ in range(20):
        averages.update(net)
    for found in averages.weights().values():
        assert_same(found, dict(net.state_dict()))


def test_half_precision_is_averaged_in_float32() -> None:
    """A drift of one unit in the last place of bfloat16, averaged with shares of 1/64 and less, is not lost."""
    net = Weights(torch.ones(1, dtype=torch.bfloat16))
    averages = Averages(net, {"one": Power(WIDEST)})
    for n in range(64):
        net.values.data.fill_(1.0 + n % 2 * 2**-7)
        averages.update(net)
    mean = averages.weights()["one"]["values"]
    torch.testing.assert_close(mean, torch.tensor([1.0 + 2**-8]), rtol=1e-6, atol=0)


def test_a_resumed_training_continues_bit_for_bit() -> None:
    whole, parted = small_net(), small_net()
    straight, resumed = Averages(whole, PROFILES), Averages(parted, PROFILES)
    for n in range(1, 9):
        train_step(whole, n)
        straight.update(whole)
        if n == 4:
            stored = copy.deepcopy(resumed.weights())
            resumed = Averages(parted, PROFILES, updates=3)
            resumed.load(stored)
        train_step(parted, n)
        resumed.update(parted)
    for name in PROFILES:
        assert_same(straight.weights()[name], resumed.weights()[name])


@pytest.mark.parametrize("fails", [False, True])
def test_inside_the_network_is_the_average_and_afterwards_itself(fails: bool) -> None:
    net = small_net()
    averages = Averages(net, PROFILES)
    train_step(net, 1)
    averages.update(net)
    net[1].eval()  # a frozen part, which must not be set in training mode afterwards
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    addresses = [p.data_ptr() for p in net.parameters()]
    other = small_net()
    other.load_state_dict(averages.weights()["ema"])
    x = torch.randn(5, 3)
    try:
        with averages.within(net, "ema"):
            assert torch.equal(net(x), other.eval()(x))
            assert not any(module.training for module in net.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert_same(dict(before), dict(net.state_dict()))
    assert modes == [module.training for module in net.modules()]
    assert addresses == [p.data_ptr() for p in net.parameters()]


def test_errors_name_what_was_wrong() -> None:
    net = small_net()
    averages = Averages(net, PROFILES)
    with pytest.raises(UserError, match="unknown average 'pover'; did you mean 'power'"), averages.within(net, "pover"):
        pass
    before, stored = copy.deepcopy(averages.weights()), copy.deepcopy(averages.weights())
    train_step(net, 1)
    averages.update(net)
    now = copy.deepcopy(averages.weights())
    del stored["ema"]
    with pytest.raises(UserError, match=r"missing: ema/0.bias, .* \(9\)"):
        averages.load(stored)
    stored = {**before, "ema": {**before["ema"], "0.bias": torch.zeros(5)}, "more": {}}
    stored["short"] = {"extra": torch.zeros(1), **{k: v for k, v in before["short"].items() if k != "3.bias"}}
    with pytest.raises(
        UserError, match=r"missing: short/3.bias \(1\); not expected: short/extra \(1\); .*ema/0.bias: "
    ):
        averages.load(stored)
    for name in PROFILES:
        assert_same(now[name], averages.weights()[name])


# --- shards ---------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    if not distributed.is_available():
        pytest.skip("this PyTorch divides no networks")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_sharded_network_has_the_averages_of_a_plain_one(process_group: None) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    plain, sharded = small_net(), small_net()
    fsdp.fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    nets = (plain, sharded)
    averages = [Averages(net, PROFILES) for net in nets]
    for n in range(1, 4):
        for net, own in zip(nets, averages, strict=True):
            train_step(net, n)
            own.update(net)
    x = torch.randn(5, 3)
    for name in PROFILES:
        outs, back = [], []
        for net, own in zip(nets, averages, strict=True):
            with own.within(net, name):
                outs.append(net(x).detach())
            back.append(net.eval()(x).detach())
        assert torch.equal(*outs) and torch.equal(*back) and not torch.equal(outs[0], back[0])
    sharded_weights = averages[1].weights()
    averages[1].load(copy.deepcopy(sharded_weights))
    for name, expected in averages[0].weights().items():
        found = {key: getattr(v, "full_tensor", lambda v=v: v)() for key, v in sharded_weights[name].items()}
        assert_same(expected, found)
