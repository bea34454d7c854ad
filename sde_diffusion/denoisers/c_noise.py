"""c_noise: what a network is told of the noise level, as a function of its home and of the time there.

Most are functions of sigma/alpha, which says how noisy x is whatever its scale. Those that count levels are for a home
that is discrete: the levels lie at equal distances in time, so that level i is (t - t_0) / (t_1 - t_0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.process import SDE


def _time(sde: SDE, t: Tensor) -> Tensor:
    return 999.0 * t


def _logsnr(sde: SDE, t: Tensor) -> Tensor:
    return sde.kernel(t).logsnr


def _log_sigma(sde: SDE, t: Tensor) -> Tensor:
    kernel = sde.kernel(t)
    return (kernel.sigma / kernel.alpha).log()


def _edm(sde: SDE, t: Tensor) -> Tensor:
    return 0.25 * _log_sigma(sde, t)


def _levels(sde: SDE, label: str) -> Tensor:
    if sde.times is None:
        raise UserError(f"label {label!r} counts the levels of a discrete process; {type(sde).__name__} has none")
    return sde.times


def _index(sde: SDE, t: Tensor) -> Tensor:
    levels = _levels(sde, "index")
    return ((t - levels[0]) / (levels[1] - levels[0])).clamp(0.0, len(levels) - 1.0)


def _reversed_index(sde: SDE, t: Tensor) -> Tensor:
    return len(_levels(sde, "reversed_index")) - 1.0 - _index(sde, t).round()


def _nearest_index(sde: SDE, t: Tensor) -> Tensor:
    ratios = _log_sigma(sde, _levels(sde, "nearest_index")).exp()
    return (_log_sigma(sde, t).exp()[..., None] - ratios).abs().argmin(-1).to(torch.float64)


def _index_1000(sde: SDE, t: Tensor) -> Tensor:
    return _index(sde, t) * (1000.0 / len(_levels(sde, "index_1000")))


C_NOISES: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "time": _time,  # 999 t (Song et al. 2021, continuous VP models)
    "thousand_time": lambda sde, t: 1000.0 * t,  # 1000 t (the flow-matching schedulers of diffusers)
    "logsnr": _logsnr,  # log(alpha^2/sigma^2) (Kingma et al. 2021)
    "sigma": lambda sde, t: _log_sigma(sde, t).exp(),  # sigma/alpha (score_sde's VE networks without features)
    "log_sigma": _log_sigma,  # log(sigma/alpha), the argument of NCSN++'s Fourier features
    "log_half_sigma": lambda sde, t: _log_sigma(sde, t) - math.log(2.0),  # the same for data in [0, 1]
    "edm": _edm,  # log(sigma)/4 (Karras et al. 2022, Table 1)
    "index": _index,  # 0 .. N-1 on the levels of a discrete home, fractional between them
    "index_1000": _index_1000,  # the index for 1000 levels, whatever N is (improved-diffusion's rescaling)
    "nearest_index": _nearest_index,  # that of the level nearest in sigma (EDM's iDDPM preconditioning)
    "reversed_index": _reversed_index,  # N-1 .. 0, rounded: NCSN counts from the most noise
}
"""Name -> function (home, t) -> what the network is told at the home's time t, float64 [] or [B]."""
