"""What every score network must satisfy; a network's test class inherits these tests."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusion.core.errors import UserError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perturbed(net: nn.Module) -> nn.Module:
    """The network in float64 with every parameter drawn anew, so that none is at its zero initialisation."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.double().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net


class NetworkContract:
    shape: tuple[int, ...]
    label = torch.tensor([3.0, 141.0, 900.0], dtype=torch.float64)
    classes = torch.tensor([0, 1, 2])  # with num_classes=2, so that the last is "no class"

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> nn.Module:
        raise NotImplementedError

    def x(self, seed: int = 1) -> Tensor:
        return randn(3, *self.shape, seed=seed)

    @pytest.mark.parametrize("embedding", ["positional", "fourier"])
    def test_output_is_exactly_zero_at_initialisation(self, embedding: str) -> None:
        net = self.build(num_classes=2, embedding=embedding)
        out = net(self.x().float(), self.label.float(), self.classes)
        assert out.shape == (3, *self.shape) and out.dtype == torch.float32
        assert not out.any()

    def test_vector_jacobian_product_equals_finite_differences(self) -> None:
        net, x, step = perturbed(self.build()).requires_grad_(False), self.x().requires_grad_(), 1e-5
        cotangent, direction = self.x(seed=2), self.x(seed=3)
        (product,) = torch.autograd.grad(net(x, self.label), x, cotangent)
        change = net(x + step * direction, self.label) - net(x - step * direction, self.label)
        expected = (cotangent * change).sum() / (2 * step)
        torch.testing.assert_close((product * direction).sum(), expected, rtol=1e-7, atol=1e-7)

    def test_second_derivative_equals_finite_differences(self) -> None:
        net, step, direction = perturbed(self.build()).requires_grad_(False), 1e-5, self.x(seed=3)

        def gradient(x: Tensor) -> Tensor:
            return torch.autograd.grad(net(x, self.label).square().sum(), x, create_graph=True)[0]

        with sdpa_kernel(SDPBackend.MATH):
            x = self.x().requires_grad_()
            (product,) = torch.autograd.grad(gradient(x), x, direction)
            change = gradient(x + step * direction) - gradient(x - step * direction)
        scale = product.abs().max().item()
        torch.testing.assert_close(product, change / (2 * step), rtol=0, atol=1e-6 * scale)

    def test_a_sample_does_not_depend_on_its_batch_mates(self) -> None:
        net, x = perturbed(self.build(num_classes=2)), self.x()
        together = net(x, self.label, self.classes)
        for i in range(3):
            alone = net(x[i : i + 1], self.label[i : i + 1], self.classes[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("embedding", ["positional", "fourier"])
    def test_noise_label_matters(self, embedding: str) -> None:
        net, x = perturbed(self.build(embedding=embedding)), self.x()
        other = self.label + torch.tensor([0.0, 1.0, -1.0])
        change = (net(x, other) - net(x, self.label)).flatten(1).norm(dim=1)
        assert change[0] == 0 and (change[1:] > 1e-3).all()

    def test_class_matters_and_none_is_the_row_of_no_class(self) -> None:
        net, x = perturbed(self.build(num_classes=2)), self.x()
        outs = [net(x, self.label, torch.full((3,), k)) for k in range(3)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert ((outs[a] - outs[b]).flatten(1).norm(dim=1) > 1e-3).all()
        assert torch.equal(net(x, self.label), outs[2])

    @pytest.mark.parametrize("embedding", ["positional", "fourier"])
    def test_every_parameter_gets_a_gradient(self, embedding: str) -> None:
        net = perturbed(self.build(num_classes=2, embedding=embedding))
        net(self.x(), self.label, self.classes).square().sum().backward()
        silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent

    def test_integer_labels_are_the_same_steps(self) -> None:
        net, x = perturbed(self.build()).float(), self.x().float()
        assert torch.equal(net(x, self.label.long()), net(x, self.label.float()))

    def test_errors_name_what_was_wrong(self) -> None:
        net, x, label = self.build(), self.x().float(), self.label.float()
        with pytest.raises(UserError, match="x must have shape"):
            net(x[..., :1], label)
        with pytest.raises(UserError, match="x must have shape"):
            net(x[0], label)
        with pytest.raises(UserError, match="c_noise must have shape"):
            net(x, label[:1])
        with pytest.raises(UserError, match="num_classes=0"):
            net(x, label, self.classes)
        with pytest.raises(UserError, match="class labels must have shape"):
            self.build(num_classes=2)(x, label, self.classes[:1])
        with pytest.raises(UserError, match=r"unknown embedding.*positional"):
            self.build(embedding="positionl")


OF_STEPS_ONLY = pytest.mark.parametrize("embedding", ["positional"])


class OfStepsContract(NetworkContract):
    """Of a network that has the embedding of steps, and no option for it."""

    @OF_STEPS_ONLY
    def test_output_is_exactly_zero_at_initialisation(self, embedding: str) -> None:
        super().test_output_is_exactly_zero_at_initialisation(embedding)

    @OF_STEPS_ONLY
    def test_noise_label_matters(self, embedding: str) -> None:
        super().test_noise_label_matters(embedding)

    @OF_STEPS_ONLY
    def test_every_parameter_gets_a_gradient(self, embedding: str) -> None:
        super().test_every_parameter_gets_a_gradient(embedding)
