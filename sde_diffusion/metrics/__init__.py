"""How good samples are: feature networks, measures of samples against real ones, and of reconstructions.

    network = extractor("auto", splits.train, cache, device)
    real = reference(network, as_samples(splits.train), cache, splits.train.title)
    scores = judge(["frechet", "recall"], network(samples), real)

The names are those of EXTRACTORS, METRICS and RECONSTRUCTIONS; a new one is a function, or a class, and a line there.
"""

from sde_diffusion.metrics.distances import METRICS, Metric, judge
from sde_diffusion.metrics.extraction import Extractor, Features, as_samples
from sde_diffusion.metrics.features import EXTRACTORS, extractor
from sde_diffusion.metrics.inception import inception
from sde_diffusion.metrics.moments import MOMENTS, moment_errors
from sde_diffusion.metrics.reconstruction import RECONSTRUCTIONS, reconstruction, window_of
from sde_diffusion.metrics.references import reference
from sde_diffusion.metrics.scores import Judging, Score

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "MOMENTS",
    "RECONSTRUCTIONS",
    "Extractor",
    "Features",
    "Judging",
    "Metric",
    "Score",
    "as_samples",
    "extractor",
    "inception",
    "judge",
    "moment_errors",
    "reconstruction",
    "reference",
    "window_of",
]
