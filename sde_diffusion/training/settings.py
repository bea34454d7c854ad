"""How a network is trained: the sections "training" and "ema" of a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.process import SDE
from sde_diffusion.core.settings import Section, at_least, numbers, one_of, optional, positive, setting, share
from sde_diffusion.data import Augmentation
from sde_diffusion.objectives import losses
from sde_diffusion.objectives.losses import OBJECTIVES, WEIGHTINGS, Objective
from sde_diffusion.objectives.times import TIME_SAMPLERS, TimeSampler, time_sampler
from sde_diffusion.runtime.engine import PRECISIONS, SHARDINGS
from sde_diffusion.training.averages import Exponential, Power, Profile
from sde_diffusion.training.guard import LossGuard


@dataclass(frozen=True)
class TrainingSettings(Section):
    """What a training minimises, in which steps, and what it writes."""

    key: ClassVar[str] = "training"

    steps: int = setting(1000, "optimiser updates", at_least(1))
    init_from: str = setting(
        "", 'a run, one of its checkpoints or an imported network, which the training begins with; "" for fresh weights'
    )
    init_weights: str = setting(
        "", 'which of its weights: "ema", "raw", ...; "" for "ema" where it has them, else "raw"'
    )
    batch_size: int = setting(128, "samples of an update, of all processes and passes together", at_least(1))
    learning_rate: float = setting(2e-4, "of Adam, after the warm-up", positive)
    adam_betas: tuple[float, ...] = setting((0.9, 0.999), "of Adam", numbers)
    adam_eps: float = setting(1e-8, "of Adam", positive)
    weight_decay: float = setting(0.0, "added to the gradient, times the weights", optional("none"))
    warmup_steps: int = setting(100, "linear, from 0", optional("none"))
    cooldown_steps: int = setting(0, "cosine, to 0 at the last step", optional("none"))
    grad_clip: float = setting(1.0, "Euclidean norm of the whole gradient; 0 for none", optional("none"))
    precision: str = setting(
        "fp32", 'of the network\'s passes: or "bf16", or "fp16" with scaled gradients', one_of("precision", PRECISIONS)
    )
    accumulate: int = setting(1, "passes of each process before an update, each with its part", at_least(1))
    sharding: str = setting(
        "none",
        'or "full": gradients, averages and Adam\'s state are divided among the processes',
        one_of("sharding", dict.fromkeys(SHARDINGS)),
    )
    ema_decay: float = setting(0.999, 'of the average "ema"')
    ema_decays: tuple[float, ...] = setting((), "of further ones, named ema_0.9999", numbers)
    ema_lengths: tuple[float, ...] = setting(
        (), "relative lengths of averages named power_0.05, from which --mode ema makes others", numbers
    )
    ema_snapshots: int = setting(0, "steps between snapshots of these; 0 for none", optional("none"))
    augment: float = setting(0.0, "probability of each of EDM's augmentations, which the network is told; 0 for none")
    label_dropout: float = setting(0.0, "share of the samples whose class, or other condition, is withheld", share)
    loss: str = setting(
        "score_matching", 'or "vlb", the discrete bound; or "hybrid", with vlb_weight of it', one_of("loss", OBJECTIVES)
    )
    vlb_weight: float = setting(1e-3, '"hybrid": the bound\'s share (Nichol and Dhariwal 2021, section 3.1)')
    weighting: str = setting(
        "simple", "simple, v, velocity, likelihood, edm, min_snr or x0", one_of("weighting", WEIGHTINGS)
    )
    times: str = setting(
        "uniform", "law of the times: stratified, levels, lognormal, ...", one_of("time sampler", TIME_SAMPLERS)
    )
    p_mean: float = setting(
        -1.2, '"lognormal": mean of log(sigma/alpha) (Karras et al. 2022); "logit_normal": of log t/(1-t)'
    )
    p_std: float = setting(1.2, "and its std")
    shift: float = setting(1.0, "factor of sigma/alpha of the times, within the process's range: above 1, more noise")
    log_every: int = setting(50, "steps", at_least(1))
    evaluate_every: int = setting(1000, "steps between held-out losses", at_least(1))
    held_out_batches: int = setting(8, "batches of a held-out loss", at_least(1))
    sample_every: int = setting(
        0, "steps between pictures of samples, in previews/, TensorBoard and the tracker; 0 for none", optional("none")
    )
    keep_previews: int = setting(100, "newest pictures kept in previews/; 0 for none", optional("none"))
    checkpoint_every: int = setting(1000, "steps", at_least(1))
    keep_checkpoints: int = setting(2, "newest ones kept", at_least(1))
    milestone_every: int = setting(0, "steps between checkpoints that are kept for ever; 0 for none", optional("none"))
    held_out_levels: int = setting(10, "parts of equal size, by log-SNR, of held-out losses", at_least(1))
    skip_limit: int = setting(
        10, "updates in a row that may be skipped, their loss being not finite or exploded", optional("none")
    )
    explosion: float = setting(1e4, "a loss of so many times its running mean has exploded; 0 for none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights and not self.init_from:
            raise UserError(
                f"training.init_weights={self.init_weights!r} are those of training.init_from, which is empty"
            )
        if len(self.adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.adam_betas):
            raise UserError(f"training.adam_betas must be two numbers in [0, 1), got {self.adam_betas}")
        if not 0.0 <= self.augment <= 1.0:
            raise UserError(f"training.augment is a probability in [0, 1], got {self.augment}")
        if self.explosion and not self.explosion > 1.0:
            raise UserError(f"training.explosion is a factor of the mean loss beyond 1, or 0, got {self.explosion}")
        if self.ema_snapshots and len(set(self.ema_lengths)) < 2:
            raise UserError(
                "training.ema_snapshots are of the averages of training.ema_lengths, of which --mode ema needs two or "
                f"more, such as (0.05, 0.1); got {self.ema_lengths}"
            )
        self.profiles()

    def check_times(self) -> None:
        """Raises UserError for a loss over the levels, and a law of times that are none."""
        if self.loss != "score_matching" and self.times not in ("levels", "loss_aware"):
            raise UserError(
                f"training.loss={self.loss!r} is a sum over the levels: it needs training.times='levels' or "
                f"'loss_aware', not {self.times!r}"
            )

    def profiles(self) -> dict[str, Profile]:
        """The averages of the weights by name. Raises UserError for a decay or a length that is none."""
        return {
            "ema": Exponential(self.ema_decay),
            **{f"ema_{decay:g}": Exponential(decay) for decay in self.ema_decays},
            **{power_name(length): Power(length) for length in self.ema_lengths},
        }

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Adam, as one kernel for all parameters: 4.5 times faster than the default on a CPU."""
        return torch.optim.Adam(
            net.parameters(),
            lr=self.learning_rate,
            betas=(self.adam_betas[0], self.adam_betas[1]),
            eps=self.adam_eps,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def rates(self) -> Callable[[int], float]:
        """The rate of each update, from 0: linear warm-up, and a half cosine to 0 over the last cooldown_steps."""

        def rate(step: int) -> float:
            rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            left = (self.steps - step) / self.cooldown_steps if self.cooldown_steps else 1.0
            return self.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * max(0.0, min(1.0, left))))

        return rate

    def guard(self) -> LossGuard:
        """What skips updates whose loss has come apart."""
        return LossGuard(self.explosion)

    def augmentation(self) -> Augmentation | None:
        """The augmentation of training images that the network is told of; None for none."""
        return Augmentation(self.augment) if self.augment > 0.0 else None

    def time_sampler(self, sde: SDE) -> TimeSampler:
        """A fresh law of the times of a process. Raises UserError for one that the process does not have."""
        return time_sampler(sde, self.times, p_mean=self.p_mean, p_std=self.p_std, shift=self.shift)

    def objective(self, sde: SDE, variance: str, sigma_data: float) -> Objective:
        """What the training minimises under a process.

        variance: of a discrete model's steps; sigma_data: the std of the data. Raises UserError for a bound of a
        process without levels.
        """
        options = losses.ObjectiveOptions(self.weighting, self.vlb_weight, variance, sigma_data)
        return losses.objective(sde, self.loss, options)


def power_name(length: float) -> str:
    """The name of the average of that relative length."""
    return f"power_{length:g}"


@dataclass(frozen=True)
class EmaSettings(Section):
    """--mode ema: averages of any length from the snapshots of a training."""

    key: ClassVar[str] = "ema"

    lengths: tuple[float, ...] = setting((0.05, 0.1, 0.15), "relative lengths of the averages to make", numbers)
    step: int = setting(0, "at which they end; 0 for the last snapshot", optional("the last snapshot"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths:
            raise UserError("ema.lengths is empty; one length at least is needed, such as (0.05, 0.1)")
        for length in self.lengths:
            Power(length)
