"""A trained network as a denoiser of any process.

A network has a home, which its NetworkSpec names: the process it was trained under, what it predicts, and c_noise, by
which it is told the noise level. A kernel of any other process is brought home through the log-SNR, the one quantity
that two noise levels of the same hardness share: if alpha/sigma = alpha_h/sigma_h, then

    x = alpha x_0 + sigma n    and    x_h = (sigma_h / sigma) x = alpha_h x_0 + sigma_h n

hold the same of x_0, and x_h is distributed as the home's x_t. So x0_hat(x) is what the network says of x_h.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.core.conditions import Conditions, check_taken
from sde_diffusion.core.continuous import EDM, VESDE, VPSDE
from sde_diffusion.core.discrete import DiscreteVP
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.kernel import Kernel, lifted, lifted_dtype, match
from sde_diffusion.core.prediction import (
    EDM_SIGMA_DATA,
    PREDICTIONS,
    blind_without_signal,
    to_x0,
)
from sde_diffusion.core.process import SDE
from sde_diffusion.core.processes import process_from_state, process_state
from sde_diffusion.denoisers.base import to_model_range
from sde_diffusion.denoisers.c_noise import C_NOISES


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


def step_variance(variance: str) -> str:
    """The variance of the steps of a discrete model by its network's, a key of VARIANCES: learned where that is."""
    return "posterior" if variance == "fixed" else "learned"


@dataclass(frozen=True)
class NetworkSpec:
    """What must be known of a network to use it: stored in its checkpoint.

    network, options   its name in NETWORKS and the arguments it was built with
    process            its home
    prediction         a key of PREDICTIONS
    label              a key of C_NOISES
    input_scale        a key of INPUT_SCALES
    data_range         where its training data lay; model space is [-1, 1]
    shape              one sample's shape
    variance           "fixed", or "learned_range": the second half of its channels is the fraction of the log-variance
    sigma_data         the standard deviation of the data that prediction "edm" and input scale "unit" assume
    conditions         the names of what it is told beside the noise level; unless given those of its options: "labels"
                       with num_classes, and its vectors
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
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.conditions:
            labels = ("labels",) if self.options.get("num_classes") else ()
            object.__setattr__(self, "conditions", (*labels, *self.options.get("vectors", ())))
        choose("prediction", self.prediction, PREDICTIONS)
        choose("label", self.label, C_NOISES)
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
        if not bool(C_NOISES[self.label](self.process, t).isfinite()):
            raise UserError(f"{first}, where label {self.label!r} is infinite: choose one that is not, such as 'time'")

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether samples of a shape may go to the network: of its own, or images of another size, of as many channels.

        A network that knows one size only says so itself.
        """
        own = self.shape
        return tuple(shape) == tuple(own) or (len(shape) == len(own) == 3 and shape[0] == own[0])

    def untold(self, conditions: Mapping[str, Tensor]) -> Conditions:
        """What stands for "not told" in place of those conditions that the network can do without.

        That is the class after the last one, and NaN for a vector.
        """
        classes, vectors = self.options.get("num_classes"), self.options.get("vectors", ())
        nothing = {**({"labels": classes} if classes else {}), **dict.fromkeys(vectors, math.nan)}
        return {name: torch.full_like(value, nothing[name]) for name, value in conditions.items() if name in nothing}

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
        tuples = ("data_range", "shape", "conditions")
        return cls(**{**known, **{name: tuple(known[name]) for name in tuples if name in known}})


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


def condition_names(net: nn.Module) -> tuple[str, ...] | None:
    """The conditions that a network's forward takes beside x and c_noise; None where it takes any, as a wrapper.

    A network of NETWORKS knows the names of its vectors itself.
    """
    parameters = list(inspect.signature(net.forward).parameters.values())
    vectors = getattr(getattr(net, "conditioning", None), "vectors", None)
    kinds = {own.kind for own in parameters}
    # A wrapper shows the attributes of its network, and not the arguments.
    if inspect.Parameter.VAR_POSITIONAL in kinds or (vectors is None and inspect.Parameter.VAR_KEYWORD in kinds):
        return None
    return (*(own.name for own in parameters[2:] if own.kind != inspect.Parameter.VAR_KEYWORD), *(vectors or ()))


class NetworkDenoiser:
    """A network as a denoiser of any process, through the log-SNR and the network's own clock.

    x0_hat = c_skip x_h + c_out net(c_in x_h + d, c_noise), with x_h the state x [B, *D] scaled to the home process.
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
        self._input_scale = INPUT_SCALES[spec.input_scale]
        self._takes = condition_names(net)

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
        if self._takes is not None:
            check_taken(conditioning, self._takes, f"the network {self.spec.network or type(self.net).__name__!r}")
        self._check_classes(conditioning.get("labels"))
        t = self.spec.process.time_of(kernel.logsnr.clamp(self._least, self._most)).clamp(*self._times)
        home = self.spec.process.kernel(t)
        # The two ratios agree inside the home's range; outside it the larger part of x is the one to preserve.
        ratio = torch.where(kernel.alpha > kernel.sigma, home.alpha / kernel.alpha, home.sigma / kernel.sigma)
        wide = lifted(x)
        x_home, spec, own = match(ratio, wide) * wide, self.spec, self._dtype or wide.dtype
        seen = self._input_scale(x_home, home, spec.sigma_data).to(own)
        out, fraction = VARIANCES[spec.variance](self.net(seen, self._c_noise(t, x, own), **conditioning))
        x0_hat = to_x0(spec.prediction, out.to(wide.dtype), x_home, home, sigma_data=spec.sigma_data)
        return x0_hat.to(x.dtype), fraction if fraction is None else fraction.to(x.dtype)

    @property
    def _dtype(self) -> torch.dtype | None:
        """The dtype of the network's parameters, None where it has none."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    def _c_noise(self, t: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        """c_noise [B], in float32 at least: 16 bits cannot tell a thousand levels apart."""
        c_noise, wide = C_NOISES[self.spec.label](self.spec.process, t), lifted_dtype(dtype)
        if bool(c_noise.isinf().any()):
            raise UserError(
                f"the network is told the noise level by {self.spec.label!r}, which is infinite where alpha = 0: start "
                "later, as with make_grid(..., t_start=0.99), or use a network with label 'time'"
            )
        if c_noise.ndim:
            return c_noise.to(wide).to(device=x.device, non_blocking=True)
        # Filled in on the device, which waits for no copy.
        return torch.full((len(x),), float(c_noise), device=x.device, dtype=wide)

    def _check_classes(self, labels: Tensor | None) -> None:
        """Raises UserError for classes that the network does not have; on a GPU, where looking would wait, nothing."""
        count = self.spec.options.get("num_classes", 0)
        if labels is None or labels.device.type != "cpu" or not count or not labels.numel():
            return
        if not 0 <= int(labels.min()) <= int(labels.max()) <= count:
            raise UserError(f"the classes are 0 to {count - 1}, and {count} for none; got {labels.tolist()[:8]}")
