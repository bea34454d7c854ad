"""Networks of other code bases: the section "importing" of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sde_diffusion.core.settings import Section, one_of, setting
from sde_diffusion.importers import SOURCES


@dataclass(frozen=True)
class ImportingSettings(Section):
    """--mode import and export."""

    key: ClassVar[str] = "importing"

    source: str = setting("score_sde", "the code base: " + ", ".join(SOURCES), one_of("source", SOURCES))
    path: str = setting("", "the file, or diffusers' folder")
    config: str = setting(
        "", "where the file has none: JSON or YAML file of the source's own keys, or a published name"
    )
