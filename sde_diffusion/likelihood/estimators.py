"""Which terms of a bound are evaluated, from noise to data, and with what weight.

A sum over levels 1 .. n is cut into equal sections, of lengths l_k, and of each section one level i_k is drawn for each
sample, uniformly. The weight l_k makes every term unbiased,

    E sum_k l_k L_{i_k} = sum_k l_k sum_{i in k} L_i / l_k = sum_i L_i,

and as each section is always seen, the variance is that inside the sections alone. An integral over the log-SNR is
estimated alike, with one log-SNR in each of n equal sections, whose width is the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import Generators, rand


def levels(steps: int, terms: int | None, samples: int, generator: Generators) -> Iterator[tuple[Tensor, Tensor]]:
    """Levels [] or [samples] and their weight [], from the noisiest to level 0, which is always evaluated.

    terms: one level a sample in each of so many sections of 1 .. steps; None for every level. Raises UserError for
    another number of sections than 1 .. steps.
    """
    if terms is not None and not (isinstance(terms, int) and 1 <= terms <= steps):
        raise UserError(f"terms must be a whole number from 1 to the number of steps, {steps}, or None; got {terms}")
    sections = torch.linspace(1, steps + 1, (terms or steps) + 1, dtype=torch.float64).round().long()
    for low, high in reversed(list(pairwise(sections))):
        index = low
        if terms is not None:
            u = rand((samples,), generator, dtype=torch.float64).cpu()
            index = low + (u * (high - low)).long()
        yield index, (high - low).double()
    yield torch.tensor(0), torch.ones((), dtype=torch.float64)


def logsnrs(
    least: Tensor, most: Tensor, points: int, samples: int, generator: Generators
) -> Iterator[tuple[int, Tensor]]:
    """A section, counted from data to noise, and a log-SNR [samples] drawn in it, from the noisiest section on."""
    width = (most - least) / points
    for section in reversed(range(points)):
        u = rand((samples,), generator, dtype=torch.float64).cpu()
        yield section, most - width * (section + u)
