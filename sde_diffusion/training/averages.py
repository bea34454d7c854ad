"""Averages of a network's weights, with which diffusion models are sampled, and averages of any length after training.

The weights theta_n after update n = 1, 2, ... are averaged by

    average <- d_n average + (1 - d_n) theta_n,

starting from the first weights theta_0. The profile of an average is its impulse response: the share p_n(m) that
theta_m has in it after update n. Two kinds of d_n are at hand. The exponential one has the same memory all along, and
the power function's memory grows with the training (Karras et al. 2024, "Analyzing and Improving the Training Dynamics
of Diffusion Models", section 3.1):

    d_n = (1 - 1/n)^(gamma + 1)     gives     p_n(m) = (m^(gamma+1) - (m-1)^(gamma+1)) / n^(gamma+1),

which is, exactly, the integral over m-1 < tau < m of the density

    p_{n,gamma}(tau) = (gamma + 1) tau^gamma / n^(gamma+1)     on 0 < tau < n.

As d_1 = 0, theta_0 has no share. The density's mean is n (gamma+1)/(gamma+2), its standard deviation sigma_rel n with

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

After training (ibid., section 3.2). Let the averages i = 1, 2, ... of profiles p_i have been stored, each after n_i
updates with gamma_i. What is linear in the profiles is linear in the averages, so another average, of profile p, is
sum_i x_i average_i up to the residual r = p - sum_i x_i p_i. We take

    the x of least |r|^2 under sum_i x_i = 1,     G x + lambda 1 = b,   G_ij = <p_i, p_j>,   b_i = <p_i, p>,

all of whose inner products have a closed form: with n_a <= n_b, the integral of p_a p_b over 0 < tau < n_a is

    <p_a, p_b> = (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) (n_a / n_b)^gamma_b / n_b.

The norm is that of the error: if the theta_m scatter independently about one value, the result's mean squared error is
their variance times |r|^2, and the wanted average's own scatter their variance times |p|^2. The sum of one (which the
paper does not ask for) makes whatever was constant in training exactly its own average.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.nets.building import refuse_misfits
from sde_diffusion.storage.files import sha256_of, write_aside

SNAPSHOTS = "ema_snapshots"
MANIFEST = "manifest.json"
WIDEST = 1 / math.sqrt(12)
"""sigma_rel of gamma = 0, the mean of all weights so far; a wider profile would prefer the earlier weights."""
CUTOFF = 1e-13
"""Relative singular values below it are taken for zero, so that two snapshots that are all but the same share one
coefficient between them and are not subtracted from each other."""


# --- profiles -------------------------------------------------------------------------------------------------


class Profile(Protocol):
    """How an average forgets."""

    def decay(self, update: int) -> float:
        """The share d_n that the average so far keeps at update n = 1, 2, ..."""


@dataclass(frozen=True)
class Exponential:
    """d_n = min(rate, (1 + n)/(10 + n)).

    The warm-up keeps the untrained weights from lingering (the rule of TensorFlow's ExponentialMovingAverage, used by
    Song et al. 2021). Raises UserError for a rate that is not in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise UserError(f"the rate of an exponential average must lie in [0, 1), got {self.rate}")

    def decay(self, update: int) -> float:
        return min(self.rate, (1 + update) / (10 + update))


@dataclass(frozen=True)
class Power:
    """d_n = (1 - 1/n)^(gamma + 1), whose profile is sigma_rel n wide after n updates (Karras et al. 2024, eq. 2).

    Raises UserError for a sigma_rel that no gamma >= 0 has.
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        power_gamma(self.sigma_rel)

    @property
    def gamma(self) -> float:
        return power_gamma(self.sigma_rel)

    def decay(self, update: int) -> float:
        return (1.0 - 1.0 / update) ** (self.gamma + 1.0)


def relative_width(gamma: float) -> float:
    """sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2) (Karras et al. 2024, eq. 3)."""
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)


def power_gamma(sigma_rel: float) -> float:
    """The gamma >= 0 of a relative width, 0 < sigma_rel <= 1/sqrt(12); otherwise raises UserError.

    With u = gamma + 2 and k = 1/sigma_rel^2 the width's formula is the cubic u^3 + u^2 - k u + k = 0, and in
    v = u + 1/3 it is v^3 + p v + q = 0 with p = -k - 1/3, q = 4k/3 + 2/27. It has a root below 0, for k >= 12 one in
    1 < u <= 2 (its values at 0, 1, 2 are k, 2, 12 - k), and the wanted one at u >= 2: the largest, which is Viete's
    2 sqrt(-p/3) cos(arccos(3q/(2p) sqrt(-3/p)) / 3).
    """
    if not 0.0 < sigma_rel <= WIDEST:
        raise UserError(f"sigma_rel must lie in (0, 1/sqrt(12) = {WIDEST:.4f}], got {sigma_rel}")
    k = sigma_rel**-2
    p, q = -k - 1 / 3, 4 * k / 3 + 2 / 27
    angle = math.acos(1.5 * q / p * math.sqrt(-3.0 / p)) / 3.0
    return max(0.0, 2.0 * math.sqrt(-p / 3.0) * math.cos(angle) - 1 / 3 - 2.0)


# --- during training ------------------------------------------------------------------------------------------


class Averages:
    """Named averages of one network's parameters and buffers, on its device and in float32 at least.

    They start at the network's own weights. Buffers that are not floats, such as counts, are those of the last update.
    The weights may be DTensors, whose shards are averaged where they lie.

    updates: how many have been made, when training resumes. Each step of the training is one, even if it left the
    weights as they were: a power profile counts them.
    """

    def __init__(self, net: nn.Module, profiles: Mapping[str, Profile], updates: int = 0) -> None:
        self.profiles = dict(profiles)
        self.updates = updates
        weights = net.state_dict()
        self._averages = {name: {key: _own(value) for key, value in weights.items()} for name in profiles}
        # Multi-tensor operations take no mixture of shards (DTensors) and plain tensors, which buffers remain.
        kinds: dict[type[Tensor], list[str]] = {}
        for key, value in weights.items():
            if value.is_floating_point():
                kinds.setdefault(type(value), []).append(key)
        self._floats = list(kinds.values())
        self._others = [key for key, value in weights.items() if not value.is_floating_point()]
        # No average is ever replaced: looking them up once saves as long as the arithmetic of a small network takes.
        self._sums = {
            name: [[average[key] for key in keys] for keys in self._floats] for name, average in self._averages.items()
        }

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """One multi-tensor operation for each profile."""
        self.updates += 1
        weights = net.state_dict()
        floats = [[_precise(weights[key]) for key in keys] for keys in self._floats]
        for name, profile in self.profiles.items():
            share = 1.0 - profile.decay(self.updates)
            for own, new in zip(self._sums[name], floats):
                torch._foreach_lerp_(own, new, share)
            for key in self._others:
                self._averages[name][key].copy_(weights[key])

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The averages by name, with the keys of the network's state dict; the tensors go on with the training."""
        return {name: dict(average) for name, average in self._averages.items()}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from stored averages. Raises UserError that names what is missing, unexpected or of another shape."""
        own = {f"{name}/{key}": value for name, average in self._averages.items() for key, value in average.items()}
        new = {f"{name}/{key}": value for name, average in weights.items() for key, value in average.items()}
        shapes = [
            f"{key}: {tuple(new[key].shape)} where {tuple(own[key].shape)} is expected"
            for key in sorted(own.keys() & new.keys())
            if own[key].shape != new[key].shape
        ]
        refuse_misfits(
            "the stored averages do not fit the network",
            sorted(own.keys() - new.keys()),
            sorted(new.keys() - own.keys()),
            shapes,
        )
        _fill(own, new)

    @contextmanager
    def within(self, net: nn.Module, name: str) -> Iterator[None]:
        """Inside, the network holds the average of that name and is in evaluation mode; afterwards all is as before.

        Raises UserError for an average that there is not.
        """
        average = choose("average", name, self._averages)
        kept = {key: value.clone() for key, value in net.state_dict().items()}
        modes = {module: module.training for module in net.modules()}
        try:
            # The state dict anew each time: asking for it makes a sharded network drop what it gathered before.
            _fill(net.state_dict(), average)
            net.eval()
            yield
        finally:
            _fill(net.state_dict(), kept)
            for module, training in modes.items():
                module.training = training


def _precise(value: Tensor) -> Tensor:
    """In float32 at least: half precision would round away the small share of an update."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _own(value: Tensor) -> Tensor:
    copy = value.detach().clone()
    return _precise(copy) if copy.is_floating_point() else copy


@torch.no_grad()
def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for key, target in targets.items():
        target.copy_(values[key])


# --- after training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A file with the power average of sigma_rel after `step` updates."""

    step: int
    sigma_rel: float
    path: Path


def save_snapshot(folder: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Store power averages, {sigma_rel: weights}, from which others are reconstructed after training.

    In the run's folder, ema_snapshots/step_<step>/ has a safetensors file for each and manifest.json, which names them
    with their SHA-256. A snapshot of that step is replaced. Floats are stored in float32: the coefficients of a
    reconstruction have both signs and add up to one while their magnitudes may add up to ten and more, so that the
    averages cancel, and the rounding of a shorter format would not.
    """
    place = folder / SNAPSHOTS / f"step_{step:09d}"
    entries = []
    for sigma_rel, weights in averages.items():
        data = safetensors({key: _stored(value) for key, value in weights.items()})
        digest = hashlib.sha256(data).hexdigest()
        # Named by its content, a file is never overwritten by another: the manifest turns from old to new in one go.
        name = f"power_{sigma_rel:g}_{digest[:12]}.safetensors"
        write_aside(place / name, data)
        entries.append({"sigma_rel": sigma_rel, "file": name, "sha256": digest})
    write_aside(place / MANIFEST, (json.dumps({"step": step, "averages": entries}, indent=2) + "\n").encode())
    for path in set(place.glob("power_*")) - {place / str(entry["file"]) for entry in entries}:
        path.unlink()


def _stored(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=True).contiguous()


def drop_snapshots(folder: Path, after: int) -> None:
    """Remove a run's snapshots of later steps, from which it goes on in another way."""
    for place in (folder / SNAPSHOTS).glob("step_" + 9 * "[0-9]"):
        if int(place.name.removeprefix("step_")) > after:
            shutil.rmtree(place)


def snapshot_index(folder: Path) -> list[Stored]:
    """The averages of a run's snapshots, the oldest first. A damaged snapshot is named by a warning and left out."""
    found: list[Stored] = []
    for place in sorted((folder / SNAPSHOTS).glob("step_*")):
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            stored = []
            for entry in manifest["averages"]:
                path = place / entry["file"]
                if sha256_of(path) != entry["sha256"]:
                    raise ValueError(f"{path.name} is not what was written")
                stored.append(Stored(int(manifest["step"]), float(entry["sigma_rel"]), path))
            found += stored
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"the snapshot {place} is damaged and left out: {error}", stacklevel=2)
    return found


def inner_products(rows: Sequence[tuple[float, float]], columns: Sequence[tuple[float, float]]) -> Tensor:
    """<p_a, p_b> of profiles (n, gamma), float64 [rows, columns]."""
    n_a, gamma_a = torch.tensor(rows, dtype=torch.float64).T[:, :, None]
    n_b, gamma_b = torch.tensor(columns, dtype=torch.float64).T[:, None, :]
    longer = n_a.maximum(n_b)
    ratio = n_a.minimum(n_b) / longer
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * ratio ** gamma_b.where(n_a <= n_b, gamma_a) / longer


def coefficients(stored: Sequence[tuple[float, float]], target: tuple[float, float]) -> Tensor:
    """The x with sum_i x_i = 1 of least |p - sum_i x_i p_i|, of profiles (n, gamma); float64 [stored].

    It solves [[G, 1], [1^T, 0]] (x, lambda) = (b, 1), with n in units of the target's, in which the blocks compare.
    """
    n, _ = target
    gram, right = n * inner_products(stored, stored), n * inner_products(stored, [target])
    ones = torch.ones_like(right)
    system = torch.cat([torch.cat([gram, ones], dim=1), torch.cat([ones, torch.zeros_like(ones[:1])]).T])
    solution = torch.linalg.lstsq(system, torch.cat([right, ones[:1]]), rcond=CUTOFF, driver="gelsd").solution
    return solution[:-1, 0]


def relative_residual(stored: Sequence[tuple[float, float]], target: tuple[float, float], x: Tensor) -> float:
    """|p - sum_i x_i p_i| / |p|."""
    whole = torch.cat([x.new_ones(1), -x])
    square = whole @ inner_products([target, *stored], [target, *stored]) @ whole
    return math.sqrt(max(0.0, float(square / inner_products([target], [target]))))


def reconstruct(
    folder: Path, sigma_rel: float, step: int | None = None, stored: Sequence[Stored] | None = None
) -> tuple[dict[str, Tensor], float]:
    """The power average of any sigma_rel after any step, from a run's snapshots, and the relative residual of its fit.

    step: None for that of the newest snapshot. stored: the folder's `snapshot_index`, if it is known. The floats are
    float32; what is no float is that of the last snapshot until then. Memory: twice the weights, as one tensor is read
    at a time and summed up in float64.
    Raises UserError where there are no snapshots, for a step before the first one or after the last, and for a
    sigma_rel that no profile has.
    """
    gamma, place = power_gamma(sigma_rel), folder / SNAPSHOTS
    stored = snapshot_index(folder) if stored is None else stored
    if not stored:
        raise UserError(f"there are no snapshots in {place}, which a training with power averages writes")
    first, last = stored[0].step, stored[-1].step
    step = last if step is None else step
    if not first <= step <= last:
        raise UserError(f"step {step} is not within the snapshots in {place}, which are of steps {first} to {last}")
    profiles, target = [(one.step, power_gamma(one.sigma_rel)) for one in stored], (step, gamma)
    x = coefficients(profiles, target)
    weights: dict[str, Tensor] = {}
    for one, share in zip(stored, x.tolist()):
        with safe_open(one.path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                value = file.get_tensor(key)
                if value.is_floating_point():
                    if key not in weights:
                        weights[key] = torch.zeros_like(value, dtype=torch.float64)
                    weights[key].add_(value, alpha=share)
                elif one.step <= step:
                    weights[key] = value
    for key, value in weights.items():
        weights[key] = value.float() if value.is_floating_point() else value
    return weights, relative_residual(profiles, target, x)
