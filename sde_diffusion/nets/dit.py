"""The diffusion transformer (DiT) of Peebles & Xie 2023, for images or latents of one size."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.sizes import Size, sides
from sde_diffusion.nets.blocks import attended
from sde_diffusion.nets.embedding import Conditioning, positional
from sde_diffusion.nets.initialisation import xavier

FEATURES = 256  # of a step, for every width
INITIAL_STD = 0.02  # of the weights that embed step and class


def position_table(rows: int, columns: int, width: int) -> Tensor:
    """The fixed embedding of each patch of a grid: that of its column, then that of its row.

    [sin(w_i q), cos(w_i q), sin(w_i r), cos(w_i r)] for row r and column q, with w_i = 10000^(-4 i / width),
    i = 0..width/4 - 1. Shape: [rows columns, width], rows of the grid one after another, in float64.
    Source: Peebles & Xie 2023, section 3.2; the column before the row is the order of its published code.
    """
    down, across = (
        positional(torch.arange(count, dtype=torch.float64, device="cpu"), width // 2) for count in (rows, columns)
    )
    return torch.cat([across.repeat(rows, 1), down.repeat_interleave(columns, dim=0)], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift."""
    return torch.addcmul(shift, 1 + scale, x)


class LayerNorm(nn.LayerNorm):
    """LayerNorm without parameters: the modulation is its affine map."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=False)


class TokenAttention(nn.Module):
    """y = W softmax(Q K^T / sqrt(d)) V over the tokens of x.

    Shapes: x [B, N, width] -> [B, N, width], with d = width / heads. Source: Vaswani et al. 2017, eq. 1.
    Second derivatives need PyTorch's own formula: `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.out = xavier(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(attended(self.qkv(x), self.heads))
        return out


class Block(nn.Module):
    """An adaLN-zero block: the identity at first, since the modulation W c starts at zero.

    x <- x + gate_1 attention((1 + scale_1) norm(x) + shift_1)
    x <- x + gate_2 W2 drop(gelu(W1 ((1 + scale_2) norm(x) + shift_2)))
    with (shift_1, scale_1, gate_1, shift_2, scale_2, gate_2) = W c. Shapes: x [B, N, width], c [B, width] ->
    [B, N, width]. Source: Peebles & Xie 2023, section 3.2 and figure 3 (left); tanh form of the GELU.
    """

    def __init__(self, width: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.modulation = xavier(nn.Linear(width, 6 * width), gain=0.0)
        self.norm = LayerNorm(width)  # has no parameters, so one serves both branches
        self.attention = TokenAttention(width, heads=heads)
        self.hidden = xavier(nn.Linear(width, hidden))
        self.dropout = nn.Dropout(dropout)
        self.out = xavier(nn.Linear(hidden, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate_1, self.attention(modulate(self.norm(x), shift_1, scale_1)))
        h: Tensor = self.hidden(modulate(self.norm(x), shift_2, scale_2))
        return torch.addcmul(x, gate_2, self.out(self.dropout(F.gelu(h, approximate="tanh"))))


class DiT(nn.Module):
    """A transformer of (x, c_noise, class) over patches, whose output starts at exactly zero.

    The image is cut into patches of patch x patch pixels, each one token, to which `depth` blocks apply. The
    defaults are DiT-S/2; (width, depth, heads) = (768, 12, 12), (1024, 24, 16) and (1152, 28, 16) make B, L
    and XL. c_noise is a step, of about 0..1000. The paper has no dropout; here it acts in each block's MLP.

    Shapes: x [B, in_channels, H, W] with image_size = H = W or (H, W), c_noise [B], labels int64 [B] (num_classes, or
    None for all, means "no class") -> [B, out_channels, H, W], with out_channels = in_channels unless given.
    Raises UserError for a patch that does not divide both sides, heads that do not divide the width, a
    width that is not a multiple of 4, and in forward for x, c_noise or labels of another shape.
    Source: Peebles & Xie 2023, section 3; the initialisation is that of its published code.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: Size,
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_classes: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        require_divisor("patch", patch, "image_size", *sides(image_size))
        require_divisor("heads", heads, "width", width)
        if width % 4:
            below = max(width // 4, 1) * 4
            raise UserError(
                f"width={width} cannot hold a sine and a cosine of row and column; "
                f"valid are the multiples of 4, such as {below} and {below + 4}"
            )
        height, across = sides(image_size)
        self.shape = (in_channels, height, across)
        self.patch, self.grid = patch, (height // patch, across // patch)
        out_channels = in_channels if out_channels is None else out_channels

        self.conditioning = Conditioning(FEATURES, width, cosine_first=True, num_classes=num_classes, vectors=vectors)
        for parameter in self.conditioning.parameters():
            if parameter.ndim == 2:  # all but the biases, which stay at zero
                nn.init.normal_(parameter, std=INITIAL_STD)

        self.stem = xavier(nn.Linear(in_channels * patch**2, width))
        # Computed on the CPU, which has float64 on any machine, then put where torch.device wants it.
        positions = position_table(*self.grid, width).to(torch.get_default_device(), torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, hidden=int(mlp_ratio * width), dropout=dropout) for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.modulation = xavier(nn.Linear(width, 2 * width), gain=0.0)
        self.out = xavier(nn.Linear(width, patch**2 * out_channels), gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, **vectors: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise UserError(f"x must have shape [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        c = self.conditioning(c_noise, labels, len(x), vectors=vectors)
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [B, N, in_channels patch^2]
        h: Tensor = self.stem(patches) + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=2)
        h = self.out(modulate(self.norm(h), shift, scale))  # [B, N, patch patch out_channels], as published
        h = h.view(len(x), *self.grid, self.patch, self.patch, -1).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(len(x), -1, *self.shape[1:])


def require_divisor(part: str, value: int, whole: str, *totals: int) -> None:
    """Raise UserError, with the valid values, unless `value` divides each of the totals."""
    valid = [divisor for divisor in range(1, min(totals) + 1) if not any(total % divisor for total in totals)]
    if value not in valid:
        names, given = ", ".join(map(str, valid)), totals if len(set(totals)) > 1 else totals[0]
        raise UserError(f"{part}={value} does not divide {whole}={given}; valid values of {part}: {names}")
