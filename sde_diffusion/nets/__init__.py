"""Score networks: functions of (x, c_noise, conditions) that know neither the process nor the data range."""

from torch import nn

from sde_diffusion.nets.adm import ADM, DhariwalUNet
from sde_diffusion.nets.ddpm import DDPM
from sde_diffusion.nets.dit import DiT
from sde_diffusion.nets.lucidrains import LucidUNet
from sde_diffusion.nets.mlp import ResidualMLP
from sde_diffusion.nets.ncsnpp import DDPMpp, NCSNpp, SongUNet
from sde_diffusion.nets.ncsnv2 import NCSNv2
from sde_diffusion.nets.unet import UNet
from sde_diffusion.nets.unet2d import UNet2D

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "mlp": ResidualMLP,
    "ddpm": DDPM,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "ncsnv2": NCSNv2,
    "adm": ADM,
    "songunet": SongUNet,
    "dhariwal": DhariwalUNet,
    "unet2d": UNet2D,
    "dit": DiT,
    "lucidrains": LucidUNet,
}

__all__ = [
    "ADM",
    "DDPM",
    "NETWORKS",
    "DDPMpp",
    "DhariwalUNet",
    "DiT",
    "LucidUNet",
    "NCSNpp",
    "NCSNv2",
    "ResidualMLP",
    "SongUNet",
    "UNet",
    "UNet2D",
]
