"""A person's own pictures, in a folder or a zip archive: --config.data.root=DIR is all that it needs.

The size, and whether the network is told the class, are left open (None): they are chosen by the pictures, and said.
The network and its training are those of the digits (vpsde_digits.py), larger: EDM's preconditioning, weighting and
times (Karras et al. 2022, Table 1) under the VP-SDE. On a GPU a training takes hours; --mode data says at once what it
would read.
"""

from ml_collections import ConfigDict, config_dict

from configs import base


def get_config() -> ConfigDict:
    """Pictures of a folder or an archive, with classes or without."""
    config = base.get_config()
    config.data.dataset = "folder"
    config.data.image_size = config_dict.placeholder(object)
    config.model.class_conditional = config_dict.placeholder(bool)
    config.model.prediction = "edm"
    config.model.label = "logsnr"
    config.model.dropout = 0.1
    config.model.unet.channels = 64
    config.model.unet.multipliers = (1, 2, 2, 2)
    config.model.unet.blocks = 2
    config.model.unet.attention_resolutions = (16, 8)
    config.training.steps = 50_000
    config.training.batch_size = 64
    config.training.learning_rate = 2e-4
    config.training.ema_decay = 0.999
    config.training.label_dropout = 0.1
    config.training.weighting = "edm"
    config.training.times = "lognormal"
    config.training.p_mean = -0.6
    config.training.p_std = 1.2
    config.training.evaluate_every = 2000
    config.training.sample_every = 2000
    config.training.checkpoint_every = 1000
    config.sampling.gallery = ("ddim:50", "dpmpp_2m:20")
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.steps = 20
    config.compare.samplers = ("ddim", "heun", "dpmpp_2m", "unipc")
    config.likelihood.num_samples = 64
    config.likelihood.terms = 100
    return config
