"""CIFAR-10 with NCSN++ under the VE-SDE; the variant "deep" has eight blocks a level.

Hyper-parameters of Song et al. (2021), Appendices C and H.1, as in configs/ve/cifar10_ncsnpp_(deep_)continuous.py of
score_sde_pytorch. Their data lie in [0, 1] with sigma from 0.01 to 50; ours in [-1, 1], where the same noise levels are
0.02 to 100 and the features are those of log(sigma/2). 62.8 million parameters, 107.6 million with "deep".
"""

from ml_collections import ConfigDict

from configs import variants, vesde_cifar


def get_config(chosen: str = "") -> ConfigDict:
    """CIFAR-10 with NCSN++."""
    wanted = variants.read(chosen, ("deep",))
    config = vesde_cifar.get_config()
    config.model.network = "ncsnpp"
    config.model.prediction = "sigma_score"
    config.model.label = "log_half_sigma"
    config.model.input_scale = "none"
    with config.unlocked():
        config.model.options = ConfigDict({"blocks": 8 if "deep" in wanted else 4})
    if "deep" in wanted:
        config.training.steps = 950_000
    return config
