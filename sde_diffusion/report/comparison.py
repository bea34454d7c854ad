"""A comparison as text: a table for the screen, CSV for other programs, Markdown for a repository."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from sde_diffusion.report.recommendation import recommend
from sde_diffusion.report.runs import (
    AGREEMENT,
    MISSING,
    Estimate,
    Report,
    Run,
    estimate,
    finite,
    flat,
    milliseconds,
    missing,
    number,
    steps,
    variants,
    words,
)
from sde_diffusion.report.table import table
from sde_diffusion.report.templating import environment

TOLD_OF_BITS = ("space", "samples", "nfe", "smallest_time")
ON_SCREEN = 3
"""Metrics that there is room for on a screen, beside the distance to the flow."""


def with_error(found: Estimate | None) -> str:
    """`1.84 +- 0.11`: the value and half its interval."""
    if found is None:
        return "-"
    return number(found.value) if found.half is None else f"{number(found.value)} +- {number(found.half, 2)}"


def seconds(run: Run) -> str:
    """What all samples of a run took."""
    found = finite((run.get("timing") or {}).get("seconds"))
    return "-" if found is None else number(found)


def reasons(report: Report) -> list[str]:
    """Why values are missing: a sentence for each reason, with the labels or, of some of a label's, the runs."""
    whole: dict[str, set[str]] = {}
    found: dict[tuple[str, str], set[str]] = {}
    for run in report["runs"]:
        whole.setdefault(run["label"], set()).add(run["id"])
        lacking = [metric for metric in report["metrics"] if estimate(run, metric) is None]
        if run.get("failed"):
            found.setdefault(("failed", run["failed"]), set()).add(run["id"])
            continue
        for reason in dict.fromkeys(missing(run, metric) for metric in lacking):
            metrics = [metric for metric in lacking if missing(run, metric) == reason]
            found.setdefault((f"no {words(metrics)}", reason or "no reason was given"), set()).add(run["id"])
    sentences = []
    for (what, reason), ids in found.items():
        named = [label for label, of in whole.items() if of <= ids]
        named += [run["id"] for run in report["runs"] if run["id"] in ids and run["label"] not in named]
        sentences.append(f"{words(named)}: {what}: {reason}")
    return sentences


def comparison_rows(report: Report, metrics: Sequence[str]) -> list[dict[str, str]]:
    """A row of text for each run: its label, its variant if there are several, its cost and some metrics."""
    several = len(variants(report)) > 1
    return [
        {
            "sampler": run["label"] + ("  (failed)" if run.get("failed") else ""),
            **({"variant": str(run.get("variant", ""))} if several else {}),
            "steps": steps(run),
            "nfe": str(run.get("nfe") or "-"),
            **{metric: with_error(estimate(run, metric)) for metric in metrics},
            "seconds": seconds(run),
        }
        for run in report["runs"]
    ]


def to_the_right(rows: Sequence[dict[str, str]], texts: Sequence[str]) -> list[dict[str, str]]:
    """Rows whose columns other than `texts` are padded to end together, their headers too."""
    widths = {key: max(len(row[key]) for row in [{key: key}, *rows]) for key in rows[0]}
    return [
        {
            key if key in texts else key.rjust(widths[key]): text if key in texts else text.rjust(widths[key])
            for key, text in row.items()
        }
        for row in rows
    ]


def comparison_table(report: Report) -> str:
    """All runs as lines of aligned columns, with the first metrics, and below them why values are missing."""
    if not report["runs"]:
        return "no runs"
    shown = [metric for metric in report["metrics"] if metric != AGREEMENT][:ON_SCREEN]
    shown += [metric for metric in report["metrics"] if metric == AGREEMENT]
    rows = to_the_right(comparison_rows(report, shown), ("sampler", "variant"))
    return "\n".join([table(rows), *([""] if (why := reasons(report)) else []), *why])


def comparison_csv(report: Report) -> str:
    """All runs as CSV, a row each; numbers in full, and nothing where there is none."""
    metrics = [f"{metric}{end}" for metric in report["metrics"] for end in ("", "_low", "_high")]
    told = ["id", "sampler", "label", "variant", "noise", "order", "steps", "tolerance", "nfe", "samples"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*told, *metrics, "seconds", "milliseconds_per_sample", "failed", "reason"])
    writer.writeheader()
    for run in report["runs"]:
        row = {key: run.get(key) for key in told}
        row |= {
            "seconds": finite((run.get("timing") or {}).get("seconds")),
            "milliseconds_per_sample": milliseconds(run),
        }
        why = []
        for metric in report["metrics"]:
            if found := estimate(run, metric):
                row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
            elif (reason := missing(run, metric)) and not run.get("failed"):
                why.append(f"{metric}: {reason}")
        writer.writerow({**row, "failed": run.get("failed") or "", "reason": "; ".join(why)})
    return buffer.getvalue()


def comparison_markdown(report: Report) -> str:
    """The recommendation, all runs, what is missing, bits/dim, the protocol and the warnings, as Markdown."""
    template = environment().get_template("comparison.md.j2")
    return template.render(
        report=report,
        recommendation=report.get("recommendation") or recommend(report),
        rows=comparison_rows(report, list(report["metrics"])),
        reasons=reasons(report),
        likelihood=likelihood_rows(report),
        protocol=flat(report.get("protocol", {})),
        reference=flat(report.get("reference", {})),
    )


def likelihood_rows(report: Report) -> list[dict[str, str]]:
    """A row of text for each estimate of bits/dim."""
    return [
        {
            "estimate": {"ode": "probability flow", "elbo": "variational bound"}.get(kind, kind),
            "bits/dim": f"{found['bits_per_dim']:.4f}",
            "standard error": f"{found['standard_error']:.4f}"
            if finite(found.get("standard_error")) is not None
            else MISSING,
            "interval": "[{:.4f}, {:.4f}]".format(*found["interval"]) if found.get("interval") else MISSING,
            **{key.replace("_", " "): str(found.get(key) or MISSING) for key in TOLD_OF_BITS},
        }
        for kind, found in (report.get("likelihood") or {}).items()
        if finite(found.get("bits_per_dim")) is not None
    ]
