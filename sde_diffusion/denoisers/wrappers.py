"""Denoisers around denoisers: each changes what goes in or what comes out, or only looks at it.

A wrapper defines `moments` alone, and asks those of the denoiser inside, so that a learned variance goes through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.kernel import Kernel
from sde_diffusion.denoisers.base import Denoiser, moments, to_model_range
from sde_diffusion.denoisers.network import NetworkSpec


class Wrapper:
    """A denoiser around a denoiser: `moments` is all that it defines."""

    denoiser: Denoiser

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return self.moments(x, kernel, **conditioning)[0]

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the fraction of the learned variance, None where there is none."""
        return moments(self.denoiser, x, kernel, **conditioning)

    @property
    def device(self) -> torch.device | None:
        """The device of the denoiser inside, where it has one."""
        return getattr(self.denoiser, "device", None)

    @property
    def spec(self) -> NetworkSpec | None:
        """The spec of the network inside, where there is one."""
        return getattr(self.denoiser, "spec", None)


@dataclass(frozen=True)
class ClippedDenoiser(Wrapper):
    """x0_hat clipped to [low, high]. Samplers derive eps from it, so that eps agrees with the clipped x0_hat."""

    denoiser: Denoiser
    low: float = -1.0
    high: float = 1.0

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return x0_hat.clamp(self.low, self.high), fraction


class ConditionedDenoiser(Wrapper):
    """A denoiser with some of its conditioning, such as labels=[B], fixed."""

    def __init__(self, denoiser: Denoiser, **conditioning: Tensor) -> None:
        self.denoiser = denoiser
        self.conditioning = conditioning

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        return moments(self.denoiser, x, kernel, **{**self.conditioning, **conditioning})


@dataclass(frozen=True)
class RangeDenoiser(Wrapper):
    """A denoiser trained on data in [low, high], for model space [-1, 1]."""

    denoiser: Denoiser
    low: float
    high: float

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        return to_model_range(partial(moments, self.denoiser), self.low, self.high, x, kernel, **conditioning)


class AutocastDenoiser(Wrapper):
    """The denoiser's passes in 16 bits where torch.autocast says so; x and x0_hat stay as they are."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(x.device.type, dtype=self.dtype):
            x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return x0_hat.to(x.dtype), None if fraction is None else fraction.to(x.dtype)


class CheckpointedDenoiser(Wrapper):
    """Computes each evaluation again in the backward pass, in place of keeping what it needs (Chen et al. 2016).

    Memory then holds x and x0_hat of every step, and the inside of one evaluation at a time. The global random state
    is left alone, so that a denoiser must not draw from it.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        def again(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return moments(self.denoiser, x, kernel, **conditioning)

        found: tuple[Tensor, Tensor | None] = checkpoint(again, x, use_reentrant=False, preserve_rng_state=False)
        return found


class CountingDenoiser(Wrapper):
    """Counts the calls for a whole batch: `nfe`."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.nfe = 0

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        self.nfe += 1
        return moments(self.denoiser, x, kernel, **conditioning)


class CheckedDenoiser(Wrapper):
    """x0_hat in the dtype of x; refuses another shape than x's and, with `finite`, values that are not finite.

    where: says of a kernel where in the sampling it is. Raises UserError.
    """

    def __init__(self, denoiser: Denoiser, where: Callable[[Kernel], str], *, finite: bool = False) -> None:
        self.denoiser = denoiser
        self.where = where
        self.finite = finite

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.finite and not bool(x.isfinite().all()):
            raise UserError(f"the sampler diverged before {self.where(kernel)}: take more steps, or a lower order")
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        if not isinstance(x0_hat, Tensor):
            raise UserError(f"the denoiser returned a {type(x0_hat).__name__}, not a tensor, in {self.where(kernel)}")
        if x0_hat.shape != x.shape:
            raise UserError(
                f"the denoiser returned {tuple(x0_hat.shape)} for x of shape {tuple(x.shape)} in {self.where(kernel)}"
            )
        if self.finite and not bool(x0_hat.isfinite().all()):
            if kernel.alpha.ndim:  # one level a sample: those of the samples that failed
                kernel = kernel[~x0_hat.isfinite().flatten(1).all(1).cpu()]
            raise UserError(f"the denoiser returned values that are not finite in {self.where(kernel)}")
        return x0_hat.to(x.dtype), fraction


@dataclass(frozen=True, eq=False)
class Seen:
    """What a sampler asked and was told in evaluation `index`: x, x0_hat [n, *D] and the kernel, on the CPU."""

    index: int
    x: Tensor
    x0_hat: Tensor
    kernel: Kernel


class WatchedDenoiser(Wrapper):
    """Keeps what it is asked about the first `count` samples of a batch, and what it answers: `seen`.

    Of many evaluations every second is kept, or every fourth, ..., at most `most` of them, and always the last.
    """

    def __init__(self, denoiser: Denoiser, count: int, most: int = 64) -> None:
        self.denoiser = denoiser
        self.count, self.most, self.calls, self.stride = count, most, 0, 1
        self._kept: list[Seen] = []

    @property
    def seen(self) -> list[Seen]:
        """From the first evaluation to the last."""
        *kept, last = self._kept
        return [*(one for one in kept if one.index % self.stride == 0), last]

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        alpha, sigma = (value[: self.count] if value.ndim else value for value in (kernel.alpha, kernel.sigma))
        first, told = (value[: self.count].to("cpu", copy=True) for value in (x, x0_hat))
        if self._kept and self._kept[-1].index % self.stride:
            self._kept.pop()
        if len(self._kept) >= self.most - 1:
            self.stride *= 2
            self._kept = [one for one in self._kept if one.index % self.stride == 0]
        self._kept.append(Seen(self.calls, first, told, Kernel(alpha.cpu(), sigma.cpu())))
        self.calls += 1
        return x0_hat, fraction
