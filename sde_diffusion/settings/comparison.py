"""What a comparison draws and how it judges: the section "compare" of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.settings import Section, at_least, counts, one_of, optional, positive, setting
from sde_diffusion.metrics.distances import METRICS
from sde_diffusion.metrics.features import EXTRACTORS
from sde_diffusion.settings.chosen import Trial, trials
from sde_diffusion.settings.sampling import guidance_weight


@dataclass(frozen=True)
class CompareSettings(Section):
    """--mode compare, with which the bare job ends."""

    key: ClassVar[str] = "compare"

    samplers: tuple[str, ...] = setting(
        ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc"),
        "NAME[:[STEPS][:OPTION=VALUE,...]]: what a first look needs; () leaves the report out of the bare job",
    )
    steps: tuple[int, ...] = setting((5, 10, 20), "budgets of the samplers whose steps are not given", counts)
    weights: tuple[str, ...] = setting((), '"ema", "raw", ...; () for sampling.weights')
    checkpoints: tuple[int, ...] = setting((), "steps of stored checkpoints; () for the newest", counts)
    guidance: tuple[float, ...] = setting((), "weights; () for sampling.guidance", guidance_weight)
    metrics: tuple[str, ...] = setting(
        (), "keys of METRICS, the one that decides first; () for the usual ones", one_of("metric", METRICS)
    )
    features: str = setting(
        "auto",
        '"classifier", "inception" or "values"; "auto" takes what suits the data',
        one_of("feature network", {"auto": None}, EXTRACTORS),
    )
    inception: str = setting("", 'file of Inception\'s weights; "" for those in the cache of torch-fidelity')
    split: str = setting(
        "train", 'or "test": the real samples that metrics compare with', one_of("split", {"train": None, "test": None})
    )
    reference_samples: int = setting(0, "of them; 0 for all, but 50,000 at most", optional("all of the split"))
    bootstraps: int = setting(100, "resamplings for each interval", at_least(1))
    shown: int = setting(10, "samples in the rows and trajectories of the report", at_least(1))
    flow_samples: int = setting(64, "samples whose distance to the converged flow is measured", at_least(1))
    flow_rtol: float = setting(1e-5, "tolerances of that flow", positive)
    likelihood: bool = setting(True, "bits/dim in the report")
    cache: str = setting("", 'folder of classifiers and reference statistics; "" for the user\'s cache')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samplers and not self.steps:
            raise UserError("compare.steps is empty; one number of steps at least is needed, such as (10, 20, 50)")
        if self.inception and self.features not in ("auto", "inception"):
            raise UserError(
                f"compare.inception is a file of Inception's weights, and compare.features={self.features!r}"
            )

    def trials(self) -> list[Trial]:
        """Every sampler at every budget. Raises UserError for an entry that cannot be read."""
        return trials(self.samplers, self.steps)

    def check(self, oracle: str) -> None:
        """Raises UserError for samplers that cannot be read, and for what a closed-form model has none of."""
        idle = [key for key in ("weights", "checkpoints", "guidance") if getattr(self, key)]
        if oracle and idle:
            raise UserError(f"compare.{idle[0]} is of networks, and oracle.kind={oracle!r} is a closed-form model")
        self.trials()
