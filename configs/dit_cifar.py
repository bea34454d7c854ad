"""CIFAR-10 with the diffusion transformer DiT-S/2, on pixels, told the class.

Hyper-parameters of Peebles and Xie (2023), section 4, where the data are latents of the same size: linear betas, a
learned variance, batch 256, learning rate 1e-4 without warm-up or weight decay, EMA 0.9999, flips, classes withheld
from one sample in ten. 32.5 million parameters.
"""

from ml_collections import ConfigDict

from configs import ddpm_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 with DiT-S/2."""
    config = ddpm_cifar.get_config()
    config.model.network = "dit"
    config.model.dropout = 0.0
    config.model.variance = "learned_range"
    config.model.class_conditional = True
    with config.unlocked():
        config.model.options = ConfigDict({"patch": 2, "width": 384, "depth": 12, "heads": 6})
    config.training.loss = "hybrid"
    config.training.batch_size = 256
    config.training.learning_rate = 1e-4
    config.training.warmup_steps = 0
    config.training.grad_clip = 0.0
    config.training.steps = 400_000
    config.training.label_dropout = 0.1
    config.sampling.grid = "respaced"
    config.sampling.options = ConfigDict({"variance": "learned"})
    config.sampling.gallery = ("ddpm:250:variance=learned", "ddim:50", "ode")
    return config
