"""Bits/dim of many samples become a summary, a histogram and pictures of the most and the least likely ones."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.core.packages import extra
from sde_diffusion.report.pictures import BORDER, PAPER, Picture, tiles

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A mean over n samples, its standard error and its two-sided interval by Student's t; None for one sample."""

    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None
    n: int

    def __str__(self) -> str:
        if self.interval is None or self.standard_error is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} +- {self.standard_error:.4f} [{self.interval[0]:.4f}, {self.interval[1]:.4f}]"


def summary(values: Values, level: float = 0.95) -> Summary:
    """The mean of values [n] with its confidence interval."""
    from scipy.stats import t  # 0.8 s to import

    n, mean = len(values), float(values.mean())
    if n < 2:
        return Summary(mean, None, None, n)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(t.ppf(0.5 + 0.5 * level, n - 1)) * error
    return Summary(mean, error, (mean - half, mean + half), n)


def histogram(columns: Mapping[str, Values], unit: str, title: str) -> bytes:
    """A PNG with the histogram of each column over one axis, its mean as a line."""
    with extra("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    everything = np.concatenate(list(columns.values()))
    low, high = np.quantile(everything, [0.0, 1.0])
    edges = np.linspace(low, max(high, low + 1e-6), 41).tolist()
    for index, (name, values) in enumerate(columns.items()):
        colour = f"C{index}"
        axes.hist(values, edges, histtype="stepfilled", alpha=0.35, color=colour)
        axes.hist(values, edges, histtype="step", color=colour)
        axes.axvline(float(values.mean()), color=colour, label=f"{name}, mean {values.mean():.4f}")
    axes.set_xlabel(unit)
    axes.set_ylabel("samples")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def captioned(images: Picture, captions: Sequence[str], columns: int = 8) -> Picture:
    """Images [N, H, W, C] as tiles with a line of text under each, [h, w, 3]."""
    with extra("report"):
        from PIL import Image, ImageDraw, ImageFont

    font, line = ImageFont.load_default(11), 16
    shown = [tiles(image[None], 1)[BORDER:-BORDER, BORDER:-BORDER] for image in images]
    columns = min(columns, len(shown))
    height, width = shown[0].shape[:2]
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + BORDER) + BORDER, rows * (height + line + BORDER) + BORDER),
        (PAPER, PAPER, PAPER),
    )
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(shown, captions, strict=True)):
        left = BORDER + index % columns * (width + BORDER)
        top = BORDER + index // columns * (height + line + BORDER)
        sheet.paste(Image.fromarray(image), (left, top))
        draw.text((left + width // 2, top + height + line // 2), caption, fill=(0, 0, 0), font=font, anchor="mm")
    return np.asarray(sheet)
