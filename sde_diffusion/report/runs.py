"""What a comparison says of its runs, read with care: figures may be missing, and runs may have failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sde_diffusion.report.front import SIGN

Report = Mapping[str, Any]
"""compare.json as read: title, metrics, runs, baselines, likelihood, protocol, warnings, recommendation."""
Run = Mapping[str, Any]
"""One run of the comparison: a sampler with its options and its number of steps."""

AGREEMENT = "flow_distance"
"""The metric with a chart of its own: how far a run is from the converged flow, which is no measure of quality."""
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Estimate:
    """A finite value, and its interval where one is known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def finite(value: object) -> float | None:
    """A number as a float; None for what is missing, infinite, or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def estimate(run: Run, metric: str) -> Estimate | None:
    """A run's (or a baseline's) value of a metric; None where the run failed or has none."""
    entry = run.get("values", {}).get(metric) or {}
    value = finite(entry.get("value"))
    if value is None or run.get("failed"):
        return None
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    return Estimate(value) if low is None or high is None else Estimate(value, low, high)


def missing(run: Run, metric: str) -> str:
    """Why a run has no value of a metric, or nothing."""
    return str(run.get("failed") or (run.get("values", {}).get(metric) or {}).get("reason") or "")


def milliseconds(run: Run) -> float | None:
    """What one sample of a run took."""
    return finite((run.get("timing") or {}).get("milliseconds_per_sample"))


def steps(run: Run) -> str:
    """A run's number of steps, or the tolerance by which its sampler chooses them itself."""
    if run.get("steps") is not None:
        return str(run["steps"])
    tolerance = finite(run.get("tolerance"))
    return "adaptive" if tolerance is None else f"tol {tolerance:g}"


def labels(report: Report) -> list[str]:
    """The labels of the runs, in the order in which they first come."""
    return list(dict.fromkeys(run["label"] for run in report["runs"]))


def variants(report: Report) -> list[str]:
    """The variants (weights, checkpoints, guidances) of the runs, in the order in which they first come."""
    return list(dict.fromkeys(run.get("variant", "") for run in report["runs"]))


def name(report: Report, run: Run) -> str:
    """A run's label, with its variant where there are several."""
    return f"{run['label']} ({run['variant']})" if len(variants(report)) > 1 else str(run["label"])


def measured(report: Report) -> list[str]:
    """The metrics of quality of which at least one run has a value; the primary one, if it has, comes first."""
    return [m for m in report["metrics"] if m != AGREEMENT and any(estimate(run, m) for run in report["runs"])]


def primary(report: Report) -> str | None:
    """The metric by which samplers are recommended: the first of quality that ranks, and has a value if any has."""
    ranking = [metric for metric in report["metrics"] if metric != AGREEMENT and ranks(report, metric)]
    return next((metric for metric in ranking if metric in measured(report)), ranking[0] if ranking else None)


def ranks(report: Report, metric: str) -> bool:
    """Whether a lower or a higher value of a metric is better."""
    return report["metrics"][metric].get("better", "lower") in SIGN


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, without an exponent where that is readable."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, digits - 1 - size)}f}" if -5 < size < 6 else f"{value:.{digits - 1}e}"


def words(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def capital(text: str) -> str:
    """Text with its first letter as at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every leaf of a nested dict with its dotted path, as text."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{path}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows.append((path, ", ".join(map(str, value))))
        else:
            rows.append((path, MISSING if value is None or value == {} or value == "" else str(value)))
    return rows
