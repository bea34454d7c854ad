"""What is recommended: against a search over all runs, and by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

from sde_diffusion.report.recommendation import recommend, round_numbers
from tests.report.synthetic import EMPTY, FAILED


def small(*runs: tuple[str, int, float | None, tuple[float, float] | None], better: str = "lower") -> dict[str, Any]:
    """A report of (label, nfe, value, interval)."""
    return {
        "title": "",
        "subtitle": "",
        "metrics": {"error": {"title": "error", "better": better, "source": "", "scale": "log"}},
        "runs": [
            {
                "id": f"{label}-{nfe}",
                "sampler": label,
                "label": label,
                "variant": "",
                "steps": nfe,
                "nfe": nfe,
                "values": {"error": {"value": v, "low": i and i[0], "high": i and i[1], "reason": "" if v else "none"}},
                "timing": {"milliseconds_per_sample": float(nfe) * (2.0 if label == "slow" else 1.0)},
                "failed": "",
            }
            for label, nfe, v, i in runs
        ],
    }


def test_every_budget_names_its_best(report: dict[str, Any]) -> None:
    """Against a search over all runs of at most so many evaluations."""
    found = recommend(report)
    assert [row["nfe"] for row in found["budgets"]] == [5, 10, 20, 50, 100]  # rk45 goes on to 212 and is no better
    runs = [run for run in report["runs"] if run["id"] not in {FAILED, EMPTY}]
    for row in found["budgets"]:
        values = {c["id"]: c["values"]["frechet"] for c in runs if c["nfe"] <= row["nfe"]}
        best = min(values, key=lambda name: values[name]["value"])
        assert (row["run"], row["value"], row["high"]) == (best, values[best]["value"], values[best]["high"])
        tied = {c["label"] for c in runs if c["id"] in values and values[c["id"]]["value"] <= values[best]["high"]}
        assert {row["label"], *row["within"]} == tied and row["label"] not in row["within"]


def test_the_knee_and_the_fastest(report: dict[str, Any]) -> None:
    """The fewest evaluations, and the least time, of all runs within the best's interval, which is wider than 5 %."""
    found = recommend(report)
    runs = [run for run in report["runs"] if run["id"] not in {FAILED, EMPTY}]
    best = min(runs, key=lambda run: run["values"]["frechet"]["value"])
    good = [c for c in runs if c["values"]["frechet"]["value"] <= best["values"]["frechet"]["high"]]
    assert found["knee"]["nfe"] == min(run["nfe"] for run in good) and found["knee"]["best"] == best["id"]
    fastest = min(good, key=lambda run: run["timing"]["milliseconds_per_sample"])
    assert found["fastest"]["run"] == fastest["id"]


def test_what_is_said_by_hand() -> None:
    found = recommend(
        small(
            ("a", 5, 9.0, (8.0, 10.0)),
            ("b", 5, 8.5, (7.6, 9.4)),
            ("a", 10, 4.2, (3.9, 4.5)),
            ("slow", 10, 3.1, (2.9, 3.3)),
            ("b", 19, 3.2, (2.9, 3.4)),  # at the very end of the best's interval
            ("slow", 20, 3.0, (2.8, 3.2)),
        )
    )
    assert found["sentences"] == [
        "slow in 10 evaluations is enough: its error, 3.10 [2.90, 3.30], lies within the interval of the best, "
        "3.00 [2.80, 3.20] by slow in 20.",
        "By the clock, b in 19 evaluations is the fastest of that quality: 19.0 ms a sample against 20.0 ms.",
        "Within 5 evaluations: b, 8.50 [7.60, 9.40]; a is within its interval.",
        "Within 10 evaluations: slow, 3.10 [2.90, 3.30].",
        "Within 20 evaluations: slow, 3.00 [2.80, 3.20]; b is within its interval.",
    ]


def test_five_percent_are_as_good() -> None:
    found = recommend(small(("a", 10, 1.04, None), ("b", 10, 1.2, None), ("a", 20, 1.0, None), ("b", 20, 1.1, None)))
    assert found["sentences"][0] == (
        "a in 10 evaluations is enough: its error, 1.04, lies within 5 % of the best, 1.00 by a in 20."
    )


def test_nothing_better_for_more() -> None:
    """A budget at which the best is still the one before says so, and the best without a cheaper match is the knee."""
    found = recommend(small(("a", 10, 1.0, None), ("b", 10, 2.0, None), ("a", 20, 1.2, None), ("b", 20, 1.9, None)))
    assert found["sentences"][0] == (
        "a in 10 evaluations has the best error, 1.00; nothing cheaper comes within its interval or 5 % of it."
    )
    assert found["sentences"][1] == "It is also the fastest of that quality: 10.0 ms a sample."
    assert [row["sentence"] for row in found["budgets"]] == ["Within 10 evaluations: a, 1.00."]


def test_a_metric_without_a_value_leaves_the_decision_to_the_next() -> None:
    """Where the first one cannot judge: by the second, in which the other sampler wins; if none can, that is said."""
    report = small(("a", 10, 1.0, None), ("b", 10, 2.0, None))
    report["metrics"] = {"first": report["metrics"]["error"] | {"title": "first"}, **report["metrics"]}
    for run in report["runs"]:
        run["values"]["first"] = {"value": None, "low": None, "high": None, "reason": "too few"}
    assert recommend(report)["metric"] == "error" and recommend(report)["knee"]["run"] == "a-10"
    report["runs"][1]["values"]["first"]["value"] = 3.0
    assert recommend(report)["metric"] == "first" and recommend(report)["knee"]["run"] == "b-10"


def test_a_tie_goes_to_the_cheapest() -> None:
    """Of equal values that of fewer evaluations is the best, wherever it stands in the report."""
    found = recommend(small(("a", 20, 1.0, None), ("a", 10, 2.0, None), ("b", 10, 1.0, None), ("b", 20, 3.0, None)))
    assert [(row["nfe"], row["run"]) for row in found["budgets"]] == [(10, "b-10")] and found["knee"]["best"] == "b-10"


def test_budgets_at_which_nothing_has_happened_are_left_out() -> None:
    """Of 10, 20, 50 and 100 those that hold a run more than the one before; ending at the dearest run's."""
    found = recommend(small(("a", 7, 10.0, None), ("b", 90, 1.0, None), ("c", 8, 11.0, None)))
    assert [(row["nfe"], row["label"]) for row in found["budgets"]] == [(10, "a"), (100, "b")]


def test_without_shared_budgets_round_numbers_are_taken() -> None:
    runs = [(label, nfe, 10.0 / nfe, None) for label, nfe in (("a", 7), ("b", 13), ("c", 31), ("d", 90))]
    assert [(row["nfe"], row["label"]) for row in recommend(small(*runs))["budgets"]] == [
        (10, "a"),
        (20, "b"),
        (50, "c"),
        (100, "d"),
    ]
    assert round_numbers(3, 90) == [5, 10, 20, 50, 100] and round_numbers(1, 1) == [1]


def test_higher_may_be_better() -> None:
    found = recommend(small(("a", 10, 0.8, (0.7, 0.9)), ("b", 10, 0.75, None), ("c", 10, 0.5, None), better="higher"))
    assert found["knee"]["label"] == "a" and found["budgets"][0]["within"] == ["b"]


def test_what_is_best_where_real_data_have_it_ranks_nothing(report: dict[str, Any]) -> None:
    """Neither the samples farthest from all real ones nor those that copy them are recommended."""
    found = recommend(small(("a", 10, 0.8, None), ("b", 10, 9.0, None), better="real"))
    assert found["budgets"] == [] and "No metric that ranks samplers" in found["sentences"][0]
    report["metrics"] = {"entropy": report["metrics"]["entropy"], **report["metrics"]}
    assert recommend(report)["metric"] == "frechet"


def test_one_cell() -> None:
    found = recommend(small(("a", 1, 2.0, None)))
    assert found["knee"]["run"] == "a-1" and [row["nfe"] for row in found["budgets"]] == [1]
    assert "a in 1 evaluation has" in found["sentences"][0]


def test_nothing_finite_is_said_and_not_raised() -> None:
    for report in (small(), small(("a", 10, None, None)), small(("a", 10, float("nan"), None))):
        found = recommend(report)
        assert found["budgets"] == [] and found["knee"] is None and found["fastest"] is None
        assert found["sentences"] == ["No run has a finite value of error, so that no sampler can be recommended."]
    only = small(("a", 10, 1.0, None))
    only["metrics"] = {}
    assert recommend(only)["sentences"] == [
        "No metric that ranks samplers was measured, so that no sampler can be recommended."
    ]


def test_holes_do_not_matter(report: dict[str, Any]) -> None:
    """Runs without timing, interval, values or evaluations are read as far as they go; the result is JSON."""
    whole = recommend(report)
    for run in report["runs"]:
        run["timing"] = {}
    assert recommend(report)["fastest"] is None
    broken = copy.deepcopy(report["runs"][0])
    holes: dict[str, Any] = {"values": {}, "nfe": None, "failed": "out of memory"}
    for key, hole in holes.items():
        report["runs"].append({**broken, "id": f"hole {key}", key: hole})
    found = recommend(report)
    assert (
        found["budgets"] == whole["budgets"]
        and found["sentences"][-1] == "5 of 63 runs have no value and were left out."
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_variants_are_told_apart(report: dict[str, Any]) -> None:
    """With several variants names have them, and the budgets are still those that half of the labels share."""
    other = copy.deepcopy(report["runs"])
    for run in other:
        run["variant"], run["id"] = "ema 0.9", run["id"] + " 0.9"
        for entry in run["values"].values():
            for key in ("value", "low", "high"):
                entry[key] = entry[key] and 1.2 * entry[key]
    report["runs"] += other
    found = recommend(report)
    assert found["knee"]["label"] == "dpmpp_3m (ema 0.999)" and len(found["budgets"]) == 5
