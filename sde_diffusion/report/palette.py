"""How charts look: the colour, the outline and the dashes of each label, and their theme for light and for dark paper.

A label has one colour and one shape everywhere. Vega's own themes would spare the table of colours alone: they
have no outlines, and the chips of the page need both in Python.
"""

from __future__ import annotations

from typing import Any

from sde_diffusion.report.runs import Report, labels

Spec = dict[str, Any]

PALETTE = {
    "blue": ("#3157bc", "#5bb7fb"),
    "orange": ("#cc7246", "#ffa25b"),
    "teal": ("#168886", "#a2f7eb"),
    "rose": ("#a72e5d", "#c85a6f"),
    "olive": ("#736c15", "#e2f088"),
    "lilac": ("#9582b3", "#b8a7cd"),
    "wine": ("#74000a", "#f5bfba"),
    "sky": ("#4990e8", "#9fd4fc"),
    "green": ("#235e39", "#88ca87"),
    "plum": ("#512656", "#bf77c9"),
    "indigo": ("#2e2388", "#868fef"),
    "purple": ("#6d4384", "#8e76a1"),
}
"""Colours on light and on dark paper, spread in OKLab (Ottosson 2020) as they look to any colour vision."""

SHAPES = {
    "circle": "M-0.9,0A0.9,0.9,0,1,1,0.9,0A0.9,0.9,0,1,1,-0.9,0Z",
    "square": "M-0.8,-0.8H0.8V0.8H-0.8Z",
    "triangle": "M0,-1L0.98,0.78H-0.98Z",
    "diamond": "M0,-1.12L0.92,0L0,1.12L-0.92,0Z",
    "plus": "M-0.34,-1H0.34V-0.34H1V0.34H0.34V1H-0.34V0.34H-1V-0.34H-0.34Z",
    "wedge": "M0,1L0.98,-0.78H-0.98Z",
    "star": "M0,-1.15L0.34,-0.36L1.14,-0.32L0.52,0.2L0.72,1L0,0.56L-0.72,1L-0.52,0.2L-1.14,-0.32L-0.34,-0.36Z",
}
"""Outlines in a box of about [-1, 1]^2, for Vega and for SVG alike: 7 beside 12 colours, so that 84 labels differ."""

DASHES = ((1, 0), (5, 3), (1.5, 3), (9, 3, 1.5, 3))
"""Of the lines of one variant after another, where there are several."""

CROSS = "M-0.7,-0.7L0.7,0.7M-0.7,0.7L0.7,-0.7"
"""What failed."""

INK = {False: ("#1c2126", "#666e77", "#e6e6e1"), True: ("#e9e8e4", "#9ba3ac", "#2b3137")}
"""On light and on dark paper: of text, of what is said in passing, of lines that only guide."""
PAPER = {False: "#ffffff", True: "#15181b"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def colour(index: int, dark: bool = False) -> str:
    """The colour of the label with this index."""
    return list(PALETTE.values())[index % len(PALETTE)][dark]


def shape(index: int) -> str:
    """The outline of the label with this index."""
    return list(SHAPES.values())[index % len(SHAPES)]


def dash(index: int) -> list[float]:
    """The dashes of the variant with this index."""
    return list(DASHES[index % len(DASHES)])


def theme(report: Report, dark: bool = False) -> Spec:
    """The Vega-Lite configuration of charts on light or on dark paper."""
    ink, muted, line = INK[dark]
    count = len(labels(report))
    return {
        "background": "transparent",
        "font": FONT,
        "range": {
            "category": [colour(i, dark) for i in range(count)],
            "symbol": [shape(i) for i in range(count)],
        },
        "view": {"stroke": None},
        "axis": {
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": line,
            "labelColor": muted,
            "labelFontSize": 12,
            "labelPadding": 8,
            "titleColor": muted,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 12,
        },
        "title": {
            "anchor": "start",
            "color": muted,
            "fontSize": 12,
            "fontWeight": "normal",
            "frame": "group",
            "offset": 14,
        },
        "legend": {
            "labelColor": ink,
            "labelFontSize": 12,
            "title": None,
            "symbolSize": 90,
            "rowPadding": 6,
            "offset": 28,
        },
        "style": {
            "ring": {"color": ink, "strokeWidth": 1.4},
            "baseline": {"color": muted, "strokeWidth": 1, "strokeDash": [5, 4]},
            "band": {"color": muted, "fillOpacity": 0.12},
            "note": {"color": muted, "fontSize": 11.5},
            "guide": {
                "color": muted,
                "strokeOpacity": 0.6,
                "strokeWidth": 1.2,
                "strokeDash": [1, 4],
                "strokeCap": "round",
            },
        },
    }
