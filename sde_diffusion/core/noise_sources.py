"""Where a sampler's noise comes from: white noise, one Brownian path, or what a person gives.

A source is a function (step, now, next, like) -> standard normals of the shape, dtype and device of `like`: the noise
of the update from node `now` to node `next`. The driver makes one, and a sampler draws from nothing else. A draw that
is no part of the way between two nodes, such as that of a Langevin corrector, asks from a node to itself.

White noise is new at every draw. A finer grid then gives other samples, however small its errors. Brownian noise is the
increment of a path that is there before any grid. Written for z = x alpha/sigma^2, the reverse SDE of every process is

    dz = x0_hat ds + dW_s,        s = alpha^2/sigma^2, the SNR, which rises from noise to data,

for one transition from s to s' is z' = z + (s' - s) x_0 + sqrt(s' - s) n (ancestral.py, with the posterior's variance).
So a step draws n = (W(s') - W(s)) / sqrt(s' - s): exactly the noise of the ancestral samplers, and to first order that
of the others, for in the limit of small steps all of them solve this one SDE. A sampler of strong order one, as all are
whose noise is additive, then keeps samples of n and 2n steps together up to O(1/n).

W is a function of the seed alone (a virtual Brownian tree, Li et al. 2020, section 4). The path is cut at the middle of
v = sigmoid(log(s)/8), which spreads the noise levels of all grids evenly over (0, 1), again and again; between two
known values the bridge gives the middle one,

    W(s_m) ~ N( W(s_a) + (s_m - s_a)/(s_b - s_a) (W(s_b) - W(s_a)),  (s_m - s_a)(s_b - s_m)/(s_b - s_a) ),

with a normal number that is seeded by the place of the cut. After DEPTH cuts the bridge to the node itself is seeded by
the node. Neighbouring queries share most of their cuts, which are kept: n nodes take about n (DEPTH - log2 n) draws.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import Node
from sde_diffusion.core.noise import Generators, check_count, device_of, fresh, one_by_one, randn


class NoiseSource(Protocol):
    """Standard normals [B, *D] like `like`, for the update of that number from node `now` to node `next`."""

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class WhiteNoise:
    """New noise at every draw, from one generator for the batch or one for each sample."""

    generator: Generators = None

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        return randn(like.shape, self.generator, like=like)


FRESH_NOISE = WhiteNoise()
"""White noise that is seeded by the operating system."""


class GivenNoise:
    """Normals that a person gives, one tensor [B, *D] for each draw, in their order of use.

    Raises UserError for a tensor of another shape than the batch, and for a draw more than there are tensors.
    """

    def __init__(self, tensors: Sequence[Tensor] | Tensor) -> None:
        self.tensors = list(tensors)
        self.used = 0
        if not all(isinstance(one, Tensor) for one in self.tensors):
            raise UserError("noise= as a list holds tensors [B, *D], one for each draw")

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        if self.used == len(self.tensors):
            raise UserError(f"the sampler draws noise more often than {self.used} times, the tensors that noise= has")
        given = self.tensors[self.used]
        if given.shape != like.shape:
            raise UserError(
                f"tensor {self.used} of noise= has shape {tuple(given.shape)}, and the samples {tuple(like.shape)}: "
                "noise [draws, B, *D] is needed, or a list of tensors [B, *D]"
            )
        self.used += 1
        return given.to(like.dtype).to(like.device)  # in this order: a device may have no float64

    def check_used(self) -> None:
        """Raises UserError where tensors are left over."""
        if self.used < len(self.tensors):
            raise UserError(
                f"the sampler drew noise {self.used} times, and noise= has {len(self.tensors)} tensors: some are unused"
            )


# --- one Brownian path ----------------------------------------------------------------------------------------

DEPTH = 18
"""Cuts from the whole path down to a piece: 4e-6 of it, far below the steps of any grid."""
MOST_LOGSNR = 80.0
"""Where the path ends: sigma = 4e-18 alpha, below what float64 can tell from clean data."""
_MASK = 2**64 - 1


def _mixed(seed: int, key: int) -> int:
    """A seed for each pair, whose low bits depend on all of both (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (seed + key * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _share(logsnr: float) -> float:
    """v = sigmoid(logsnr/8), from 0 (pure noise) to 1 (clean data)."""
    return 1.0 / (1.0 + math.exp(-logsnr / 8.0)) if logsnr > -math.inf else 0.0


def _snr(v: float) -> float:
    """s of v, the inverse of `_share`."""
    return (v / (1.0 - v)) ** 8


@dataclass(frozen=True, eq=False)
class _Point:
    """The path at one place: v, s(v) and W(s), [B, *D]."""

    v: float
    s: float
    w: Tensor


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of the path between two points, number `key` in the order of a heap: its halves are 2 key, 2 key + 1."""

    key: int
    start: _Point
    end: _Point


def bridge(start: _Point, end: _Point, v: float, n: Tensor) -> _Point:
    """The path at v between two of its points, by the Brownian bridge with the normals n."""
    s = _snr(v)
    whole, past, left = end.s - start.s, s - start.s, end.s - s
    mean = torch.lerp(start.w, end.w, past / whole)
    return _Point(v, s, mean.add_(n, alpha=math.sqrt(max(past * left / whole, 0.0))))


@dataclass(eq=False)
class _Path:
    """W as a function of the place, for one seed or one for each row."""

    seeds: list[int]
    worker: torch.Generator
    one_for_all: bool
    like: Tensor
    pieces: list[_Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        top = _share(MOST_LOGSNR)
        start = _Point(0.0, 0.0, torch.zeros_like(self.like))
        end = _Point(top, _snr(top), self._normals(0).mul_(math.sqrt(_snr(top))))
        self.pieces.append(_Piece(1, start, end))

    def _normals(self, key: int) -> Tensor:
        """The normals [B, *D] of one place."""
        rows = [self.like.shape] if self.one_for_all else [self.like.shape[1:]] * len(self.seeds)
        drawn = []
        for seed, shape in zip(self.seeds, rows, strict=True):
            self.worker.manual_seed(_mixed(seed, key))
            drawn.append(torch.randn(shape, generator=self.worker, device=self.worker.device, dtype=self.like.dtype))
        return (drawn[0] if self.one_for_all else torch.stack(drawn)).to(self.like.device)

    def at(self, v: float) -> _Point:
        """The path at v."""
        while not self.pieces[-1].start.v <= v <= self.pieces[-1].end.v:
            self.pieces.pop()
        while len(self.pieces) <= DEPTH:
            piece = self.pieces[-1]
            middle = bridge(piece.start, piece.end, 0.5 * (piece.start.v + piece.end.v), self._normals(piece.key))
            first = v <= middle.v
            ends = (piece.start, middle) if first else (middle, piece.end)
            self.pieces.append(_Piece(2 * piece.key + (not first), *ends))
        (own,) = struct.unpack("<Q", struct.pack("<d", v))
        return bridge(self.pieces[-1].start, self.pieces[-1].end, v, self._normals(own))


class BrownianNoise:
    """Increments of one Brownian path for the generator, or of one for each sample's: see the module.

    Samples of one seed at different numbers of steps follow the same noise. Draws from a node to itself are white. The
    generators give their seed at the first draw.

    Raises UserError for a sampler whose samples each have steps of their own.
    """

    def __init__(self, generator: Generators = None) -> None:
        self.generator = fresh(generator)
        self._path: _Path | None = None
        self._last: _Point | None = None

    def _start(self, like: Tensor) -> _Path:
        one, every = isinstance(self.generator, torch.Generator), one_by_one(self.generator)
        if not one:
            check_count(every, len(like))
        seeds = [int(torch.randint(2**63 - 1, (), generator=g, device=g.device)) for g in every]
        worker = torch.Generator(device=device_of(self.generator))
        return _Path(seeds, worker, one, torch.empty_like(like).detach())

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        if next is now:
            return randn(like.shape, self.generator, like=like)
        if now.t.ndim:
            raise UserError(
                "noise='brownian' is one path along the nodes of a grid, and here every sample has steps of its own "
                "(adaptive_sde bridges its own noise already): take noise='white'"
            )
        if self._path is None:
            self._path = self._start(like)
        here, there = (min(_share(float(node.kernel.logsnr)), _share(MOST_LOGSNR)) for node in (now, next))
        first = self._last if self._last is not None and self._last.v == here else self._path.at(here)
        self._last = self._path.at(there)
        return (self._last.w - first.w) / math.sqrt(self._last.s - first.s)


NOISES: dict[str, Callable[[Generators], NoiseSource]] = {"white": WhiteNoise, "brownian": BrownianNoise}

Noise = str | NoiseSource | Tensor | Sequence[Tensor]
"""What `noise=` takes: a key of NOISES, a source, or one tensor [B, *D] for each draw, stacked or in a list."""


def noise_source(noise: Noise, generator: Generators) -> NoiseSource:
    """The source that `noise=` describes. Raises UserError for an unknown name, and for what is no source."""
    if callable(noise):
        return noise
    if isinstance(noise, str):
        return choose("noise", noise, NOISES)(generator)
    if isinstance(noise, (Tensor, list, tuple)):
        return GivenNoise(noise)
    raise UserError(
        f"noise= takes {', '.join(map(repr, NOISES))}, a function (step, now, next, like) -> normals, or tensors; "
        f"got a {type(noise).__name__}"
    )
