"""What a comparison writes: tables, the page, charts, and a board of TensorBoard."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.compare.runs import Run, trajectory_frames
from sde_diffusion.core.errors import UserError
from sde_diffusion.report.charts import agreement, chart_png, quality
from sde_diffusion.report.comparison import comparison_csv, comparison_markdown, comparison_table
from sde_diffusion.report.html import Trajectory, comparison_html
from sde_diffusion.report.pictures import Box, Picture, box, density, strip
from sde_diffusion.runtime.metrics_log import Board
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.results import write_json

FILM_NFE = 20
DENSITY_SIDE = 96


def write_report(folder: Path, report: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """The report as a table on the screen, as JSON, CSV, Markdown, HTML and PNG files, and in TensorBoard."""
    place = folder / "compare"
    made = [run for run, row in zip(runs, report["runs"], strict=True) if not row["failed"]]
    view = frame_of(made)
    rows = {run.name: first_samples(run, view) for run in made}
    trajectories = {run.name: trajectory_of(run, view) for run in with_trajectories(report, made)}
    write_json(folder / "compare.json", report)
    texts = {
        "compare.csv": comparison_csv(report),
        "compare.md": comparison_markdown(report),
        "report.html": comparison_html(report, rows, trajectories),
    }
    for name, text in texts.items():
        write_aside(folder / name, text.encode())
    first = next(iter(report["metrics"]))
    charts = {
        "quality_nfe": partial(quality, report, first, "nfe"),
        "quality_seconds": partial(quality, report, first, "milliseconds"),
        "agreement": partial(agreement, report),
    }
    for name, chart in charts.items():
        with suppress(UserError):  # there is nothing to draw where no run has a value
            write_aside(place / f"{name}.png", chart_png(chart()))
    write_board(folder / "tensorboard" / "compare", report, rows)
    print(comparison_table(report))
    for sentence in (*report["recommendation"]["sentences"], *report["warnings"]):
        print(sentence)
    print(f"wrote {folder}/compare.json, compare.csv, compare.md, compare/*.png and {folder / 'report.html'}")


def write_board(folder: Path, report: Mapping[str, Any], rows: Mapping[str, Picture]) -> None:
    """A run of TensorBoard for each run: what it is, what it came to, and its first samples."""
    shutil.rmtree(folder, ignore_errors=True)  # a run would be shown twice
    for run in report["runs"]:
        if run["failed"]:
            continue
        told = {name: run[name] for name in ("label", "steps", "nfe", "variant") if run[name] is not None}
        found = {name: score["value"] for name, score in run["values"].items() if score["value"] is not None}
        with Board(folder / run["id"]) as board:
            board.add_hparams(told, {**found, "milliseconds_per_sample": run["timing"]["milliseconds_per_sample"]})
            board.add_image("samples", rows[run["id"]], run["nfe"])


def with_trajectories(report: Mapping[str, Any], runs: Sequence[Run]) -> list[Run]:
    """For each sampler on the first variant, the run whose evaluations are nearest to FILM_NFE."""
    nfe = {row["id"]: row["nfe"] for row in report["runs"]}
    nearest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: abs(math.log(nfe[run.name] / FILM_NFE))):
        if run.variant.name == report["runs"][0]["variant"]:
            nearest.setdefault(run.trial.label, run)
    return [run for run in runs if run in nearest.values()]


def frame_of(runs: Sequence[Run]) -> Box | None:
    """The part of the plane that holds the vectors of all runs; None for images."""
    for run in runs:
        samples = run.samples()
        if samples.dtype != np.uint8:
            return box(np.concatenate([other.samples()[:, :2] for other in runs]))
    return None


def first_samples(run: Run, view: Box | None) -> Picture:
    """A run's first samples in a row, or the density of all of them."""
    if view is None:
        _, x0_hat, _ = trajectory_frames(run.trajectory)
        return strip(x0_hat[-1])
    return density(run.samples(), DENSITY_SIDE, view)


def trajectory_of(run: Run, view: Box | None) -> Trajectory:
    """What a sampler asked and was told, frame by frame."""
    x, x0_hat, captions = trajectory_frames(run.trajectory)

    def shown(frames: np.ndarray) -> np.ndarray:
        return np.stack([strip(frame) if view is None else density(frame, DENSITY_SIDE, view) for frame in frames])

    return Trajectory(shown(x), shown(x0_hat), captions)
