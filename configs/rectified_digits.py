"""8x8 digits under rectified flow: the network predicts the velocity, its times are logit-normal.

As `vpsde_digits` but for the process and what goes with it: straight paths, and the velocity eps - x_0 with its squared
error as the loss (Liu et al. 2022). Times have log(t/(1 - t)) ~ N(-0.6, 1.2^2): under rectified flow the logit-normal
law (Esser et al. 2024, equation 19) is the log-normal one of `vpsde_digits`, at the same log-SNR. The network is told
the time, for the log-SNR is infinite where only noise is left.
"""

from ml_collections import ConfigDict

from configs import vpsde_digits


def get_config() -> ConfigDict:
    """8x8 digits under rectified flow."""
    config = vpsde_digits.get_config()
    config.process.name = "RectifiedFlow"
    config.model.prediction = "velocity"
    config.model.label = "thousand_time"
    config.training.weighting = "velocity"
    config.training.times = "logit_normal"
    config.sampling.gallery = ("euler:50", "dpmpp_2m:20", "ode")
    return config
