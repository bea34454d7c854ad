"""Samplers where the truth is known: an anisotropic mixture of Gaussians in 12 dimensions, without any network."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Samplers where the truth is known: an anisotropic mixture of Gaussians in 12 dimensions, without any network."""
    config = base.get_config()
    config.oracle.kind = "mixture"
    config.sampling.num_samples = 5000
    config.sampling.batch_size = 5000
    config.compare.samplers = (
        "ddpm",
        "ddim",
        "euler_maruyama",
        "reverse_diffusion",
        "pc",
        "heun",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "unipc",
        "ode",
    )
    config.compare.steps = (5, 10, 20, 50, 100)
    config.compare.metrics = ("sliced_wasserstein",)  # beside the errors of mean and covariance, which are exact
    config.compare.bootstraps = 50
    config.compare.flow_rtol = 1e-8
    return config
