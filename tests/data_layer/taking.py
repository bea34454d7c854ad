"""Batches of a set, and whether they are those of another."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from sde_diffusion.data import Source, batches
from sde_diffusion.data.dataset import Batch


def take(data: Source, count: int, batch_size: int, **options: Any) -> list[Batch]:
    """The first batches, flipped at random."""
    stream = batches(data, batch_size, seed=3, flip=True, **options)
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def same(one: list[Batch], other: list[Batch]) -> bool:
    """The same samples with the same labels."""
    return len(one) == len(other) and all(
        torch.equal(x, y) and torch.equal(told["labels"], again["labels"]) for (x, told), (y, again) in zip(one, other)
    )
