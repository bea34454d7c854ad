"""CIFAR-10 with DDPM: 1000 discrete noise levels, linear betas.

Hyper-parameters of Ho et al. (2020), section 4 and Appendix B: betas from 1e-4 to 0.02, batch 128, learning rate
2e-4, 800,000 steps, EMA 0.9999, dropout 0.1, random flips; warm-up of 5000 steps and clipping as in their code.
"""

from ml_collections import ConfigDict

from configs import vpsde_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 with DDPM: 1000 discrete noise levels, linear betas."""
    config = vpsde_cifar.get_config()
    config.process.name = "DiscreteVP"
    config.model.label = "index"
    config.training.times = "levels"
    config.training.steps = 800_000
    config.sampling.sampler = "ddpm"
    config.sampling.grid = "strided"
    config.sampling.clip = True
    config.sampling.gallery = ("ddpm:1000", "ddim:50", "ode")
    config.likelihood.t_min = 0.001  # the first level
    return config
