"""Samplers by name, steps and options in one text, NAME[:[STEPS][:OPTION=VALUE,...]], and budgets of a comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.options import checked_options, option
from sde_diffusion.samplers import SAMPLER_TABLE, sampler_options
from sde_diffusion.solvers.ode import FIXED_STEPS


@dataclass(frozen=True)
class Chosen:
    """A sampler with its options, and its steps where they are given."""

    sampler: str
    steps: int | None
    options: dict[str, Any]

    @classmethod
    def from_text(cls, key: str, entry: str) -> Chosen:
        """The sampler of an entry of the setting `key`.

        Raises UserError for an unknown sampler or option, a value of another type, or a count that is none.
        """
        name, _, rest = entry.partition(":")
        steps, _, options = rest.partition(":")
        schema = sampler_options(name)
        if steps and not (steps.isdigit() and int(steps) > 0):
            raise UserError(f"{key}: {entry!r} should be NAME or NAME:STEPS with at least 1 step")
        # A comma inside a value is not followed by NAME=.
        named = dict(map(option, re.split(r",(?=\w+=)", options))) if options else {}
        return cls(name, int(steps) if steps else None, checked_options("sampler", name, schema, named))

    @property
    def label(self) -> str:
        """How figures name it: the sampler and the options that were given."""
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Trial:
    """A sampler at one budget: `steps`, or the tolerances among its options where it has step sizes of its own."""

    sampler: str
    label: str
    steps: int | None
    options: dict[str, Any]

    @property
    def grid_steps(self) -> int:
        """Of its grid, of which one with step sizes of its own needs the two ends only."""
        return self.steps or 2


def trials(entries: Sequence[str], budgets: Sequence[int]) -> list[Trial]:
    """Every sampler of compare.samplers at every budget.

    Raises UserError for an entry that `Chosen` refuses, and for steps of a sampler with step sizes of its own.
    """
    found: dict[tuple[str, int | None, str], Trial] = {}
    for entry in (Chosen.from_text("compare.samplers", text) for text in entries):
        tolerances = SAMPLER_TABLE[entry.sampler].tolerances
        adaptive = bool(tolerances) and entry.options.get("method") not in FIXED_STEPS
        if adaptive and entry.steps:
            raise UserError(
                f"compare.samplers: {entry.sampler} has step sizes of its own; it takes tolerances in place of "
                f"{entry.steps} steps, as in {entry.sampler}::rtol=1e-3"
            )
        given = () if not adaptive or {"rtol", "atol"} & entry.options.keys() else tolerances
        sweep = [{**entry.options, "rtol": at, "atol": at} for at in given] or [entry.options]
        for steps in [None] if adaptive else [entry.steps] if entry.steps else budgets:
            for options in sweep:
                found[entry.label, steps, str(options)] = Trial(entry.sampler, entry.label, steps, options)
    return list(found.values())
