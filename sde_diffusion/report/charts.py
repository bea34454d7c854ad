"""Charts of a comparison, as Altair specifications: for the page (with Vega) and as PNG files (with vl_convert).

Specifications carry no colours: those of light and of dark paper are configurations (see palette.py), so that a page
changes between them without another specification.

Channels are given as Altair's own classes: to find the class of a text or a dict takes it thirty milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.report.front import pareto, sign
from sde_diffusion.report.palette import CROSS, PAPER, Spec, dash, theme
from sde_diffusion.report.runs import (
    AGREEMENT,
    MISSING,
    Estimate,
    Report,
    Run,
    capital,
    estimate,
    finite,
    labels,
    milliseconds,
    missing,
    name,
    number,
    ranks,
    steps,
    variants,
)

if TYPE_CHECKING:
    import altair as alt

COSTS: dict[str, str] = {"nfe": "evaluations of the network", "milliseconds": "milliseconds a sample"}


def ticks(low: float, high: float, log: bool = True) -> list[float]:
    """Numbers for an axis from low to high: 1, 2 or 5 times powers of ten; of a long logarithmic axis powers alone."""
    if log and high > 4.0 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if high < 2000.0 * low:
            found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            every = max(1, round(len(powers) / 7))
            found = [10.0**power for power in powers if power % every == 0]
    else:
        rough = (high - low) / 5.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((digit * power for digit in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
        found = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [float(f"{x:.6g}") for x in found if low <= x <= high]


def extent(values: Sequence[float], ends: Sequence[float], log: bool) -> tuple[float, float]:
    """An axis around values and the ends of their intervals, with a margin.

    On a logarithmic axis an end may be anywhere: those that lie beyond three times or a third of all values are cut.
    """
    low, high = min(values), max(values)
    if log:
        seen = [end for end in ends if low / 3.0 <= end <= 3.0 * high]
        low, high = min([low, *seen]), max([high, *seen])
        pad = max((high / low) ** 0.06, 1.1)
        return low / pad, high * pad
    low, high = min([low, *ends]), max([high, *ends])
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def told(report: Report, run: Run, metric: str) -> dict[str, str]:
    """What the tooltip tells of a run."""
    found, spent = estimate(run, metric), milliseconds(run)
    title = report["metrics"].get(metric, {}).get("title", metric)
    return {
        "sampler": name(report, run),
        title: str(found) if found else missing(run, metric) or MISSING,
        "evaluations": str(run.get("nfe") or MISSING),
        "steps": steps(run),
        "time": MISSING if spent is None else f"{number(spent)} ms a sample",
        **{key: str(run.get(key) or MISSING) for key in ("noise", "order", "samples")},
    }


def rows_of(report: Report, metric: str) -> list[dict[str, Any]]:
    """A row for each run: what is drawn of it, by which cost it is on the front, and what is told of it."""
    runs: Sequence[Run] = report["runs"]
    better = report["metrics"].get(metric, {}).get("better", "lower")
    rows: list[dict[str, Any]] = []
    for run in runs:
        found = estimate(run, metric) or Estimate(math.nan)
        # A run that failed has no evaluations; its cross is where its steps are.
        spent = run.get("steps") if run.get("failed") and run.get("nfe") is None else run.get("nfe")
        drawn = {"nfe": finite(spent), "milliseconds": milliseconds(run), "value": finite(found.value)}
        ends = {"low": found.low, "high": found.high, "failed": bool(run.get("failed"))}
        named = {"label": run["label"], "variant": run.get("variant", "")}
        texts = {f"told_{i}": text for i, text in enumerate(told(report, run, metric).values())}
        rows.append({**named, **drawn, **ends, **texts})
    for cost in COSTS:
        points = [tuple(math.nan if row[key] is None else row[key] for key in (cost, "value")) for row in rows]
        front = pareto([(c, v) for c, v in points], better) if ranks(report, metric) else []
        for index, row in enumerate(rows):
            row[f"front_{cost}"] = index in front
    return rows


def drawable(row: Mapping[str, Any], cost: str, log: bool) -> bool:
    """Whether a row has a place on the axes."""
    return row[cost] is not None and row["value"] is not None and (row["value"] > 0 or not log)


def baselines(report: Report, metric: str, log: bool, values: Sequence[float]) -> list[dict[str, Any]]:
    """The baselines of a metric that are no worse than every one of these values: others would squeeze them.

    Of a metric that ranks nothing, the first one, which is of real data.
    """
    if ranks(report, metric):
        s = sign(report["metrics"][metric].get("better", "lower"))
        worst = max(s * value for value in values)
    else:
        s, worst = 0.0, 0.0
    chosen = report.get("baselines", [])[: None if s else 1]
    found = [(baseline["label"], estimate(baseline, metric)) for baseline in chosen]
    return [
        {"value": e.value, "low": e.low, "high": e.high, "text": label}
        for label, e in found
        if e and (e.value > 0 or not log) and s * e.value <= worst
    ]


@contextmanager
def unchecked() -> Iterator[None]:
    """Parts of charts without a check of each against the schema, which takes half of their time; a test does that."""
    with extra("report"):
        from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


@unchecked()
def quality(report: Report, metric: str, cost: str = "nfe") -> alt.LayerChart:
    """A metric against what it costs: each label over its budgets, with intervals; the Pareto front is ringed.

    Raises UserError for an unknown metric or cost, and for a metric of which no run has a value to draw.
    """
    with extra("report"):
        import altair as alt

    about = choose("metric", metric, report["metrics"])
    choose("cost", cost, COSTS)
    better, log = about.get("better", "lower"), about.get("scale") == "log"
    wanted = {"lower": "lower is better", "higher": "higher is better", "real": "best where real data have it"}[better]
    axes = Axes.of(report, metric, cost, log)
    ring = (
        axes.drawn()
        .transform_filter(f"datum.front_{cost}")
        .mark_point(style="ring", shape="circle", size=230, aria=False)
        .encode(axes.x(), axes.y(), faint(1.0))
    )
    below: list[alt.Chart] = []
    if marks := baselines(report, metric, log, axes.values):
        data = alt.Chart(alt.InlineData(values=marks))
        low, high = axes.y("low"), alt.Y2("high:Q")
        below = [
            data.transform_filter("isValid(datum.high)").mark_rect(style="band", clip=True).encode(low, high),
            data.mark_rule(style="baseline").encode(axes.y()),
            # Beyond the rule, as seen from the runs, there is room.
            data.mark_text(
                style="note",
                align="left",
                baseline="middle",
                dx=2,
                dy=11 * (sign(better) if ranks(report, metric) else 1),
            ).encode(axes.y(), alt.XValue(0), alt.Text("text:N")),  # type: ignore[no-untyped-call]
        ]
    return axes.chart(f"{capital(about.get('title', metric))}, {wanted}", [*below, ring])


@unchecked()
def agreement(report: Report) -> alt.LayerChart:
    """The distance to the converged flow over the evaluations, beside the slopes of orders 1, 2 and 3.

    Raises UserError where no run has a distance to draw.
    """
    with extra("report"):
        import altair as alt

    axes = Axes.of(report, AGREEMENT, "nfe", log=True)
    first, highest = min(row["nfe"] for row in axes.rows if drawable(row, "nfe", True)), max(axes.values)
    lines = []
    for order in (1, 2, 3):
        last = min(axes.right, first * (highest / axes.bottom / 2.0) ** (1.0 / order))
        lines += [
            {"nfe": first, "value": highest, "text": "", "order": order},
            {"nfe": last, "value": highest * (first / last) ** order, "text": f"order {order}", "order": order},
        ]
    data = alt.Chart(alt.InlineData(values=lines)).encode(axes.x(), axes.y(), alt.Detail("order:N"))
    slopes = data.mark_line(style="guide", clip=True, aria=False)
    names = data.mark_text(style="note", align="right", baseline="middle", dx=-10, dy=5).encode(alt.Text("text:N"))
    return axes.chart("Distance to the converged flow", [slopes, names])


def faint(opacity: float) -> alt.OpacityValue:
    """An opacity that nearly vanishes while the page points at another label."""
    with extra("report"):
        import altair as alt

    near = {"test": "focus == '' || datum.label == focus", "value": opacity}
    return alt.OpacityValue(opacity / 8, condition=near)


@dataclass(frozen=True, eq=False)
class Axes:
    """The runs' rows of a metric, and the axes that they all fit on whichever labels are shown."""

    report: Report
    metric: str
    cost: str
    log: bool
    rows: list[dict[str, Any]]
    values: list[float]
    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def of(cls, report: Report, metric: str, cost: str, log: bool) -> Axes:
        rows = rows_of(report, metric)
        shown = [row for row in rows if drawable(row, cost, log)]
        if not shown:
            raise UserError(
                f"no run has a value of {metric!r} to draw; measure another metric, or leave this chart out"
            )
        values = [row["value"] for row in shown]
        marks = baselines(report, metric, log, values) if metric in report["metrics"] else []
        ends = [row[key] for row in [*shown, *marks] for key in ("low", "high") if row[key] is not None]
        costs = extent([row[cost] for row in shown], [], log=True)
        height = extent([*values, *(mark["value"] for mark in marks)], ends, log)
        return cls(report, metric, cost, log, rows, values, *costs, *height)

    def x(self) -> alt.X:
        with extra("report"):
            import altair as alt

        scale = alt.Scale(type="log", domain=[self.left, self.right], nice=False)
        values = ticks(self.left, self.right)
        axis = alt.Axis(title=COSTS[self.cost], values=values, format="~g", labelOverlap="greedy", grid=False)
        return alt.X(f"{self.cost}:Q", scale=scale, axis=axis)

    def y(self, field: str = "value") -> alt.Y:
        with extra("report"):
            import altair as alt

        domain = [self.bottom, self.top]
        scale = (
            alt.Scale(type="log", domain=domain, nice=False)
            if self.log
            else alt.Scale(domain=domain, nice=False, zero=False)
        )
        values = ticks(self.bottom, self.top, self.log)
        return alt.Y(
            f"{field}:Q", scale=scale, axis=alt.Axis(title=None, values=values, format="~g", labelOverlap="greedy")
        )

    def placed(self) -> alt.Chart:
        """Rows that have a cost."""
        with extra("report"):
            import altair as alt

        return alt.Chart().transform_filter(f"isValid(datum.{self.cost})")

    def drawn(self) -> alt.Chart:
        """Rows that have a place on the axes."""
        return self.placed().transform_filter("datum.value > 0" if self.log else "isValid(datum.value)")

    def chart(self, title: str, below: Sequence[alt.Chart]) -> alt.LayerChart:
        """Lines, intervals, points and failures of all runs over what lies below them.

        The page sets the parameters shown and variants (what is drawn) and focus (what is not faint).
        """
        with extra("report"):
            import altair as alt

        names, several = labels(self.report), variants(self.report)
        hue = alt.Color("label:N", scale=alt.Scale(domain=names))
        form = alt.Shape("label:N", scale=alt.Scale(domain=names))
        titles = told(self.report, self.report["runs"][0], self.metric)
        tooltip = [alt.Tooltip(f"told_{i}", type="nominal", title=title) for i, title in enumerate(titles)]

        lines = (
            self.drawn()
            .mark_line(strokeWidth=1.6, clip=True, aria=False)
            .encode(self.x(), self.y(), hue, alt.Detail("variant:N"), alt.Order(f"{self.cost}:Q"), faint(0.75))
        )
        if len(several) > 1:
            dashes = alt.Scale(domain=several, range=[dash(i) for i in range(len(several))])
            lines = lines.encode(alt.StrokeDash("variant:N", scale=dashes))
        intervals = (
            self.drawn()
            .transform_filter("isValid(datum.high)")
            .transform_calculate(bottom=f"max(datum.low, {self.bottom})")
            .mark_rule(strokeWidth=1.2, clip=True, aria=False)
            .encode(self.x(), self.y("bottom"), alt.Y2("high:Q"), hue, faint(0.5))
        )
        points = (
            self.drawn().mark_point(filled=True, size=75).encode(self.x(), self.y(), hue, form, faint(1.0), tooltip)
        )
        failures = (
            self.placed()
            .transform_filter("datum.failed")
            .mark_point(shape=CROSS, size=70, strokeWidth=1.6)
            .encode(self.x(), alt.YValue(2), hue, faint(1.0), tooltip)  # type: ignore[no-untyped-call]
        )
        return alt.LayerChart(
            layer=[lines, intervals, *below, points, failures],
            data=alt.InlineData(values=self.rows),
            transform=[
                alt.FilterTransform("indexof(shown, datum.label) >= 0 && indexof(variants, datum.variant) >= 0")
            ],
            params=[
                alt.VariableParameter(name="shown", value=names),
                alt.VariableParameter(name="variants", value=several),
                alt.VariableParameter(name="focus", value=""),
            ],
            title=alt.Title(title, limit=alt.expr("width")),
            width="container",
            height="container",
        )


def chart_png(chart: alt.LayerChart, dark: bool = False) -> bytes:
    """A chart as a PNG file of 1600 x 960 pixels or so, with its legend, and without a browser."""
    with extra("report"):
        import vl_convert

    spec = specification(chart)
    report_labels = {"runs": [{"label": label} for label in parameter(spec, "shown")]}
    config = {**theme(report_labels, dark), "background": PAPER[dark], "padding": 24}
    return vl_convert.vegalite_to_png({**spec, "width": 640, "height": 400, "config": config}, scale=2)


def specification(chart: alt.LayerChart) -> Spec:
    """The Vega-Lite specification of a chart, without a configuration or an address.

    It is not checked against the schema, which would take most of the time; a test does that.
    """
    spec = chart.to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in {"config", "$schema"}}


def parameter(spec: Spec, name: str) -> Any:
    """The value of a parameter of a specification."""
    return next(entry["value"] for entry in spec["params"] if entry["name"] == name)
