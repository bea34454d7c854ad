"""The variational bound in discrete time, term by term (see bound.py for its parts).

The reverse step p(x_{i-1} | x_i) = N(mu, v_i) has the mean of q(x_{i-1} | x_i, x_0) in which x0_hat stands for x_0. The
means of the two Gaussians, alpha' x_0 + a sigma'^2/sigma^2 (x_i - alpha x_0) and the same with x0_hat (see
samplers/ancestral.py), differ by draw (x_0 - x0_hat), draw = alpha' - alpha a sigma'^2/sigma^2, and q's variance is
s_i^2, so that a step costs, for each dimension,

    1/2 ( log v_i/s_i^2 + (s_i^2 + draw^2 (x_0 - x0_hat)^2) / v_i - 1 ).

v_i is s_i^2 ("posterior"), the forward step's variance ("beta"), or learned: log v_i between the two (Nichol and
Dhariwal 2021, equation 15). At level 0 s_0^2 = 0, and that of level 1 stands in for it, as in the code of both papers;
or the noise of x_0' itself, sigma_0^2/alpha_0^2, where level 1 is so near that its s_1^2 is far less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grid import Node, TimeGrid
from sde_diffusion.core.kernel import CLEAN, Kernel, beside, match, widened
from sde_diffusion.core.levels import nearest_level
from sde_diffusion.core.noise import Generators, fresh, randn
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser, moments
from sde_diffusion.denoisers.wrappers import CountingDenoiser
from sde_diffusion.likelihood import estimators
from sde_diffusion.likelihood.bound import Bound, OnLevel, Terms, ignore, model_data, prior_nats
from sde_diffusion.likelihood.decoder import CDFS, GREY_LEVELS, Space
from sde_diffusion.samplers.ancestral import VARIANCES, ancestral_row


@dataclass(frozen=True, eq=False)
class Chain:
    """The reverse chain over the noise levels 0 .. T-1 of a discrete process or a grid, as float64 tables [T].

    sde             the process
    times           of the levels, ascending
    levels          their kernels
    draw            of the means' difference draw (x_0 - x0_hat)
    log_posterior   log s_i^2, with that of level 1 at level 0
    log_beta        log of the forward step's variance
    """

    sde: SDE
    times: Tensor
    levels: Kernel
    draw: Tensor
    log_posterior: Tensor
    log_beta: Tensor

    @classmethod
    def of(cls, process: SDE | TimeGrid) -> Chain:
        """The chain over all levels of a discrete process, or over the nodes of a grid.

        Raises UserError for a process without levels.
        """
        if isinstance(process, TimeGrid):
            sde, times = process.sde, process.times.flip(0)
        else:
            found = process.times
            if found is None:
                raise UserError(
                    f"{type(process).__name__} has no discrete levels: give a discrete process such as "
                    "DiscreteVP.linear(1000), or a grid such as make_grid(sde, 1000)"
                )
            sde, times = process, found
        levels = sde.kernel(times)
        below = Kernel(
            torch.cat([CLEAN.alpha[None], levels.alpha[:-1]]), torch.cat([CLEAN.sigma[None], levels.sigma[:-1]])
        )
        now, next = Node(times, levels), Node(torch.cat([times.new_zeros(1), times[:-1]]), below)
        beta, posterior = VARIANCES["beta"](levels, below), VARIANCES["posterior"](levels, below)
        posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]
        return cls(sde, times, levels, ancestral_row(sde, now, next)[1], posterior.log(), beta.log())

    def __len__(self) -> int:
        return len(self.draw)

    @property
    def log_noise(self) -> Tensor:
        """log sigma^2/alpha^2 of the first level, []: what the decoder of continuous data has for its variance."""
        return -self.levels.logsnr[0]

    def index_of(self, t: Tensor) -> Tensor:
        """The levels nearest to times [B], [B]."""
        return nearest_level(self.times, t)

    def log_variance(self, index: Tensor, variance: str, fraction: Tensor | None, like: Tensor) -> Tensor:
        """log v_i at levels [] or [B], which multiplies a batch like `like` [B, *D]."""
        return choose("variance", variance, _LOG_VARIANCES)(self, index, fraction, like)


def _log_posterior(chain: Chain, index: Tensor, fraction: Tensor | None, like: Tensor) -> Tensor:
    return match(chain.log_posterior[index], like)


def _log_beta(chain: Chain, index: Tensor, fraction: Tensor | None, like: Tensor) -> Tensor:
    # At level 0 beta is the noise of that level; both papers' code has the posterior's there.
    return match(torch.where(index == 0, chain.log_posterior[index], chain.log_beta[index]), like)


def _log_learned(chain: Chain, index: Tensor, fraction: Tensor | None, like: Tensor) -> Tensor:
    if fraction is None:
        raise UserError("variance='learned' needs a network that learned it; choose 'posterior' or 'beta'")
    low, high = (match(values[index], like) for values in (chain.log_posterior, chain.log_beta))
    return low + (high - low) * fraction


_LOG_VARIANCES: dict[str, Callable[[Chain, Tensor, Tensor | None, Tensor], Tensor]] = {
    "posterior": _log_posterior,
    "beta": _log_beta,
    "learned": _log_learned,
}


STEP_VARIANCES = tuple(_LOG_VARIANCES)
"""The names of the variances that the steps of the reverse chain may have."""


def bound_term(
    chain: Chain,
    index: Tensor,
    x0: Tensor,
    x0_hat: Tensor,
    fraction: Tensor | None = None,
    *,
    variance: str = "posterior",
    space: Space = GREY_LEVELS,
) -> Tensor:
    """The bound's term of level `index` ([] or [B]), elementwise [B, *D], in nats: a step, or at level 0 the decoder.

    x0, x0_hat, fraction: [B, *D]; variance: a key of STEP_VARIANCES.
    """
    log_v = chain.log_variance(index, variance, fraction, x0)
    first = index == 0
    if not bool(first.any()):
        return _step(chain, index, x0 - x0_hat, log_v)
    given = chain.log_noise if space.levels is None else space.decoder
    log_v0 = log_v if given is None else given
    decoder = space.reconstruction(x0, x0_hat, (0.5 * log_v0).to(x0).expand_as(x0))
    if bool(first.all()):
        return decoder
    where = beside(first.to(x0.device), x0)
    return torch.where(where, decoder, _step(chain, index, x0 - x0_hat, log_v))


def _step(chain: Chain, index: Tensor, error: Tensor, log_v: Tensor) -> Tensor:
    """1/2 (log v_i/s_i^2 + (s_i^2 + draw^2 error^2)/v_i - 1)."""
    log_ratio = match(chain.log_posterior[index], error) - log_v
    scaled = match(chain.draw[index], error) * error * (-0.5 * log_v).exp()
    return 0.5 * (log_ratio.exp() - 1.0 - log_ratio + scaled.square())


DECODERS = dict.fromkeys(["auto", "published", "level"])
"""Which variance the grey levels' decoder has."""


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Tensor,
    process: SDE | TimeGrid,
    *,
    levels: int | None = 256,
    variance: str = "posterior",
    cdf: str = "exact",
    decoder: str = "auto",
    offset: Tensor | float = 0.0,
    bin_width: float = 1.0,
    draws: int = 1,
    terms: int | None = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    on_level: OnLevel = ignore,
) -> Bound:
    """The discrete bound on -log2 P(x)/D of integer grey levels x [B, *D], 0 .. levels - 1.

    process: a discrete process, or a grid over any process, whose nodes are the levels. variance: "posterior", "beta",
    or "learned" where the network has it. cdf: "exact", or "tanh", improved-diffusion's approximation. decoder: its
    variance is "published", that of the steps at level 0, or "level", the noise there, sigma^2/alpha^2; "auto" takes
    the first unless level 1 is so near that it would be less than a tenth of the second. draws: of the noise, at every
    level. terms: evaluate only so many levels, drawn for each sample one from each of as many equal sections and
    weighted by its length, which leaves every term unbiased; default all. The noise comes from the generator, or one a
    sample. offset: what was subtracted from the data in model space.

    levels=None takes continuous data in model space and a Gaussian decoder with the variance "level", whatever
    `decoder` and `cdf`; the bound is one on the density, per bin of `bin_width` in bits/dim.

    Raises UserError for values that are not integers in range, for a bin_width of probabilities, and for a process
    without levels.
    """
    _check_options(variance, cdf, decoder, draws, bin_width)
    chain, x0 = Chain.of(process), model_data(denoiser, x, levels, offset, bin_width, dtype)
    shift = widened(offset.to(x0)) if isinstance(offset, Tensor) else offset
    space = _space(chain, decoder, levels, shift, cdf)
    generator, counted, exact = fresh(generator, x0.device), CountingDenoiser(denoiser), widened(x0)
    found, mse = (exact.new_zeros(len(x0), len(chain)) for _ in range(2))
    steps = len(chain) - 1
    total = (terms or steps) + 1
    for done, (index, weight) in enumerate(estimators.levels(steps, terms, len(x0), generator)):
        column = index.expand(len(x0))[:, None].to(exact.device)
        share = weight.to(exact.device) / draws
        for _ in range(draws):
            noise = randn(x0.shape, generator, like=x0)
            nats, square = _evaluated(counted, chain, index, x0, noise, variance, space)
            found.scatter_add_(1, column, (share * nats)[:, None])
            mse.scatter_add_(1, column, (share * square)[:, None])
        on_level(done + 1, total)
    bits = 1.0 / (x0[0].numel() * math.log(2.0))
    return Bound(
        Terms(
            prior=bits * prior_nats(x0, chain.levels[-1], chain.sde.prior_std),
            denoising=torch.cat([torch.zeros_like(found[:, :1]), bits * found[:, 1:]], dim=1),
            reconstruction=bits * found[:, 0] - math.log2(bin_width),
            x0_mse=mse,
        ),
        counted.nfe,
    )


def _check_options(variance: str, cdf: str, decoder: str, draws: int, bin_width: float) -> None:
    choose("variance", variance, _LOG_VARIANCES)
    choose("distribution function", cdf, CDFS)
    choose("decoder", decoder, DECODERS)
    if not (isinstance(draws, int) and draws >= 1 and bin_width > 0):
        raise UserError(f"draws must be a whole number from 1 and bin_width positive, got {draws} and {bin_width}")


def _space(chain: Chain, decoder: str, levels: int | None, offset: Tensor | float, cdf: str) -> Space:
    """The space of the data, with the variance of its decoder: a member of DECODERS."""
    near = float(chain.log_posterior[0] - chain.log_noise) < math.log(0.1)
    own = decoder == "published" or (decoder == "auto" and not near)
    return Space(levels, offset, cdf, None if own else chain.log_noise)


def _evaluated(
    denoiser: Denoiser, chain: Chain, index: Tensor, x0: Tensor, noise: Tensor, variance: str, space: Space
) -> tuple[Tensor, Tensor]:
    """The term of level `index` with one draw of the noise, in nats, and the mean square of x0_hat - x_0; [B]."""
    kernel, exact = chain.levels[index], widened(x0)
    x0_hat, fraction = moments(denoiser, kernel.perturb(x0, noise), kernel)
    x0_hat, fraction = widened(x0_hat), None if fraction is None else widened(fraction)
    term = bound_term(chain, index, exact, x0_hat, fraction, variance=variance, space=space)
    return term.flatten(1).sum(1), (exact - x0_hat).square().flatten(1).mean(1)
