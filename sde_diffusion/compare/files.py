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

from sde_diffusion.compare.cells import Cell, film_frames
from sde_diffusion.core.errors import UserError
from sde_diffusion.report.charts import agreement, chart_png, quality
from sde_diffusion.report.comparison import comparison_csv, comparison_markdown, comparison_table
from sde_diffusion.report.html import Film, comparison_html
from sde_diffusion.report.pictures import Box, Picture, box, density, strip
from sde_diffusion.runtime.metrics_log import Board
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.results import write_json

FEW = 10_000
"""Samples below which figures of features are biased so much that they compare with nothing but one another."""
BITS_STREAM, BITS_SAMPLES, BITS_RTOL = 17, 500, 1e-6
FILM_NFE = 20
DENSITY_SIDE = 96


def write_report(folder: Path, report: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """The report as a table on the screen, as JSON, CSV, Markdown, HTML and PNG files, and in TensorBoard."""
    place = folder / "compare"
    made = [cell for cell, row in zip(cells, report["cells"], strict=True) if not row["failed"]]
    view = frame_of(made)
    rows = {cell.name: first_samples(cell, view) for cell in made}
    films = {cell.name: film_of(cell, view) for cell in filmed(report, made)}
    write_json(folder / "compare.json", report)
    texts = {
        "compare.csv": comparison_csv(report),
        "compare.md": comparison_markdown(report),
        "report.html": comparison_html(report, rows, films),
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
        with suppress(UserError):  # there is nothing to draw where no cell has a value
            write_aside(place / f"{name}.png", chart_png(chart()))
    write_board(folder / "tensorboard" / "compare", report, rows)
    print(comparison_table(report))
    for sentence in (*report["recommendation"]["sentences"], *report["warnings"]):
        print(sentence)
    print(f"wrote {folder}/compare.json, compare.csv, compare.md, compare/*.png and {folder / 'report.html'}")


def write_board(folder: Path, report: Mapping[str, Any], rows: Mapping[str, Picture]) -> None:
    """A run of TensorBoard for each cell: what it is, what it came to, and its first samples."""
    shutil.rmtree(folder, ignore_errors=True)  # a cell would be shown twice
    for cell in report["cells"]:
        if cell["failed"]:
            continue
        told = {name: cell[name] for name in ("label", "steps", "nfe", "subject") if cell[name] is not None}
        found = {name: score["value"] for name, score in cell["values"].items() if score["value"] is not None}
        with Board(folder / cell["id"]) as board:
            board.add_hparams(told, {**found, "milliseconds_per_sample": cell["timing"]["milliseconds_per_sample"]})
            board.add_image("samples", rows[cell["id"]], cell["nfe"])


def filmed(report: Mapping[str, Any], cells: Sequence[Cell]) -> list[Cell]:
    """For each sampler on the first subject, the cell whose evaluations are nearest to FILM_NFE."""
    nfe = {row["id"]: row["nfe"] for row in report["cells"]}
    nearest: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: abs(math.log(nfe[cell.name] / FILM_NFE))):
        if cell.subject.name == report["cells"][0]["subject"]:
            nearest.setdefault(cell.trial.label, cell)
    return [cell for cell in cells if cell in nearest.values()]


def frame_of(cells: Sequence[Cell]) -> Box | None:
    """The part of the plane that holds the vectors of all cells; None for images."""
    for cell in cells:
        samples = cell.samples()
        if samples.dtype != np.uint8:
            return box(np.concatenate([other.samples()[:, :2] for other in cells]))
    return None


def first_samples(cell: Cell, view: Box | None) -> Picture:
    """A cell's first samples in a row, or the density of all of them."""
    if view is None:
        _, x0_hat, _ = film_frames(cell.film)
        return strip(x0_hat[-1])
    return density(cell.samples(), DENSITY_SIDE, view)


def film_of(cell: Cell, view: Box | None) -> Film:
    """What a sampler asked and was told, frame by frame."""
    x, x0_hat, captions = film_frames(cell.film)

    def shown(frames: np.ndarray) -> np.ndarray:
        return np.stack([strip(frame) if view is None else density(frame, DENSITY_SIDE, view) for frame in frames])

    return Film(shown(x), shown(x0_hat), captions)
