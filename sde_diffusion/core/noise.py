"""Random draws that never touch the global random state.

Every function takes one `torch.Generator` for the batch, or a sequence with one generator for each sample.
With the latter a sample's noise depends on its own generator only, so that the same seed gives the same
samples whatever the batch size or the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator] | None


def seeded(*key: int, stream: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the key (non-negative integers) and the stream only."""
    sequence = np.random.SeedSequence(key, spawn_key=(stream,) if stream else ())
    return torch.Generator(device=device).manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def sample_generators(
    seed: int, indices: Iterable[int], *, stream: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator for each sample, seeded by (seed, index of the sample); a stream for each purpose."""
    return [seeded(seed, index, stream=stream, device=device) for index in indices]


def row_generators(
    seed: int, step: int, rows: range, *, stream: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator for each of some rows of a step's batch, seeded by (seed, step, row)."""
    sequence = np.random.SeedSequence((seed, step), spawn_key=(stream,) if stream else ())
    seeds = sequence.generate_state(rows.stop, np.uint64)[rows.start :].tolist()
    return [torch.Generator(device=device).manual_seed(number) for number in seeds]


def fresh(
    generator: Generators, device: torch.device | str | None = None
) -> torch.Generator | Sequence[torch.Generator]:
    """The generator itself, or where there is none a new one on the device, seeded by the operating system."""
    if generator is None:
        generator = torch.Generator(device=device or "cpu")
        generator.seed()
    return generator


def one_by_one(generator: torch.Generator | Sequence[torch.Generator]) -> Sequence[torch.Generator]:
    """The generators, also where there is one for the whole batch."""
    return [generator] if isinstance(generator, torch.Generator) else generator


def check_count(generators: Sequence[torch.Generator], rows: int) -> None:
    """Raises UserError unless there is one generator for each sample."""
    if len(generators) != rows:
        raise UserError(f"{len(generators)} generators for a batch of {rows}: one for each sample is needed")


def states(generator: torch.Generator | Sequence[torch.Generator]) -> list[Tensor]:
    """The states of one or several generators, to return to by `rewind`."""
    return [g.get_state() for g in one_by_one(generator)]


def rewind(generator: torch.Generator | Sequence[torch.Generator], earlier: Sequence[Tensor]) -> None:
    """Put one or several generators back into the states they had."""
    for g, state in zip(one_by_one(generator), earlier, strict=True):
        g.set_state(state)


def device_of(generator: Generators) -> torch.device:
    """The device that a generator draws on; the CPU where there is none."""
    if generator is None:
        return torch.device("cpu")
    return one_by_one(generator)[0].device


Fill = Callable[[Tensor, torch.Generator], object]


def _filled(
    fill: Fill, shape: Sequence[int], generator: Generators, like: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """[B, *D] as `fill` leaves it: at once, or in place for each of what may be hundreds of samples."""
    generator = fresh(generator)
    out = torch.empty(tuple(shape), device=device_of(generator), dtype=dtype)
    if isinstance(generator, torch.Generator):
        fill(out, generator)
    else:
        check_count(generator, shape[0])
        for row, g in zip(out.unbind(), generator, strict=True):
            fill(row, g)
    return out if like is None else out.to(like.device)


def _dtype(like: Tensor | None, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or (like.dtype if like is not None else torch.get_default_dtype())


def randn(
    shape: Sequence[int],
    generator: Generators,
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal noise [B, *D], in the dtype and on the device of `like` where it is given."""
    return _filled(lambda out, g: out.normal_(generator=g), shape, generator, like, _dtype(like, dtype))


def rademacher(
    shape: Sequence[int],
    generator: Generators,
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Independent signs, -1 or +1 with equal probability, [B, *D]."""
    signs = _filled(lambda out, g: out.random_(0, 2, generator=g), shape, generator, like, torch.int64)
    return signs.to(_dtype(like, dtype)) * 2 - 1


def rand(
    shape: Sequence[int],
    generator: Generators,
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform noise on [0, 1), [B, *D]."""
    return _filled(lambda out, g: out.uniform_(generator=g), shape, generator, like, _dtype(like, dtype))
