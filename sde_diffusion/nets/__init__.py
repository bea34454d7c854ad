"""Score networks: functions of (x, noise label, class) that know neither the process nor the data range."""

from torch import nn

from sde_diffusion.nets.mlp import ResidualMLP
from sde_diffusion.nets.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "mlp": ResidualMLP}

__all__ = ["NETWORKS", "ResidualMLP", "UNet"]
