"""What a source's reader finds in a file, and the reading of configurations under the source's own key names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose, nearest
from sde_diffusion.core.packages import extra
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.importers.rules import Rule

Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Foreign:
    """A network of another code base.

    spec        its description here
    net         the network that the spec describes, without memory: its keys, shapes and dtypes
    rules       from its keys to ours
    weights     under its own keys; averages: the averaged ones, where the file has both
    averaged    whether `weights` are an average themselves
    ignored     keys that carry nothing which the spec does not say
    step        of its training, where the file says it
    sampling    keys of a configuration's section of that name which the source has for it
    """

    spec: NetworkSpec
    net: nn.Module
    rules: Sequence[Rule]
    weights: Mapping[str, Tensor]
    averages: Mapping[str, Tensor] | None = None
    ignored: Sequence[str] = field(default_factory=tuple)
    step: int = 0
    sampling: Settings = field(default_factory=dict)
    averaged: bool = False


def read_settings(
    config: Mapping[str, Any] | str | Path | None, published: Mapping[str, Settings], path: Path
) -> Settings | None:
    """A configuration given as a mapping, a JSON or YAML file or a published model's name; None where there is none.

    Without one, a file whose stem is the name of a published model has that one's. Such a file may hold the
    configuration under the key "config". Raises UserError for a name or a file that is not there, or is no JSON.
    """
    if config is None:
        return published.get(path.stem)
    if isinstance(config, Mapping):
        found: Any = config
    elif not isinstance(config, str | Path):
        raise UserError(f"config should be a mapping, a JSON file or the name of a published model, got {config!r}")
    elif str(config) in published:
        found = published[str(config)]
    else:
        place = Path(config).expanduser()
        if not place.is_file():
            names = f", and no published model of that name; {nearest(str(config), published)}" if published else ""
            raise UserError(f"there is no configuration file {config}{names}")
        found = read_yaml(place) if place.suffix in (".yml", ".yaml") else read_json(place)
    inner = found.get("config")
    return dict(inner) if isinstance(inner, Mapping) else dict(found)


def read_json(path: Path) -> Settings:
    """The object in a JSON file. Raises UserError for a file that holds none."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} should hold a JSON object")
    return found


def read_yaml(path: Path) -> Settings:
    """The mapping in a YAML file, whose values are plain. Raises UserError for a file that holds none."""
    with extra("cli"):
        import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} should hold a YAML mapping")
    return found


def resolved(what: str, given: Mapping[str, Any], defaults: Mapping[str, Any], unused: Iterable[str] = ()) -> Settings:
    """The defaults with the given values in place. Raises UserError for a key that the source does not have.

    unused: keys that the source has and that say nothing about the network or its process.
    """
    for key in given:
        if key not in defaults and key not in set(unused):
            raise UserError(f"unknown key {key!r} in the {what} configuration; {nearest(str(key), defaults)}")
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


def needed(what: str, given: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises UserError for the first keys that a configuration lacks."""
    lacking = [key for key in keys if key not in given]
    if lacking:
        raise UserError(f"the {what} configuration lacks {', '.join(lacking)}")


def only(what: str, key: str, value: Any, supported: Iterable[Any]) -> None:
    """Raises UserError for a value of a setting that is not supported here."""
    values = list(supported)
    if value not in values:
        raise UserError(f"{what}: {key} = {value!r} is not supported; supported: {', '.join(map(repr, values))}")


def chosen(what: str, value: Any, table: Mapping[str, Any]) -> Any:
    """`table[value]` for text of any case. Raises UserError for an unknown one."""
    return choose(what, str(value).lower(), table)
