"""The embeddings against their formulas, and the random features against the kernel that they estimate."""

import math

import pytest
import torch
from torch import nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.denoisers.network import condition_names
from sde_diffusion.nets.building import build_network
from sde_diffusion.nets.embedding import Conditioning, FourierFeatures, positional
from tests.nets.contract import perturbed, randn


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cosine_first", [False, True])
@pytest.mark.parametrize("dim", [4, 7, 64])
def test_positional_equals_its_formula(dim: int, cosine_first: bool, shift: int) -> None:
    labels, half = [0.0, 1.0, 17.5, 999.0], dim // 2
    features = positional(torch.tensor(labels, dtype=torch.float64), dim, shift=shift, cosine_first=cosine_first)
    assert features.shape == (4, dim)
    for row, label in zip(features.tolist(), labels, strict=True):
        angles = [label * 10000 ** (-i / (half - shift)) for i in range(half)]
        waves = (math.cos, math.sin) if cosine_first else (math.sin, math.cos)
        expected = [wave(angle) for wave in waves for angle in angles]
        assert row == pytest.approx(expected + [0.0] * (dim - 2 * half), abs=1e-12)


def test_positional_tells_all_steps_apart() -> None:
    features = positional(torch.arange(1001), 32)
    gaps = torch.cdist(features, features) + 10 * torch.eye(1001)
    assert gaps.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float32])
def test_positional_computes_in_float32(dtype: torch.dtype) -> None:
    label = torch.tensor([0, 3, 250], dtype=dtype)
    expected = positional(label.double(), 16)
    assert positional(label, 16).dtype == torch.float32
    torch.testing.assert_close(positional(label, 16).double(), expected, rtol=0, atol=5e-5)


def test_fourier_features_estimate_the_gaussian_kernel() -> None:
    """By Bochner's theorem E[cos(2 pi f (a - b))] = exp(-2 (pi scale (a - b))^2) for f ~ N(0, scale^2)."""
    scale, half = 0.7, 20000
    label = randn(6, seed=3) / 2
    features = FourierFeatures(2 * half, scale)(label)
    expected = torch.exp(-2 * (math.pi * scale * (label[:, None] - label)) ** 2)
    # A mean of `half` cosines, each of variance at most 1: five standard errors.
    torch.testing.assert_close(features @ features.T / half, expected, rtol=0, atol=5 / math.sqrt(half))


def test_fourier_features_are_fixed_and_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, two = FourierFeatures(9, 16.0), FourierFeatures(9, 16.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.state_dict()["frequencies"], two.state_dict()["frequencies"])
    assert not list(one.parameters())
    assert one(torch.zeros(2)).shape == (2, 9)


def test_fourier_features_are_computed_in_float32_at_least() -> None:
    label = torch.tensor([0.3, -4.0])
    assert FourierFeatures(8).bfloat16()(label.bfloat16()).dtype == torch.float32
    assert FourierFeatures(8).double()(label).dtype == torch.float64


def test_fourier_features_follow_the_device_context() -> None:
    with torch.device("meta"):
        assert FourierFeatures(8).frequencies.is_meta


def conditioned(**options: object) -> Conditioning:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Conditioning(8, 16, **options).double()


@pytest.mark.parametrize("classes_first", [False, True])
def test_a_vector_adds_the_sum_of_its_rows(classes_first: bool) -> None:
    """A multi-hot vector adds the columns of what is there, a number its multiple; zeros are told, and add nothing."""
    net = conditioned(vectors={"attributes": 3, "targets": 1}, classes_first=classes_first)
    row = net.vectors["attributes"]
    nn.init.normal_(row.weight, generator=torch.Generator().manual_seed(1))
    given = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [math.nan] * 3], dtype=torch.float64)
    added = row("attributes", given, 4)
    expected = torch.stack(
        [row.weight[:, :3].sum(1), row.weight[:, 1], torch.zeros(row.weight.shape[0]), row.weight[:, 3]]
    )
    torch.testing.assert_close(added, expected.double())
    torch.testing.assert_close(row("attributes", None, 2), row.weight[:, 3].expand(2, -1))
    age = net.vectors["targets"]
    numbers = torch.tensor([[2.5], [-1.0]], dtype=torch.float64)
    torch.testing.assert_close(age("targets", numbers, 2), numbers * age.weight[:, :1].T)
    c_noise = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert torch.equal(net(c_noise, None, 4, vectors={"attributes": given})[3], net(c_noise, None, 4)[3])
    assert not torch.equal(net(c_noise, None, 4, vectors={"attributes": given})[1], net(c_noise, None, 4)[1])


def test_a_network_without_vectors_is_as_it_always_was() -> None:
    plain, more = conditioned(num_classes=3), conditioned(num_classes=3, vectors={"attributes": 2})
    assert set(more.state_dict()) - set(plain.state_dict()) == {"vectors.attributes.weight"}
    assert all(torch.equal(value, more.state_dict()[name]) for name, value in plain.state_dict().items())
    c_noise, labels = torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 3])
    zeros = {"attributes": torch.zeros(2, 2)}
    assert torch.equal(plain(c_noise, labels, 2), more(c_noise, labels, 2, vectors=zeros))


def test_vectors_of_another_name_or_shape_are_refused() -> None:
    net, c_noise = conditioned(vectors={"attributes": 2}), torch.ones(3, dtype=torch.float64)
    with pytest.raises(UserError, match=r"does not take the condition 'atributes'.*did you mean 'attributes'"):
        net(c_noise, None, 3, vectors={"atributes": torch.ones(3, 2)})
    with pytest.raises(UserError, match=r"attributes must have shape \[3, 2\]; got \[3, 4\]"):
        net(c_noise, None, 3, vectors={"attributes": torch.ones(3, 4)})


IMAGE = {"in_channels": 1, "image_size": 8}
SMALL = {
    "unet": {**IMAGE, "channels": 8, "multipliers": (1,), "blocks": 1},
    "ddpm": {**IMAGE, "channels": 64, "multipliers": (1,), "blocks": 1},
    "ddpmpp": {**IMAGE, "channels": 8, "multipliers": (1,), "blocks": 1},
    "ncsnpp": {**IMAGE, "channels": 8, "multipliers": (1,), "blocks": 1},
    "adm": {**IMAGE, "channels": 32, "multipliers": (1,), "blocks": 1},
    "songunet": {**IMAGE, "channels": 8, "multipliers": (1,), "blocks": 1},
    "dhariwal": {**IMAGE, "channels": 64, "multipliers": (1,), "blocks": 1},
    "unet2d": {**IMAGE, "channels": (64,), "attention": (False,), "up_attention": (False,), "blocks": 1},
    "dit": {**IMAGE, "width": 16, "depth": 1, "heads": 2},
    "mlp": {"shape": (1, 8, 8), "width": 16, "blocks": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_vectors(name: str) -> None:
    net = perturbed(build_network(name, {**SMALL[name], "vectors": {"attributes": 2, "targets": 1}})).eval()
    x, c_noise = randn(2, 1, 8, 8), torch.tensor([1.0, 2.0], dtype=torch.float64)
    told = {"attributes": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "targets": torch.tensor([[0.5], [2.0]])}
    out = net(x, c_noise, **told)
    assert condition_names(net)[-2:] == ("attributes", "targets")
    for other in told:
        changed = net(x, c_noise, **{**told, other: -told[other]})
        assert ((out - changed).flatten(1).norm(dim=1) > 1e-4).all()
