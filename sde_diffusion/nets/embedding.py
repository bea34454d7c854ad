"""From a noise label (a step, log sigma, ...) and an optional class to one vector a sample."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError, choose
from sde_diffusion.nets.initialisation import xavier

MAX_PERIOD = 10000.0  # Vaswani et al. 2017, section 3.5
FREQUENCY_SEED = 0  # a constant, so that a network built again (or in another process) has the same features


def positional(label: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of a label of about 0..1000.

    [sin(w_i label), cos(w_i label)] with w_i = 10000^(-i / n), i = 0..n-1, n = ceil(dim / 2); an odd dim
    drops the last cosine. Shapes: label [B] -> [B, dim], in float32 or, for a float64 label, float64.
    Source: Vaswani et al. 2017, section 3.5 (sines first, then cosines).
    """
    label = label.to(torch.promote_types(label.dtype, torch.float32))
    half = (dim + 1) // 2
    index = torch.arange(half, dtype=label.dtype, device=label.device)
    angle = label[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * index)
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :dim]


class FourierFeatures(nn.Module):
    """Random Fourier features of a continuous label, such as log sigma.

    [sin(2 pi f_i label), cos(2 pi f_i label)] with f_i ~ N(0, scale^2), drawn once from a constant seed and
    kept in the state dict. Shapes: label [B] -> [B, dim], in float32 at least.
    Source: Tancik et al. 2020, eq. 5; Song et al. 2021, appendix G (scale 16).
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.dim = dim
        generator = torch.Generator().manual_seed(FREQUENCY_SEED)
        frequencies = scale * torch.randn((dim + 1) // 2, generator=generator, device="cpu")
        # Drawn on the CPU on any machine, then put where the enclosing torch.device context wants it.
        self.register_buffer("frequencies", frequencies.to(torch.get_default_device()))

    def forward(self, label: Tensor) -> Tensor:
        frequencies = self.frequencies.to(torch.promote_types(self.frequencies.dtype, torch.float32))
        angle = 2 * math.pi * label[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)[:, : self.dim]


class Conditioning(nn.Module):
    """The vector that modulates every block: c = silu(W2 silu(W1 features(label)) + class_row).

    The class table has num_classes + 1 rows; the last, index num_classes, means "no class" and is used for
    labels=None, so that one network serves both halves of classifier-free guidance.
    Shapes: label [B], labels int64 [B] or None -> [B, width].
    Raises UserError for an unknown embedding, a label that is not [B], or labels the network cannot take.
    Source: Ho et al. 2020, appendix B; class row: Ho & Salimans 2022, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        embeddings: dict[str, Callable[[Tensor], Tensor]] = {
            "positional": partial(positional, dim=dim),
            "fourier": FourierFeatures(dim, fourier_scale),
        }
        self.features = choose("embedding", embedding, embeddings)
        self.hidden = xavier(nn.Linear(dim, width))
        self.out = xavier(nn.Linear(width, width))
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, label: Tensor, labels: Tensor | None, batch: int) -> Tensor:
        if label.shape != (batch,):
            raise UserError(f"the noise label must have shape [{batch}]; got {list(label.shape)}")
        features = self.features(label).to(self.hidden.weight.dtype)
        vector: Tensor = self.out(nn.functional.silu(self.hidden(features)))
        if self.classes is not None:
            if labels is None:
                labels = torch.full((batch,), self.num_classes, device=label.device)
            if labels.shape != (batch,):
                raise UserError(f"the class labels must have shape [{batch}]; got {list(labels.shape)}")
            vector = vector + self.classes(labels)
        elif labels is not None:
            raise UserError("this network takes no class labels: it was built with num_classes=0")
        return nn.functional.silu(vector)
