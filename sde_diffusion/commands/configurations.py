"""The configurations that come with the package, those of people, and those of runs; and how they name each other.

In a wheel they are sde_diffusion/configs, in a checkout configs/ beside the package. Wherever they are, a configuration
file says `from configs import base`.
"""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ml_collections import ConfigDict, config_flags

from sde_diffusion.commands.flags import FLAGS, value_of
from sde_diffusion.core.errors import UserError, choose, nearest

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())
"""The folder of the configurations that come with the package."""
STORED = PACKAGE / "commands" / "stored.py"
"""The configuration file of runs: its variant is the run folder."""


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
    """The arguments with a configuration's name replaced by its path; without one, with the configuration of the run.

    Raises UserError for a name that is neither a file of configs/ nor a path, and for keys without a configuration.
    """
    resolved, named = list(argv), False
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and i + 1 == len(argv):
            raise UserError(f"--config needs a name; {nearest('', config_names())}")
        named, at = True, i if equals else i + 1
        name, colon, variants = (value if equals else argv[i + 1]).partition(":")
        file = config_path(name)
        if colon:
            check_variants(file, variants)
        path = f"{file}{colon}{variants}"
        resolved[at] = f"{flag}={path}" if equals else path
    return resolved if named else with_stored(resolved)


def with_stored(argv: list[str]) -> list[str]:
    """The arguments, with --config for the run that --workdir names, or for the defaults where a network is imported.

    Keys that are set beside it go over the run's own values.
    """
    workdir = value_of(argv, "workdir") or ""
    if value_of(argv, "mode") == "import" or (workdir and is_run(Path(workdir))):
        from sde_diffusion.commands.stored import get_config

        get_config(workdir)  # absl would not say what is wrong with it in one sentence
        return [argv[0], f"--config={STORED}:{workdir}", *argv[1:]]
    key = next((argument for argument in argv if re.match(r"--?config\.", argument)), None)
    if key:
        raise UserError(f"{key} changes a configuration, and there is none: {no_config(workdir)}")
    return argv


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or the beginning of one."""
    return (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()


def no_config(workdir: str) -> str:
    """The sentence for a command line without a configuration, and without a run that has one."""
    from sde_diffusion.storage.files import similar_folder

    there = f" ({workdir} is no run folder{similar_folder(Path(workdir))})" if workdir else ""
    return f"--config is needed{there}; {nearest('', config_names())}"


def chosen_config() -> tuple[ConfigDict, str]:
    """The configuration and its name, of --config or of the run. Raises UserError where there is none."""
    if FLAGS.config is None:
        raise UserError(no_config(FLAGS.workdir or ""))
    path, _, variants = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    if Path(path) == STORED:
        return FLAGS.config, Path(variants).name if variants else Path(FLAGS.path or "import").stem
    return FLAGS.config, "_".join([Path(path).stem, *filter(None, re.split(r"[\s,]+", variants))])
