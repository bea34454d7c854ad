"""The table of what --mode may be. What a mode needs is imported when it is asked for.

A new mode is a function (settings, folder, engine) in a file of this folder, and one line in MODES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from sde_diffusion.runtime.engine import Engine
    from sde_diffusion.settings.root import Settings

    Mode = Callable[[Settings, Path, Engine], None]

T = TypeVar("T")


class Lazy(MutableMapping[str, T]):
    """A table whose values are imported as they are looked up. places: "module:function" within the package.

    What is put into it later is kept as it is.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._entries: dict[str, str | T] = dict(places)

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        found: T = resolve_name(f"sde_diffusion.{entry}") if isinstance(entry, str) else entry
        return found

    def __setitem__(self, name: str, value: T) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


MODES: Lazy[Mode] = Lazy(
    {
        "all": "commands.everything:everything",
        "train": "commands.training:train",
        "data": "commands.data:data",
        "sample": "commands.sampling:sample",
        "edit": "commands.edit:edit",
        "compare": "commands.compare:compare",
        "likelihood": "commands.likelihood:likelihood",
        "latents": "commands.latents:latents",
        "evaluate": "commands.evaluation:evaluate",
        "ema": "commands.evaluation:post_hoc",
        "import": "commands.exchange:import_network",
        "export": "commands.exchange:export_network",
    }
)
"""Work on a run folder."""

LISTINGS: Lazy[Callable[..., str]] = Lazy(
    {"samplers": "commands.catalogue:catalogue", "settings": "commands.settings:settings_text"}
)
"""Texts about the toolkit itself, without a configuration or a run, of what further arguments name."""
