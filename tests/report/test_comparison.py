"""A comparison as text: every run and every reason is there, and CSV gives back the numbers."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from sde_diffusion.report.comparison import comparison_csv, comparison_markdown, comparison_table
from sde_diffusion.report.runs import estimate, number, steps, words
from sde_diffusion.report.templating import escaped
from tests.report.synthetic import EMPTY, FAILED, REASON


def cell_named(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(run for run in report["runs"] if run["id"] == name)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (1.2345, 3, "1.23"),
        (123.45, 3, "123"),
        (54321.0, 3, "54321"),
        (-0.012345, 2, "-0.012"),
        (0.00012345, 3, "0.000123"),
        (0.000012345, 3, "1.23e-05"),
        (2.5e7, 2, "2.5e+07"),
    ],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_words() -> None:
    assert [words("a"), words("ab"), words("abc")] == ["a", "a and b", "a, b and c"]


def test_steps() -> None:
    assert [steps(run) for run in ({"steps": 9}, {"steps": None, "tolerance": 1e-5}, {})] == [
        "9",
        "tol 1e-05",
        "adaptive",
    ]


def test_the_table_has_a_line_for_each_cell(report: dict[str, Any]) -> None:
    lines = comparison_table(report).splitlines()
    first = [metric for metric in report["metrics"] if metric != "flow_distance"][:3]
    assert lines[0].split() == ["sampler", "steps", "nfe", *first, "flow_distance", "seconds"]
    runs, rest = lines[2 : 2 + len(report["runs"])], lines[2 + len(report["runs"]) :]
    for line, run in zip(runs, report["runs"], strict=True):
        assert line.startswith(run["label"])
        if found := estimate(run, "frechet"):
            assert f"{number(found.value)} +- {number(found.half or 0, 2)}" in line
    assert len({len(line) for line in runs}) == 1  # the last column ends in one place
    assert next(line for line in runs if "(failed)" in line).startswith("langevin")
    assert f"{FAILED}: failed: {REASON}" in rest
    assert any(line.startswith(f"{EMPTY}: no frechet, kernel, precision, entropy and flow_distance: ") for line in rest)
    assert any(
        line.startswith("euler_maruyama, reverse_diffusion, ancestral, ddim eta=1, langevin-10") for line in rest
    )


def test_the_variant_is_a_column_where_there_are_several(report: dict[str, Any]) -> None:
    report["runs"][3]["variant"] = "raw"
    lines = comparison_table(report).splitlines()
    assert lines[0].split()[:2] == ["sampler", "variant"] and " raw " in lines[5]


def test_csv_gives_back_every_number(report: dict[str, Any]) -> None:
    report["runs"][0]["label"] = 'a "quoted", label\nof two lines'
    rows = list(csv.DictReader(io.StringIO(comparison_csv(report))))
    for row, run in zip(rows, report["runs"], strict=True):
        assert (row["id"], row["label"], row["nfe"]) == (run["id"], run["label"], str(run["nfe"]))
        assert row["steps"] == ("" if run["steps"] is None else str(run["steps"]))
        for metric in report["metrics"]:
            found = estimate(run, metric)
            texts = [row[f"{metric}{end}"] for end in ("", "_low", "_high")]
            if found is None:
                assert texts == ["", "", ""]
            else:
                assert [float(text) for text in texts] == [found.value, found.low, found.high]
        for key in ("seconds", "milliseconds_per_sample"):
            spent = run["timing"].get(key)
            assert row[key] == ("" if spent is None else repr(spent))
    assert {row["id"]: row["failed"] for row in rows if row["failed"]} == {FAILED: REASON}
    assert "frechet: the covariance" in next(row["reason"] for row in rows if row["id"] == EMPTY)


def test_markdown_has_everything(report: dict[str, Any]) -> None:
    text = comparison_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for run in report["runs"]:
        label = run["label"] + (" (failed)" if run["failed"] else "")
        start = f"| {label} | {steps(run)} | {run['nfe']} |"
        assert sum(row.startswith(start) for row in rows) == 1, start
    assert "- dpmpp_3m in 50 evaluations is enough" in text
    assert "| probability flow | 1.9120 | 0.0123 | [1.8880, 1.9360] |" in text
    assert report["warnings"][0] in text and REASON in text
    assert "- `process.beta_max`: 20.0" in text and "Heusel et al. 2017" in text
    assert "\n\n\n" not in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(tables[: len(report["runs"]) + 2])) == 1


def test_markdown_without_likelihood_warnings_or_values(report: dict[str, Any]) -> None:
    report |= {"likelihood": {}, "warnings": [], "reference": {}, "protocol": {}, "baselines": []}
    for run in report["runs"]:
        run["values"] = {}
    text = comparison_markdown(report)
    assert "no sampler can be recommended" in text and "Bits/dim" not in text and "Protocol" not in text


def test_markdown_shows_marks_as_they_are() -> None:
    assert escaped("a_b _c_ [1, 2] [x](y) <b> | *d*\n`e`") == r"a_b \_c\_ [1, 2] [x]\(y) \<b> \| \*d\* \`e\`"
