"""CIFAR-10 with iDDPM: 4000 levels, cosine, a learned variance, L_hybrid.

Hyper-parameters of Nichol and Dhariwal (2021), section 3 and Appendix A, and of their code: no flips, three blocks
a level, attention of four heads at 16 and 8 pixels, scale-shift norm, steps told on a scale of 1000, dropout 0.3,
learning rate 1e-4, batch 128, 500,000 steps, EMA 0.9999. 52.5 million parameters.
"""

from ml_collections import ConfigDict

from configs import ddpm_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 with iDDPM: 4000 levels, cosine, a learned variance, L_hybrid."""
    config = ddpm_cifar.get_config()
    config.data.flip = False
    config.process.name = "DiscreteCosineVP"
    config.process.levels = 4000
    config.model.variance = "learned_range"
    config.model.dropout = 0.3
    config.model.network = "adm"
    config.model.label = "index_1000"
    with config.unlocked():
        config.model.options = ConfigDict({"blocks": 3, "attention_factors": (2, 4), "heads": 4})
    config.training.loss = "hybrid"
    config.training.learning_rate = 1e-4
    config.training.warmup_steps = 0
    config.training.grad_clip = 0.0
    config.training.steps = 500_000
    config.sampling.grid = "respaced"
    config.sampling.options = ConfigDict({"variance": "learned"})
    config.sampling.gallery = ("ddpm:100:variance=learned", "ddim:50", "ode")
    config.likelihood.t_min = 0.00025  # the first level
    return config
