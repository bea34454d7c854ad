"""A comparison as one page: a single file that asks nothing of the network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra
from sde_diffusion.report import charts, palette
from sde_diffusion.report.comparison import likelihood_rows, reasons
from sde_diffusion.report.front import sign
from sde_diffusion.report.pictures import Picture, png
from sde_diffusion.report.recommendation import recommend
from sde_diffusion.report.runs import (
    AGREEMENT,
    MISSING,
    Report,
    estimate,
    finite,
    flat,
    labels,
    measured,
    milliseconds,
    name,
    number,
    ranks,
    steps,
    variants,
)
from sde_diffusion.report.templating import environment, source

if TYPE_CHECKING:
    from altair import LayerChart

SMALL = 32
"""Pictures of at most this height are enlarged as they are, pixel by pixel; others smoothly."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A sampler's way from noise to data: strips of a few samples, [frames, h, w, 3], and a caption for each frame.

    Strips may have clear pixels, [frames, h, w, 4].
    """

    x: NDArray[np.uint8]
    x0_hat: NDArray[np.uint8]
    captions: list[str]


def comparison_html(report: Report, strips: Mapping[str, Picture], trajectories: Mapping[str, Trajectory]) -> str:
    """The page of a comparison: charts that can be searched, samples side by side, the walks, every figure.

    strips: the first samples of runs in a row, [h, w, 3], or [h, w, 4] with clear pixels between them; square tiles
    without borders are set apart by the page. trajectories: of runs, alike. Runs without either are left out there.
    """
    recommendation = report.get("recommendation") or recommend(report)
    named = {run["id"]: run for run in report["runs"]}
    specs, datasets = chart_data(report)
    costs = [run["nfe"] for run in report["runs"] if run["id"] in strips and finite(run.get("nfe")) is not None]
    budgets = sorted({*(budget["nfe"] for budget in recommendation["budgets"]), *([max(costs)] if costs else [])})
    knee = recommendation["knee"]
    enough = next((budget for budget in budgets if knee and budget >= knee["nfe"]), None)
    data = {
        "labels": labels(report),
        "variants": variants(report),
        "specs": specs,
        "datasets": datasets,
        "themes": {"light": page_theme(report, False), "dark": page_theme(report, True)},
        "trajectories": {key: sprites(trajectory) for key, trajectory in trajectories.items() if key in named},
    }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            several=len(variants(report)) > 1,
            samplers=marks(report),
            variants=[{"name": variant, "dash": palette.dash(i)} for i, variant in enumerate(variants(report))],
            lead=[
                s for s in recommendation["sentences"] if s not in {b["sentence"] for b in recommendation["budgets"]}
            ],
            recommendation=recommendation,
            cards=[
                {**budget, "run": named[budget["run"]], "enough": budget["nfe"] == enough}
                for budget in recommendation["budgets"]
            ],
            title_of={metric: about.get("title", metric) for metric, about in report["metrics"].items()},
            chosen=[metric for metric in measured(report) if f"{metric}/nfe" in specs],
            timed=any(key.endswith("/milliseconds") for key in specs),
            agrees=AGREEMENT in specs,
            strips=strip_rows(report, strips),
            budgets=budgets,
            shown=enough or max(budgets, default=0),
            trajectories=trajectory_rows(report, trajectories),
            likelihood=likelihood_rows(report),
            columns=table_columns(report),
            rows=table_rows(report),
            reasons=reasons(report),
            runs=[(name(report, run), run, flat(run.get("protocol") or {})) for run in report["runs"]],
            protocol=flat(report.get("protocol") or {}),
            reference=flat(report.get("reference") or {}),
            number=number,
            css=source("report.css"),
            js=source("report.js"),
            vega=vega(),
            data=script_json(data),
        )
    )


def marks(report: Report) -> list[dict[str, Any]]:
    """Each label with the outline and the colours that it has everywhere."""
    return [
        {
            "label": label,
            "index": i,
            "path": palette.shape(i),
            "light": palette.colour(i),
            "dark": palette.colour(i, True),
        }
        for i, label in enumerate(labels(report))
    ]


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    with extra("report"):
        import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def script_json(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def page_theme(report: Report, dark: bool) -> palette.Spec:
    """The theme of charts on the page, where the chips are the legend."""
    config = palette.theme(report, dark)
    return {**config, "legend": {"disable": True}, "padding": {"left": 2, "right": 6, "top": 2, "bottom": 2}}


def chart_data(report: Report) -> tuple[dict[str, palette.Spec], dict[str, Any]]:
    """The specifications of all charts that have something to draw, by metric/cost, and the data that they share."""
    drawn: dict[str, Callable[[], LayerChart]] = {AGREEMENT: partial(charts.agreement, report)}
    for metric in measured(report):
        for cost in charts.COSTS:
            drawn[f"{metric}/{cost}"] = partial(charts.quality, report, metric, cost)
    specs: dict[str, palette.Spec] = {}
    datasets: dict[str, Any] = {}
    for key, chart in drawn.items():
        try:
            specs[key] = charts.specification(chart())
        except UserError:  # nothing to draw
            continue
        datasets |= specs[key].pop("datasets")
    return specs, datasets


def data_uri(image: Picture) -> str:
    """A picture [h, w, 3], or [h, w, 4] with clear pixels, as the address of an image; grey ones in one channel."""
    colours, alpha = image[..., :3], image[..., 3:]
    if (colours == colours[..., :1]).all():
        image = np.concatenate([colours[..., :1], alpha], axis=-1)
    return (
        "data:image/png;base64," + base64.b64encode(png(image.squeeze(-1) if image.shape[-1] == 1 else image)).decode()
    )


def sprites(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as two images with its frames one below another."""
    frames, height, width = trajectory.x.shape[:3]
    return {
        "x": data_uri(trajectory.x.reshape(frames * height, width, -1)),
        "x0": data_uri(trajectory.x0_hat.reshape(frames * height, width, -1)),
        "frames": frames,
        "captions": trajectory.captions,
    }


def shape_of(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """The size of a strip [..., h, w, C], its number of square tiles that the page sets apart, and how it is enlarged.

    Tiles that are not square, or between which there are clear pixels, are left as they are: 1.
    """
    height, width, channels = picture.shape[-3:]
    return {
        "height": height,
        "width": width,
        "tiles": width // height if channels == 3 and width % height == 0 else 1,
        "pixelated": height <= SMALL,
    }


def strip_rows(report: Report, strips: Mapping[str, Picture]) -> list[dict[str, Any]]:
    """For each label (of each variant): its runs by cost, with their pictures where they have one."""
    metric = next(iter(measured(report)), None)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in report["runs"]:
        picture = strips.get(run["id"])
        if finite(run.get("nfe")) is None or (picture is None and not run.get("failed")):
            continue
        shown = None if picture is None else {**shape_of(picture), "uri": data_uri(picture)}
        found = estimate(run, metric) if metric else None
        rows.setdefault((run["label"], run.get("variant", "")), []).append(
            {"run": run, "picture": shown, "value": found}
        )
    return [
        {"label": label, "variant": variant, "runs": sorted(runs, key=lambda entry: entry["run"]["nfe"])}
        for (label, variant), runs in rows.items()
        if any(entry["picture"] for entry in runs)
    ]


def trajectory_rows(report: Report, trajectories: Mapping[str, Trajectory]) -> list[dict[str, Any]]:
    """The runs that have trajectories."""
    return [
        {"run": run, **shape_of(trajectories[run["id"]].x), "captions": trajectories[run["id"]].captions}
        for run in report["runs"]
        if run["id"] in trajectories
    ]


def table_columns(report: Report) -> list[dict[str, Any]]:
    """The columns of the full table."""
    texts = ["sampler", *(["variant"] if len(variants(report)) > 1 else []), "noise", "order"]
    numbers = ["steps", "nfe", *report["metrics"], "ms a sample"]
    return [{"name": text, "number": False} for text in texts] + [
        {"name": report["metrics"].get(key, {}).get("title", key), "number": True} for key in numbers
    ]


def table_rows(report: Report) -> list[dict[str, Any]]:
    """Every run with what each column shows of it, and with what it is sorted by."""
    best = {}
    for metric, about in report["metrics"].items():
        if not ranks(report, metric):
            continue
        s = sign(about.get("better", "lower"))
        found = [s * e.value for run in report["runs"] if (e := estimate(run, metric))]
        best[metric] = s * min(found, default=math.nan)
    rows = []
    for run in report["runs"]:
        texts = [run["label"], *([run.get("variant", "")] if len(variants(report)) > 1 else [])]
        texts += [str(run.get("noise") or ""), str(run.get("order") or "")]
        values = {metric: estimate(run, metric) for metric in report["metrics"]}
        spent = milliseconds(run)
        numbers = [finite(run.get("steps")), finite(run.get("nfe"))]
        numbers += [None if e is None else e.value for e in values.values()]
        rows.append(
            {
                "run": run,
                "sort_keys": json.dumps([*texts, *numbers, spent]),
                "texts": texts,
                "steps": steps(run),
                "values": [
                    {
                        "value": number(e.value) if e else MISSING,
                        "half": number(e.half, 2) if e and e.half is not None else "",
                        "best": e is not None and e.value == best.get(metric),
                    }
                    for metric, e in values.items()
                ],
                "time": MISSING if spent is None else number(spent),
            }
        )
    return rows
