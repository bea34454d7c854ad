"""The table of processes, and a process as plain values in a file."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from sde_diffusion.core.continuous import EDM, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.core.discrete import DiscreteVE, DiscreteVP
from sde_diffusion.core.errors import choose
from sde_diffusion.core.process import SDE

_CLASSES: tuple[type[SDE], ...] = (VPSDE, SubVPSDE, VESDE, CosineVPSDE, EDM, RectifiedFlow, DiscreteVP, DiscreteVE)
PROCESSES: dict[str, type[SDE]] = {process.__name__: process for process in _CLASSES}
"""The processes by name; a new one is one more class here."""


def process_state(sde: SDE) -> dict[str, Any]:
    """A process as plain containers that JSON can hold: its name and its parameters."""
    values = {f.name: getattr(sde, f.name) for f in fields(sde) if f.init}  # type: ignore[arg-type]  # all are dataclasses
    return {"name": type(sde).__name__} | {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}


def process_from_state(state: dict[str, Any]) -> SDE:
    """The process that `process_state` described. Raises UserError for an unknown name."""
    values = dict(state)
    return choose("process", values.pop("name"), PROCESSES)(**values)
