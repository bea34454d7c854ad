"""A residual network for vectors and tiny images."""

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.initialisation import xavier


class ModulatedBlock(nn.Module):
    """y = x + W2 drop(silu(W1 ((1 + scale) norm(x) + shift))), (scale, shift) = W c, with W2 zero at first.

    Shapes: x [B, width], c [B, width] -> [B, width].
    Source: Perez et al. 2018 (FiLM), eq. 1; placed after the norm as in Dhariwal & Nichol 2021, eq. 2.
    """

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the modulation is its affine map
        self.modulation = xavier(nn.Linear(width, 2 * width))
        self.hidden = xavier(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)
        self.out = xavier(nn.Linear(width, width), gain=0.0)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).chunk(2, dim=1)
        h: Tensor = self.hidden((1 + scale) * self.norm(x) + shift)
        out: Tensor = x + self.out(self.dropout(F.silu(h)))
        return out


class ResidualMLP(nn.Module):
    """A network of (x, c_noise, class) without spatial structure, whose output starts at exactly zero.

    Shapes: x [B, *shape], c_noise [B], labels int64 [B] (num_classes, or None for all, means "no class")
    -> [B, *shape], or with out_channels [B, out_channels, *shape[1:]].
    Raises UserError for an unknown embedding, and in forward for x, c_noise or labels of another shape.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        out_channels: int | None = None,
        width: int = 256,
        blocks: int = 4,
        dropout: float = 0.0,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        num_classes: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.out_shape = (self.shape[0] if out_channels is None else out_channels, *self.shape[1:])
        self.conditioning = Conditioning(
            width,
            width,
            embedding=embedding,
            fourier_scale=fourier_scale,
            num_classes=num_classes,
            vectors=vectors,
        )
        self.stem = xavier(nn.Linear(math.prod(self.shape), width))
        self.blocks = nn.ModuleList(ModulatedBlock(width, dropout=dropout) for _ in range(blocks))
        out = xavier(nn.Linear(width, math.prod(self.out_shape)), gain=0.0)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), out)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, **vectors: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise UserError(f"x must have shape [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        c = self.conditioning(c_noise, labels, len(x), vectors=vectors)
        h: Tensor = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        h = self.head(h)
        return h.view(len(x), *self.out_shape)
