"""The configuration of a run folder, as a configuration file: `--config .../stored.py:RUN`.

The command line puts it there itself where --workdir names a run and no --config is given, so that any
--config.SECTION.KEY=VALUE goes over the run's own configuration.
"""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from sde_diffusion.core.errors import UserError
from sde_diffusion.settings.root import Settings


def get_config(folder: str) -> ConfigDict:
    """The configuration that a run holds; the defaults where it holds none. Raises UserError for a file that is none.

    What a config.json of an earlier release does not have is at its default.
    """
    config, path = Settings().config(), Path(folder) / "config.json"
    if folder and path.is_file():
        try:
            stored = json.loads(path.read_text())
            with config.unlocked():
                config.update({name: value for name, value in stored.items() if name in config})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no configuration ({error}); --config NAME takes another one in its place"
            ) from error
    return config
