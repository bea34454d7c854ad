"""8x8 digits under the VP-SDE: the default job, minutes on two CPU cores.

One small class-conditional U-Net. A tenth of the training samples come without their class, so that the network also
knows the digits as a whole. Preconditioning, weighting and times are EDM's (Karras et al. 2022, Table 1) but for the
mean of log sigma, which is higher because the shape of these digits is decided at more noise. The network is told the
log-SNR: the sinusoids of 999 t ripple at a thousandth of t, which makes the flow rough, so that adaptive solvers take
more than twice the evaluations, at the same quality of samples and the same bits/dim.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """8x8 digits under the VP-SDE: the default job, minutes on two CPU cores."""
    config = base.get_config()
    config.data.dequantize = True  # so that bits/dim is the likelihood of what the network was trained on
    config.model.class_conditional = True
    config.model.prediction = "edm"
    config.model.label = "logsnr"
    config.model.unet.channels = 24
    config.model.unet.multipliers = (1, 2, 2)
    config.model.unet.blocks = 1
    config.model.unet.attention_resolutions = (4,)
    config.training.steps = 1250
    config.training.batch_size = 64
    config.training.learning_rate = 2e-3
    config.training.adam_betas = (0.9, 0.99)
    config.training.cooldown_steps = 875
    config.training.ema_decay = 0.995
    config.training.label_dropout = 0.1
    config.training.weighting = "edm"
    config.training.times = "lognormal"
    config.training.p_mean = -0.6
    config.training.p_std = 1.2
    config.training.evaluate_every = 500
    config.training.sample_every = 1250
    config.training.checkpoint_every = 250
    config.sampling.num_samples = 500
    config.sampling.gallery = ("ddim:50", "pc:50", "ode")
    config.likelihood.terms = 100
    return config
