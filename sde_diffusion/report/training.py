"""What a training came to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.report.table import table


def training_summary(folder: Path, result: Mapping[str, Any]) -> str:
    """What a training came to, in a few lines."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items())
    levels = [
        {"log-SNR": f"{at['logsnr']:+.1f}", "held-out loss": f"{at['loss']:.4f}", "samples": at["samples"]}
        for at in result["held_out_by_level"]
    ]
    lines = [
        f"trained {folder} to step {result['steps']:,}: {result['seconds']:.0f} s in all, "
        f"{result['images_per_second']:,.0f} images/s; {shares}; {result['memory']['resident_peak']:.0f} MiB at most",
        f"loss {result['loss']:.4f}",
    ]
    if levels:
        lines[-1] += f", held-out {result['held_out_loss']:.4f}, by noise level:"
        lines.append(table(levels))
    if result["skipped_updates"]:
        lines.append(f"{result['skipped_updates']} updates were skipped, their losses being out of bounds")
    if result["corrupt_files"]:
        shown = ", ".join(result["corrupt_files"][:5])
        lines.append(f"files that could not be read ({len(result['corrupt_files'])}): {shown}")
    return "\n".join(lines)
