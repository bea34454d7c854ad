"""CIFAR-10 under the VE-SDE, with the DDPM network.

Hyper-parameters of Song et al. (2021), Appendix C, as in configs/ve/cifar10_ncsnpp_continuous.py of
score_sde_pytorch: Fourier features of log sigma with scale 16, EMA 0.999, sampling by reverse diffusion with one
Langevin step of signal-to-noise ratio 0.16. Their data lie in [0, 1] with sigma from 0.01 to 50; ours in [-1, 1],
where the same noise levels are 0.02 to 100.
"""

from ml_collections import ConfigDict

from configs import vpsde_cifar


def get_config() -> ConfigDict:
    """CIFAR-10 under the VE-SDE, with the DDPM network."""
    config = vpsde_cifar.get_config()
    config.process.name = "VESDE"
    config.process.sigma_min = 0.02
    config.process.sigma_max = 100.0
    config.model.label = "log_sigma"
    config.model.embedding = "fourier"
    config.model.fourier_scale = 16.0
    config.model.input_scale = "unit"
    config.training.ema_decay = 0.999
    config.sampling.sampler = "pc"
    config.sampling.gallery = ("pc:1000", "ddim:50", "ode")
    return config
