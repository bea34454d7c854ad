"""Exact likelihoods through the probability-flow ODE, and bits per dimension.

Along a flow dy/du = F(y, u) the log density changes by -div F (Chen et al. 2018). For the probability flow in a
variable u with the state y = x/r (see solvers/flow.py), x placed at time t_min, and D dimensions,

    log p(x) = log p_1(x(1)) + D log(r_1/r_0) + int div F(y(u), u) du        (Song et al. 2021, equation 39).

The divergence is the trace of the Jacobian J: exactly, with one vector-Jacobian product a dimension, or by Hutchinson's
estimate (1990) p^T J p with E[p p^T] = I. K probes that are held fixed along the trajectory give K independent
estimates of the integral, hence the mean and its standard error. An evaluation is one forward pass of the network, and
one backward pass, to its input alone, for each product. The state and the integrals are kept in float64.

For data dequantised from grey levels a spacing w apart in model units, the probability of an integer image is about
p(x) w^D, so that bits/dim = -log2 p(x) / D - log2 w (Theis et al. 2016; Ho et al. 2019, section 3.1).

The log density is that of the noisy data at t_min. How much it depends on that time is reported as log p at 2 t_min
minus log p at t_min, with the same probes.

The gradient of log p by x, the score of the model, and by the network's parameters is that of the steps taken (see
solvers/ode.py), which differentiates the divergence once more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, check_batch, has_float64, lifted, match
from sde_diffusion.core.noise import Generators, rademacher, randn
from sde_diffusion.core.process import SDE
from sde_diffusion.denoisers.base import Denoiser
from sde_diffusion.denoisers.priors import Prior, log_prob
from sde_diffusion.denoisers.wrappers import CountingDenoiser
from sde_diffusion.solvers.flow import Flow
from sde_diffusion.solvers.ode import recording

PROBES = {"rademacher": rademacher, "gaussian": randn}

FEW_DIMS = 8
"""Dimensions up to which the exact trace is the default. Its products are one batched backward pass: of an MLP in 2, 4
and 8 dimensions an evaluation takes 2.1, 3.2 and 4.4 forward passes, where four probes take 2.7 and leave an error."""
USUAL_PROBES = 4
"""Probes beyond them where nothing else is said, so that there is a standard error. Of a U-Net an evaluation with 1, 2
and 4 probes takes 1.8, 2.4 and 5.0 forward passes: 2.8 times the time of one for a quarter of its variance."""
MOST_DIMS = 512
"""Dimensions beyond which the exact trace is warned of: it takes as many vector-Jacobian products an evaluation."""
ROWS_AT_ONCE = 4096
"""Rows of a batched vector-Jacobian product, which bounds its memory."""
MOST_LEVELS = 256
"""An image of no more distinct values than this is taken for grey levels that were not dequantised."""


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each sample, and how it was found.

    nats            [B], natural-log density in model space, in float32 or more
    standard_error  [B], of the mean over the probes, in nats; not a number for one probe; None for the exact trace
    latent          [B, *D], x at t = 1
    nfe             evaluations of the network for the whole batch
    t_min           the time at which x was placed
    probes          number of probes; 0 for the exact trace
    sensitivity     [B], nats at 2 t_min minus nats at t_min; None unless asked for
    """

    nats: Tensor
    standard_error: Tensor | None
    latent: Tensor
    nfe: int
    t_min: float
    probes: int = 0
    sensitivity: Tensor | None = None

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The ends [B] of Student's confidence interval over the probes, in nats.

        Raises UserError where there are fewer than two probes.
        """
        if self.standard_error is None or self.probes < 2:
            raise UserError("an interval over the probes needs two of them or more, and Hutchinson's estimate")
        half = student(level, self.probes) * self.standard_error
        return self.nats - half, self.nats + half


def student(level: float, n: int) -> float:
    """How many standard errors of a mean of n values its two-sided confidence interval reaches (Student 1908)."""
    from scipy.stats import t  # 0.8 s to import

    return float(t.ppf(0.5 + 0.5 * level, n - 1))


def _hutchinson(x: Tensor, probes: int, probe: str, generator: Generators) -> Tensor:
    if probes < 1:
        raise UserError(f"at least one probe is needed, got {probes}")
    draws = choose("probe", probe, PROBES)((len(x), probes, *x.shape[1:]), generator, like=x)
    return draws.movedim(1, 0)


def _basis(x: Tensor, probes: int, probe: str, generator: Generators) -> Tensor:
    dims = x[0].numel()
    if dims > MOST_DIMS:
        warnings.warn(
            f"the exact trace in {dims:,} dimensions takes {dims:,} vector-Jacobian products for every evaluation, "
            f"about {(1 + dims) / 2:,.0f} times the cost of one probe; divergence='hutchinson' has error bars instead",
            stacklevel=3,
        )
    eye = torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:])
    return eye.expand(dims, *x.shape)


DIVERGENCES = {"hutchinson": _hutchinson, "exact": _basis}
"""Vectors p_k [K, B, *D] whose products p_k^T J p_k average (Hutchinson) or add up (exact) to the trace of J."""


class _Products:
    """p_k^T J p_k of a velocity y' = F(y) [B, *D] for vectors p_k [K, B, *D], as [B, K].

    Several vectors at a time where the network's backward pass can be batched, else one by one.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.at_once = max(1, min(len(vectors), ROWS_AT_ONCE // max(vectors.shape[1], 1)))

    def __call__(self, velocity: Tensor, y: Tensor, create_graph: bool) -> Tensor:
        if self.at_once > 1:
            try:
                return self._parts(velocity, y, create_graph)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation without a batched backward pass, such as a norm in channels_last
                self.at_once = 1
        return self._parts(velocity, y, create_graph)

    def _parts(self, velocity: Tensor, y: Tensor, create_graph: bool) -> Tensor:
        count, found = len(self.vectors), []
        for first in range(0, count, self.at_once):
            # In parts, for the exact trace's vectors are all of one small matrix until they are converted.
            part = self.vectors[first : first + self.at_once].to(velocity.dtype)
            batched, last = len(part) > 1, first + self.at_once >= count
            along = part if batched else part[0]
            # A batched product that fails leaves the graph to those that are taken one by one.
            kept = batched or not last or create_graph
            (product,) = torch.autograd.grad(
                velocity, y, along, retain_graph=kept, create_graph=create_graph, is_grads_batched=batched
            )
            found.append((product.view_as(part) * part).flatten(2).sum(2))
        return torch.cat(found).T


def _check_images(x: Tensor, has_range: bool) -> None:
    """Raises UserError for what cannot be dequantised images in model space."""
    say = "; of data that are no images say space='continuous'"
    if has_range and float(x.abs().max()) > 2.5:
        # 1, and as much for a subtracted mean, and half a level.
        raise UserError(
            f"images in model space lie in [-1, 1], and these run from {float(x.min()):.4g} to {float(x.max()):.4g}: "
            f"scale and dequantise them, as DataTransform.dequantize does{say}"
        )
    distinct = len(torch.unique(x)) if x.numel() >= 64 else x.numel()
    if 2 <= distinct <= min(MOST_LEVELS, x.numel() // 2):
        raise UserError(
            f"the images hold only {distinct} different values in {x.numel():,} numbers, as grey levels that were not "
            f"dequantised do: their density would be infinite; see DataTransform.dequantize{say}"
        )


def _anything(x: Tensor, has_range: bool) -> None:
    """Continuous data may take any values, and the same ones often."""


SPACES: dict[str, Callable[[Tensor, bool], None]] = {"images": _check_images, "continuous": _anything}
"""What data may be -> the check of their values, given whether their range is known."""


def _check(denoiser: Denoiser, x: Tensor, space: str | None) -> None:
    """Raises UserError for data whose density cannot be what was meant."""
    check = choose("space", space or ("images" if x.ndim >= 4 else "continuous"), SPACES)
    if not x.is_floating_point():
        raise UserError(f"the likelihood is a density: {x.dtype} data must be dequantised first")
    check_batch(x)
    if not x.numel():
        raise UserError(f"a batch [B, *D] of data is needed, got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise UserError("the data hold values that are not finite")
    spec = getattr(denoiser, "spec", None)
    if spec is not None and spec.shape and not spec.takes(x.shape[1:]):
        raise UserError(f"the network is one of data of shape {tuple(spec.shape)}, and these have {tuple(x.shape[1:])}")
    check(x.detach(), spec is not None)


@dataclass(frozen=True, eq=False)
class _Density:
    """log p of x placed at a time: the flow to t = 1 and the integral of its divergence, solved as one state.

    The state [B, D + K] is y, flattened, and beside it the integral so far by each of K probes, or by the exact trace.
    """

    denoiser: CountingDenoiser
    sde: SDE
    products: _Products
    exact: bool
    variable: str
    prior: str | Prior | None
    solve: Callable[..., Tensor]

    def __call__(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The latent [B, *D] and log p(x) by each probe [B, K], with x at time t."""
        flow, dims = Flow.between(self.sde, t, 1.0, self.variable), x[0].numel()
        # Sums over many small steps, in which float32 would lose digits.
        wide = torch.float64 if has_float64(x) else x.dtype
        low, high = flow.scales
        y = (x.to(wide) / match(low, x)).flatten(1)
        columns = 1 if self.exact else len(self.products.vectors)
        state = self.solve(flow, partial(self._rates, flow, x), torch.cat([y, y.new_zeros(len(x), columns)], dim=1))
        latent = high * state[:, :dims].reshape(x.shape)
        kernel = self.sde.kernel(1.0)
        at_end = self.sde.prior_logp(latent) if self.prior is None else log_prob(self.prior, self.sde, kernel, latent)
        return latent, (at_end + dims * float(high.log() - low.log()))[:, None] + state[:, dims:]

    def _rates(self, flow: Flow, x: Tensor, u: Tensor, state: Tensor) -> Tensor:
        """d state / du, with a graph where one is being built."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            y = state[:, : x[0].numel()].reshape(x.shape)
            if not (keep and y.requires_grad):
                y = y.detach().requires_grad_(True)
            velocity = flow.rate(self._differentiable, u, y, x.dtype)
            rates = self.products(velocity, y, keep)
        rates = rates.sum(1, keepdim=True) if self.exact else rates
        return torch.cat([(velocity if keep else velocity.detach()).flatten(1), rates], dim=1)

    def _differentiable(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        out = self.denoiser(x, kernel, **conditioning)
        if not out.requires_grad:
            raise UserError("the denoiser's output has no gradient: it must not run under torch.no_grad")
        return out


def _likelihood(density: _Density, x: Tensor, t_min: float, sensitivity: bool, dtype: torch.dtype) -> LogLikelihood:
    """The mean over the probes, its error and its sensitivity, in the dtype of x; the latent in `dtype`."""
    latent, nats = density(x, t_min)
    nfe, columns = density.denoiser.nfe, nats.shape[1]
    change = (density(x, 2.0 * t_min)[1] - nats).mean(1) if sensitivity else None
    error = None if density.exact else nats.std(1) / math.sqrt(columns) if columns > 1 else nats[:, 0] * math.nan
    return LogLikelihood(
        nats=nats.mean(1).to(x.dtype),
        standard_error=None if error is None else error.detach().to(x.dtype),
        latent=latent.to(dtype),
        nfe=nfe,
        t_min=t_min,
        probes=0 if density.exact else columns,
        sensitivity=None if change is None else change.to(x.dtype),
    )


def _smallest_time(sde: SDE, t_min: float | None, sensitivity: bool) -> float:
    """The time at which x is placed. Raises UserError where there is none, or no second one for the sensitivity."""
    start = sde.t_likelihood if t_min is None else t_min
    if not 0.0 <= start < 0.5:
        raise UserError(f"t_min must lie in [0, 0.5), got {start}")
    if sensitivity and start == 0.0:
        raise UserError("the sensitivity compares t_min with twice t_min: at t_min = 0 there is nothing to compare")
    return start


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE,
    *,
    method: str = "per_sample",
    rtol: float = 1e-5,
    atol: float | None = None,
    divergence: str | None = None,
    probes: int | None = None,
    probe: str = "rademacher",
    generator: Generators = None,
    t_min: float | None = None,
    sensitivity: bool = False,
    variable: str = "log_angle",
    steps: int = 100,
    max_nfe: int = 100_000,
    prior: str | Prior | None = None,
    space: str | None = None,
    grad: bool = False,
) -> LogLikelihood:
    """log p(x) in nats for x [B, *D] at time t_min (default: the process's smallest likelihood time).

    method: a key of `sd.SOLVERS`, adaptive with tolerances rtol and atol (default: rtol), or of fixed
    `steps`; "per_sample" makes a row independent of those beside it, as one generator a row does of its probes.
    divergence: "hutchinson" with `probes` draws of `probe` ("rademacher" or "gaussian") from the generator, or "exact".
    Where neither is given it is exact in up to 8 dimensions, and Hutchinson's with 4 probes, whose products are taken
    in one batched backward pass, beyond. sensitivity: integrate from 2 t_min too. variable: a key of
    `sde_diffusion.solvers.flow.VARIABLES`. A conditional network is given by `ConditionedDenoiser`.

    prior: what stands for x at t = 1, a key of `sde_diffusion.PRIORS` or a Prior; the process's own unless it is given.
    space: "images", whose values must lie in the network's range and not be grey levels; or "continuous" for latents,
    fields and masked data, which may be anything. Default: images where x has four axes or more.

    Where x requires a gradient, or with grad, nats and latent have one, by x and by the network's parameters; scipy's
    methods have none. Data of 16 bits are carried in float32; nats come in float32 or more, the latent in x's dtype.

    Raises UserError for integers and for images of few distinct values, which must be dequantised first, for images out
    of the network's range, data of another shape, values that are not finite, and TooManyEvaluations beyond max_nfe,
    with the time that was reached. Warns of an exact trace in many dimensions.
    """
    _check(denoiser, x, space)
    start = _smallest_time(sde, t_min, sensitivity)
    recorded, dtype = recording(x, grad), x.dtype
    x = lifted(x) if recorded else lifted(x.detach())
    if divergence is None:
        divergence = "exact" if probes is None and x[0].numel() <= FEW_DIMS else "hutchinson"
    choose("probe", probe, PROBES)
    count = USUAL_PROBES if probes is None else probes
    vectors = choose("divergence", divergence, DIVERGENCES)(x.detach(), count, probe, generator)
    atol = rtol if atol is None else atol
    solve = partial(Flow.solve, method=method, rtol=rtol, atol=atol, steps=steps, max_nfe=max_nfe)
    density = _Density(
        CountingDenoiser(denoiser), sde, _Products(vectors), divergence == "exact", variable, prior, solve
    )
    with torch.set_grad_enabled(recorded):
        return _likelihood(density, x, start, sensitivity, dtype)


def bits_per_dim(nats: Tensor, dims: int, bin_width: float) -> Tensor:
    """-log2 p(x) / dims - log2(bin_width), from a log density in nats.

    bin_width: the spacing of the grey levels in model units, stated by the dequantiser; 1 leaves the density of
    continuous data as it is. Raises UserError where it is not positive.
    """
    if not (dims >= 1 and bin_width > 0):
        raise UserError(f"dims must be at least 1 and bin_width positive, got {dims} and {bin_width}")
    return -nats / (dims * math.log(2.0)) - math.log2(bin_width)
