"""Training times: which noise levels a batch looks at, and the weights that keep the loss's expectation.

A time sampler draws times t and weights w with E[w L(t)] = E_{t ~ nominal} L(t). The nominal law is uniform on
[t_min, 1], uniform over the levels of a discrete process, or one that is part of its loss: EDM's log-normal, the
logit-normal of rectified flow.

    uniform, stratified   uniform times, independent or equally spaced with one random shift for the batch (Kingma et
                          al. 2021, Appendix I.1)
    levels                the levels of a discrete process, equally often
    lognormal             log(sigma/alpha) ~ N(p_mean, p_std^2) (Karras et al. 2022, Table 1)
    logit_normal          log(t/(1 - t)) ~ N(p_mean, p_std^2) (Esser et al. 2024, equation 19)
    importance            p(t) proportional to g^2/sigma^2, stratified (Song et al. 2021b, ScoreFlow, section 5)
    loss_aware            levels drawn with p_i proportional to sqrt(E L_i^2), the law of least variance, from the last
                          ten losses of each level, a thousandth of the draws uniform; uniform until every level has ten
                          (Nichol and Dhariwal 2021, equation 18, and their code's figures)

With the weighting "likelihood" the loss is g^2/sigma^2 |eps_hat - eps|^2, large and rare at small t. As

    dlam/dt = 2 (dlog alpha/dt - dlog sigma/dt) = -g^2/sigma^2,    lam the log-SNR,

the law "importance" is uniform in the log-SNR, for every process, and its weight

    w = (lam(t_min) - lam(1)) / ((1 - t_min) g^2/sigma^2)

leaves |eps_hat - eps|^2 times a constant: the peak is gone. Where alpha = 0 at t = 1 it ends just before.

A shift s moves the times of a law, and with them the nominal law, by -2 log s in log-SNR, within [t_min, 1] (Esser et
al. 2024, section 5.3.2): for the log-normal it adds log s to p_mean. For rectified flow log(t/(1 - t)) is
log(sigma/alpha), so that its logit-normal times are log-normal ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.levels import nearest_level
from sde_diffusion.core.noise import rand, randn
from sde_diffusion.core.process import SDE
from sde_diffusion.core.spacings import check_shift, logsnr_ends, shifted_logsnr

EDM_P_MEAN, EDM_P_STD = -1.2, 1.2
"""log sigma ~ N(P_mean, P_std^2) in training (Karras et al. 2022, Table 1)."""
LOGIT_MEAN, LOGIT_STD = 0.0, 1.0
"""logit(t) ~ N(0, 1): the law that did best (Esser et al. 2024, section 5.1)."""
HISTORY, UNIFORM_SHARE = 10, 1e-3
"""Losses that "loss_aware" remembers of each level, and its share of uniform draws (improved-diffusion)."""


@dataclass(frozen=True)
class TimeRange:
    """Where training times lie: in [t_min, 1], with sigma/alpha times the shift, and what a normal law is told.

    p_mean, p_std   of log(sigma/alpha) for "lognormal" and of log(t/(1 - t)) for "logit_normal"; None for the law's own
    """

    t_min: float
    p_mean: float | None = None
    p_std: float | None = None
    shift: float = 1.0

    def normal(self, n: int, generator: torch.Generator, mean: float, std: float) -> Tensor:
        """n draws of N(p_mean, p_std^2), with a law's own mean and std where none are given."""
        p_mean = mean if self.p_mean is None else self.p_mean
        p_std = std if self.p_std is None else self.p_std
        return p_mean + p_std * randn((n,), generator, dtype=torch.float64).cpu()

    def place(self, sde: SDE, t: Tensor) -> Tensor:
        """Times [n] with the shift, within the range."""
        if self.shift != 1.0:
            t = sde.time_of(shifted_logsnr(sde.kernel(t).logsnr, self.shift))
        return t.clamp(self.t_min, 1.0)


class TimeSampler(Protocol):
    """Draws training times; it may learn from the losses that they led to."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n times and their weights, float64 [n] on the CPU."""

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses [n], without their weights, at times [n]."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned, to store in a checkpoint."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored state. Raises UserError for one that does not fit."""


Law = Callable[[SDE, int, torch.Generator, TimeRange], tuple[Tensor, Tensor]]


def _fractions(n: int, generator: torch.Generator) -> Tensor:
    """n equally spaced points of [0, 1) with one random shift: each alone is uniform."""
    first = rand((1,), generator, dtype=torch.float64).cpu()
    return (first + torch.arange(n, dtype=torch.float64) / n).remainder(1.0)


def _even(t: Tensor) -> tuple[Tensor, Tensor]:
    return t, torch.ones_like(t)


def _uniform(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    t = within.t_min + (1.0 - within.t_min) * rand((n,), generator, dtype=torch.float64).cpu()
    return _even(within.place(sde, t))


def _stratified(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    return _even(within.place(sde, within.t_min + (1.0 - within.t_min) * _fractions(n, generator)))


def _levels_of(sde: SDE, kind: str, within: TimeRange) -> Tensor:
    if sde.times is None:
        raise UserError(f"times {kind!r} are those of a discrete process; {type(sde).__name__} has none")
    if within.shift != 1.0:
        raise UserError(f"times {kind!r} are levels, which no shift moves: choose another law, or a shift of 1")
    return sde.times


def _levels(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    times = _levels_of(sde, "levels", within)
    index = torch.randint(0, len(times), (n,), generator=generator, device=generator.device)
    return _even(times[index.cpu()])


def _lognormal(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    return _even(within.place(sde, sde.time_of(-2.0 * within.normal(n, generator, EDM_P_MEAN, EDM_P_STD))))


def _logit_normal(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    return _even(within.place(sde, within.normal(n, generator, LOGIT_MEAN, LOGIT_STD).sigmoid()))


def _importance(sde: SDE, n: int, generator: torch.Generator, within: TimeRange) -> tuple[Tensor, Tensor]:
    least, most = logsnr_ends(sde, within.t_min)
    if not bool(most.isfinite()):
        raise UserError(f"times 'importance' need noise at the smallest time, {within.t_min}")
    t = sde.time_of(torch.lerp(most, least, _fractions(n, generator))).clamp(within.t_min, 1.0)
    fall = 2.0 * (sde.dlog_sigma(t) - sde.dlog_alpha(t))
    return within.place(sde, t), (most - least) / ((1.0 - within.t_min) * fall)


@dataclass(frozen=True)
class Drawn:
    """A time sampler with a law that never changes."""

    sde: SDE
    law: Law
    within: TimeRange

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.law(self.sde, n, generator, self.within)

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """There is nothing to learn."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""


class LossAware:
    """Levels of a discrete process, the more often the larger their losses have been."""

    def __init__(self, sde: SDE, within: TimeRange) -> None:
        self.times = _levels_of(sde, "loss_aware", within)
        self.history = torch.zeros(len(self.times), HISTORY, dtype=torch.float64)
        self.seen = torch.zeros(len(self.times), dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """Of the levels, [T]."""
        size = len(self.times)
        uniform = torch.full((size,), 1.0 / size, dtype=torch.float64)
        roots = self.history.square().mean(1).sqrt()
        if int(self.seen.min()) < HISTORY or not float(roots.sum()) > 0.0:
            return uniform
        return torch.lerp(roots / roots.sum(), uniform, UNIFORM_SHARE)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities
        # Equally spaced points through the distribution function: every level about as often as it should be.
        index = torch.searchsorted(p.cumsum(0), _fractions(n, generator), right=True).clamp_max(len(p) - 1)
        return self.times[index], 1.0 / (len(p) * p[index])

    def learn(self, t: Tensor, losses: Tensor) -> None:
        index = nearest_level(self.times, t).tolist()
        for i, loss in zip(index, losses.detach().double().cpu()):
            self.history[i] = torch.cat([self.history[i, 1:], loss[None]])
            self.seen[i] += 1

    def state(self) -> dict[str, Tensor]:
        return {"history": self.history.clone(), "seen": self.seen.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in self.state().items()}:
            raise UserError(f"the stored losses are not those of {len(self.times)} levels")
        self.history, self.seen = state["history"].clone(), state["seen"].clone()


def _drawn(law: Law) -> Callable[[SDE, TimeRange], TimeSampler]:
    return lambda sde, within: Drawn(sde, law, within)


def _drawn_levels(sde: SDE, within: TimeRange) -> TimeSampler:
    _levels_of(sde, "levels", within)  # refused before the first draw
    return Drawn(sde, _levels, within)


TIME_SAMPLERS: dict[str, Callable[[SDE, TimeRange], TimeSampler]] = {
    "uniform": _drawn(_uniform),
    "stratified": _drawn(_stratified),
    "levels": _drawn_levels,
    "lognormal": _drawn(_lognormal),
    "logit_normal": _drawn(_logit_normal),
    "importance": _drawn(_importance),
    "loss_aware": LossAware,
}


def time_sampler(
    sde: SDE,
    kind: str = "uniform",
    *,
    t_min: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
    shift: float = 1.0,
) -> TimeSampler:
    """The time sampler of that kind, a key of TIME_SAMPLERS, for a process.

    t_min: the smallest time (default: the process's smallest training time). p_mean, p_std: of log(sigma/alpha) in
    "lognormal" (default: EDM's, -1.2 and 1.2) and of log(t/(1 - t)) in "logit_normal" (default: 0 and 1). shift: what
    sigma/alpha of the times is multiplied by. Raises UserError for an unknown kind, a shift that is not positive, and
    one of levels.
    """
    check_shift(shift)
    within = TimeRange(sde.t_train if t_min is None else t_min, p_mean, p_std, shift)
    return choose("time sampler", kind, TIME_SAMPLERS)(sde, within)


def sample_times(
    sde: SDE,
    n: int,
    *,
    generator: torch.Generator,
    kind: str = "uniform",
    t_min: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
    shift: float = 1.0,
) -> Tensor:
    """n training times [n], float64, of a fresh time sampler, without their weights."""
    return time_sampler(sde, kind, t_min=t_min, p_mean=p_mean, p_std=p_std, shift=shift).draw(n, generator)[0]
