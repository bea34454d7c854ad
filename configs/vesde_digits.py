"""8x8 digits under the VE-SDE."""

from ml_collections import ConfigDict

from configs import vpsde_digits


def get_config() -> ConfigDict:
    """8x8 digits under the VE-SDE."""
    config = vpsde_digits.get_config()
    config.process.name = "VESDE"
    config.process.sigma_min = 0.01
    config.process.sigma_max = 16.0  # about the largest distance of two digits (Song and Ermon 2020, Technique 1)
    config.model.prediction = "edm"
    config.model.label = "logsnr"
    config.model.input_scale = "unit"
    config.training.weighting = "edm"
    return config
