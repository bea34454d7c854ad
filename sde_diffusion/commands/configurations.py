"""The configurations that come with the package, and those of people: by name or path, and how they name each other.

In a wheel they are sde_diffusion/configs, in a checkout configs/ beside the package. Wherever they are, a configuration
file says `from configs import base`.
"""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ml_collections import ConfigDict, config_flags

from sde_diffusion.commands.flags import FLAGS
from sde_diffusion.core.errors import UserError, choose, nearest

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())
"""The folder of the configurations that come with the package."""


def name_bundled() -> None:
    """Make `configs` the name of the bundled configurations in this process, whatever else is called so."""
    if "configs" not in sys.modules:
        spec = spec_from_file_location("configs", CONFIGS / "__init__.py", submodule_search_locations=[str(CONFIGS)])
        assert spec is not None and spec.loader is not None  # as for every file that ends in .py
        sys.modules["configs"] = package = module_from_spec(spec)
        spec.loader.exec_module(package)


def config_names() -> list[str]:
    """The configurations that a name can choose."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("__init__", "base", "variants"))


def config_path(name: str) -> Path:
    """The file of a configuration that is given by name or path."""
    if Path(name).is_file():
        return Path(name)
    if name.endswith(".py") or "/" in name:
        raise UserError(f"there is no configuration file {name}; {nearest(Path(name).stem, config_names())}")
    choose("configuration", name, dict.fromkeys(config_names()))
    return CONFIGS / f"{name}.py"


def check_variants(file: Path, chosen: str) -> None:
    """Raises UserError for a variant that the configuration does not have, before absl's own reading of the flag."""
    get_config = runpy.run_path(str(file))["get_config"]
    if not inspect.signature(get_config).parameters:
        raise UserError(f"the configuration {file.stem!r} has no variants, and {chosen!r} is asked of it")
    get_config(chosen)


def resolve_config(argv: list[str]) -> list[str]:
    """The arguments with a configuration's name replaced by its path.

    Raises UserError for a name that is neither a file of configs/ nor a path.
    """
    resolved = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and i + 1 == len(argv):
            raise UserError(f"--config needs a name; {nearest('', config_names())}")
        at = i if equals else i + 1
        name, colon, variants = (value if equals else argv[i + 1]).partition(":")
        file = config_path(name)
        if colon:
            check_variants(file, variants)
        path = f"{file}{colon}{variants}"
        resolved[at] = f"{flag}={path}" if equals else path
    return resolved


def chosen_config() -> tuple[ConfigDict, str]:
    """The configuration and its name: of --config, or the one that the run folder holds, or for an import the base.

    Raises UserError where there is none.
    """
    if FLAGS.config is not None:
        path, _, variants = config_flags.get_config_filename(FLAGS["config"]).partition(":")
        return FLAGS.config, "_".join([Path(path).stem, *filter(None, re.split(r"[\s,]+", variants))])
    base: Callable[[], ConfigDict] = import_module("configs.base").get_config
    stored = Path(FLAGS.workdir or "") / "config.json"
    if FLAGS.workdir and stored.is_file():
        config = base()
        known = {name: value for name, value in json.loads(stored.read_text()).items() if name in config}
        with config.unlocked():
            config.update(known)
        return config, Path(FLAGS.workdir).name
    if FLAGS.mode == "import" or (FLAGS.workdir and (Path(FLAGS.workdir) / "checkpoints").is_dir()):
        return base(), Path(FLAGS.path or "import").stem
    raise UserError(f"--config is needed; {nearest('', config_names())}")
