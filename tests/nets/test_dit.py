"""DiT against the contract of a network, its parts against their formulas, the whole against diffusers."""

import math

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.nets.dit import Block, DiT, position_table
from tests.nets.contract import OfStepsContract, perturbed, randn


class TestDiT(OfStepsContract):
    shape = (2, 4, 4)

    def build(self, *, num_classes: int = 0, embedding: str = "positional", **options: int) -> DiT:
        choose("embedding", embedding, {"positional": None})  # DiT has this one, and no option for it
        options = {"patch": 2, "width": 8, "depth": 2, "heads": 2} | options
        return DiT(in_channels=2, image_size=4, num_classes=num_classes, **options)

    def test_another_size_than_the_position_table_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"x must have shape \[B, 2, 4, 4\]; got \[3, 2, 8, 8\]"):
            self.build()(randn(3, 2, 8, 8).float(), self.label)


@pytest.mark.parametrize(
    ("millions", "width", "depth", "heads"),
    [(33, 384, 12, 6), (130, 768, 12, 12), (458, 1024, 24, 16), (675, 1152, 28, 16)],
)
def test_sizes_of_the_paper_give_its_parameter_counts(millions: int, width: int, depth: int, heads: int) -> None:
    """Of S, B, L and XL on latents of 32x32x4: Peebles & Xie 2023, table 4 in millions, and the exact sum."""
    with torch.device("meta"):
        net = DiT(in_channels=4, image_size=32, out_channels=8, width=width, depth=depth, heads=heads, num_classes=1000)
    count = sum(p.numel() for p in net.parameters())
    block = 18 * width**2 + 15 * width  # modulation 6, attention 3 + 1, MLP 4 + 4; biases 6, 3 + 1, 4 + 1
    embedding = 257 * width + (width + 1) * width + 1001 * width + (16 + 1) * width  # step, class, patch
    head = 2 * (width + 1) * width + (width + 1) * 32
    assert count == depth * block + embedding + head
    assert round(count / 1e6) == millions


def test_position_table_equals_its_formula() -> None:
    rows, columns, width = 3, 5, 8
    table = position_table(rows, columns, width)
    assert table.shape == (15, 8) and table.dtype == torch.float64
    for n, token in enumerate(table.tolist()):
        row, column = divmod(n, columns)
        expected = []
        for place in (column, row):
            angles = [place / 10000 ** (4 * i / width) for i in range(width // 4)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert token == pytest.approx(expected, abs=1e-12)


def normal(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("heads", [1, 3])
def test_block_equals_its_formula(heads: int) -> None:
    block, x, c = Block(12, heads=heads, hidden=7, dropout=0.0), randn(2, 5, 12, seed=1), randn(2, 12, seed=2)
    perturbed(block)

    rows = (c @ block.modulation.weight.T + block.modulation.bias)[:, None].split(12, dim=2)
    attention, d = block.attention, 12 // heads
    h = (1 + rows[1]) * normal(x) + rows[0]
    query, key, value = (h @ attention.qkv.weight.T + attention.qkv.bias).split(12, dim=2)
    mixed = torch.empty_like(x)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = (query[..., part] @ key[..., part].transpose(1, 2) / d**0.5).exp()
        mixed[..., part] = scores / scores.sum(dim=2, keepdim=True) @ value[..., part]
    y = x + rows[2] * (mixed @ attention.out.weight.T + attention.out.bias)
    h = ((1 + rows[4]) * normal(y) + rows[3]) @ block.hidden.weight.T + block.hidden.bias
    h = h / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)))  # Hendrycks & Gimpel 2016, section 2
    expected = y + rows[5] * (h @ block.out.weight.T + block.out.bias)
    torch.testing.assert_close(block(x, c), expected, rtol=0, atol=1e-12)


def test_blocks_are_the_identity_at_initialisation() -> None:
    x, c = randn(2, 5, 12, seed=1).float(), randn(2, 12, seed=2).float()
    assert torch.equal(Block(12, heads=2, hidden=24, dropout=0.5)(x, c), x)


def test_initial_weights_have_the_published_scales() -> None:
    """Zero, a standard deviation of 0.02, or Glorot's: uniform of variance 2 / (fan_in + fan_out)."""
    torch.manual_seed(0)
    net = DiT(in_channels=4, image_size=8, width=128, depth=1, heads=2, num_classes=100)
    for name, parameter in net.named_parameters():
        if name.endswith("bias") or "modulation" in name or name == "out.weight":
            assert not parameter.any(), name
        elif name.startswith("conditioning"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            variance = 2 / sum(parameter.shape)
            assert parameter.var().item() == pytest.approx(variance, rel=0.1), name
            assert parameter.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=0.01), name


def test_dropout_takes_the_hidden_units_of_the_mlp_and_in_training_only() -> None:
    net, never = (DiT(in_channels=2, image_size=4, width=8, depth=2, heads=2, dropout=p) for p in (1.0, 0.0))
    perturbed(net)
    never.double().load_state_dict(net.state_dict())
    x, label = TestDiT().x(), TestDiT.label
    assert torch.equal(net.eval()(x, label), never(x, label))
    for block in never.blocks:
        torch.nn.init.zeros_(block.out.weight)
    assert torch.equal(net.train()(x, label), never(x, label))


@pytest.mark.parametrize(("out_channels", "patch"), [(None, 1), (3, 2), (4, 4)])
def test_first_and_last_layer_equal_their_formula(out_channels: int | None, patch: int) -> None:
    """Without blocks each patch of the output is an affine map of norm(W patch of x + its position)."""
    net = DiT(in_channels=2, out_channels=out_channels, image_size=8, patch=patch, width=16, depth=0, heads=1)
    perturbed(net)
    x, label, positions = randn(3, 2, 8, 8), TestDiT.label, position_table(8 // patch, 8 // patch, 16).float().double()
    shift, scale = (net.conditioning(label, None, 3) @ net.modulation.weight.T + net.modulation.bias).split(16, dim=1)
    expected = torch.empty(3, out_channels or 2, 8, 8, dtype=torch.float64)
    for n, position in enumerate(positions):
        row, column = (patch * place for place in divmod(n, 8 // patch))
        part = (..., slice(row, row + patch), slice(column, column + patch))
        token = x[part].flatten(1) @ net.stem.weight.T + net.stem.bias + position
        h = normal(token) * (1 + scale) + shift
        h = (h @ net.out.weight.T + net.out.bias).view(3, patch, patch, -1)
        expected[part] = h.permute(0, 3, 1, 2)  # of the last layer's rows the channel runs fastest
    torch.testing.assert_close(net(x, label), expected, rtol=0, atol=1e-12)


def test_layout_of_the_input_does_not_matter() -> None:
    net, x, label = TestDiT().build(), TestDiT().x(), TestDiT.label
    perturbed(net)
    assert torch.equal(net(x, label), net(x.contiguous(memory_format=torch.channels_last), label))


def test_no_block_copies_and_attention_takes_its_fast_path() -> None:
    copies = []
    for depth in (1, 3):
        net = TestDiT().build(depth=depth)
        with profile() as record, torch.no_grad():
            net(TestDiT().x().float(), TestDiT.label.float())
        calls = {event.key: event.count for event in record.key_averages()}
        assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == depth
        copies.append((calls.get("aten::clone", 0), calls.get("aten::contiguous", 0)))
    assert copies[0] == copies[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patch": 5}, "patch=5 does not divide image_size=12; valid values of patch: 1, 2, 3, 4, 6, 12"),
        (
            {"patch": 3, "image_size": (12, 8)},
            r"patch=3 does not divide image_size=\(12, 8\); valid values of patch: 1, 2, 4",
        ),
        ({"patch": 0}, "patch=0"),
        ({"heads": 5}, "heads=5 does not divide width=8; valid values of heads: 1, 2, 4, 8"),
        ({"width": 6}, "width=6.*multiples of 4, such as 4 and 8"),
        ({"width": 2}, "width=2.*such as 4 and 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(options: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DiT(in_channels=1, **{"image_size": 12, "patch": 2, "width": 8, "heads": 2} | options)


def of_diffusers(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from that of diffusers' DiTTransformer2DModel, whose blocks must share one embedding."""
    embedder = "transformer_blocks.0.norm1.emb"
    layers = {
        "conditioning.hidden": [f"{embedder}.timestep_embedder.linear_1"],
        "conditioning.out": [f"{embedder}.timestep_embedder.linear_2"],
        "stem": ["pos_embed.proj"],
        "modulation": ["proj_out_1"],
        "out": ["proj_out_2"],
    }
    for i in range(sum(name.endswith("norm1.linear.bias") for name in theirs)):
        block = f"transformer_blocks.{i}"
        layers |= {
            f"blocks.{i}.modulation": [f"{block}.norm1.linear"],
            f"blocks.{i}.attention.qkv": [f"{block}.attn1.to_{part}" for part in "qkv"],
            f"blocks.{i}.attention.out": [f"{block}.attn1.to_out.0"],
            f"blocks.{i}.hidden": [f"{block}.ff.net.0.proj"],
            f"blocks.{i}.out": [f"{block}.ff.net.2"],
        }
    ours = {"conditioning.classes.weight": theirs[f"{embedder}.class_embedder.embedding_table.weight"]}
    for layer, parts in layers.items():
        ours[f"{layer}.weight"] = torch.cat([theirs[f"{part}.weight"] for part in parts]).flatten(1)
        ours[f"{layer}.bias"] = torch.cat([theirs[f"{part}.bias"] for part in parts])
    return ours


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_equals_diffusers(patch: int) -> None:
    """Random weights of diffusers' DiTTransformer2DModel, in evaluation mode, give the same output here.

    Its class departs from DiT in ways that it has no option for: a frequency shift of 1 in the features of
    the step, w_i = 10000^(-i / 127), set right on the object here; a copy of step and class embedding in each
    block, made equal here; an MLP of ratio 4 only. And its default epsilon before the MLP is 1e-5, DiT's 1e-6.
    """
    import diffusers

    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=patch,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    perturbed(theirs)
    first = theirs.transformer_blocks[0].norm1.emb
    first.time_proj.downscale_freq_shift = 0
    for block in theirs.transformer_blocks:
        block.norm1.emb = first

    ours = DiT(in_channels=2, out_channels=4, image_size=8, patch=patch, width=24, depth=3, heads=3, num_classes=5)
    ours.double().load_state_dict(of_diffusers(theirs.state_dict()))
    x, label, labels = randn(4, 2, 8, 8, seed=1), torch.tensor([0, 3, 141, 999]), torch.tensor([0, 4, 2, 5])
    with torch.no_grad():
        expected = theirs(x, timestep=label, class_labels=labels).sample
        torch.testing.assert_close(ours(x, label, labels), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
        expected = theirs(x, timestep=label, class_labels=torch.full((4,), 5)).sample
        torch.testing.assert_close(ours(x, label), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
