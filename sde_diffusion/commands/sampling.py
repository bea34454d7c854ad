"""--mode sample: draw samples of a run's network."""

from __future__ import annotations

from pathlib import Path

from sde_diffusion.pipelines.run_folder import trained_network
from sde_diffusion.pipelines.sampling import sample_into
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings


def sample(settings: Settings, folder: Path, engine: Engine) -> None:
    """Sample the run's network with sampling.sampler."""
    settings, trained = trained_network(settings, folder, engine)
    sampler, steps = settings.sampling.sampler, settings.sampling.steps
    row = sample_into(folder, settings, engine, trained, sampler, steps, settings.sampling.sampler_options)
    print(table([row]))
    made = f"samples_{sampler}.npz" if settings.sampling.format == "npz" else f"the folder samples_{sampler}"
    print(f"wrote {folder}/samples_{sampler}.png, samples_{sampler}.json and {made}")
