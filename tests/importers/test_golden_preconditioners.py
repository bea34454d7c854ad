"""EDM's four preconditioners as homes of a network: their formulas by hand, and iDDPM's noise levels as published.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of Karras et al. 2022, Table 1. Their outputs with a network inside
are in test_golden_networks.py.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.kernel import Kernel, match
from sde_diffusion.denoisers.c_noise import C_NOISES
from sde_diffusion.denoisers.network import PRECONDITIONERS, NetworkDenoiser
from sde_diffusion.importers.edm import spec_of
from tests.golden.reference import arrays
from tests.nets.contract import randn

Formulas = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""sigma [B] -> c_skip, c_out, c_in, c_noise, all [B]."""

SIGMA_DATA = 0.5
BETA_D, BETA_MIN = 19.9, 0.1
LEVELS, C_1, C_2 = 1000, 0.001, 0.008
TABLE = arrays("networks/edm_iddpm_u_table")


class Probe(nn.Module):
    """Answers with fixed channels, of which a learned variance has twice as many, and keeps what it was asked."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.x, self.label = x, label
        return self.out


def edm(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm = (sigma**2 + SIGMA_DATA**2).sqrt()
    return SIGMA_DATA**2 / norm**2, sigma * SIGMA_DATA / norm, 1 / norm, sigma.log() / 4


def vp(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = ((BETA_MIN**2 + 2 * BETA_D * (sigma**2 + 1).log()).sqrt() - BETA_MIN) / BETA_D
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (LEVELS - 1) * t


def ve(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


def u() -> Tensor:
    """u_0 .. u_{M-1}, the largest first, from u_M = 0 by the recursion in the table's column of iDDPM, [M]."""

    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / LEVELS / (C_2 + 1)) ** 2

    levels = [0.0]
    for j in range(LEVELS, 0, -1):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), C_1) - 1))
    return torch.tensor(levels[:0:-1], dtype=torch.float64)


def iddpm(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nearest = (sigma[:, None] - u()).abs().argmin(1)
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (LEVELS - 1 - nearest).double()


def between(least: float, most: float) -> Tensor:
    return torch.linspace(math.log(least), math.log(most), 30, dtype=torch.float64).exp()


@pytest.mark.parametrize(
    ("cls", "formulas", "sigma"),
    [
        ("EDMPrecond", edm, between(1e-4, 700.0)),  # it has no ends
        ("VPPrecond", vp, between(0.002, 80.0)),
        ("VEPrecond", ve, between(0.02, 80.0)),
        ("iDDPMPrecond", iddpm, u()),
    ],
)
def test_formulas(cls: str, formulas: Formulas, sigma: Tensor) -> None:
    spec, _ = spec_of({"cls": cls, "img_resolution": 8})
    channels = 6 if spec.variance == "learned_range" else 3
    x, network = randn(len(sigma), 3, 2, 2), Probe(randn(len(sigma), channels, 2, 2, seed=1))
    out = NetworkDenoiser(network, spec)(x, Kernel(1.0, sigma))
    c_skip, c_out, c_in, c_noise = formulas(sigma)
    torch.testing.assert_close(network.x, match(c_in, x) * x, rtol=1e-9, atol=0)
    torch.testing.assert_close(network.label, c_noise, rtol=1e-9, atol=1e-9)
    expected = match(c_skip, x) * x + match(c_out, x) * network.out[:, :3]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "cls"), [("edm", "EDMPrecond"), ("vp", "VPPrecond"), ("ve", "VEPrecond"), ("iddpm", "iDDPMPrecond")]
)
def test_the_named_preconditioners_are_those_of_the_files(name: str, cls: str) -> None:
    found, _ = spec_of({"cls": cls, "img_resolution": 8})
    named = replace(PRECONDITIONERS[name], shape=found.shape, network=found.network, options=found.options)
    assert named.state() == found.state()


def test_iddpm_levels_are_those_of_the_cosine_schedule() -> None:
    """Of our table of betas, the recursion, and the source, whose u^2 = (...) - 1 is rounded in single precision."""
    levels = DiscreteVP.cosine(LEVELS).levels
    ratios = (levels.sigma / levels.alpha).flip(0)
    torch.testing.assert_close(ratios, u(), rtol=1e-9, atol=0)
    rounding = torch.finfo(torch.float32).eps / ratios
    assert ((ratios - TABLE["u"][:LEVELS]).abs() < 1e-5 * ratios + rounding).all()
    assert TABLE["u"][LEVELS] == 0


def test_iddpm_rounds_to_the_same_levels() -> None:
    process, sigma = DiscreteVP.cosine(LEVELS), TABLE["sigma_in"].double()
    label = C_NOISES["nearest_index"](process, process.time_of(-2 * sigma.log()))
    assert label.tolist() == (LEVELS - 1 - TABLE["index"]).tolist()
    nearest = process.levels[label.long()]
    torch.testing.assert_close(nearest.sigma / nearest.alpha, TABLE["rounded"].double(), rtol=1e-5, atol=0)
