"""--mode settings: every setting with its default and meaning, as a table."""

from __future__ import annotations

from sde_diffusion.core.errors import choose
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.settings.root import Settings


def settings_text(section: str = "") -> str:
    """Every setting with its default and meaning, or those of a section. Raises UserError for an unknown section."""
    rows = [
        {"setting": key, "default": str(value) if value != "" else "''", "meaning": meaning}
        for key, value, meaning in Settings().items()
    ]
    if section:
        names = {row["setting"].partition(".")[0] for row in rows if "." in row["setting"]}
        choose("section of the settings", section, dict.fromkeys(names))
        rows = [row for row in rows if row["setting"].startswith(f"{section}.")]
    return table(wrapped(rows, {"default": 24, "meaning": 64}))
