"""8x8 digits under the VP-SDE: the default job, minutes on two CPU cores."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """8x8 digits under the VP-SDE: the default job, minutes on two CPU cores."""
    config = base.get_config()
    config.data.dequantize = True  # so that bits/dim is the likelihood of what the network was trained on
    config.model.unet.channels = 48
    config.model.unet.multipliers = (1, 2)
    config.model.unet.blocks = 2
    config.model.unet.attention_resolutions = (4,)
    config.training.steps = 1500
    config.training.learning_rate = 2e-3
    config.training.cooldown_steps = 1000
    config.training.ema_decay = 0.995
    config.training.weighting = "v"
    config.training.times = "stratified"
    config.training.evaluate_every = 500
    config.training.sample_every = 500
    config.training.checkpoint_every = 500
    config.sampling.num_samples = 500
    return config
