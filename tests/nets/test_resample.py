"""The resampling layers and the label's features against published values and the definition of a filter."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets.embedding import FourierFeatures, positional
from sde_diffusion.nets.resample import BOX, Down, DownConv, Up, UpConv, outer_filter, upfirdn
from tests.golden.reference import arrays, document
from tests.nets.contract import perturbed, randn

PUBLISHED = arrays("networks/song_primitives")
TAPS = {"11": (1.0, 1.0), "121": (1.0, 2.0, 1.0), "1331": (1.0, 3.0, 3.0, 1.0), "14641": (1.0, 4.0, 6.0, 4.0, 1.0)}

by_taps = pytest.mark.parametrize("name", TAPS)


def close(out: Tensor, name: str) -> None:
    torch.testing.assert_close(out, PUBLISHED[name], rtol=1e-5, atol=1e-5)


# --- published values ---------------------------------------------------------------------------------------------


@by_taps
def test_filters(name: str) -> None:
    x = PUBLISHED["x"]
    close(Up(TAPS[name])(x), f"upsample_2d_{name}")
    close(Down(TAPS[name])(x), f"downsample_2d_{name}")


def test_nearest_neighbour_and_mean() -> None:
    x = PUBLISHED["x"]
    close(Up(BOX)(x), "naive_upsample_2d")
    close(Down(BOX)(x), "naive_downsample_2d")


@by_taps
def test_filter_then_strided_convolution(name: str) -> None:
    layer = DownConv(3, 5, taps=TAPS[name])
    layer.conv.weight.data.copy_(PUBLISHED["w"])
    close(layer(PUBLISHED["x"]), f"conv_downsample_2d_{name}")


@pytest.mark.parametrize(("name", "case"), document("networks/song_primitives")["cases"].items())
def test_upfirdn(name: str, case: dict[str, Any]) -> None:
    close(upfirdn(PUBLISHED["x"], PUBLISHED["upfirdn_kernel"], **case), name)


@pytest.mark.parametrize("dim", [16, 17, 32])
def test_features_of_a_step(dim: int) -> None:
    close(positional(PUBLISHED["t"], dim, shift=1), f"timestep_embedding_{dim}")


@pytest.mark.parametrize("dim", [32, 33])
def test_features_of_a_step_cosines_first(dim: int) -> None:
    stored = arrays("networks/iddpm_timestep_embedding")
    torch.testing.assert_close(positional(stored["t"], dim, cosine_first=True), stored[f"emb{dim}"], rtol=0, atol=1e-5)


def test_fourier_features() -> None:
    features = FourierFeatures(16)
    features.frequencies.copy_(PUBLISHED["fourier_W"])
    # Angles up to 396, which single precision rounds by 1.5e-5.
    torch.testing.assert_close(features(PUBLISHED["fourier_in"]), PUBLISHED["fourier_out"], rtol=0, atol=5e-5)


def test_fused_leaky_relu_is_the_plain_expression() -> None:
    """No network here has it; those of StyleGAN2, from which the filters come, do."""
    x, bias = PUBLISHED["x"], PUBLISHED["fused_bias"][:, None, None]
    close(F.leaky_relu(x + bias, 0.2) * math.sqrt(2), "fused_leaky_relu")


# --- definitions --------------------------------------------------------------------------------------------------

ODD_AND_EVEN = [(1.0, 1.0), (1.0, 3.0), (1.0, 2.0, 4.0), (1.0, 3.0, 3.0, 1.0), (2.0, -1.0, 5.0, 7.0, 1.0, 3.0)]
"""Among them taps that are not symmetric, and so tell their order."""

by_length = pytest.mark.parametrize("taps", ODD_AND_EVEN)
ONE = torch.ones(1, 1)


def drawn(layer: DownConv | UpConv) -> tuple[Tensor, Tensor]:
    """The weight of its convolution and the bias [C, 1, 1], none of them at their initialisation."""
    perturbed(layer)
    assert layer.conv.bias is not None
    return layer.conv.weight.detach(), layer.conv.bias.detach()[:, None, None]


@by_length
def test_filters_equal_their_definition(taps: tuple[float, ...]) -> None:
    """Their borders of zeros are as even as they can be, the first one the larger."""
    x, kernel, border = randn(2, 2, 4, 6), outer_filter(taps), len(taps) - 2
    before, after = (border + 1) // 2, border // 2
    for layer, expected in (
        (Up(taps), upfirdn(x, 4 * kernel, up=2, pad=(before + 1, after))),
        (Down(taps), upfirdn(x, kernel, down=2, pad=(before, after))),
    ):
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@by_length
def test_doubling_with_a_convolution_is_one_filter_of_the_spread_image(taps: tuple[float, ...]) -> None:
    """Zeros are set between the pixels and all around; filter and convolution then commute."""
    layer, x, n = UpConv(2, 3, taps=taps), randn(2, 2, 4, 5), len(taps)
    (weight, bias), kernel = drawn(layer), 4 * outer_filter(taps)
    # Before the image there are as many zeros as the two take away, so that its first pixel is the first left.
    spread = upfirdn(x, ONE, up=2, pad=((n - 1) // 2 + 2, n))
    filtered_first = F.conv2d(upfirdn(spread, kernel), weight)[..., :8, :10]
    convolved_first = upfirdn(F.conv2d(spread, weight), kernel)[..., :8, :10]
    torch.testing.assert_close(filtered_first, convolved_first, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), filtered_first + bias, rtol=0, atol=1e-12)


@by_length
def test_halving_with_a_convolution_is_one_filter_of_the_image(taps: tuple[float, ...]) -> None:
    layer, x, n = DownConv(2, 3, taps=taps), randn(2, 2, 4, 6), len(taps)
    (weight, bias), kernel = drawn(layer), outer_filter(taps)
    wide = upfirdn(x, ONE, pad=((n + 1) // 2, n // 2))
    filtered_first = F.conv2d(upfirdn(wide, kernel), weight, stride=2)
    convolved_first = upfirdn(F.conv2d(wide, weight), kernel, down=2)
    torch.testing.assert_close(filtered_first, convolved_first, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), filtered_first + bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("same_padding", "before", "after"), [(False, 1, 0), (True, 0, 1)])
def test_border_of_a_strided_convolution(same_padding: bool, before: int, after: int) -> None:
    """One pixel a side, of which a stride of 2 uses the first; or one at the right and bottom only."""
    layer, x = DownConv(2, 3, same_padding=same_padding), randn(2, 2, 4, 6)
    weight, bias = drawn(layer)
    expected = F.conv2d(upfirdn(x, ONE, pad=(before, after)), weight, stride=2) + bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("taps", [None, (1.0, 1.0), (1.0, 2.0, 4.0), (1.0, 3.0, 3.0, 1.0)])
@pytest.mark.parametrize("make", [DownConv, UpConv])
def test_vector_jacobian_products_equal_finite_differences(
    make: type[DownConv] | type[UpConv], taps: tuple[float, ...] | None
) -> None:
    layer = make(1, 2, taps=taps)
    names, parameters = zip(*perturbed(layer).named_parameters(), strict=True)

    def out(x: Tensor, *values: Tensor) -> Tensor:
        made: Tensor = functional_call(layer, dict(zip(names, values)), x)
        return made

    assert torch.autograd.gradcheck(out, (randn(1, 1, 4, 4).requires_grad_(), *parameters))


def test_a_filter_of_one_tap_is_refused() -> None:
    for layer in (Up, Down):
        with pytest.raises(UserError, match="at least two taps"):
            layer((1.0,))
