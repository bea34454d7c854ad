"""How bits/dim and codes are computed: the sections "likelihood" and "latents" of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sde_diffusion.core.errors import UserError, nearest
from sde_diffusion.core.settings import Section, at_least, one_of, optional, positive, setting, whole_or_size
from sde_diffusion.data import DEQUANTIZERS, Dequantizer
from sde_diffusion.likelihood.decoder import CDFS
from sde_diffusion.likelihood.flow import DIVERGENCES, PROBES
from sde_diffusion.metrics.reconstruction import RECONSTRUCTIONS
from sde_diffusion.solvers.ode import SOLVERS


@dataclass(frozen=True)
class LikelihoodSettings(Section):
    """Bits/dim: of which samples, by which methods, to which tolerances."""

    key: ClassVar[str] = "likelihood"

    figures: tuple[str, ...] = setting(("ode", "elbo"), 'the flow, the discrete bound, "vlb": the continuous bound')
    split: str = setting("test", 'or "train"', one_of("split", {"train": 0, "test": 0}))
    folder: str = setting("", "a folder of images in place of a split")
    image_size: int | tuple[int, int] = setting(
        0,
        "the size of the folder's pictures, as data.image_size, by data.fit; 0 keeps their own",
        whole_or_size("their own"),
        also=tuple,
    )
    num_samples: int = setting(0, "0 for all", optional("all samples"))
    batch_size: int = setting(
        64, "samples at once, and kept at once; changes nothing with method per_sample", at_least(1)
    )
    method: str = setting("per_sample", "a key of SOLVERS", one_of("ODE method", SOLVERS))
    rtol: float = setting(1e-4, "relative tolerance of the flow", positive)
    atol: float = setting(1e-4, "absolute tolerance of the flow", positive)
    divergence: str = setting("hutchinson", 'or "exact"', one_of("divergence", DIVERGENCES))
    probes: int = setting(1, "of Hutchinson's estimate", at_least(1))
    probe: str = setting("rademacher", 'or "gaussian"', one_of("probe", PROBES))
    t_min: float = setting(-1.0, '"ode": time at which the data lie; negative for the process\'s smallest')
    sensitivity: bool = setting(False, "how much bits/dim change where t_min is doubled")
    fixed_steps: int = setting(100, "of the methods without tolerances", at_least(1))
    max_nfe: int = setting(100_000, "evaluations of a batch, beyond which the flow is given up", at_least(1))
    dequantizer: str = setting("uniform", '"none" is for continuous data', one_of("dequantizer", DEQUANTIZERS))
    levels: int = setting(
        1000, "of the discrete bound, where the process is a continuous one; log-SNR equally spaced", at_least(2)
    )
    terms: int = setting(0, "levels to evaluate for each sample, drawn from sections; 0 for all", optional("all terms"))
    cdf: str = setting(
        "exact", "the decoder's; or \"tanh\", improved-diffusion's approximation", one_of("distribution function", CDFS)
    )
    points: int = setting(100, 'of "vlb", the bound in continuous time', at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.t_min < 0.5:
            raise UserError(f"likelihood.t_min must be below 0.5, or negative for the process's own, got {self.t_min}")
        if self.sensitivity and self.t_min == 0.0:
            raise UserError("likelihood.sensitivity compares t_min with twice t_min: likelihood.t_min must not be 0")

    def check(self, figures: Any) -> None:
        """Raises UserError for a figure that is none of `figures`, and for a folder that is not there."""
        one_of("figure", figures)("likelihood.figures", self.figures)
        if not self.figures:
            raise UserError(f"likelihood.figures is empty; {nearest('', figures)}")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise UserError(f"likelihood.folder: there is no folder {self.folder}")
        if self.image_size and not self.folder:
            raise UserError("likelihood.image_size is one of the pictures of likelihood.folder, and there is no folder")

    @property
    def smallest_time(self) -> float | None:
        """t_min, or None for the process's own."""
        return None if self.t_min < 0 else self.t_min

    def flow_options(self) -> dict[str, Any]:
        """The named options of `log_likelihood`."""
        names = ("method", "rtol", "atol", "divergence", "probes", "probe", "sensitivity", "max_nfe")
        options = {name: getattr(self, name) for name in names}
        return {**options, "t_min": self.smallest_time, "steps": self.fixed_steps}

    def dequantized_by(self) -> Dequantizer:
        """The dequantiser."""
        return DEQUANTIZERS[self.dequantizer]


@dataclass(frozen=True)
class LatentsSettings(Section):
    """--mode latents: codes of the flow, and what lies between them."""

    key: ClassVar[str] = "latents"

    pairs: int = setting(
        6, "held-out images to interpolate between, of one class where the network is told it", at_least(1)
    )
    points: int = setting(9, "from one image to the other", at_least(1))
    temperatures: tuple[float, ...] = setting((0.6, 0.8, 0.9, 1.0, 1.1, 1.2), "factors of the first images' latents")
    rtol: float = setting(1e-5, "relative tolerance of the flow", positive)
    figures: tuple[str, ...] = setting(
        ("rmse", "psnr", "ssim"), "of decoded images: also lpips", one_of("figure of a reconstruction", RECONSTRUCTIONS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperatures and all(temperature > 0.0 for temperature in self.temperatures)):
            raise UserError(f"latents.temperatures must be one or more positive numbers, got {self.temperatures}")
