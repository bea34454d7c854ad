"""8x8 digits under the sub-VP-SDE."""

from ml_collections import ConfigDict

from configs import vpsde_digits


def get_config() -> ConfigDict:
    """8x8 digits under the sub-VP-SDE."""
    config = vpsde_digits.get_config()
    config.process.name = "SubVPSDE"
    return config
