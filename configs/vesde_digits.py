"""8x8 digits under the VE-SDE."""

from ml_collections import ConfigDict

from configs import vpsde_digits


def get_config() -> ConfigDict:
    """8x8 digits under the VE-SDE."""
    config = vpsde_digits.get_config()
    config.process.name = "VESDE"
    config.process.sigma_min = 0.01
    config.process.sigma_max = 10.0  # the largest distance of two digits is 9.6 (Song and Ermon 2020, Technique 1)
    config.model.input_scale = "unit"
    return config
