"""CIFAR-10 with DDPM++ under the VP-SDE; variants "subvp" (under the sub-VP-SDE) and "deep" (eight blocks a level).

Hyper-parameters of Song et al. (2021), Appendices C and H.2, as in cifar10_ddpmpp_(deep_)continuous.py of
score_sde_pytorch's configs/vp and configs/subvp. 61.8 million parameters, 106.6 million with "deep".
"""

from ml_collections import ConfigDict

from configs import variants, vpsde_cifar


def get_config(chosen: str = "") -> ConfigDict:
    """CIFAR-10 with DDPM++."""
    wanted = variants.read(chosen, ("subvp", "deep"))
    config = vpsde_cifar.get_config()
    config.model.network = "ddpmpp"
    with config.unlocked():
        config.model.options = ConfigDict({"blocks": 8 if "deep" in wanted else 4})
    if "subvp" in wanted:
        config.process.name = "SubVPSDE"
    if "deep" in wanted:
        config.training.steps = 950_000
    return config
