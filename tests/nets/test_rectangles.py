"""Networks of rectangles: a square is the pair of its sides, and what is turned over its diagonal comes out turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.denoisers.settings import ModelSettings, ProcessSettings
from sde_diffusion.nets import NETWORKS
from sde_diffusion.nets.blocks import SelfAttention
from sde_diffusion.nets.building import build_network
from tests.nets.contract import perturbed, randn

SMALL: dict[str, Mapping[str, Any]] = {
    "unet": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)},
    "ddpm": {"channels": 32, "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0},
    "ddpmpp": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0},
    "ncsnpp": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0},
    "songunet": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0},
    "adm": {"channels": 32, "multipliers": (1, 1), "blocks": 1, "attention_factors": (1,)},
    "dhariwal": {"channels": 64, "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0},
    "unet2d": {"channels": (32, 32), "attention": (True, False), "up_attention": (False, True), "blocks": 1},
    "ncsnv2": {"channels": 4},
    "dit": {"width": 16, "depth": 2, "heads": 2},
    "lucidrains": {"channels": 8, "multipliers": (1, 2), "heads": 2, "head_channels": 4},
}
ONE_SIZE = {"ncsnv2", "dit"}
"""Networks that take no other size than that they were built for."""
UNSHUFFLED = {"lucidrains", "dit"}
"""Networks to which some pixels are channels, in rows."""
WITHOUT_SIZE = {"mlp"}
"""Networks of vectors."""
C_NOISE = torch.tensor([3.0, 0.4], dtype=torch.float64)


def network(name: str, size: int | tuple[int, int], **options: Any) -> nn.Module:
    """The network with the same weights for any size."""
    return perturbed(build_network(name, {"in_channels": 2, "image_size": size, **SMALL[name], **options})).eval()


def test_every_network_of_images_is_looked_at() -> None:
    assert SMALL.keys() | WITHOUT_SIZE == NETWORKS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_square_is_the_pair_of_its_sides(name: str) -> None:
    one, pair, x = network(name, 4), network(name, (4, 4)), randn(2, 2, 4, 4)
    assert one(x, C_NOISE).std() > 1e-3 and torch.equal(one(x, C_NOISE), pair(x, C_NOISE))


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ONE_SIZE])
def test_a_network_of_squares_is_one_of_rectangles_whose_shorter_side_is_theirs(name: str) -> None:
    """Layer by layer, so that either sees pictures of the other's size as the other does."""
    square, wide, x = network(name, 4), network(name, (4, 12)), randn(2, 2, 4, 12)
    assert torch.equal(square(x, C_NOISE), wide(x, C_NOISE))


@pytest.mark.parametrize("name", [name for name in SMALL if name not in UNSHUFFLED])
def test_a_picture_turned_over_its_diagonal_comes_out_turned(name: str) -> None:
    """With every kernel turned too: all of the network, the levels with attention among it, takes both sides alike."""
    lying, upright, x = network(name, (4, 12)), network(name, (12, 4)), randn(2, 2, 4, 12)
    upright.load_state_dict({key: w.transpose(2, 3) if w.ndim == 4 else w for key, w in lying.state_dict().items()})
    out = lying(x, C_NOISE)
    assert out.shape == x.shape and out.std() > 1e-3
    torch.testing.assert_close(upright(x.transpose(2, 3), C_NOISE), out.transpose(2, 3), rtol=1e-9, atol=1e-9)


def test_attention_is_where_the_shorter_side_is_named() -> None:
    def attended(size: int | tuple[int, int]) -> list[bool]:
        net = build_network("unet", {"in_channels": 1, "image_size": size, **SMALL["unet"]})
        return [any(isinstance(layer, SelfAttention) for layer in level.modules()) for level in net.encoder]

    assert attended((4, 12)) == attended((12, 4)) == attended(4) == [True, False]
    assert attended((8, 12)) == attended(8) == [False, True]
    assert attended((6, 4 * 2)) == [False, False]  # 4 is a side of its second level, but the longer one


def test_without_attention_patches_of_a_transformer_know_their_row_and_column_only() -> None:
    """So that each of a rectangle is what it is in any larger square at the same place."""
    square, wide, x = network("dit", 8, depth=0), network("dit", (4, 8), depth=0), randn(2, 2, 8, 8)
    torch.testing.assert_close(wide(x[:, :, :4], C_NOISE), square(x, C_NOISE)[:, :, :4], rtol=0, atol=1e-12)
    high = network("dit", (8, 4), depth=0)
    torch.testing.assert_close(high(x[..., :4], C_NOISE), square(x, C_NOISE)[..., :4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("unet", (24, 30), r"\(24, 30\) cannot be halved 3 times; .* such as \(24, 24\) and \(24, 32\)"),
        ("lucidrains", (24, 30), r"\(24, 30\) cannot be halved 3 times; .* such as \(24, 24\) and \(24, 32\)"),
        ("unet2d", (20, 30), r"such as \(16, 24\) and \(24, 32\)"),
        (
            "ncsnv2",
            (5, 96),
            r"image_size=\(5, 96\) does not halve 2 times.*nearest valid sizes are \(8, 96\) and \(12, 96\)",
        ),
        ("ncsnv2", (8, 300), r"image_size=\(8, 300\) is too large"),
    ],
)
def test_sizes_that_the_levels_do_not_divide(name: str, size: tuple[int, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_network(name, {"in_channels": 1, "image_size": size})


def test_a_specification_holds_the_size_as_json_does() -> None:
    """Of squares one number, as checkpoints always had it."""
    process = ProcessSettings().process()

    def built(shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        spec = ModelSettings.from_values({"unet": {"channels": 8, "multipliers": (1, 2), "blocks": 0}}).spec(
            process, shape, (), "stand-in"
        )
        again = type(spec).from_state(spec.state())
        x = torch.zeros(1, *shape)
        return again.options["image_size"], build_network(again.network, again.options)(x, torch.zeros(1))

    assert built((3, 8, 8))[0] == 8
    size, out = built((3, 8, 12))
    assert size == [8, 12] and out.shape == (1, 3, 8, 12)
