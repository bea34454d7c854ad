"""5,000 MNIST digits, padded to 32x32, under the VP-SDE."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """5,000 MNIST digits, padded to 32x32, under the VP-SDE."""
    config = base.get_config()
    config.data.dataset = "mnist5k"
    config.data.dequantize = True
    config.model.unet.channels = 32
    config.model.unet.multipliers = (1, 2, 2, 2)
    config.model.unet.blocks = 1
    config.model.unet.attention_resolutions = (8,)
    config.training.steps = 5000
    config.training.batch_size = 64
    config.training.learning_rate = 1e-3
    config.training.cooldown_steps = 2500
    config.training.weighting = "v"
    config.training.times = "stratified"
    config.training.sample_every = 1000
    config.likelihood.num_samples = 100
    config.sampling.batch_size = 64
    config.likelihood.batch_size = 50
    return config
