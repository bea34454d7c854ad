"""Charts: colours that anyone can tell apart, axes that hold everything, and rings on the front."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sde_diffusion.core.errors import UserError
from sde_diffusion.report import charts, palette
from sde_diffusion.report.runs import estimate, labels
from tests.report.synthetic import EMPTY, FAILED

Array = NDArray[np.float64]

TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Linear sRGB to OKLab (Ottosson 2020)."""
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""Machado et al. 2009, table 1, severity 1, in linear sRGB."""


def linear(colour: str) -> Array:
    s = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2.1: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_differ_to_any_eye(vision: str, dark: bool) -> None:
    """A distance of 0.06 in OKLab is about three times what is just noticeable side by side."""
    seen = [(linear(pair[dark]) @ VISION[vision].T).clip(0, 1) for pair in palette.PALETTE.values()]
    lab = np.cbrt(np.stack(seen) @ TO_LMS.T) @ TO_LAB.T
    distances = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > (0.1 if vision == "normal" else 0.06)


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_stands_out_from_its_paper(dark: bool) -> None:
    """3 : 1 for graphics and 4.5 : 1 for text, as WCAG 2.1 asks (1.4.11, 1.4.3)."""
    assert min(contrast(pair[dark], palette.PAPER[dark]) for pair in palette.PALETTE.values()) > 3.0
    assert min(contrast(ink, palette.PAPER[dark]) for ink in palette.INK[dark][:2]) > 4.5


def test_84_labels_have_84_marks() -> None:
    assert len({(palette.colour(i), palette.colour(i, True), palette.shape(i)) for i in range(84)}) == 84


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (4.0, 260.0, True, [5, 10, 20, 50, 100, 200]),
        (0.8, 130.0, True, [1, 2, 5, 10, 20, 50, 100]),
        (2e-5, 0.3, True, [1e-4, 1e-3, 1e-2, 1e-1]),
        (1e-14, 1.0, True, [1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]),
        (9.0, 22.0, True, [10, 12, 14, 16, 18, 20, 22]),
        (0.64, 0.97, False, [0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        (-0.3, 1.1, False, [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert charts.ticks(low, high, log) == pytest.approx(expected)


def layers(spec: palette.Spec, mark: str) -> list[dict[str, Any]]:
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == mark]


def rows(spec: palette.Spec) -> list[dict[str, Any]]:
    return spec["datasets"][spec["data"]["name"]]


@pytest.mark.parametrize("cost", charts.COSTS)
@pytest.mark.parametrize("metric", ["frechet", "kernel", "precision", "entropy"])
def test_the_axes_hold_every_point(report: dict[str, Any], metric: str, cost: str) -> None:
    spec = charts.specification(charts.quality(report, metric, cost))
    (line,) = layers(spec, "line")
    x, y = line["encoding"]["x"], line["encoding"]["y"]
    drawn = [row for row in rows(spec) if row["value"] is not None and row[cost] is not None]
    assert len(drawn) == len(report["runs"]) - 2
    for row in drawn:
        assert x["scale"]["domain"][0] < row[cost] < x["scale"]["domain"][1]
        assert y["scale"]["domain"][0] < row["low"] < row["value"] < row["high"] < y["scale"]["domain"][1]
    assert len(x["axis"]["values"]) >= 3 and len(y["axis"]["values"]) >= 3
    assert y["scale"].get("type", "linear") == report["metrics"][metric]["scale"]
    assert {"config", "$schema"}.isdisjoint(spec)


def test_charts_are_valid_vega_lite(report: dict[str, Any]) -> None:
    """Against the schema of Vega-Lite; with two variants, so that the dashes are there too."""
    report["runs"][1]["variant"] = "raw"
    for chart in (charts.quality(report, "frechet"), charts.agreement(report)):
        chart.to_dict(validate=True)


@pytest.mark.parametrize("cost", charts.COSTS)
def test_rings_are_on_the_front(report: dict[str, Any], cost: str) -> None:
    """By the definition, for an error and for a precision."""
    for metric, s in (("frechet", 1), ("precision", -1)):
        found = [
            row for row in rows(charts.specification(charts.quality(report, metric, cost))) if row[f"front_{cost}"]
        ]
        points = [
            (c["nfe"] if cost == "nfe" else c["timing"]["milliseconds_per_sample"], s * e.value)
            for c in report["runs"]
            if (e := estimate(c, metric))
        ]
        front = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
        assert sorted((row[cost], s * row["value"]) for row in found) == sorted(front)


def test_two_halves_are_a_rule_and_noise_is_left_out(report: dict[str, Any]) -> None:
    for metric in ("frechet", "precision"):
        spec = charts.specification(charts.quality(report, metric))
        rule = next(layer for layer in layers(spec, "rule") if layer["mark"].get("style") == "baseline")
        assert [row["text"] for row in spec["datasets"][rule["data"]["name"]]] == ["two halves of the training set"]


def test_failures_are_crosses(report: dict[str, Any]) -> None:
    spec = charts.specification(charts.quality(report, "frechet"))
    failed = [row for row in rows(spec) if row["failed"]]
    assert [(row["label"], row["nfe"]) for row in failed] == [("langevin", 5.0)]
    assert "not finite at step 3" in failed[0]["told_1"]


def test_intervals_that_reach_zero_are_cut_on_a_logarithmic_axis(report: dict[str, Any]) -> None:
    for run in report["runs"]:
        if entry := run["values"].get("frechet"):
            entry["low"] = entry["value"] and -1.0
    report["baselines"] = []
    (line,) = layers(charts.specification(charts.quality(report, "frechet")), "line")
    bottom, top = line["encoding"]["y"]["scale"]["domain"]
    assert 1.0 < bottom < 1.6 and 90.0 < top < 200.0


def test_agreement_has_the_flow_and_slopes(report: dict[str, Any]) -> None:
    """The guide of order p ends at d (n0 / n)^p."""
    spec = charts.specification(charts.agreement(report))
    assert {row["label"] for row in rows(spec) if row["value"]} == {
        run["label"] for run in report["runs"] if run["noise"] == "none"
    }
    guide = next(layer for layer in layers(spec, "line") if layer["mark"].get("style") == "guide")
    ends = spec["datasets"][guide["data"]["name"]]
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        order = first["order"]
        assert last["value"] == pytest.approx(first["value"] * (first["nfe"] / last["nfe"]) ** order)


def test_one_cell_makes_a_chart(report: dict[str, Any]) -> None:
    report["runs"] = report["runs"][:1]
    assert len(charts.chart_png(charts.quality(report, "entropy"))) > 1000


def test_what_cannot_be_drawn_is_said(report: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="did you mean 'frechet'"):
        charts.quality(report, "frechett")
    with pytest.raises(UserError, match="unknown cost 'money'"):
        charts.quality(report, "frechet", "money")
    report["runs"] = [run for run in report["runs"] if run["id"] in {FAILED, EMPTY}]
    with pytest.raises(UserError, match="no run has a value of 'frechet' to draw"):
        charts.quality(report, "frechet")
    with pytest.raises(UserError, match="no run has a value of 'flow_distance' to draw"):
        charts.agreement(report)


@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_has_every_colour(report: dict[str, Any], dark: bool) -> None:
    image = Image.open(io.BytesIO(charts.chart_png(charts.quality(report, "frechet"), dark))).convert("RGB")
    assert image.width > 1280 and image.height > 800
    found = image.getcolors(image.width * image.height) or []
    counts, colours = np.array([count for count, _ in found]), np.array([colour for _, colour in found])

    def share(colour: str) -> float:
        """The part of the pixels that have a colour, or nearly so."""
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return counts[(abs(colours - wanted) <= 2).all(1)].sum() / counts.sum()

    assert share(palette.PAPER[dark]) > 0.8
    for index in range(len(labels(report))):
        assert share(palette.colour(index, dark)) > 5e-5, index
