"""How the samples of a comparison are judged: figures in the features of a network, beside the same real samples."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.compare.runs import Run, converged
from sde_diffusion.compare.variants import Variant
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import seeded
from sde_diffusion.core.packages import extra
from sde_diffusion.data import Dataset, Source, Splits
from sde_diffusion.data.dataset import stratified
from sde_diffusion.denoisers.analytic import GaussianMixture
from sde_diffusion.metrics.distances import METRICS, judge
from sde_diffusion.metrics.extraction import MOST, Extractor, Features, as_samples, eight_bits
from sde_diffusion.metrics.features import extractor
from sde_diffusion.metrics.inception import inception
from sde_diffusion.metrics.moments import MOMENTS, moment_errors
from sde_diffusion.metrics.references import reference
from sde_diffusion.metrics.scores import Judging, Score, scored
from sde_diffusion.pipelines.batch import samples_of, stored
from sde_diffusion.pipelines.sampling import in_words
from sde_diffusion.report.front import SIGN
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.records import digest
from sde_diffusion.storage.results import write_json

NOISE_STREAM = 16
NUMERICS = 1
"""Raised when a figure of the same samples becomes another, so that kept ones are not mixed with new ones."""
IMAGE_METRICS = (
    "frechet",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "sliced_wasserstein",
    "nearest",
)
VECTOR_METRICS = ("sliced_wasserstein", "energy", "nearest")
FLOW = {
    "title": "Distance to the converged flow",
    "better": "lower",
    "scale": "log",
    "source": "rms over the first samples, in model units, to the probability flow solved to compare.flow_rtol",
}
STAND_IN = "kid"
"""The metric that decides where the first one cannot judge so few samples: two are enough for it."""
LOGARITHMIC = ("frechet", "sliced_wasserstein", "energy", *MOMENTS)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """How samples are judged: by which figures, in the features of which network, beside which real samples."""

    names: tuple[str, ...]
    extractor: Extractor
    real: Features
    truth: GaussianMixture | None
    judging: Judging
    protocol: Mapping[str, Any]
    cannot: tuple[str, ...] = ()
    """What cannot be judged of so few samples, and what decides instead, in sentences."""

    def scores(self, samples: np.ndarray, classes: tuple[int, ...] = ()) -> dict[str, Score]:
        """The figures of samples as they are stored; classes: those that they were drawn for."""
        features, judging = self.extractor(samples), replace(self.judging, strata=classes)
        exact = {}
        if self.truth is not None:
            exact = moment_errors(features.values, self.truth.mean.flatten(), self.truth.covariance, judging)
        return {**exact, **judge(self.names, features, self.real, judging)}

    @property
    def described(self) -> dict[str, dict[str, str]]:
        """What each figure is, in the order of the report."""
        moments = {
            name: {"title": title, "better": "lower", "scale": "log", "source": "to the exact one"}
            for name, title in (MOMENTS if self.truth is not None else {}).items()
        }
        judged = {
            name: {
                "title": METRICS[name].title,
                "better": METRICS[name].better,
                "scale": "log" if name in LOGARITHMIC else "linear",
                "source": METRICS[name].source,
            }
            for name in self.names
        }
        return {**moments, **judged, "flow_distance": FLOW}


def evaluator(settings: Settings, variant: Variant, splits: Splits, device: torch.device) -> Evaluator:
    """How the samples of a variant are judged. Raises UserError for features that the data do not allow."""
    own, source = settings.compare, split_of(settings, splits)
    cache = cache_folder(settings)
    chosen = (
        inception(Path(own.inception).expanduser(), device)
        if own.inception
        else extractor(own.features, splits.train, cache, device)
    )
    held = real_split(settings, source)
    real = as_samples(held, len(held))
    names = tuple(own.metrics) or (VECTOR_METRICS if source.levels is None else IMAGE_METRICS)
    found = reference(chosen, real, cache, source.title)
    if not own.metrics and found.logits is None:
        names = tuple(name for name in names if METRICS[name].needs != "logits")
    judging = Judging(bootstraps=own.bootstraps, seed=settings.seed)
    counts = settings.sampling.num_samples, len(real)
    names, cannot = able_first(names, counts, chosen.dims, judging, decided=variant.truth is not None)
    protocol = {
        "metrics": list(names),
        "numerics": NUMERICS,
        "reference": {
            "data": source.title,
            "split": own.split if variant.truth is None else "exact samples",
            "samples": len(real),
            "digest": digest(np.ascontiguousarray(real).tobytes()),
        },
        "features": {
            "network": chosen.name,
            "dims": chosen.dims,
            "weights_digest": chosen.digest,
            "preprocessing": chosen.preprocessing,
        },
        "rounding": "to the nearest of 256 levels, 0..255" if source.levels else "none",
        "judging": {name: value for name, value in asdict(judging).items() if name != "strata"},
        "flow": {"samples": own.flow_samples, "rtol": own.flow_rtol},
        "versions": {name: version(name) for name in ("torchmetrics", "scipy")},
    }
    return Evaluator(names, chosen, found, variant.truth, judging, protocol, cannot)


def able_first(
    names: tuple[str, ...], counts: tuple[int, int], dims: int, judging: Judging, decided: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics, those first that can judge so many samples and real ones; and a sentence for each that cannot.

    Where the one that decides cannot, STAND_IN does, unless what decides is another matter (decided).
    """
    why = {name: METRICS[name].too_few(*counts, dims, judging) for name in names}
    cannot = [name for name in names if why[name]]
    first = next((name for name in names if METRICS[name].better in SIGN), "")
    replaced = first in cannot and not decided
    able = [*([STAND_IN] if replaced else []), *(name for name in names if name not in cannot)]
    instead = {first: f"; the {METRICS[STAND_IN].title} decides instead"} if replaced else {}
    return tuple(dict.fromkeys([*able, *cannot])), tuple(why[name] + instead.get(name, "") for name in cannot)


def cache_folder(settings: Settings) -> Path:
    """Where classifiers and reference statistics are kept."""
    with extra("report"):
        import pooch

    return Path(settings.compare.cache or pooch.os_cache("sde_diffusion")).expanduser() / "metrics"


def flow_distance(ends: np.ndarray, flow: Tensor) -> Score:
    """r = sqrt(mean |x - x_flow|^2 / D) over pairs of samples; its standard error is that of r^2 over 2 r."""
    count = min(len(ends), len(flow))
    squares = (torch.from_numpy(ends[:count]) - flow[:count]).double().square().flatten(1).mean(1)
    distance = float(squares.mean().sqrt())
    return scored(distance, float(squares.std() / math.sqrt(count) / (2.0 * distance)) if distance else math.nan, 0.0)


def figures_of(settings: Settings, run: Run, evaluator: Evaluator) -> dict[str, Any]:
    """The figures of a run's samples, kept beside them. Raises UserError where there is too little memory for them."""
    path = run.place / f"scores-{digest({**evaluator.protocol, 'files': run.made()['files']})}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    with in_words("judging", run.count):
        scores = evaluator.scores(run.samples(), run.classes)
    try:
        scores["flow_distance"] = flow_distance(run.ends, converged(settings, run.variant, run.place.parent))
    except UserError as error:  # the flow cannot be solved, or not now
        return plain_scores({**scores, "flow_distance": Score(None, reason=str(error))})
    write_json(path, plain_scores(scores))
    return plain_scores(scores)


def plain_scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Figures as plain values; what is not finite is none."""
    return {
        name: {
            key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in row.items()
        }
        for name, row in ((name, asdict(score)) for name, score in scores.items())
    }


def split_of(settings: Settings, splits: Splits) -> Source:
    """The split that figures compare with. Raises UserError where there is none."""
    if settings.compare.split == "test":
        return splits.held_out("compare.split='test'", "choose compare.split='train'")
    return splits.train


def real_split(settings: Settings, source: Source) -> Dataset:
    """The real samples that figures compare with, as generated ones are stored. Raises UserError for a stream."""
    return eight_bits(source, settings.compare.reference_samples or MOST)


def baselines(
    evaluator: Evaluator, settings: Settings, variant: Variant, source: Source, folder: Path
) -> list[dict[str, Any]]:
    """What the figures are of real samples and of noise: what there is to reach, and where all begins; kept."""
    count, model = settings.sampling.num_samples, variant.model
    path = folder / f"baselines-{digest({**evaluator.protocol, 'samples': count})}.json"
    if path.is_file():
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return kept
    real = real_split(settings, source)
    picked = stratified(real, min(count, len(real) // 2))
    left = torch.ones(len(real), dtype=torch.bool)
    left[picked] = False
    some, others = (as_samples(real.select(part), len(real)) for part in (picked, left.nonzero()[:, 0]))
    noise = torch.randn((count, *model.shape), generator=seeded(settings.seed, stream=NOISE_STREAM))
    noisy = samples_of(stored(model.transform, noise, model.turns.of(range(count))))
    try:
        with in_words("judging", count):
            beside = replace(evaluator, real=evaluator.extractor(others))
            scores = {
                f"{len(some):,} real samples beside {len(others):,} others": beside.scores(some),
                f"{count:,} of Gaussian noise": evaluator.scores(noisy),
            }
    except UserError as error:  # the report is worth more than what stands beside its runs
        warnings.warn(f"there is nothing to compare the figures with: {error}", stacklevel=2)
        return []
    found = [{"label": label, "values": plain_scores(row)} for label, row in scores.items()]
    write_aside(path, json.dumps(found).encode())
    return found
