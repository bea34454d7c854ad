"""CIFAR-10 under the sub-VP-SDE, with the DDPM network.

As vpsde_cifar; Song et al. (2021) give sub-VP models the same settings (configs/subvp/cifar10_ddpm_continuous.py).
"""

from ml_collections import ConfigDict

from configs import vpsde_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 under the sub-VP-SDE, with the DDPM network."""
    config = vpsde_cifar.get_config()
    config.process.name = "SubVPSDE"
    return config
