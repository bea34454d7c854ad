"""LucidUNet against the contract of a network; its numbers are in tests/importers/test_golden_networks.py."""

import pytest
import torch

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.nets import LucidUNet
from tests.nets.contract import OfStepsContract, perturbed, randn


class TestLucidUNet(OfStepsContract):
    shape = (2, 4, 4)

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> LucidUNet:
        choose("embedding", embedding, {"positional": None})  # it has this one, and no option for it
        options = {"channels": 8, "multipliers": (1, 2), "heads": 2, "head_channels": 4, "memory": 3}
        return LucidUNet(in_channels=2, image_size=4, num_classes=num_classes, **options)


@pytest.mark.parametrize("former", [False, True])
def test_linear_attention_does_not_mix_pixels_where_they_are_alike(former: bool) -> None:
    """On pictures of one colour every pixel's attention is the same, whatever the size; without a memory it is V."""
    options = {"channels": 8, "multipliers": (1,), "full_attention": (False,), "memory": 0, "groups": 2 * former}
    net = perturbed(LucidUNet(in_channels=2, image_size=4, former=former, **options))
    layer = net.encoder[0].attention
    x = randn(1, 8, 1, 1).expand(-1, -1, 4, 4)
    q, _, v = layer.qkv(layer.norm(x)).chunk(3, dim=1)
    share = q.unflatten(1, (4, 32)).softmax(2).sum(2) * 32**-0.5  # 1/sqrt(d) for every head
    expected = x + layer.out_norm(layer.out(v * share.mean().item() / (16 if former else 1)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_other_shapes_are_refused() -> None:
    net = LucidUNet(in_channels=2, image_size=4, channels=8, multipliers=(1, 2))
    with pytest.raises(UserError, match=r"x must have shape \[B, 2, H, W\], height and width multiples of 2"):
        net(torch.zeros(1, 2, 5, 4), torch.zeros(1))
