"""Grids between two times, and their shift.

Builders are functions (sde, steps, t_end, t_start, named options) -> times [steps]. With u_i = i/(n - 1) these
run from t_start, 1 unless it is given, to t_end exactly, and a grid of one step is t_start:

    uniform         t = t_start + u (t_end - t_start)
    quadratic       sqrt(t) uniform: finer near the data (the "quad" spacing of Song et al. 2020, DDIM, Appendix D.3)
    karras          (sigma/alpha)^(1/rho) uniform, rho = 7 (Karras et al. 2022, equation 5)
    logsnr          log(alpha^2/sigma^2) uniform (Lu et al. 2022)
    polyexponential log(sigma/alpha) = end + (start - end) (1 - u)^rho (k-diffusion's get_sigmas_polyexponential);
                    rho = 1 is logsnr, and a larger rho is finer near the data

A shift s moves every node of such a grid by -2 log s in log-SNR, so that sigma/alpha is multiplied by s: more of the
steps are spent on noise for s > 1, which larger images need (Hoogeboom et al. 2023; Esser et al. 2024, section 5.3.2).
For rectified flow this is t -> s t/(1 + (s - 1) t). t_start and t_end are those before the shift. Nodes that would
leave the process's range, from t = 1 to the least noise that it knows, stay at its ends. A grid has distinct times: of
several nodes beyond an end the outermost lies at it, and the others between it and the nearest node inside, evenly in
log-SNR.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.process import SDE


def uniform(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in t."""
    return spaced(_scalar(t_start), _scalar(t_end), steps)


def quadratic(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in sqrt(t)."""
    return _between(t_start, t_end, spaced(_scalar(t_start).sqrt(), _scalar(t_end).sqrt(), steps) ** 2)


def karras(sde: SDE, steps: int, t_end: float, t_start: float = 1.0, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho)."""
    _require_positive(rho)
    start, end = torch.exp(-0.5 * logsnr_ends(sde, t_end, t_start) / rho)
    return _between(t_start, t_end, sde.time_of(-2.0 * rho * spaced(start, end, steps).log()))


def logsnr(sde: SDE, steps: int, t_end: float, t_start: float = 1.0) -> Tensor:
    """Equal steps in log-SNR."""
    start, end = logsnr_ends(sde, t_end, t_start)
    return _between(t_start, t_end, sde.time_of(spaced(start, end, steps)))


def polyexponential(sde: SDE, steps: int, t_end: float, t_start: float = 1.0, *, rho: float = 1.0) -> Tensor:
    """log(sigma/alpha) a power of the steps that remain: equal steps in log-SNR for rho = 1."""
    _require_positive(rho)
    start, end = logsnr_ends(sde, t_end, t_start)
    remaining = spaced(_scalar(1.0), _scalar(0.0), steps) ** rho
    return _between(t_start, t_end, sde.time_of(torch.lerp(end, start, remaining)))


def logsnr_ends(sde: SDE, t_end: float, t_start: float = 1.0) -> Tensor:
    """Log-SNR at t_start and at t_end. Where alpha = 0 at t_start, the last level with a signal stands in."""
    start = t_start if float(sde.kernel(t_start).alpha) > 0.0 else sde.t_signal
    return sde.kernel(torch.tensor([start, t_end], dtype=torch.float64)).logsnr


def _require_positive(rho: float) -> None:
    if rho <= 0:
        raise UserError(f"rho must be positive, got {rho}")


def spaced(start: Tensor, end: Tensor, steps: int) -> Tensor:
    return torch.lerp(start, end, torch.linspace(0.0, 1.0, steps, dtype=torch.float64))


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _between(t_start: float, t_end: float, times: Tensor) -> Tensor:
    """Times [n] with their ends to the last bit."""
    times[0] = t_start
    if len(times) > 1:
        times[-1] = t_end
    return times


# --- shift ----------------------------------------------------------------------------------------------------


def check_shift(shift: float) -> None:
    """Raises UserError for a shift that is none."""
    if not (shift > 0.0 and math.isfinite(shift)):
        raise UserError(f"a shift is a factor of sigma/alpha above 0, 1 for none, got {shift}")


def shifted_logsnr(logsnr: Tensor, shift: float) -> Tensor:
    """log-SNR - 2 log shift: sigma/alpha times the shift."""
    return logsnr - 2.0 * math.log(shift)


def shifted(sde: SDE, times: Tensor, shift: float) -> Tensor:
    """The times [n] of a grid with sigma/alpha times the shift, within the process's range."""
    if shift == 1.0:
        return times
    ends = torch.stack([_scalar(1.0), times[-1].clamp_max(sde.known_times[0])])
    least, most = sde.kernel(ends).logsnr
    moved = _distinct(shifted_logsnr(sde.kernel(times).logsnr, shift), least)
    moved = -_distinct(-moved.flip(0), -most).flip(0)
    # The ends themselves, to the last bit.
    return torch.where(moved == least, ends[0], torch.where(moved == most, ends[1], sde.time_of(moved)))


def _distinct(logsnr: Tensor, end: Tensor) -> Tensor:
    """Ascending log-SNRs [n], of which those at or below the end lie evenly between it and the first one above it."""
    beyond = int((logsnr <= end).sum())
    if beyond < 2:
        return logsnr.clamp_min(end)
    if beyond == len(logsnr):
        raise UserError("the shift moves every node of the grid out of the process's range: choose one nearer to 1")
    return torch.cat([spaced(end, logsnr[beyond], beyond + 1)[:-1], logsnr[beyond:]])
