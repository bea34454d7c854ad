"""Which sampler to take, in words: the best at each budget, what is enough, and what is fastest."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sde_diffusion.report.front import Interval, Point, as_good, knee, sign
from sde_diffusion.report.runs import (
    Estimate,
    Report,
    Run,
    estimate,
    finite,
    labels,
    milliseconds,
    name,
    number,
    primary,
    words,
)

Candidate = tuple[Run, Estimate]
"""A run with its value of the primary metric."""


def round_numbers(low: float, high: float) -> list[int]:
    """1, 2, 5, 10, 20, ... from the first that is at least low to the first that is at least high."""
    found = [1]
    while found[-1] < high:
        found.append(found[-1] * 5 // 2 if str(found[-1])[0] == "2" else found[-1] * 2)
    return [n for n in found if n >= low]


def evaluations(run: Run) -> str:
    return f"{run['nfe']} evaluation{'s' if run['nfe'] != 1 else ''}"


def recommend(report: Report) -> dict[str, Any]:
    """{"metric", "budgets": [{"nfe", "run", "label", "value", "low", "high", "within", "sentence"}], "knee",
    "fastest", "sentences"}, by the primary metric and with what is as good as the best as `front.as_good` has it.

    Runs that failed or have no value are left out, which is said; without any other, nothing is recommended.
    """
    metric = primary(report)
    if metric is None:
        return nothing(metric, "No metric that ranks samplers was measured")
    runs = [(run, estimate(run, metric)) for run in report["runs"] if finite(run.get("nfe")) is not None]
    candidates = [(run, found) for run, found in runs if found]
    if not candidates:
        return nothing(metric, f"No run has a finite value of {metric}")
    contest = Contest(report, metric, candidates)
    enough, fastest, rows = contest.enough(), contest.fastest(), contest.budgets()
    return {
        "metric": metric,
        "budgets": rows,
        "knee": {**contest.entry(enough), "best": contest.best()[0]["id"]},
        "fastest": fastest and {**contest.entry(fastest), "milliseconds": milliseconds(fastest[0])},
        "sentences": [
            contest.enough_sentence(enough),
            *([contest.fastest_sentence(fastest, enough)] if fastest else []),
            *(row["sentence"] for row in rows),
            *contest.baseline_sentences(),
            *left_out(len(report["runs"]) - len(candidates), len(report["runs"])),
        ],
    }


def nothing(metric: str | None, why: str) -> dict[str, Any]:
    """No recommendation, and why."""
    told = [f"{why}, so that no sampler can be recommended."]
    return {"metric": metric, "budgets": [], "knee": None, "fastest": None, "sentences": told}


def left_out(count: int, of: int) -> list[str]:
    """What is said of runs without a value."""
    one = f"1 of {of} runs has no value and was left out."
    return [one if count == 1 else f"{count} of {of} runs have no value and were left out."] if count else []


@dataclass(frozen=True, eq=False)
class Contest:
    """The runs that have a value of a metric, and who wins."""

    report: Report
    metric: str
    candidates: list[Candidate]

    @property
    def about(self) -> dict[str, str]:
        return {"title": self.metric, "better": "lower", **self.report["metrics"][self.metric]}

    @property
    def sign(self) -> float:
        return sign(self.about["better"])

    def entry(self, candidate: Candidate) -> dict[str, Any]:
        run, found = candidate
        values = {"value": found.value, "low": found.low, "high": found.high}
        return {"nfe": run["nfe"], "run": run["id"], "label": name(self.report, run), **values}

    def best(self, budget: float = math.inf) -> Candidate:
        """The best of the candidates within a budget, the cheapest one of equals."""
        affordable = [candidate for candidate in self.candidates if candidate[0]["nfe"] <= budget]
        return min(affordable, key=lambda candidate: (self.sign * candidate[1].value, candidate[0]["nfe"]))

    def within(self, best: Candidate, found: Estimate) -> bool:
        """Whether a value is no worse than the best's interval allows."""
        ends = [end for end in (best[1].value, best[1].low, best[1].high) if end is not None]
        return self.sign * found.value <= max(self.sign * end for end in ends)

    def _judged(self) -> tuple[list[Point], str, list[Interval | None]]:
        points = [(float(run["nfe"]), found.value) for run, found in self.candidates]
        ends = [None if e.low is None or e.high is None else (e.low, e.high) for _, e in self.candidates]
        return points, self.about["better"], ends

    def enough(self) -> Candidate:
        """The cheapest of the candidates as good as the best."""
        index = knee(*self._judged())
        assert index is not None  # there is a candidate
        return self.candidates[index]

    def fastest(self) -> Candidate | None:
        """The fastest of the candidates as good as the best, if any was timed."""
        good = [self.candidates[i] for i in as_good(*self._judged())]
        timed = [(spent, i) for i, (run, _) in enumerate(good) if (spent := milliseconds(run)) is not None]
        return good[min(timed)[1]] if timed else None

    def limits(self) -> list[int]:
        """Numbers of evaluations to recommend for: those that half of the labels share, or else round numbers.

        The dearest run is within the last. Budgets up to which nothing has happened since the one before are left out.
        """
        sharing: defaultdict[int, set[str]] = defaultdict(set)
        for run, _ in self.candidates:
            sharing[run["nfe"]].add(run["label"])
        shared = sorted(nfe for nfe, of in sharing.items() if len(of) >= 0.5 * len(labels(self.report)))
        low, high = min(sharing), max(sharing)
        if len(shared) < 2:
            shared = round_numbers(low, high)
        elif shared[-1] < high:
            shared.append(high)
        return [b for a, b in zip([0, *shared], shared) if any(a < nfe <= b for nfe in sharing)]

    def budgets(self) -> list[dict[str, Any]]:
        """The best within each budget, with the other labels of which a run is as good; the last only if it is new."""
        rows: list[dict[str, Any]] = []
        limits = self.limits()
        for budget in limits:
            best = self.best(budget)
            tied = [name(self.report, c) for c, e in self.candidates if c["nfe"] <= budget and self.within(best, e)]
            entry = self.entry(best)
            others = [label for label in dict.fromkeys(tied) if label != entry["label"]]
            told = f"{entry['label']}, {best[1]}"
            if rows and rows[-1]["run"] == entry["run"]:
                if budget == limits[-1]:
                    break
                told = f"nothing better than {entry['label']} in {best[0]['nfe']}"
            if others:
                told += f"; {words(others)} {'is' if len(others) == 1 else 'are'} within its interval"
            sentence = f"Within {budget} evaluations: {told}."
            rows.append({**entry, "nfe": budget, "within": others, "sentence": sentence})
        return rows

    def enough_sentence(self, enough: Candidate) -> str:
        """What is enough, and how it stands to the best."""
        best, title = self.best(), self.about["title"]
        told = f"{name(self.report, enough[0])} in {evaluations(enough[0])}"
        if enough[0]["id"] == best[0]["id"]:
            return f"{told} has the best {title}, {best[1]}; nothing cheaper comes within its interval or 5 % of it."
        how = "within the interval" if self.within(best, enough[1]) else "within 5 %"
        against = f"{best[1]} by {name(self.report, best[0])} in {best[0]['nfe']}"
        return f"{told} is enough: its {title}, {enough[1]}, lies {how} of the best, {against}."

    def fastest_sentence(self, fastest: Candidate, enough: Candidate) -> str:
        """What is fastest of the runs as good as the best."""
        spent, against = milliseconds(fastest[0]) or 0.0, milliseconds(enough[0])
        if fastest[0]["id"] == enough[0]["id"]:
            return f"It is also the fastest of that quality: {number(spent)} ms a sample."
        told = (
            f"By the clock, {name(self.report, fastest[0])} in {evaluations(fastest[0])} is the fastest of that quality"
        )
        return f"{told}: {number(spent)} ms a sample{f' against {number(against)} ms' if against else ''}."

    def baseline_sentences(self) -> list[str]:
        """The baselines that are better than some candidate; others are no scale to measure by."""
        worst = max(self.sign * found.value for _, found in self.candidates)
        found = [(baseline["label"], estimate(baseline, self.metric)) for baseline in self.report.get("baselines", [])]
        return [f"For scale, {label}: {scale}." for label, scale in found if scale and self.sign * scale.value <= worst]
