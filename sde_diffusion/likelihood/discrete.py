"""The variational bound on the likelihood: in discrete time, term by term, and in continuous time.

A discrete diffusion with levels 0 .. T-1 is a latent variable model: the prior p(x_{T-1}) = N(0, s^2 I), steps
p(x_{i-1} | x_i) = N(mu, v_i) with the mean of q(x_{i-1} | x_i, x_0) in which x0_hat stands for x_0, and a decoder
p(x | x_0'), x_0' the state at level 0. With Jensen's inequality (Sohl-Dickstein et al. 2015; Ho et al. 2020, equation
5),

    -log p(x) <= KL(q(x_{T-1} | x) || p(x_{T-1}))                            prior matching
              + sum_{i>=1} E_q KL(q(x_{i-1} | x_i, x) || p(x_{i-1} | x_i))   denoising matching
              - E_q log p(x | x_0')                                          reconstruction.

The means of the two Gaussians of step i, alpha' x_0 + a sigma'^2/sigma^2 (x_i - alpha x_0) and the same with x0_hat
(see samplers/ancestral.py), differ by draw (x_0 - x0_hat), draw = alpha' - alpha a sigma'^2/sigma^2, and q's variance
is s_i^2, so that a step costs, for each dimension,

    1/2 ( log v_i/s_i^2 + (s_i^2 + draw^2 (x_0 - x0_hat)^2) / v_i - 1 ).

v_i is s_i^2 ("posterior"), the forward step's variance ("beta"), or learned: log v_i between the two (Nichol and
Dhariwal 2021, equation 15). At level 0 s_0^2 = 0, and that of level 1 stands in for it, as in the code of both papers;
or the noise of x_0' itself, sigma_0^2/alpha_0^2, where level 1 is so near that its s_1^2 is far less.

The decoder of grey levels a spacing w apart is the Gaussian N(x0_hat, v_0) integrated over each level's bin, the first
and last bins reaching to infinity (Ho et al. 2020, equation 13): a distribution over the levels. That of continuous
data is the Gaussian itself.

As T grows the sum becomes an integral over the log-SNR lam (Kingma et al. 2021, equation 17),

    1/2 int_{lam_1}^{lam_0} E |eps - eps_hat(x_lam)|^2 dlam,

with the decoder p(x | z_0) proportional to q(z_0 | x) at the last level (ibid., equation 13). For the exact denoiser it
is -log p(x), for each x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.special import log_ndtr

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.grids import Node, TimeGrid, logsnr_ends, nearest_level
from sde_diffusion.core.kernel import CLEAN, Kernel, beside, lifted, match, widened
from sde_diffusion.core.noise import Generators, fresh, rand, randn
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser, moments
from sde_diffusion.denoisers.wrappers import CountingDenoiser
from sde_diffusion.samplers.ancestral import VARIANCES, ancestral_row

# --- the decoder ----------------------------------------------------------------------------------------------


def _exact_cdf(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), with low < high, accurate in both tails."""
    # In the lower tail the numbers are small and their logarithms exact.
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top = log_ndtr(high)
    return top + torch.log(-torch.expm1(log_ndtr(low) - top))


def _tanh_cdf(low: Tensor, high: Tensor) -> Tensor:
    """The same by tanh, and no less than log(1e-12): what improved-diffusion computes."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    return (cdf(high) - cdf(low)).clamp_min(1e-12).log()


CDFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"exact": _exact_cdf, "tanh": _tanh_cdf}
"""How the normal distribution function is computed; tanh is Page's approximation (1977) with Hendrycks' constants."""


def discretized_gaussian(x: Tensor, mean: Tensor, log_std: Tensor, levels: int, cdf: str = "exact") -> Tensor:
    """log P(x) of grey levels under a Gaussian integrated over their bins, elementwise, in nats.

    x: values 2 k / (levels - 1) - 1, k = 0 .. levels - 1; bins of width 2 / (levels - 1) around them, the outer two of
    which reach to infinity, so that the probabilities sum to one (Ho et al. 2020, equation 13). cdf: a key of CDFS.
    """
    between = choose("distribution function", cdf, CDFS)
    half, scale = 1.0 / (levels - 1), (-log_std).exp()
    # A number of standard deviations that stands for infinity: Phi is 0 or 1 there in any precision.
    far = torch.full_like(x, 1e4)
    low = torch.where(x < -1.0 + half, -far, ((x - mean - half) * scale).clamp(-1e4, 1e4 - 1.0))
    high = torch.where(x > 1.0 - half, far, ((x - mean + half) * scale).clamp(-1e4 + 1.0, 1e4))
    return between(low, high)


# --- discrete time --------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Space:
    """Where the data lie, and so what the last step of the bound is measured by.

    levels      number of grey levels of data 2 k / (levels - 1) - 1 - offset; None for continuous data
    offset      what was subtracted from the data in model units, broadcasting to [B, *D]
    cdf         a key of CDFS
    decoder     log v_0 of the grey levels' decoder where it is not that of the chain
    """

    levels: int | None = 256
    offset: Tensor | float = 0.0
    cdf: str = "exact"
    decoder: Tensor | None = None

    def reconstruction(self, x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """-log p(x | x_0') of the Gaussian decoder, elementwise, in nats."""
        if self.levels is None:
            return 0.5 * (((x0 - mean) * (-log_std).exp()).square() + math.log(2.0 * math.pi)) + log_std
        return -discretized_gaussian(x0 + self.offset, mean + self.offset, log_std, self.levels, self.cdf)


GREY_LEVELS = Space()
"""8-bit images in [-1, 1]."""


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


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of the bound of each sample, in bits/dim.

    prior [B], denoising [B, T] (0 at level 0, whose term is the reconstruction), reconstruction [B];
    x0_mse [B, T], the mean of (x0_hat - x_0)^2 over the dimensions.
    """

    prior: Tensor
    denoising: Tensor
    reconstruction: Tensor
    x0_mse: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of each sample, [B]."""
        return self.prior + self.denoising.sum(1) + self.reconstruction


@dataclass(frozen=True, eq=False)
class Bound:
    """An upper bound on the negative log likelihood, averaged over a batch, in bits/dim.

    prior           [], prior matching
    denoising       [T], denoising matching at each level from data to noise (0 at level 0)
    reconstruction  [], the decoder's
    total           [], their sum
    standard_error  [], of the total over the batch; not a number for one sample
    nfe             evaluations of the network for the whole batch
    per_sample      the same of each sample
    """

    per_sample: Terms
    nfe: int

    @property
    def prior(self) -> Tensor:
        return self.per_sample.prior.mean()

    @property
    def denoising(self) -> Tensor:
        return self.per_sample.denoising.mean(0)

    @property
    def reconstruction(self) -> Tensor:
        return self.per_sample.reconstruction.mean()

    @property
    def total(self) -> Tensor:
        return self.per_sample.total.mean()

    @property
    def standard_error(self) -> Tensor:
        total = self.per_sample.total
        return total.std() / math.sqrt(len(total)) if len(total) > 1 else total[0] * math.nan


def _prior_nats(x0: Tensor, last: Kernel, prior_std: float) -> Tensor:
    """KL(N(alpha x_0, sigma^2) || N(0, s^2)) of each sample, [B]."""
    variance = last.variance / prior_std**2
    moved = (last.alpha / prior_std) ** 2
    constant = 0.5 * x0[0].numel() * (variance - 1.0 - variance.log())
    return float(constant) + 0.5 * float(moved) * widened(x0).square().flatten(1).sum(1)


def _data(
    denoiser: Denoiser,
    x: Tensor,
    levels: int | None,
    offset: Tensor | float,
    bin_width: float,
    dtype: torch.dtype | None,
) -> Tensor:
    """Data in model space, [B, *D], in float32 or more. Raises UserError for values that are not what `levels` says."""
    if x.ndim < 2 or not x.numel():
        raise UserError(f"a batch [B, *D] of data is needed, got shape {tuple(x.shape)}")
    device = getattr(denoiser, "device", None) or x.device
    if levels is not None and bin_width != 1.0:
        raise UserError("bin_width is for densities, levels=None: the bound of grey levels is of probabilities already")
    if levels is None:
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise UserError("with levels=None the data are continuous: finite floating-point numbers are needed")
        return lifted(x.to(device=device, dtype=dtype or x.dtype))
    if not isinstance(levels, int) or levels < 2:
        raise UserError(f"a whole number of at least 2 grey levels is needed, got {levels}")
    if x.is_floating_point() or x.dtype == torch.bool:
        raise UserError(
            f"the bound is one of grey levels 0 to {levels - 1} as integers, got {x.dtype}; levels=None is for "
            "continuous data"
        )
    if int(x.min()) < 0 or int(x.max()) >= levels:
        raise UserError(f"grey levels must be 0 to {levels - 1}, got {int(x.min())} to {int(x.max())}; see levels=")
    if isinstance(offset, Tensor) and offset.shape not in (x.shape, x.shape[1:], ()):
        raise UserError(f"the offset must have the shape of the data or of one sample, got {tuple(offset.shape)}")
    scaled = 2.0 * lifted(x.to(device=device, dtype=dtype or torch.get_default_dtype())) / (levels - 1) - 1.0
    return scaled - (offset.to(scaled) if isinstance(offset, Tensor) else offset)


OnLevel = Callable[[int, int], None]
"""Called after each evaluation, with how many are done and how many there are."""


def _ignore(done: int, total: int) -> None:
    """The default of `on_level`."""


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
    on_level: OnLevel = _ignore,
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
    choose("variance", variance, _LOG_VARIANCES)
    choose("distribution function", cdf, CDFS)
    choose("decoder", decoder, dict.fromkeys(["auto", "published", "level"]))
    if not (isinstance(draws, int) and draws >= 1 and bin_width > 0):
        raise UserError(f"draws must be a whole number from 1 and bin_width positive, got {draws} and {bin_width}")
    chain, x0 = Chain.of(process), _data(denoiser, x, levels, offset, bin_width, dtype)
    near = float(chain.log_posterior[0] - chain.log_noise) < math.log(0.1)
    own = decoder == "published" or (decoder == "auto" and not near)
    shift = widened(offset.to(x0)) if isinstance(offset, Tensor) else offset
    space = Space(levels, shift, cdf, None if own else chain.log_noise)
    if terms is not None and not (isinstance(terms, int) and 1 <= terms < len(chain)):
        raise UserError(
            f"terms must be a whole number from 1 to the number of steps, {len(chain) - 1}, or None; got {terms}"
        )
    generator, counted, exact = fresh(generator, x0.device), CountingDenoiser(denoiser), widened(x0)
    found, mse = (exact.new_zeros(len(x0), len(chain)) for _ in range(2))

    def evaluate(index: Tensor, weight: Tensor) -> None:
        kernel = chain.levels[index]
        for _ in range(draws):
            noisy = kernel.perturb(x0, randn(x0.shape, generator, like=x0))
            x0_hat, fraction = (None if part is None else widened(part) for part in moments(counted, noisy, kernel))
            assert x0_hat is not None
            term = bound_term(chain, index, exact, x0_hat, fraction, variance=variance, space=space)
            column = index.expand(len(x0))[:, None].to(exact.device)
            share = weight.to(exact.device) / draws
            found.scatter_add_(1, column, (share * term.flatten(1).sum(1))[:, None])
            mse.scatter_add_(1, column, (share * (exact - x0_hat).square().flatten(1).mean(1))[:, None])

    steps = len(chain) - 1
    sections = torch.linspace(1, steps + 1, (terms or steps) + 1, dtype=torch.float64).round().long()
    total = (terms or steps) + 1
    for done, (low, high) in enumerate(reversed(list(pairwise(sections)))):
        index = low
        if terms is not None:
            u = rand((len(x0),), generator, dtype=torch.float64).cpu()
            index = low + (u * (high - low)).long()
        evaluate(index, (high - low).double())
        on_level(done + 1, total)
    evaluate(torch.tensor(0), torch.ones((), dtype=torch.float64))
    on_level(total, total)
    bits = 1.0 / (x0[0].numel() * math.log(2.0))
    return Bound(
        Terms(
            prior=bits * _prior_nats(x0, chain.levels[-1], chain.sde.prior_std),
            denoising=torch.cat([torch.zeros_like(found[:, :1]), bits * found[:, 1:]], dim=1),
            reconstruction=bits * found[:, 0] - math.log2(bin_width),
            x0_mse=mse,
        ),
        counted.nfe,
    )


# --- continuous time ------------------------------------------------------------------------------------------


def _likeliest_level(x0: Tensor, noise: Tensor, std: float, space: Space) -> Tensor:
    """-log p(x | z_0), p(x | z_0) proportional to q(z_0 | x) over the grey levels; [B], in nats.

    z_0/alpha = x_0 + std noise.
    """
    levels = space.levels
    assert levels is not None
    values = 2.0 * torch.arange(levels, dtype=torch.float64, device=x0.device) / (levels - 1) - 1.0
    here = -0.5 * noise.square().flatten(1).sum(1)
    seen = x0 + space.offset + std * noise
    # One sample at a time: of each number there are as many as levels.
    everywhere = [(-0.5 * ((row[..., None] - values) / std).square()).logsumexp(-1).sum() for row in seen]
    return torch.stack(everywhere) - here


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    levels: int | None = 256,
    offset: Tensor | float = 0.0,
    bin_width: float = 1.0,
    points: int = 100,
    t_min: float | None = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    on_level: OnLevel = _ignore,
) -> Bound:
    """The continuous-time bound on -log2 P(x)/D: an integral over the log-SNR (Kingma et al. 2021, equation 17).

    It runs from the prior's time to t_min (default: the process's smallest likelihood time), and is estimated with one
    log-SNR a sample in each of `points` equal sections. Data, levels, offset and bin_width as in `elbo`; the bound's
    `denoising` [points] is the integral over each section, from data to noise.
    """
    start = sde.t_likelihood if t_min is None else t_min
    if points < 1 or not 0.0 <= start < 1.0 or not bin_width > 0:
        raise UserError(
            f"points must be at least 1, t_min in [0, 1) and bin_width positive; got {points}, {start} and {bin_width}"
        )
    x0 = _data(denoiser, x, levels, offset, bin_width, dtype)
    space = Space(levels, widened(offset.to(x0)) if isinstance(offset, Tensor) else offset)
    generator, counted, exact = fresh(generator, x0.device), CountingDenoiser(denoiser), widened(x0)
    dims = x0[0].numel()
    least, most = logsnr_ends(sde, start)
    width = (most - least) / points
    if not bool(most.isfinite()):
        raise UserError(f"the bound does not exist where there is no noise at t_min = {start}; take t_min >= 1e-5")
    found, mse = (exact.new_zeros(len(x0), points) for _ in range(2))
    for section in reversed(range(points)):
        u = rand((len(x0),), generator, dtype=torch.float64).cpu()
        kernel = sde.kernel(sde.time_of(most - width * (section + u)))
        noise = randn(x0.shape, generator, like=x0)
        error = (exact - widened(counted(kernel.perturb(x0, noise), kernel))).square().flatten(1)
        integrand = kernel.snr.to(exact.device) * error.sum(1)
        if levels is None:  # of the noise little is found at high log-SNR, where its own size then makes the variance
            excess = widened(noise).square().flatten(1).sum(1) - dims
            integrand = integrand - torch.sigmoid(kernel.logsnr).to(exact.device) * excess
        found[:, section] = 0.5 * float(width) * integrand
        mse[:, section] = error.mean(1)
        on_level(points - section, points)
    last = sde.kernel(sde.time_of(most))
    std = float(last.sigma / last.alpha)
    if levels is None:
        decoder = exact.new_full((len(x0),), 0.5 * dims * (1.0 + math.log(2.0 * math.pi * std**2)))
    else:
        decoder = _likeliest_level(exact, widened(randn(x0.shape, generator, like=x0)), std, space)
    bits = 1.0 / (dims * math.log(2.0))
    prior = _prior_nats(x0, sde.kernel(sde.time_of(least)), sde.prior_std)
    return Bound(
        Terms(bits * prior, bits * found, bits * decoder - math.log2(bin_width), mse),
        counted.nfe,
    )
