"""A network in training: its update, and all that a checkpoint must hold for it to go on to the same bits.

An update takes the mean of a batch's losses, whose rows may lie with several processes and be passed in several pieces,

    g = grad sum_i w_i L_i / B,    weights <- Adam(clip(g)),    averages <- their profiles,

unless the guard objects; then only the count of steps goes on, and with it the data and the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.core.kernel import match
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec
from sde_diffusion.nets.building import load_weights
from sde_diffusion.objectives.times import TimeSampler
from sde_diffusion.runtime.engine import Engine, divided, load_optimizer_state, optimizer_state, whole_weights
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.training.averages import Averages, Profile
from sde_diffusion.training.guard import LossGuard
from sde_diffusion.training.settings import TrainingSettings

RAW = "raw"
OVERFLOWS = 32
"""Updates in a row whose fp16 gradients may overflow, each of which halves their scale."""


@dataclass(frozen=True, eq=False)
class RowLosses:
    """The losses of some rows of a batch, the times they were taken at and the weights that these have, each [n]."""

    losses: Tensor
    t: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """The weighted mean, a scalar."""
        return (match(self.weight, self.losses) * self.losses).mean()


@dataclass(frozen=True)
class Outcome:
    """Of an update: the batch's loss, the gradient's norm, and why the update was skipped, empty where it was made.

    stop: whether any process has been told to stop.
    """

    loss: float
    norm: float
    objection: str
    stop: bool

    @property
    def sound(self) -> bool:
        """Whether the weights may be stored: where a loss is not finite, they may be what is wrong."""
        return math.isfinite(self.loss) or not self.objection


@dataclass(eq=False)
class Trainer:
    """net: on the engine's device, divided if it divides networks; passes: the same behind torch.compile or itself."""

    engine: Engine
    spec: NetworkSpec
    net: nn.Module
    passes: nn.Module
    optimizer: torch.optim.Optimizer
    profiles: Mapping[str, Profile]
    times: TimeSampler
    guard: LossGuard
    learning_rate: Callable[[int], float]
    clip: float = 0.0
    step: int = 0
    overflows: int = 0
    averages: Averages = field(init=False)

    @classmethod
    def from_settings(
        cls,
        engine: Engine,
        spec: NetworkSpec,
        net: nn.Module,
        settings: TrainingSettings,
        times: TimeSampler,
        passes: nn.Module | None = None,
    ) -> Trainer:
        """The trainer of a network, with Adam, averages, guard and rates as the settings say."""
        return cls(
            engine,
            spec,
            net,
            net if passes is None else passes,
            settings.optimizer(net),
            settings.profiles(),
            times,
            settings.guard(),
            settings.rates(),
            settings.grad_clip,
        )

    def __post_init__(self) -> None:
        self.parallel = self.engine.parallel(self.passes)
        self.stepping = self.engine.optimizer(self.optimizer)
        self.averages = Averages(self.net, self.profiles, updates=self.step)
        self.denoiser = NetworkDenoiser(self.parallel, self.spec)
        self.alone = NetworkDenoiser(self.passes, self.spec)
        """The network without the other processes, for a look at it between updates."""

    def update(self, losses_of: Callable[[NetworkDenoiser, range], RowLosses], rows: range, stop: bool) -> Outcome:
        """One step: losses_of gives those of the rows it is asked for, of this process's `rows` of the batch."""
        engine = self.engine
        size = len(rows) // engine.accumulate
        found = []
        for first in range(rows.start, rows.stop, size):
            with engine.a_pass(self.parallel, last=first + size == rows.stop):
                piece = losses_of(self.denoiser, range(first, first + size))
                engine.backward(piece.mean)
            found.append(piece)
        norm = float(engine.gradient_norm(self.stepping, self.net))
        stopping = torch.full((len(rows),), stop, dtype=torch.float64)
        columns = [torch.cat([getattr(piece, name).double() for piece in found]) for name in ("losses", "weight", "t")]
        together = engine.gathered(torch.stack([column.detach().cpu() for column in (*columns, stopping)], dim=1)).cpu()
        loss = float((together[:, 0] * together[:, 1]).mean())
        # fp16's gradients overflow now and then, upon which their scale is lowered: that is no fault of the loss.
        self.overflows = 0 if math.isfinite(norm) or not engine.scales else self.overflows + 1
        objection = self.guard.objection(loss, 0.0 if 0 < self.overflows <= OVERFLOWS else norm)
        if objection:
            self.guard.skipping()
            engine.after_skipping()
        else:
            self._step(norm)
            self.times.learn(together[:, 2], together[:, 0])
            self.guard.passed(loss)
        self.averages.update(self.net)  # which count steps
        self.optimizer.zero_grad()
        self.step += 1
        return Outcome(loss, norm, objection, bool(together[:, 3].any()))

    def _step(self, norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        # Most gradients need no clipping, and scaling them by one takes as long as a third of Adam's update.
        if 0.0 < self.clip < norm:
            whole_norm = torch.tensor(norm, device=self.engine.device)
            nn.utils.clip_grads_with_norm_(self.net.parameters(), self.clip, whole_norm)
        self.stepping.step()

    # --- checkpoints ------------------------------------------------------------------------------------------

    def weights(self, *names: str) -> dict[str, dict[str, Tensor]]:
        """The weights of these names, all for none, whole, in the main process; all processes must ask."""
        named = {RAW: self.net.state_dict(), **self.averages.weights()}
        return {name: whole_weights(named[name], self.engine.main) for name in names or named}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the data and the configuration; all processes must ask."""
        return {
            "step": self.step,
            "spec": self.spec,
            "weights": self.weights(),
            "optimizer": optimizer_state(self.net, self.optimizer),
            "times": self.times.state(),
        }

    def progress(self) -> dict[str, Any]:
        """Plain values that a checkpoint holds beside the tensors."""
        return {"guard": self.guard.state(), "scale": self.engine.scale_state()}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises UserError for one of another network, or that lacks an average."""
        own, progress = self.net.state_dict(), checkpoint.progress
        self.step = checkpoint.step
        self.averages.updates = self.step
        divided_as_own = {
            name: {key: divided(value, own[key]) if key in own else value for key, value in weights.items()}
            for name, weights in checkpoint.weights.items()
            if name in self.profiles
        }
        self.averages.load(divided_as_own)
        load_optimizer_state(self.net, self.optimizer, checkpoint.optimizer)
        self.times.load(checkpoint.times)
        self.guard.load(progress.get("guard", {}))
        self.engine.load_scale(progress.get("scale", {}))


def loaded(net: nn.Module, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """The network with the given weights, or its own for None."""
    if weights is not None:
        load_weights(net, weights)
    return net
