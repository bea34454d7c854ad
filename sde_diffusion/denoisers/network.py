"""Denoisers: functions (x, kernel) -> x0_hat = E[x_0 | x_t], and denoisers around denoisers.

A sampler sees a denoiser and nothing else of a model. A trained network becomes one through its NetworkSpec, which
names its home: the process it was trained under, what it predicts, and the label by which it is told the noise level.
A kernel of any other process is brought home through the log-SNR, the one quantity that two noise levels of the same
hardness share: if alpha/sigma agree, then x scaled by sigma_home/sigma is distributed as the home's x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sde_diffusion.core.continuous import EDM, VESDE, VPSDE
from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, lifted, lifted_dtype, match
from sde_diffusion.core.prediction import (
    EDM_SIGMA_DATA,
    PREDICTIONS,
    blind_without_signal,
    eps_from_x0,
    score_from_x0,
    to_x0,
    v_from_x0,
    velocity_from_x0,
)
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import process_from_state, process_state


class Denoiser(Protocol):
    """E[x_0 | x_t = x] for noisy data x [B, *D] at the noise level of a kernel; conditioning is by name.

    Samplers keep what it returns over some steps: it must not write to that tensor again.
    """

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor: ...


def moments(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
    """x0_hat and, where the denoiser has a method `moments` for it, the fraction [B, *D] of its learned variance.

    The fraction, 0 to 1 or a little beyond, says where the log-variance of a DDPM step is between those of the
    posterior and of beta (Nichol and Dhariwal 2021, equation 15).
    """
    both = getattr(denoiser, "moments", None)
    return both(x, kernel, **conditioning) if both else (denoiser(x, kernel, **conditioning), None)


def score(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """grad_x log p_t(x) = (alpha x0_hat - x) / sigma^2, [B, *D]. Raises UserError where sigma = 0."""
    return score_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def eps(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """The predicted standard noise (x - alpha x0_hat) / sigma, [B, *D]. Raises UserError where sigma = 0."""
    return eps_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def v(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """alpha eps - sigma x0_hat, [B, *D]. Raises UserError where sigma = 0."""
    return v_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


def velocity(denoiser: Denoiser, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
    """eps - x0_hat, [B, *D]: for the kernel of rectified flow its dx/dt, which `SDE.velocity` gives of any process."""
    return velocity_from_x0(denoiser(x, kernel, **conditioning), x, kernel)


# --- a network's home -----------------------------------------------------------------------------------------


def _time_label(sde: SDE, t: Tensor) -> Tensor:
    return 999.0 * t


def _logsnr_label(sde: SDE, t: Tensor) -> Tensor:
    return sde.kernel(t).logsnr


def _log_sigma_label(sde: SDE, t: Tensor) -> Tensor:
    kernel = sde.kernel(t)
    return (kernel.sigma / kernel.alpha).log()


def _edm_label(sde: SDE, t: Tensor) -> Tensor:
    return 0.25 * _log_sigma_label(sde, t)


def _levels(sde: SDE, label: str) -> Tensor:
    if sde.times is None:
        raise UserError(f"label {label!r} counts the levels of a discrete process; {type(sde).__name__} has none")
    return sde.times


def _index_label(sde: SDE, t: Tensor) -> Tensor:
    levels = _levels(sde, "index")
    return ((t - levels[0]) / (levels[1] - levels[0])).clamp(0.0, len(levels) - 1.0)


def _reversed_index_label(sde: SDE, t: Tensor) -> Tensor:
    return len(_levels(sde, "reversed_index")) - 1.0 - _index_label(sde, t).round()


def _nearest_index_label(sde: SDE, t: Tensor) -> Tensor:
    ratios = _log_sigma_label(sde, _levels(sde, "nearest_index")).exp()
    return (_log_sigma_label(sde, t).exp()[..., None] - ratios).abs().argmin(-1).to(torch.float64)


def _thousandth_label(sde: SDE, t: Tensor) -> Tensor:
    return _index_label(sde, t) * (1000.0 / len(_levels(sde, "index_1000")))


LABELS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "time": _time_label,  # 999 t (Song et al. 2021, continuous VP models)
    "thousand_time": lambda sde, t: 1000.0 * t,  # 1000 t (the flow-matching schedulers of diffusers)
    "logsnr": _logsnr_label,  # log(alpha^2/sigma^2) (Kingma et al. 2021)
    "sigma": lambda sde, t: _log_sigma_label(sde, t).exp(),  # sigma/alpha (score_sde's VE networks without features)
    "log_sigma": _log_sigma_label,  # log(sigma/alpha), the argument of NCSN++'s Fourier features
    "log_half_sigma": lambda sde, t: _log_sigma_label(sde, t) - math.log(2.0),  # the same for data in [0, 1]
    "edm": _edm_label,  # log(sigma)/4 (Karras et al. 2022, Table 1)
    "index": _index_label,  # 0 .. N-1 on the levels of a discrete home, fractional between them
    "index_1000": _thousandth_label,  # the index for 1000 levels, whatever N is (improved-diffusion's rescaling)
    "nearest_index": _nearest_index_label,  # that of the level nearest in sigma (EDM's iDDPM preconditioning)
    "reversed_index": _reversed_index_label,  # N-1 .. 0, rounded: NCSN counts from the most noise
}


def _unit_input(x: Tensor, kernel: Kernel, sigma_data: float) -> Tensor:
    return match(1.0 / (kernel.variance + (sigma_data * kernel.alpha) ** 2).sqrt(), x) * x


INPUT_SCALES: dict[str, Callable[[Tensor, Kernel, float], Tensor]] = {
    "none": lambda x, kernel, sigma_data: x,
    "unit": _unit_input,  # unit variance of the input for data of standard deviation sigma_data (EDM's c_in)
    "centre": lambda x, kernel, sigma_data: 2.0 * x - 1.0,  # of data in [0, 1]
}
"""x at home, its kernel and the standard deviation of the data -> what the network sees."""


def _fixed(out: Tensor) -> tuple[Tensor, Tensor | None]:
    return out, None


def _learned_range(out: Tensor) -> tuple[Tensor, Tensor | None]:
    prediction, v = out.chunk(2, dim=1)
    return prediction, 0.5 * (v + 1.0)  # v = -1 is the posterior's, 1 beta's


VARIANCES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    "fixed": _fixed,
    "learned_range": _learned_range,
}
"""Network outputs -> the prediction and the fraction of the learned variance."""


@dataclass(frozen=True)
class NetworkSpec:
    """What must be known of a network to use it: stored in its checkpoint.

    network, options   its name in NETWORKS and the arguments it was built with
    process            its home
    prediction         a key of PREDICTIONS
    label              a key of LABELS
    input_scale        a key of INPUT_SCALES
    data_range         where its training data lay; model space is [-1, 1]
    shape              one sample's shape
    variance           "fixed", or "learned_range": the second half of its channels is the fraction of the log-variance
    sigma_data         the standard deviation of the data that prediction "edm" and input scale "unit" assume
    """

    process: SDE
    prediction: str = "eps"
    label: str = "time"
    input_scale: str = "none"
    data_range: tuple[float, float] = (-1.0, 1.0)
    shape: tuple[int, ...] = ()
    network: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    variance: str = "fixed"
    sigma_data: float = EDM_SIGMA_DATA

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, PREDICTIONS)
        choose("label", self.label, LABELS)
        choose("input scale", self.input_scale, INPUT_SCALES)
        choose("variance", self.variance, VARIANCES)
        if not (self.sigma_data > 0.0 and math.isfinite(self.sigma_data)):
            raise UserError(f"sigma_data, a standard deviation, must be positive, got {self.sigma_data}")

    def check_first_level(self) -> None:
        """Raises UserError where the network could not be asked at the home's first level, before it is trained.

        That is one without signal, alpha = 0, for a prediction that says nothing of x_0 there, and for a label that is
        infinite there.
        """
        t = torch.tensor(self.process.known_times[1], dtype=torch.float64)
        if float(self.process.kernel(t).alpha) > 0.0:
            return
        first = f"the first level of {type(self.process).__name__} has no signal, alpha = 0"
        if blind_without_signal(self.prediction):
            raise UserError(
                f"{first}, where prediction {self.prediction!r} says nothing of x_0: choose 'v', 'x0' or 'velocity'"
            )
        if not bool(LABELS[self.label](self.process, t).isfinite()):
            raise UserError(f"{first}, where label {self.label!r} is infinite: choose one that is not, such as 'time'")

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether samples of a shape may go to the network: of its own, or images of another size, of as many channels.

        A network that knows one size only says so itself.
        """
        own = self.shape
        return tuple(shape) == tuple(own) or (len(shape) == len(own) == 3 and shape[0] == own[0])

    @property
    def model_process(self) -> SDE:
        """The home in model space, where samples are drawn and likelihoods computed: its noise scaled as the data."""
        low, high = self.data_range
        return self.process.scaled(2.0 / (high - low))

    def state(self) -> dict[str, Any]:
        """The spec as plain containers that JSON can hold."""
        return {**vars(self), "process": process_state(self.process)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NetworkSpec:
        """The spec that `state` described."""
        known = {**state, "process": process_from_state(state["process"])}
        return cls(**{**known, "data_range": tuple(known["data_range"]), "shape": tuple(known["shape"])})


PRECONDITIONERS: dict[str, NetworkSpec] = {
    "edm": NetworkSpec(EDM(), "edm", "edm", "unit"),
    "vp": NetworkSpec(VPSDE(), "eps", "time"),
    "ve": NetworkSpec(VESDE(0.02, 100.0), "sigma_score", "log_half_sigma"),
    "iddpm": NetworkSpec(DiscreteVP.cosine(1000), "eps", "nearest_index", variance="learned_range"),
}
"""The four preconditioners of Karras et al. 2022, Table 1, each a home; `dataclasses.replace` gives one a network.

With D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), alpha and t those of the home at the noise level sigma:

    edm     c_skip = s_d^2/m, c_out = sigma s_d/sqrt(m), c_in = 1/sqrt(m), c_noise = log(sigma)/4, m = sigma^2 + s_d^2
    vp      c_skip = 1, c_out = -sigma, c_in = 1/sqrt(sigma^2 + 1) = alpha, c_noise = 999 t
    ve      c_skip = 1, c_out = sigma, c_in = 1, c_noise = log(sigma/2)
    iddpm   as vp, with c_noise the index of the nearest of 1000 cosine levels, and a learned variance
"""


class NetworkDenoiser:
    """A network as a denoiser of any process, through the log-SNR and the network's own clock.

    x0_hat = c_skip x_h + c_out net(c_in x_h + d, label), with x_h the state x [B, *D] scaled to the home process.
    Beyond the noise levels that the home knows, its nearest one is used.
    """

    def __init__(self, net: nn.Module, spec: NetworkSpec) -> None:
        self.net = net
        self.spec = spec
        home = spec.process
        self._times = home.known_times
        ends = home.kernel(torch.tensor(self._times, dtype=torch.float64)).logsnr
        self._most, self._least = float(ends[0]), float(ends[1])
        self._in_range = spec.data_range == (-1.0, 1.0)
        self._label = LABELS[spec.label]
        self._input_scale = INPUT_SCALES[spec.input_scale]

    @property
    def device(self) -> torch.device:
        """Where the network's parameters lie."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        """x0_hat [B, *D]; conditioning such as labels=[B] goes to the network as it is."""
        return self.moments(x, kernel, **conditioning)[0]

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the fraction of the learned variance, None for a network that has none."""
        if self._in_range:
            return self._at_home(x, kernel, **conditioning)
        return to_model_range(self._at_home, *self.spec.data_range, x, kernel, **conditioning)

    def _at_home(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        self._check_classes(conditioning.get("labels"))
        t = self.spec.process.time_of(kernel.logsnr.clamp(self._least, self._most)).clamp(*self._times)
        home = self.spec.process.kernel(t)
        # The two ratios agree inside the home's range; outside it the larger part of x is the one to preserve.
        ratio = torch.where(kernel.alpha > kernel.sigma, home.alpha / kernel.alpha, home.sigma / kernel.sigma)
        wide = lifted(x)
        x_home, spec, own = match(ratio, wide) * wide, self.spec, self._dtype or wide.dtype
        seen = self._input_scale(x_home, home, spec.sigma_data).to(own)
        out, fraction = VARIANCES[spec.variance](self.net(seen, self._clock(t, x, own), **conditioning))
        x0_hat = to_x0(spec.prediction, out.to(wide.dtype), x_home, home, sigma_data=spec.sigma_data)
        return x0_hat.to(x.dtype), fraction if fraction is None else fraction.to(x.dtype)

    @property
    def _dtype(self) -> torch.dtype | None:
        """The dtype of the network's parameters, None where it has none."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    def _clock(self, t: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        """c_noise [B], in float32 at least: 16 bits cannot tell a thousand levels apart."""
        label, wide = self._label(self.spec.process, t), lifted_dtype(dtype)
        if bool(label.isinf().any()):
            raise UserError(
                f"the network is told the noise level by {self.spec.label!r}, which is infinite where alpha = 0: start "
                "later, as with make_grid(..., t_start=0.99), or use a network with label 'time'"
            )
        if label.ndim:
            return label.to(wide).to(device=x.device, non_blocking=True)
        # Filled in on the device, which waits for no copy.
        return torch.full((len(x),), float(label), device=x.device, dtype=wide)

    def _check_classes(self, labels: Tensor | None) -> None:
        """Raises UserError for classes that the network does not have; on a GPU, where looking would wait, nothing."""
        count = self.spec.options.get("num_classes", 0)
        if labels is None or labels.device.type != "cpu" or not count or not labels.numel():
            return
        if not 0 <= int(labels.min()) <= int(labels.max()) <= count:
            raise UserError(f"the classes are 0 to {count - 1}, and {count} for none; got {labels.tolist()[:8]}")


# --- denoisers around denoisers -------------------------------------------------------------------------------


class _Wrapper:
    """A denoiser around a denoiser: `moments` is all that it defines."""

    denoiser: Denoiser

    def __call__(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> Tensor:
        return self.moments(x, kernel, **conditioning)[0]

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the fraction of the learned variance, None where there is none."""
        return moments(self.denoiser, x, kernel, **conditioning)

    @property
    def device(self) -> torch.device | None:
        """The device of the denoiser inside, where it has one."""
        return getattr(self.denoiser, "device", None)

    @property
    def spec(self) -> NetworkSpec | None:
        """The spec of the network inside, where there is one."""
        return getattr(self.denoiser, "spec", None)


class CountingDenoiser(_Wrapper):
    """Counts the calls for a whole batch: `nfe`."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.nfe = 0

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        self.nfe += 1
        return moments(self.denoiser, x, kernel, **conditioning)


class CheckpointedDenoiser(_Wrapper):
    """Computes each evaluation again in the backward pass, in place of keeping what it needs (Chen et al. 2016).

    Memory then holds x and x0_hat of every step, and the inside of one evaluation at a time. The global random state
    is left alone, so that a denoiser must not draw from it.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        def again(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return moments(self.denoiser, x, kernel, **conditioning)

        found: tuple[Tensor, Tensor | None] = checkpoint(again, x, use_reentrant=False, preserve_rng_state=False)
        return found


class AutocastDenoiser(_Wrapper):
    """The denoiser's passes in 16 bits where torch.autocast says so; x and x0_hat stay as they are."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(x.device.type, dtype=self.dtype):
            x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return x0_hat.to(x.dtype), None if fraction is None else fraction.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a sampler asked and was told in evaluation `index`: x, x0_hat [n, *D] and the kernel, on the CPU."""

    index: int
    x: Tensor
    x0_hat: Tensor
    kernel: Kernel


class WatchedDenoiser(_Wrapper):
    """Keeps what it is asked about the first `count` samples of a batch, and what it answers: `seen`.

    Of many evaluations every second is kept, or every fourth, ..., at most `most` of them, and always the last.
    """

    def __init__(self, denoiser: Denoiser, count: int, most: int = 64) -> None:
        self.denoiser = denoiser
        self.count, self.most, self.calls, self.stride = count, most, 0, 1
        self._kept: list[Seen] = []

    @property
    def seen(self) -> list[Seen]:
        """From the first evaluation to the last."""
        *kept, last = self._kept
        return [*(one for one in kept if one.index % self.stride == 0), last]

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        alpha, sigma = (value[: self.count] if value.ndim else value for value in (kernel.alpha, kernel.sigma))
        first, told = (value[: self.count].to("cpu", copy=True) for value in (x, x0_hat))
        if self._kept and self._kept[-1].index % self.stride:
            self._kept.pop()
        if len(self._kept) >= self.most - 1:
            self.stride *= 2
            self._kept = [one for one in self._kept if one.index % self.stride == 0]
        self._kept.append(Seen(self.calls, first, told, Kernel(alpha.cpu(), sigma.cpu())))
        self.calls += 1
        return x0_hat, fraction


class CheckedDenoiser(_Wrapper):
    """x0_hat in the dtype of x; refuses another shape than x's and, with `finite`, values that are not finite.

    where: says of a kernel where in the sampling it is. Raises UserError.
    """

    def __init__(self, denoiser: Denoiser, where: Callable[[Kernel], str], *, finite: bool = False) -> None:
        self.denoiser = denoiser
        self.where = where
        self.finite = finite

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.finite and not bool(x.isfinite().all()):
            raise UserError(f"the sampler diverged before {self.where(kernel)}: take more steps, or a lower order")
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        if not isinstance(x0_hat, Tensor):
            raise UserError(f"the denoiser returned a {type(x0_hat).__name__}, not a tensor, in {self.where(kernel)}")
        if x0_hat.shape != x.shape:
            raise UserError(
                f"the denoiser returned {tuple(x0_hat.shape)} for x of shape {tuple(x.shape)} in {self.where(kernel)}"
            )
        if self.finite and not bool(x0_hat.isfinite().all()):
            if kernel.alpha.ndim:  # one level a sample: those of the samples that failed
                kernel = kernel[~x0_hat.isfinite().flatten(1).all(1).cpu()]
            raise UserError(f"the denoiser returned values that are not finite in {self.where(kernel)}")
        return x0_hat.to(x.dtype), fraction


@dataclass(frozen=True)
class ClippedDenoiser(_Wrapper):
    """x0_hat clipped to [low, high]. Samplers derive eps from it, so that eps agrees with the clipped x0_hat."""

    denoiser: Denoiser
    low: float = -1.0
    high: float = 1.0

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        x0_hat, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return x0_hat.clamp(self.low, self.high), fraction


class ConditionedDenoiser(_Wrapper):
    """A denoiser with some of its conditioning, such as labels=[B], fixed."""

    def __init__(self, denoiser: Denoiser, **conditioning: Tensor) -> None:
        self.denoiser = denoiser
        self.conditioning = conditioning

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        return moments(self.denoiser, x, kernel, **{**self.conditioning, **conditioning})


class GuidedDenoiser(_Wrapper):
    """Classifier-free guidance, x0_hat = (1 + w) x0_hat(x | c) - w x0_hat(x) (Ho and Salimans 2022, equation 6).

    The equation is stated for eps; as eps and x0_hat are linear in one another at a given x, it is the same for x0_hat.
    A learned variance is the conditional one's.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, weight: float) -> None:
        self.denoiser = conditional
        self.unconditional = unconditional
        self.weight = weight

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        with_c, fraction = moments(self.denoiser, x, kernel, **conditioning)
        return torch.lerp(self.unconditional(x, kernel), with_c, 1.0 + self.weight), fraction


def to_model_range(
    both: Callable[..., tuple[Tensor, Tensor | None]],
    low: float,
    high: float,
    x: Tensor,
    kernel: Kernel,
    /,
    **conditioning: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """The moments of a denoiser for data in [low, high], asked for and given in model space [-1, 1].

    With y_0 = c x_0 + d, c = (high - low)/2 and d = (high + low)/2: if x has the kernel (alpha, sigma), then
    c x + alpha d has the kernel (alpha, c sigma) of y.
    """
    c, d = 0.5 * (high - low), 0.5 * (high + low)
    y = c * x + match(kernel.alpha * d, x)
    y0_hat, fraction = both(y, Kernel(kernel.alpha, c * kernel.sigma), **conditioning)
    return (y0_hat - d) / c, fraction


@dataclass(frozen=True)
class RangeDenoiser(_Wrapper):
    """A denoiser trained on data in [low, high], for model space [-1, 1]."""

    denoiser: Denoiser
    low: float
    high: float

    def moments(self, x: Tensor, kernel: Kernel, **conditioning: Tensor) -> tuple[Tensor, Tensor | None]:
        return to_model_range(partial(moments, self.denoiser), self.low, self.high, x, kernel, **conditioning)
