"""The defaults: a small U-Net on 8x8 digits under the VP-SDE. Other configurations override what differs.

Every key, with its unit and its meaning, is a field of a section in sde_diffusion: `--mode settings` prints them all.
"""

from ml_collections import ConfigDict

from sde_diffusion.settings.root import Settings


def get_config() -> ConfigDict:
    """The defaults of all settings."""
    return Settings().config()
