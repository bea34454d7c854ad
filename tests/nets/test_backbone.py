"""The U-Nets of the literature against the contract of a network, their published sizes, and their pyramids by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.importers import openai, score_sde
from sde_diffusion.nets import ADM, DDPM, NETWORKS, DDPMpp, DhariwalUNet, NCSNpp, SongUNet, UNet2D
from sde_diffusion.nets.backbone import InputResidual, InputSkip, OutputResidual
from sde_diffusion.nets.blocks import Head, ResidualBlock
from sde_diffusion.nets.resample import BINOMIAL, BOX, Down, Up
from tests.nets.contract import NetworkContract, perturbed, randn

Options = dict[str, Any]
M = TypeVar("M", bound=nn.Module)

# --- the contract -------------------------------------------------------------------------------------------------

TINY: Options = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "dropout": 0.0}
"""For networks that choose the number of groups by that of channels."""
WIDE: Options = {"channels": 64, "multipliers": (1, 1), "blocks": 1, "dropout": 0.0}
"""For those of 32 groups: if each had one channel, a constant added to a channel would not pass it."""


class OneEmbedding(NetworkContract):
    """The contract of a network without a choice of its embedding; the parameter's default keeps pytest from asking."""

    shape = (2, 4, 4)
    network: type[nn.Module]
    options: Options

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> nn.Module:
        choose("embedding", embedding, {"positional": None})  # the contract asks for this one, and for a wrong one
        return self.network(in_channels=2, image_size=4, num_classes=num_classes, **self.options)

    def test_output_is_exactly_zero_at_initialisation(self, embedding: str = "positional") -> None:
        super().test_output_is_exactly_zero_at_initialisation(embedding)

    def test_noise_label_matters(self, embedding: str = "positional") -> None:
        super().test_noise_label_matters(embedding)

    def test_every_parameter_gets_a_gradient(self, embedding: str = "positional") -> None:
        super().test_every_parameter_gets_a_gradient(embedding)


class TestDDPM(OneEmbedding):
    network = DDPM
    options = WIDE | {"attention_resolutions": (4,)}


class TestDDPMpp(OneEmbedding):
    network = DDPMpp
    options = TINY


class TestNCSNpp(OneEmbedding):
    """Its one embedding is of Fourier features."""

    network = NCSNpp
    options = TINY


class TestADM(OneEmbedding):
    network = ADM
    options = WIDE | {"attention_factors": (1,), "heads": 2, "no_class": True}


class TestADMOfBlocks(OneEmbedding):
    network = ADM
    options = WIDE | {
        "attention_factors": (2,),
        "head_channels": 32,
        "scale_shift": False,
        "resample_blocks": True,
        "wide_stem": True,
        "no_class": True,
    }


class TestDhariwalUNet(OneEmbedding):
    network = DhariwalUNet
    options = WIDE | {"attention_resolutions": (2,)}


class TestUNet2D(OneEmbedding):
    network = UNet2D
    options = {"channels": (8, 16), "blocks": 1, "groups": 2, "head_channels": 4, "no_class": True} | {
        "attention": (False, True),
        "up_attention": (True, False),
    }


class TestSongUNetOfSkips(NetworkContract):
    shape = (2, 4, 4)
    options = TINY | {"input_pyramid": "skip", "output_pyramid": "skip", "combine": "cat", "taps": BINOMIAL}

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> SongUNet:
        return SongUNet(in_channels=2, image_size=4, num_classes=num_classes, embedding=embedding, **self.options)


class TestSongUNetOfResiduals(TestSongUNetOfSkips):
    options = TINY | {"input_pyramid": "residual", "output_pyramid": "residual", "big_blocks": False, "features": 2}


# --- sizes --------------------------------------------------------------------------------------------------------


def size_of(network: type[nn.Module], **options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(**options).parameters())


CIFAR10: Options = {"in_channels": 3, "image_size": 32}
AUGMENTED = CIFAR10 | {"augment_dims": 9}
NCSNPP = {"embedding": "fourier", "features": 2, "taps": BINOMIAL, "input_pyramid": "residual"}


@pytest.mark.parametrize(
    ("network", "options", "millions", "exact"),
    [
        (DDPM, CIFAR10, 35.7, 35_746_307),
        (UNet2D, CIFAR10, 35.7, 35_746_307),
        (DDPMpp, CIFAR10, 61.8, 61_804_419),
        (DDPMpp, CIFAR10 | {"blocks": 8}, 106.6, 106_632_579),
        (NCSNpp, CIFAR10, 62.8, 62_758_787),
        (NCSNpp, CIFAR10 | {"blocks": 8}, 107.6, 107_586_947),
        (SongUNet, AUGMENTED, 55.7, 55_733_891),
        (SongUNet, AUGMENTED | {"num_classes": 10}, 55.7, 55_735_299),
        (SongUNet, AUGMENTED | NCSNPP, 56.4, 56_397_827),
        (ADM, CIFAR10 | {"out_channels": 6}, 52.5, 52_546_438),
    ],
)
def test_sizes_of_the_papers(network: type[nn.Module], options: Options, millions: float, exact: int) -> None:
    """As the sources' own modules count them; score_sde's count the 128 Fourier frequencies of NCSN++ besides."""
    count = size_of(network, **options)
    assert count == exact
    assert round(count / 1e6, 1) == millions


def test_size_of_adm_as_edm_has_it() -> None:
    """As its own module counts, and the row of "no class"."""
    assert size_of(DhariwalUNet, in_channels=3, image_size=64, num_classes=1000) == 295_899_267 + 4 * 192


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("cifar10_uncond_50M_500K", 52_546_438),
        ("imagenet64_uncond_100M_1500K", 121_063_942),
        ("imagenet64_cond_270M_250K", 273_049_350),
        ("64x64_diffusion", 295_904_454),
        ("128x128_diffusion", 421_529_606),
        ("256x256_diffusion", 553_838_086),  # 554 million in Dhariwal & Nichol 2021
        ("256x256_diffusion_uncond", 552_814_086),  # without the 1000 rows of 1024
        ("512x512_diffusion", 558_997_638),  # 559 million there
    ],
)
def test_sizes_of_published_configurations_of_openai(name: str, exact: int) -> None:
    """As the sources' own modules count them. For 512 pixels the stem of the file tells that it has 128 channels."""
    stem = {"input_blocks.0.0.weight": torch.empty(128, 3, 3, 3, device="meta")}
    spec, _ = openai._spec(openai.PUBLISHED[name], stem)
    assert size_of(ADM, **spec.options) == exact


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("cifar10_ddpm_continuous", 35_218_947),  # less than Ho et al. 2020: attention once a level on the way up
        ("cifar10_ddpmpp_continuous", 61_804_419),
        ("cifar10_ddpmpp_deep_continuous", 106_632_579),
        ("cifar10_ncsnpp_continuous", 62_758_787),
        ("cifar10_ncsnpp_deep_continuous", 107_586_947),
        ("celebahq_256_ncsnpp_continuous", 65_574_421),
    ],
)
def test_sizes_of_published_configurations_of_score_sde(name: str, exact: int) -> None:
    spec = score_sde._spec(score_sde.PUBLISHED[name], {})
    assert size_of(NETWORKS[spec.network], **spec.options) == exact


# --- pyramids -----------------------------------------------------------------------------------------------------

X, LABEL = randn(3, 2, 8, 8, seed=1), NetworkContract.label
ROOT = 0.5**0.5

variants = pytest.mark.parametrize(
    "options",
    [{}, {"taps": BINOMIAL}, {"big_blocks": False, "rescale": False}, {"big_blocks": False, "taps": (1.0, 2.0, 1.0)}],
    ids=str,
)


def three_levels(options: Options) -> SongUNet:
    torch.manual_seed(0)
    sizes: Options = {"channels": 8, "multipliers": (1, 2, 1), "blocks": 1, "attention_resolutions": ()}
    return SongUNet(in_channels=2, image_size=8, dropout=0.0, **sizes, **options).double()


@dataclass
class Call:
    """What a module was given and gave."""

    given: tuple[Tensor, ...]
    out: Any


def every(net: nn.Module, kind: type[M]) -> list[M]:
    """All modules of a kind, in the order in which they act."""
    return [module for module in net.modules() if isinstance(module, kind)]


def calls(net: SongUNet, modules: Iterable[nn.Module]) -> tuple[list[Call], Tensor]:
    """The calls of the modules, in their order, when the network sees X; and the network's output."""
    seen: list[Call] = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: seen.append(Call(given, out))) for module in modules
    ]
    with torch.no_grad():
        out = net(X, LABEL)
    for hook in hooks:
        hook.remove()
    return seen, out


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@variants
def test_at_first_the_encoder_is_linear_and_its_weights_are_known(options: Options) -> None:
    """Every branch that starts at zero leaves its skip, times r = sqrt(1/2) where sums are rescaled, else r = 1.

    A level begins with h = r (D pyramid + r S h), D the pyramid's convolution and S the skip of the block that halves
    h; where a convolution halves it, its weight is not r but 1. Then each block multiplies by r once more.
    """
    net = three_levels(options | {"input_pyramid": "residual"})
    r = ROOT if options.get("rescale", True) else 1.0
    joined, _ = calls(net, every(net, InputResidual))
    h, pyramid, down = net.stem(X), X, Down(options.get("taps", BOX))
    for level in net.encoder:
        if level.down is not None and isinstance(level.join, InputResidual):
            halving = level.down[0]
            half = r * halving.skip(down(h)) if isinstance(halving, ResidualBlock) else halving(h)
            pyramid = h = r * (level.join.down(pyramid) + half)
            equal(joined.pop(0).out[0], h)
        for block in every(level.stages, ResidualBlock):
            h = r * block.skip(h)
    assert not joined


@variants
@pytest.mark.parametrize("combine", ["sum", "cat"])
def test_skipping_input_pyramid_is_the_image_at_each_size(combine: str, options: Options) -> None:
    net = three_levels(options | {"input_pyramid": "skip", "combine": combine})
    perturbed(net)
    joins = every(net, InputSkip)
    joined, _ = calls(net, joins)
    image, down = X, Down(options.get("taps", BOX))
    for join, call in zip(joins, joined, strict=True):
        image = down(image)
        seen, h = join.conv(image), call.given[0]
        equal(call.out[0], seen + h if combine == "sum" else torch.cat([seen, h], dim=1))


@variants
def test_skipping_output_pyramid_is_the_sum_of_the_pictures_of_all_sizes(options: Options) -> None:
    """It is the network's output as it is, without a head: zero where the pictures are, as at first."""
    net = three_levels(options | {"output_pyramid": "skip"})
    assert not calls(net, [])[1].any()
    perturbed(net)
    pictures, out = calls(net, every(net, Head))
    smallest, *others = [call.out for call in pictures]
    up, expected = Up(options.get("taps", BOX)), smallest
    for picture in others:
        expected = up(expected) + picture
    assert len(others) == 2
    equal(out, expected)


@variants
def test_residual_output_pyramid_joins_every_level_but_the_first(options: Options) -> None:
    """It starts as conv(silu(norm(h))) of the smallest level, and the head takes the last sum."""
    net = three_levels(options | {"output_pyramid": "residual"})
    perturbed(net)
    r = ROOT if options.get("rescale", True) else 1.0
    first, *doublings = emits = every(net, OutputResidual)
    (smallest, *others), out = calls(net, emits)
    equal(smallest.out[0], smallest.given[0])
    assert first.first is not None and net.head is not None
    pyramid = first.first(smallest.given[0])
    for emit, call in zip(doublings, others, strict=True):
        assert emit.up is not None
        pyramid = r * (emit.up(pyramid) + call.given[0])
        equal(call.out[0], pyramid)
    equal(out, net.head(pyramid))


@pytest.mark.parametrize(("pyramid", "kind"), [("skip", InputSkip), ("residual", InputResidual)])
@pytest.mark.parametrize("combine", ["sum", "cat"])
def test_what_the_input_pyramid_makes_is_also_the_skip(pyramid: str, kind: type[nn.Module], combine: str) -> None:
    """On the way up each level has two stages: the second takes what the level began with on the way down."""
    net = three_levels({"input_pyramid": pyramid, "combine": combine})
    perturbed(net)
    joined, _ = calls(net, every(net, kind))
    taking, _ = calls(net, [level.stages[1] for level in net.decoder][:-1])
    for join, stage in zip(reversed(joined), taking, strict=True):
        start, (h, _) = join.out[0], stage.given
        assert torch.equal(h[:, -start.shape[1] :], start)


# --- conditioning and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [SongUNet, DhariwalUNet])
def test_augmentation_labels_of_zero_are_none(network: type[nn.Module]) -> None:
    wide = WIDE | {"attention_resolutions": (2,)}
    net = network(in_channels=2, image_size=4, augment_dims=3, **wide)
    x, labels = randn(3, 2, 4, 4), randn(3, 3)
    perturbed(net)
    assert torch.equal(net(x, LABEL, None, torch.zeros(3, 3)), net(x, LABEL))
    assert ((net(x, LABEL, None, labels) - net(x, LABEL)).flatten(1).norm(dim=1) > 1e-3).all()


def test_errors_name_what_was_wrong() -> None:
    size: Options = {"in_channels": 2, "image_size": 4}
    x, label = randn(3, 2, 4, 4).float(), LABEL.float()
    with pytest.raises(UserError, match=r"unknown input pyramid 'residul'.*mean 'residual'"):
        SongUNet(**size, **TINY, input_pyramid="residul")
    with pytest.raises(UserError, match=r"unknown output pyramid 'skipp'.*mean 'skip'"):
        SongUNet(**size, **TINY, output_pyramid="skipp")
    with pytest.raises(UserError, match=r"unknown combination 'add'.*cat, sum"):
        SongUNet(**size, **TINY, combine="add")
    with pytest.raises(UserError, match="head_channels=48 does not divide the 64 channels"):
        ADM(**size, **WIDE, head_channels=48)
    with pytest.raises(UserError, match="heads=3 does not divide the 64 channels"):
        ADM(**size, **WIDE, heads=3)
    with pytest.raises(UserError, match="32 groups of a normalisation do not divide 48 channels"):
        DDPM(**size, channels=48, multipliers=(1,))
    with pytest.raises(UserError, match="3 groups of a normalisation do not divide 8 channels"):
        UNet2D(**size, channels=(8,), attention=(False,), up_attention=(False,), groups=3)
    with pytest.raises(UserError, match=r"needs class labels=\[B\], 0 to 1"):
        ADM(**size, **WIDE, num_classes=2)(x, label)
    augmented = SongUNet(**size, **TINY, augment_dims=9)
    with pytest.raises(UserError, match=r"augment_labels must have shape \[3, 9\]; got \[3, 8\]"):
        augmented(x, label, None, torch.zeros(3, 8))
    with pytest.raises(UserError, match="augment_dims=0"):
        SongUNet(**size, **TINY)(x, label, None, torch.zeros(3, 9))
