"""CIFAR-10 under the VP-SDE, with the DDPM network.

Hyper-parameters of Song et al. (2021), Appendices C and H, as in configs/vp/ddpm/cifar10_continuous.py of
score_sde_pytorch: Ho et al.'s U-Net of 35.7M parameters, continuous time.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """CIFAR-10 under the VP-SDE, with the DDPM network."""
    config = base.get_config()
    config.seed = 42
    config.data.dataset = "cifar10"
    config.data.flip = True
    config.model.prediction = "eps"
    config.model.dropout = 0.1
    config.model.unet.channels = 128
    config.model.unet.multipliers = (1, 2, 2, 2)
    config.model.unet.blocks = 2
    config.model.unet.attention_resolutions = (16,)
    config.training.steps = 1_300_000
    config.training.batch_size = 128
    config.training.learning_rate = 2e-4
    config.training.warmup_steps = 5000
    config.training.ema_decay = 0.9999
    config.training.evaluate_every = 10_000
    config.training.sample_every = 50_000
    config.training.checkpoint_every = 10_000
    config.sampling.gallery = ("euler_maruyama:1000", "ddim:50", "ode")
    config.sampling.sampler = "euler_maruyama"
    config.sampling.steps = 1000
    config.sampling.batch_size = 64
    config.likelihood.num_samples = 1000
    config.likelihood.batch_size = 64
    config.likelihood.rtol = 1e-5
    config.likelihood.atol = 1e-5
    return config
