"""--mode sample: draw samples of a run's network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import sample_into
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def drawn_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was drawn, a row for each sampler, and below which classes, where there are some."""
    lines = table([{name: value for name, value in row.items() if name != "classes"} for row in rows])
    return f"{lines}\nclasses: {rows[0]['classes']}" if "classes" in rows[0] else lines


def sample(settings: Settings, folder: Path, engine: Engine) -> None:
    """Sample the run's network with sampling.sampler."""
    settings, trained = trained_network(settings, folder, engine)
    own = settings.sampling
    row = sample_into(folder, settings, engine, trained, own.sampler, own.steps, own.sampler_options)
    print(drawn_table([row]))
    name = f"samples_{own.result_name(own.sampler)}"
    made = f"{name}.npz" if own.format == "npz" else f"the folder {name}"
    print(f"wrote {folder}/{name}.png, {name}.json and {made}")
