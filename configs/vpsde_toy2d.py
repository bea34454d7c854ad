"""Points in the plane under the VP-SDE, with a residual MLP."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Points in the plane under the VP-SDE, with a residual MLP."""
    config = base.get_config()
    config.data.dataset = "toy2d"
    config.model.network = "mlp"
    config.training.steps = 3000
    config.training.batch_size = 512
    config.training.learning_rate = 1e-3
    config.training.cooldown_steps = 2000
    config.training.weighting = "v"
    config.training.times = "stratified"
    config.training.sample_every = 1000
    config.sampling.num_samples = 2000
    config.sampling.batch_size = 2000
    config.likelihood.divergence = "exact"
    return config
