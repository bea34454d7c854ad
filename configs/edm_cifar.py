"""CIFAR-10 with EDM: the DDPM++ network of Karras et al.; variants "ve" (their NCSN++) and "cond" (told the class).

Hyper-parameters of Karras et al. (2022), Table 7 and Appendix F, and of their code: batch 512, learning rate 1e-3 after
a warm-up of 10 million images, 200 million images, EMA with a half-life of 500,000 images, dropout 0.13, augmentation
with probability 0.12. 55.7 million parameters, 56.4 million with "ve".
"""

from ml_collections import ConfigDict

from configs import base, variants
from sde_diffusion.nets.resample import BINOMIAL

BATCH = 512


def get_config(chosen: str = "") -> ConfigDict:
    """CIFAR-10 with EDM."""
    wanted = variants.read(chosen, ("ve", "cond"))
    config = base.get_config()
    config.data.dataset = "cifar10"
    config.process.name = "EDM"
    config.process.sigma_min = 0.002
    config.process.sigma_max = 80.0
    config.model.network = "songunet"
    config.model.prediction = "edm"
    config.model.label = "edm"
    config.model.input_scale = "unit"
    config.model.dropout = 0.13
    config.model.class_conditional = "cond" in wanted
    options = {"multipliers": (2, 2, 2), "blocks": 4}
    if "ve" in wanted:
        config.model.embedding = "fourier"
        options |= {"features": 2, "taps": BINOMIAL, "input_pyramid": "residual"}
    with config.unlocked():
        config.model.options = ConfigDict(options)
    config.training.weighting = "edm"
    config.training.times = "lognormal"
    config.training.augment = 0.12
    config.training.batch_size = BATCH
    config.training.steps = 200_000_000 // BATCH
    config.training.learning_rate = 1e-3
    config.training.warmup_steps = 10_000_000 // BATCH
    config.training.grad_clip = 0.0
    config.training.ema_decay = 0.5 ** (BATCH / 500_000)
    config.training.evaluate_every = 10_000
    config.training.sample_every = 50_000
    config.training.checkpoint_every = 10_000
    config.sampling.sampler = "heun"
    config.sampling.steps = 18
    config.sampling.gallery = ("heun:18", "dpmpp_2m:18", "ode")
    config.likelihood.figures = ("ode",)
    config.likelihood.num_samples = 1000
    return config
