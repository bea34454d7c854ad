"""The samplers and the grids that there are, with their options, as tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sde_diffusion.core.grids import GRIDS, grid_options
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.samplers import SAMPLER_TABLE, sampler_options


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value) or repr('')}" for name, value in options.items()) or "-"


def sampler_rows() -> list[dict[str, str]]:
    """The samplers with their options and defaults, a row each."""
    return [
        {
            "sampler": name,
            "order": entry.order,
            "evaluations": entry.evaluations,
            "noise": entry.noise,
            "grid": entry.grid or "process",
            "options": _listed(sampler_options(name)),
            "source": entry.source,
        }
        for name, entry in SAMPLER_TABLE.items()
    ]


def grid_rows() -> list[dict[str, str]]:
    """The grids with their options and defaults, a row each."""
    return [
        {
            "grid": kind,
            "options": _listed(grid_options(kind)),
            "nodes": (inspect.getdoc(builder) or "").partition("\n")[0],
        }
        for kind, builder in GRIDS.items()
    ]


def catalogue() -> str:
    """The samplers and grids as tables of text."""
    samplers = wrapped(sampler_rows(), {"order": 12, "evaluations": 12, "noise": 10, "options": 28, "source": 16})
    return "\n\n".join(
        [
            "Samplers (--sampler NAME, --sampler.OPTION VALUE), with their order of convergence and the network's\n"
            "evaluations a step under the default options; the step to x0_hat at the end is one evaluation more. The\n"
            'grid is what --grid auto, the default, takes: "process" is uniform, and karras under EDM.',
            table(samplers),
            "Grids of noise levels (--grid NAME, --grid.OPTION VALUE).",
            table(wrapped(grid_rows(), {"options": 30, "nodes": 72})),
        ]
    )
