"""The stored vectors of other implementations, and their configurations as objects of the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import CLEAN, Kernel, combine
from sde_diffusion.core.prediction import to_x0
from sde_diffusion.samplers.adams import Adams
from sde_diffusion.samplers.ancestral import ancestral_row, ddim_flow_row
from sde_diffusion.samplers.euler_maruyama import euler_maruyama_row
from sde_diffusion.samplers.march import Row
from sde_diffusion.samplers.multistep import published_3m
from sde_diffusion.samplers.reverse_diffusion import reverse_diffusion_row

DATA = Path(__file__).parents[1] / "data" / "reference"
RTOL, ATOL = 1e-9, 1e-10
DIMS = (2, 12)
SHAPES = {2: (2, 1, 1), 12: (3, 2, 2)}

Arrays = dict[str, Tensor]


@cache
def arrays(name: str) -> Arrays:
    """All arrays of a file, in the dtype in which they are stored."""
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


@cache
def document(name: str) -> dict[str, Any]:
    """What is stored beside a file's arrays."""
    contents: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return contents


def cases(name: str) -> dict[str, dict[str, Any]]:
    """The configurations of a file's cases."""
    configurations: dict[str, dict[str, Any]] = document(name)["cases"]
    return configurations


def under(vectors: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in vectors.items() if key.startswith(prefix)}


def case_of(file: str, name: str) -> tuple[dict[str, Any], Arrays]:
    """A case's configuration and its arrays without its name in front."""
    return cases(file)[name], under(arrays(file), f"{name}.")


def close(actual: Tensor, expected: Tensor, rtol: float = RTOL, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def mixture(vectors: Arrays, dims: int) -> sd.GaussianMixture:
    """The data distribution of a file."""
    weights, means, stds = (vectors[f"gmm{dims}_{name}"] for name in "wms")
    return sd.GaussianMixture(means.reshape(-1, *SHAPES[dims]), stds, weights)


def step(
    row: Row, sde: sd.SDE, now: Node, next: Node, x: Tensor, x0_hat: Tensor, noise: Tensor | None = None
) -> Tensor:
    """A sampler's step, a x + b x0_hat + c noise; without noise, its mean."""
    coefficients = row(sde, now, next)
    return combine(coefficients[:2], x, x0_hat) if noise is None else combine(coefficients, x, x0_hat, noise)


def grid_of(sde: sd.SDE, ratios: Tensor) -> TimeGrid:
    """The grid of a process through descending values of sigma/alpha."""
    return TimeGrid(sde, sde.time_of(-2.0 * ratios.log()))


def exact_then_published(h: Tensor, moments: Tensor) -> Tensor:
    """The moments of multistep methods that enter the published third order by the exact second."""
    return moments if moments.shape[1] == 2 else published_3m(h, moments)


def singlestep(method: Adams, denoiser: sd.Denoiser, x: Tensor, grid: TimeGrid) -> Tensor:
    """A singlestep method of order 2 on the nodes of a grid, whatever their distances: all states [n, B, *D].

    To every other node by DDIM, and from where it began past it by the slope between the two outputs.
    """
    sde, levels = grid.sde, grid.levels
    now, middle, next = levels[:-1:2], levels[1::2], levels[2::2]
    visited = []
    for i, row in enumerate(torch.stack(method.rows(sde, now, next, [middle]), dim=1)):
        x0_hat = denoiser(x, now[i].kernel)
        ahead = step(ddim_flow_row, sde, now[i], middle[i], x, x0_hat)
        f = combine(method.output.parts(middle[i].kernel), ahead, denoiser(ahead, middle[i].kernel))
        x = combine(row.unbind(), x, x0_hat, f)
        visited.append(x)
    return torch.stack(visited)


def one_below(levels: Kernel) -> Kernel:
    """For each of some ascending levels [N] the level below it, clean data below the first."""
    alpha = torch.cat([CLEAN.alpha[None], levels.alpha[:-1]])
    sigma = torch.cat([CLEAN.sigma[None], levels.sigma[:-1]])
    return Kernel(alpha, sigma)


PROCESSES: dict[str, Callable[[float, float], sd.SDE]] = {
    "vp": sd.VPSDE,
    "subvp": sd.SubVPSDE,
    "ve": sd.VESDE,
}


def x0_from_score(score: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """The x0_hat of a step from a node with this kernel, which derives exactly this score from it again."""
    return to_x0("score", score, x, kernel)


@dataclass(frozen=True)
class SongProcess:
    """A process as score_sde has it: a continuous one, and N levels beside it that its predictors step on.

    The level of a time is floor(t (N - 1)); below level 0 there is clean data. Sub-VP has no levels there.
    """

    kind: str
    params: tuple[float, float]
    n: int = 1000

    @classmethod
    def of(cls, case: dict[str, Any]) -> SongProcess:
        kind = case.get("kind") or case.get("sde") or {"smld": "ve", "ddpm": "vp"}[case["loss"]]
        return cls(kind, tuple(case["params"]), case.get("N", 1000))

    @property
    def sde(self) -> sd.SDE:
        return PROCESSES[self.kind](*self.params)

    @property
    def discrete(self) -> sd.DiscreteVP | sd.DiscreteVE:
        if self.kind == "vp":
            return sd.DiscreteVP.linear(self.n, *self.params)
        assert self.kind == "ve"
        return sd.DiscreteVE.geometric(*self.params, self.n)

    def level_pair(self, t: Tensor) -> tuple[Node, Node]:
        """The nodes of the level of t and of the one below it, for t [] or [B]."""
        process, index = self.discrete, (t * (self.n - 1)).long()
        times, levels = process.times, process.levels
        lower = one_below(levels)[index]
        return Node(times[index], levels[index]), Node(times[index] - 1.0 / self.n, lower)

    def euler_pair(self, t: Tensor) -> tuple[Node, Node]:
        """The nodes of an Euler step of 1/N, which score_sde takes whatever the distance of its grid's times.

        Euler's step never looks at the next kernel: at t < 1/N there is none.
        """
        return Node(t, self.sde.kernel(t)), Node(t - 1.0 / self.n, CLEAN)

    def predict(self, predictor: str, x: Tensor, score: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """One predictor step from time t by the library's rows; without noise, score_sde's x_mean."""
        if predictor == "none":
            return x
        # For sub-VP, score_sde's reverse diffusion is an Euler step; ours has the exact transition.
        euler = predictor == "euler_maruyama" or (predictor == "reverse_diffusion" and self.kind == "subvp")
        now, next = self.euler_pair(t) if euler else self.level_pair(t)
        x0_hat = x0_from_score(score, x, now.kernel)
        if euler:
            return step(euler_maruyama_row, self.sde, now, next, x, x0_hat, noise)
        if predictor == "reverse_diffusion":
            return step(reverse_diffusion_row, self.discrete, now, next, x, x0_hat, noise)
        assert predictor == "ancestral_sampling"
        variance = {"vp": "beta", "ve": "posterior"}[self.kind]
        row = partial(ancestral_row, variance=variance)
        return step(row, self.discrete, now, next, x, x0_hat, noise)


class ReplayedNoise:
    """Stored normals [n, B, *D] in the place of the library's draws, in their order of use."""

    def __init__(self, stored: Tensor) -> None:
        self.stored: list[Tensor] = list(stored)

    def __call__(self, shape: Sequence[int], generator: object, *, like: Tensor | None = None) -> Tensor:
        noise = self.stored.pop(0)
        assert tuple(shape) == noise.shape
        return noise

    @property
    def unused(self) -> int:
        return len(self.stored)


class Replay:
    """Stored normals [n, B, *D] as a sampler's source of noise, in their order of use; some may be left over."""

    def __init__(self, stored: Tensor) -> None:
        self.noise = ReplayedNoise(stored)

    def __call__(self, step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        return self.noise(like.shape, None)

    @property
    def unused(self) -> int:
        return self.noise.unused


class Recording:
    """A denoiser that keeps its inputs, and the kernels at which it was asked."""

    def __init__(self, denoiser: sd.Denoiser) -> None:
        self.denoiser = denoiser
        self.inputs: list[Tensor] = []
        self.kernels: list[Kernel] = []

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        self.inputs.append(x)
        self.kernels.append(kernel)
        return self.denoiser(x, kernel, **conditioning)


class Trajectory:
    """An `on_step` that keeps x at every node."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []

    def __call__(self, index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        self.x.append(x)

    def stacked(self, last: Tensor) -> Tensor:
        return torch.stack([*self.x, last])
