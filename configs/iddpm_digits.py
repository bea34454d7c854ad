"""8x8 digits with iDDPM: cosine levels, a learned variance, L_hybrid (Nichol and Dhariwal 2021).

The network and the optimiser are those of vpsde_digits. The data stay at their grey levels, whose probabilities the
discrete bound is about. With 100 levels the first has a noise of a fifth of the 17 grey levels' distance (two fifths in
the paper, with 4000 for 256); below it every level would cost bits for what the decoder decides at once.
"""

from ml_collections import ConfigDict

from configs import vpsde_digits


def get_config() -> ConfigDict:
    """8x8 digits with iDDPM: cosine levels, a learned variance, L_hybrid."""
    config = vpsde_digits.get_config()
    config.data.dequantize = False
    config.process.name = "DiscreteCosineVP"
    config.process.levels = 100
    config.model.prediction = "v"
    config.model.variance = "learned_range"
    config.training.loss = "hybrid"
    config.training.weighting = "simple"
    config.training.times = "levels"
    config.sampling.grid = "respaced"
    config.sampling.gallery = ("ddpm:100:variance=learned", "ddim:50", "ode")
    config.likelihood.t_min = 0.01  # the first level
    config.likelihood.terms = 0
    return config
