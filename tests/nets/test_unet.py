"""UNet against the contract of a network, its attention against the formula, its layout, its size."""

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets import UNet
from sde_diffusion.nets.blocks import GroupNorm, ResidualBlock, SelfAttention
from tests.nets.contract import NetworkContract, perturbed, randn


class TestUNet(NetworkContract):
    shape = (2, 4, 4)

    def build(self, *, num_classes: int = 0, embedding: str = "positional") -> UNet:
        return UNet(
            in_channels=2,
            image_size=4,
            channels=8,
            multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            heads=2,
            num_classes=num_classes,
            embedding=embedding,
        )


def test_ddpm_settings_give_its_parameter_count() -> None:
    with torch.device("meta"):
        net = UNet(in_channels=3, image_size=32)
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(35.7e6, rel=0.01)  # Ho et al. 2020, appendix B
    assert count == 35_746_307


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_its_formula(heads: int) -> None:
    layer, x = SelfAttention(12, heads=heads), randn(2, 12, 3, 5)
    perturbed(layer)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
    query, key, value = (tokens @ layer.qkv.weight.T + layer.qkv.bias).split(12, dim=2)
    mixed = torch.empty_like(tokens)
    for h in range(heads):
        part = slice(h * 12 // heads, (h + 1) * 12 // heads)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / (12 / heads) ** 0.5
        weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        mixed[..., part] = weights @ value[..., part]
    expected = x + (mixed @ layer.out.weight.T + layer.out.bias).transpose(1, 2).reshape(x.shape)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = layer(x.contiguous(memory_format=layout))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_blocks_are_the_identity_at_initialisation() -> None:
    x, c = randn(2, 8, 4, 4).float(), randn(2, 5).float()
    assert torch.equal(ResidualBlock(8, 8, width=5, dropout=0.5)(x, c), x)
    assert torch.equal(SelfAttention(8, heads=2)(x), x)


def test_group_norm_takes_any_number_of_channels() -> None:
    for channels in range(1, 300):
        groups, wanted = GroupNorm(channels).num_groups, min(32, max(1, channels // 4))
        assert groups <= wanted and channels % groups == 0
        assert channels % wanted or groups == wanted


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "size", "channels", "multipliers", "blocks"),
    [
        (1, None, 8, 16, (1, 2, 4), 1),
        (3, 6, 12, 10, (1, 3), 2),
        (5, 1, 7, 7, (2,), 0),
        (1, 2, 4, 1, (3, 1, 2), 1),
    ],
)
def test_any_channels_levels_and_sizes(
    in_channels: int,
    out_channels: int | None,
    size: int,
    channels: int,
    multipliers: tuple[int, ...],
    blocks: int,
) -> None:
    net = UNet(
        in_channels=in_channels,
        out_channels=out_channels,
        image_size=size,
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
    )
    out = net(randn(2, in_channels, size, size).float(), torch.tensor([1.0, 2.0]))
    assert out.shape == (2, out_channels or in_channels, size, size)


@pytest.mark.parametrize(("size", "named"), [(30, "24 and 32"), (4, "8 and 16"), (0, "a whole number of pixels")])
def test_a_size_that_the_levels_do_not_divide_is_refused(size: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        UNet(in_channels=3, image_size=size)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match="heads=3"):
        UNet(in_channels=3, image_size=8, channels=8, heads=3)


def test_each_stage_up_sees_the_output_of_its_mirror_on_the_way_down() -> None:
    net = TestUNet().build()
    perturbed(net)
    skips: list[Tensor] = []
    seen: list[Tensor] = []
    entering_skips = [
        net.stem,
        *(s for level in net.encoder for s in ([level.down] if level.down else []) + [*level.stages]),
    ]
    for stage in entering_skips:
        stage.register_forward_hook(lambda stage, given, out: skips.append(out))
    for stage in (stage for level in net.decoder for stage in level.stages):
        stage.register_forward_pre_hook(lambda stage, given: seen.append(given[0]))
    net(TestUNet().x(), TestUNet.label)
    assert len(seen) == len(skips)
    for entering, skip in zip(seen, reversed(skips), strict=True):
        assert torch.equal(entering[:, -skip.shape[1] :], skip)


def test_the_rest_trains_where_the_first_layers_are_frozen() -> None:
    net, x = TestUNet().build(), TestUNet().x()
    perturbed(net)
    net(x, TestUNet.label).square().sum().backward()
    expected = {name: p.grad for name, p in net.named_parameters() if not name.startswith("stem.")}
    net.zero_grad()
    net.stem.requires_grad_(False)
    net(x, TestUNet.label).square().sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-9)


def test_layout_of_the_input_does_not_matter() -> None:
    net, x, label = perturbed(TestUNet().build()).float(), randn(3, 2, 4, 4).float(), TestUNet.label.float()
    out = net(x, label)
    assert torch.equal(out, net(x.contiguous(memory_format=torch.channels_last), label))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_copied_between_layers_and_attention_takes_its_fast_path() -> None:
    net, x = TestUNet().build(), randn(3, 2, 4, 4).float()
    with profile(record_shapes=True) as record, torch.no_grad():
        net(x, TestUNet.label.float())
    calls = record.key_averages(group_by_input_shape=True)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {call.key for call in calls}
    # The kernel of a convolution that doubles the size is made anew, [16, 16, 4, 4]; images have a batch of 3.
    copied = [call.input_shapes[0] for call in calls if call.key in ("aten::clone", "aten::contiguous")]
    assert copied and all(shape == [16, 16, 4, 4] for shape in copied)
