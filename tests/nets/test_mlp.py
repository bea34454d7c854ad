"""ResidualMLP against the contract of a network, for vectors and for tiny images."""

import torch
from torch import nn

from sde_diffusion.nets import ResidualMLP
from sde_diffusion.nets.mlp import ModulatedBlock
from tests.nets.contract import NetworkContract, perturbed, randn


class TestVector(NetworkContract):
    shape: tuple[int, ...] = (2,)

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> nn.Module:
        return ResidualMLP(shape=self.shape, width=16, blocks=2, num_classes=num_classes, embedding=embedding)


class TestImage(TestVector):
    shape = (1, 4, 4)


def test_block_equals_its_formula() -> None:
    block = ModulatedBlock(6, dropout=0.0)
    perturbed(block)
    x, c = randn(4, 6, seed=1), randn(4, 6, seed=2)
    normal = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    modulation = c @ block.modulation.weight.T + block.modulation.bias
    h = ((1 + modulation[:, :6]) * normal + modulation[:, 6:]) @ block.hidden.weight.T + block.hidden.bias
    expected = x + (h * h.sigmoid()) @ block.out.weight.T + block.out.bias
    torch.testing.assert_close(block(x, c), expected, rtol=0, atol=1e-12)


def test_block_is_the_identity_at_initialisation() -> None:
    x, c = randn(4, 6, seed=1).float(), randn(4, 6, seed=2).float()
    assert torch.equal(ModulatedBlock(6, dropout=0.5)(x, c), x)
