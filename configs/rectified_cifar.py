"""CIFAR-10 under rectified flow, with DDPM++.

The network and optimiser of `ddpmpp_cifar`; the velocity eps - x_0 and its squared error as the loss, as in rectified
flow's own runs on CIFAR-10 (Liu et al. 2022, section 5.1), with logit-normal times (Esser et al. 2024, equation 19).
"""

from ml_collections import ConfigDict

from configs import ddpmpp_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 under rectified flow."""
    config = ddpmpp_cifar.get_config()
    config.process.name = "RectifiedFlow"
    config.model.prediction = "velocity"
    config.model.label = "thousand_time"
    config.training.weighting = "velocity"
    config.training.times = "logit_normal"
    config.training.p_mean = 0.0
    config.training.p_std = 1.0
    config.sampling.gallery = ("euler:100", "heun:50", "ode")
    config.sampling.sampler = "ode"
    config.sampling.steps = 50
    return config
