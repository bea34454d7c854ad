"""NCSNv2 against the published network's outputs and gradients, its normalisation against the formula."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.importers.score_sde_ncsnv2 import ncsnv2_keys
from sde_diffusion.nets.ncsnv2 import InstanceNormPlusPlus, NCSNv2
from tests.nets.contract import NetworkContract, perturbed, randn

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "networks"


class TestContract:
    """The contract of a network, as far as it holds for one without noise label, classes or a zero start.

    At another seed a finite difference may straddle a kink, of which maxima and elu' have many.
    """

    shape = (2, 6, 6)
    label = NetworkContract.label
    x = NetworkContract.x
    test_vector_jacobian_product = NetworkContract.test_vector_jacobian_product_equals_finite_differences
    test_second_derivative = NetworkContract.test_second_derivative_equals_finite_differences

    def build(self) -> NCSNv2:
        return NCSNv2(in_channels=2, image_size=6, channels=4)

    def test_a_sample_does_not_depend_on_its_batch_mates(self) -> None:
        net, x = perturbed(self.build()), randn(3, *self.shape)
        together = net(x, self.label)
        for i in range(3):
            torch.testing.assert_close(net(x[i : i + 1], self.label[i : i + 1])[0], together[i], rtol=0, atol=1e-12)

    def test_noise_label_does_not_matter(self) -> None:
        net, x = self.build(), randn(3, *self.shape).float()
        assert torch.equal(net(x, self.label), net(x, 1 - self.label))

    def test_every_parameter_gets_a_gradient(self) -> None:
        net = perturbed(self.build())
        net(randn(3, *self.shape), self.label).square().sum().backward()
        assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


class TestPublishedNetwork:
    """The source divides by sigma, of the level that the label counts from the largest down, and centres x."""

    recipe: dict[str, Any] = json.loads((REFERENCE / "song_ncsnv2.json").read_text())
    weights = load_file(REFERENCE / "song_ncsnv2.weights.safetensors")
    io = load_file(REFERENCE / "song_ncsnv2.io.safetensors")

    def build(self) -> NCSNv2:
        """The network with the published weights, every one of which is used once and none missing."""
        model, data = self.recipe["config"]["model"], self.recipe["config"]["data"]
        net = NCSNv2(in_channels=data["num_channels"], image_size=data["image_size"], channels=model["nf"])
        keys = ncsnv2_keys(net)
        assert sorted(keys.values()) == sorted(self.weights.keys() - {"sigmas"})
        net.load_state_dict({ours: self.weights[theirs] for ours, theirs in keys.items()}, strict=True)
        assert sum(p.numel() for p in net.parameters()) == self.recipe["n_parameters"]
        return net

    def output(self, net: NCSNv2) -> Tensor:
        model = self.recipe["config"]["model"]
        ends = math.log(model["sigma_max"]), math.log(model["sigma_min"])
        sigmas = torch.linspace(*ends, model["num_scales"], dtype=torch.float64).exp()
        x, label = self.io["in.x"], self.io["in.labels"]
        return net(2 * x - 1, label) / sigmas[label].view(-1, 1, 1, 1)

    def test_output(self) -> None:
        with torch.no_grad():
            out = self.output(self.build())
        for sample, expected in zip(out, self.io["out"], strict=True):  # each by its own scale: sigma varies 5000-fold
            torch.testing.assert_close(sample, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    def test_gradients(self) -> None:
        net = self.build()
        keys = ncsnv2_keys(net)
        gradients = torch.autograd.grad(self.output(net).square().mean(), [net.get_parameter(key) for key in keys])
        norms = {theirs: gradient.norm().item() for theirs, gradient in zip(keys.values(), gradients, strict=True)}
        assert norms == pytest.approx(self.recipe["grad_norms"], rel=1e-3)


# Outputs at three pixels of the source in float64 (at commit cb1f359, with padding = dilation).
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (28, [-0.12231910756917797, -0.15691326349107754, -0.09731649340498172]),
        (96, [-0.1267834585786876, -0.050102295326485205, -0.17177189362841877]),
        (136, [-0.10636860262760076, -0.040921415122557314, -0.08220105880109846]),
    ],
)
def test_networks_of_all_sizes_equal_the_published_ones(size: int, expected: list[float]) -> None:
    net = NCSNv2(in_channels=1, image_size=size, channels=2).double()
    keys = ncsnv2_keys(net)
    for i, ours in enumerate(sorted(keys, key=keys.__getitem__)):
        parameter = net.get_parameter(ours).detach()
        index = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.copy_(0.3 * (i + index).cos().view_as(parameter))
    x = torch.arange(size**2, dtype=torch.float64).sin().view(1, 1, size, size)
    with torch.no_grad():
        out = net(x, torch.zeros(1))[0, 0]
    pixels = [out[0, 0].item(), out[size // 2, size // 3].item(), out[-1, -1].item()]
    assert pixels == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "square", "linear"), [(4, 1811, 177), (94, 1811, 177), (96, 5091, 269), (128, 5091, 269), (256, 5743, 307)]
)
def test_parameter_count(size: int, square: int, linear: int) -> None:
    """For 3 channels of an image and n features: square n^2 + linear n + 3, counted by hand.

    Small images, n^2: residual blocks 36 + 101 + 180 + 180, refinements 288 + 504 + 360 + 162. n: stem 28, residual
    blocks 16 + 27 + 34 + 34, biases of the refinements 4 + 2 + 2, head 3 + 27; and 3 biases of the output.
    """
    for n in (8, 128):
        with torch.device("meta"):
            net = NCSNv2(in_channels=3, image_size=size, channels=n)
        assert sum(p.numel() for p in net.parameters()) == square * n**2 + linear * n + 3


def test_cifar10_settings_give_29_694_083_parameters() -> None:
    with torch.device("meta"):
        net = NCSNv2(in_channels=3, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == 29_694_083


def test_norm_equals_its_formula() -> None:
    layer, x = InstanceNormPlusPlus(3), 2 + randn(2, 3, 4, 5)
    perturbed(layer)
    out = layer(x)
    for b in range(2):
        mu = x[b].flatten(1).sum(dim=1) / 20
        m = mu.sum() / 3
        v = (mu - m).square().sum() / 2  # unbiased over the channels
        for c in range(3):
            spread = (x[b, c] - mu[c]).square().sum() / 20  # biased over the pixels
            normal = (x[b, c] - mu[c]) / (spread + 1e-5).sqrt()
            offset = layer.alpha[c] * (mu[c] - m) / (v + 1e-5).sqrt()
            expected = layer.gamma[c] * (normal + offset) + layer.beta[c]
            torch.testing.assert_close(out[b, c], expected, rtol=0, atol=1e-12)


def test_norm_of_a_constant_is_beta_and_its_derivative_finite() -> None:
    layer, x = InstanceNormPlusPlus(3), torch.ones(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    perturbed(layer)
    out = layer(x)
    assert torch.equal(out, layer.beta[None, :, None, None].expand_as(out))
    (slope,) = torch.autograd.grad((out * randn(*x.shape)).sum(), x)
    assert slope.isfinite().all() and slope.any()


def test_out_channels() -> None:
    x = randn(2, 1, 8, 8).float()
    assert NCSNv2(in_channels=1, out_channels=3, image_size=8, channels=2)(x, torch.zeros(2)).shape == (2, 3, 8, 8)


def test_errors_name_what_was_wrong() -> None:
    net, x, label = TestContract().build(), randn(3, 2, 6, 6).float(), TestContract.label
    for wrong in (x[:, :1], x[..., :5, :5], x[0]):
        with pytest.raises(UserError, match=r"x must have shape \[B, 2, 6, 6\]"):
            net(wrong, label)
    with pytest.raises(UserError, match="no class labels"):
        net(x, label, torch.tensor([0, 1, 2]))
    with pytest.raises(UserError, match="channels=1 "):
        NCSNv2(in_channels=1, image_size=8, channels=1)
    with pytest.raises(UserError, match="at most 256"):
        NCSNv2(in_channels=1, image_size=264)


@pytest.mark.parametrize(
    ("size", "named"), [(33, "32 and 34"), (2, "4 and 6"), (98, "96 and 100"), (150, "144 and 152")]
)
def test_a_size_that_does_not_halve_is_refused(size: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        NCSNv2(in_channels=1, image_size=size)
