"""From c_noise (a step, log sigma, ...) and what else a network is told, such as a class, to one vector a sample."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose, nearest
from sde_diffusion.nets.initialisation import xavier

MAX_PERIOD = 10000.0  # Vaswani et al. 2017, section 3.5
FREQUENCY_SEED = 0  # a constant, so that a network built again (or in another process) has the same features


def positional(c_noise: Tensor, dim: int, *, shift: int = 0, cosine_first: bool = False) -> Tensor:
    """Sinusoidal features of c_noise of about 0..1000.

    [sin(w_i c_noise), cos(w_i c_noise)] with w_i = 10000^(-i / (n - shift)), i = 0..n-1, n = floor(dim / 2); an odd dim
    has a column of zeros. Ho et al. 2020 have shift 1, so that the last frequency is 1/10000; Nichol and Dhariwal
    2021 the cosines first. Shapes: c_noise [B] -> [B, dim], in float32 or, for a float64 c_noise, float64.
    Source: Vaswani et al. 2017, section 3.5 (sines first, then cosines).
    """
    c_noise = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    half = dim // 2
    index = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device)
    angle = c_noise[:, None] * torch.exp(-math.log(MAX_PERIOD) / max(half - shift, 1) * index)
    waves = [angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()]
    features = torch.cat(waves, dim=1)
    return nn.functional.pad(features, (0, 1)) if dim % 2 else features


class FourierFeatures(nn.Module):
    """Random Fourier features of a continuous c_noise, such as log sigma.

    [sin(2 pi f_i c_noise), cos(2 pi f_i c_noise)] with f_i ~ N(0, scale^2), drawn once from a constant seed and
    kept in the state dict. Shapes: c_noise [B] -> [B, dim], in float32 at least.
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

    def forward(self, c_noise: Tensor) -> Tensor:
        frequencies = self.frequencies.to(torch.promote_types(self.frequencies.dtype, torch.float32))
        angle = 2 * math.pi * c_noise[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)[:, : self.dim]


class VectorRow(nn.Module):
    """U v, and a column of its own for "not told": where v is not given, and for the rows of v that are NaN.

    That column starts at zero, as a network that was always told never learns it. Shapes: v [B, values] -> [B, width].
    Raises UserError for another shape, with the vector's name.
    """

    def __init__(self, values: int, width: int) -> None:
        super().__init__()
        self.values = values
        self.weight = nn.Parameter(xavier(nn.Linear(values + 1, width, bias=False)).weight.detach())
        with torch.no_grad():
            self.weight[:, values] = 0.0

    def forward(self, name: str, v: Tensor | None, batch: int) -> Tensor:
        if v is None:
            return self.weight[:, self.values].expand(batch, -1)
        if v.shape != (batch, self.values):
            raise UserError(f"{name} must have shape {[batch, self.values]}; got {list(v.shape)}")
        v = v.to(self.weight.dtype)
        untold = v.isnan().any(dim=1, keepdim=True)
        return nn.functional.linear(torch.cat([v.masked_fill(untold, 0.0), untold.to(v.dtype)], dim=1), self.weight)


class Conditioning(nn.Module):
    """The vector that modulates every block: c = silu(W2 silu(W1 features(c_noise)) + class_row).

    The class table has num_classes + 1 rows; the last, index num_classes, means "no class" and is used for
    labels=None, so that one network serves both halves of classifier-free guidance. With no_class=False there is no
    such row and labels are needed. With classes_first the class row is added to the features instead, as are
    W3 augment_labels [B, augment_dims], the geometry by which training images were changed (zeros: not at all).
    activation: in place of the inner silu.
    vectors: further conditions by name and their number of values, such as {"attributes": 5}, each of which is added
    beside the class row by a `VectorRow`.
    Shapes: c_noise [B], labels int64 [B] or None, each vector [B, values] -> [B, width].
    Raises UserError for an unknown embedding, c_noise that is not [B], and conditions that the network cannot take.
    Source: Ho et al. 2020, appendix B; class row: Ho & Salimans 2022, section 3.2; augmentation: Karras et al. 2022,
    appendix F.2.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        shift: int = 0,
        cosine_first: bool = False,
        num_classes: int = 0,
        no_class: bool = True,
        classes_first: bool = False,
        augment_dims: int = 0,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        embeddings: dict[str, Callable[[Tensor], Tensor]] = {
            "positional": partial(positional, dim=dim, shift=shift, cosine_first=cosine_first),
            "fourier": FourierFeatures(dim, fourier_scale),
        }
        self.features = choose("embedding", embedding, embeddings)
        self.hidden = xavier(nn.Linear(dim, width))
        self.out = xavier(nn.Linear(width, width))
        self.activation = activation
        self.num_classes = num_classes
        self.no_class = no_class
        self.classes_first = classes_first
        row = dim if classes_first else width
        self.classes = nn.Embedding(num_classes + no_class, row) if num_classes else None
        self.augment = xavier(nn.Linear(augment_dims, dim, bias=False)) if augment_dims else None
        self.vectors = nn.ModuleDict({name: VectorRow(values, row) for name, values in (vectors or {}).items()})

    def forward(
        self,
        c_noise: Tensor,
        labels: Tensor | None,
        batch: int,
        augment_labels: Tensor | None = None,
        vectors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        if c_noise.shape != (batch,):
            raise UserError(f"c_noise must have shape [{batch}]; got {list(c_noise.shape)}")
        features = self.features(c_noise).to(self.hidden.weight.dtype)
        row = self._vector_rows(self._class_row(c_noise, labels, batch), vectors or {}, batch)
        if row is not None and self.classes_first:
            features = features + row
        if augment_labels is not None:
            features = features + self._augment(augment_labels, batch)
        vector: Tensor = self.out(self.activation(self.hidden(features)))
        if row is not None and not self.classes_first:
            vector = vector + row
        return nn.functional.silu(vector)

    def _class_row(self, c_noise: Tensor, labels: Tensor | None, batch: int) -> Tensor | None:
        if self.classes is None:
            if labels is not None:
                raise UserError("this network takes no class labels: it was built with num_classes=0")
            return None
        if labels is None:
            if not self.no_class:
                raise UserError(f"this network needs class labels=[B], 0 to {self.num_classes - 1}")
            labels = torch.full((batch,), self.num_classes, device=c_noise.device)
        if labels.shape != (batch,):
            raise UserError(f"the class labels must have shape [{batch}]; got {list(labels.shape)}")
        return self.classes(labels)

    def _vector_rows(self, row: Tensor | None, given: Mapping[str, Tensor], batch: int) -> Tensor | None:
        """The class row, if there is one, and that of every vector: given, or "not told"."""
        for name in given:
            if name not in self.vectors:
                hint = nearest(name, self.vectors) if self.vectors else "it takes none"
                raise UserError(f"this network does not take the condition {name!r}; {hint}")
        for name, vector_row in self.vectors.items():
            own: Tensor = vector_row(name, given.get(name), batch)
            row = own if row is None else row + own
        return row

    def _augment(self, augment_labels: Tensor, batch: int) -> Tensor:
        if self.augment is None:
            raise UserError("this network takes no augment_labels: it was built with augment_dims=0")
        if augment_labels.shape != (batch, self.augment.in_features):
            shape = [batch, self.augment.in_features]
            raise UserError(f"augment_labels must have shape {shape}; got {list(augment_labels.shape)}")
        return self.augment(augment_labels.to(self.augment.weight.dtype))
