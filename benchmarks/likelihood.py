"""What bits/dim costs, beside the method of score_sde_pytorch: one evaluation of drift and divergence, and all of it.

    python benchmarks/likelihood.py --run runs/vpsde_digits [--samples 128] [--threads 2] [--tolerances 1e-3 1e-5]

The network is that of a trained run of images, given the classes of its held-out images. All in one process,
interleaved, medians.

An evaluation, in units of the network's forward pass:

    ours        one forward pass and one vector-Jacobian product, in log_angle, with the float64 state
    peer        what score_sde_pytorch does: a forward pass for the drift, another one for the divergence, a
                vector-Jacobian product
    forward     torch.func.jvp through the network, where it works

A whole likelihood, from the smallest likelihood time to 1, rtol = atol, with the same Rademacher probe:

    peer        two forward passes and a backward one, scipy's RK45 in t on the batch flattened
    rk45, ...   sd.log_likelihood by that method, in log_angle

    seconds, of peer     median of repeats, and divided by the peer's
    nfe                  evaluations of the drift
    error                root mean square over the samples, in bits/dim, against dop853 at rtol 1e-7 in log_angle
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from common import elapsed
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.noise import rademacher
from sde_diffusion.data import DataOptions, load_splits
from sde_diffusion.report.table import table
from sde_diffusion.solvers.flow import Flow
from sde_diffusion.storage.checkpoint import read_checkpoint
from sde_diffusion.storage.trained import denoiser_of

CPU = torch.device("cpu")
SEED = 7
"""Of the probe, which all methods share."""
Denoise = Callable[..., Tensor]


def peer_divergence(denoiser: Denoise, sde: sd.SDE, x: Tensor, t: Tensor, probe: Tensor) -> Tensor:
    """The divergence's estimate, by a forward pass of its own."""
    with torch.enable_grad():
        here = x.detach().requires_grad_(True)
        product = (sde.velocity(here, denoiser(here, sde.kernel(t)), t) * probe).sum()
        (gradient,) = torch.autograd.grad(product, here)
    return (gradient * probe).flatten(1).sum(1)


def peer_evaluation(denoiser: Denoise, sde: sd.SDE, x: Tensor, t: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Drift and divergence, each with its own forward pass."""
    with torch.no_grad():
        drift = sde.velocity(x, denoiser(x, sde.kernel(t)), t)
    return drift, peer_divergence(denoiser, sde, x, t, probe)


def peer_likelihood(
    denoiser: Denoise, sde: sd.SDE, x: Tensor, probe: Tensor, tolerance: float, method: str = "rk45"
) -> tuple[Tensor, int]:
    """log p(x) [B] in nats and the number of evaluations, by the method of score_sde_pytorch."""
    nfe = 0

    def field(t: Tensor, state: Tensor) -> Tensor:
        nonlocal nfe
        nfe += 1
        here = state[:, :-1].reshape(x.shape).to(x.dtype)
        drift, divergence = peer_evaluation(denoiser, sde, here, t, probe)
        return torch.cat([drift.flatten(1), divergence[:, None]], dim=1).double()

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1).double()
    end = sd.integrate(field, start, sde.t_likelihood, 1.0, method=method, rtol=tolerance, atol=tolerance)
    return sde.prior_logp(end[:, :-1]) + end[:, -1], nfe


def medians(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each piece of work, interleaved, the first round left out."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, one in work.items():
            found[name].append(elapsed(one, CPU))
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def evaluations(denoiser: Denoise, sde: sd.SDE, x: Tensor, probe: Tensor, repeats: int) -> list[dict[str, object]]:
    """A row for each way of finding drift and divergence."""
    t, kernel = torch.tensor(0.3, dtype=torch.float64), sde.kernel(0.3)
    flow = Flow.between(sde, sde.t_likelihood, 1.0, "log_angle")
    u, wide = flow.variable.of(t, kernel), x.double()

    def forward() -> Tensor:
        with torch.no_grad():
            return denoiser(x, kernel)

    def ours() -> Tensor:
        with torch.enable_grad():
            y = wide.detach().requires_grad_(True)
            velocity = flow.rate(denoiser, u, y, x.dtype)
            (product,) = torch.autograd.grad(velocity, y, probe.double())
        return (product * probe).flatten(1).sum(1)

    def forward_mode() -> object:
        return torch.func.jvp(lambda y: sde.velocity(y, denoiser(y, kernel), t), (x,), (probe,))

    work: dict[str, Callable[[], object]] = {
        "network's forward pass": forward,
        "ours": ours,
        "peer": lambda: peer_evaluation(denoiser, sde, x, t, probe),
    }
    try:
        forward_mode()
        work["forward mode"] = forward_mode
    except RuntimeError as error:
        print(f"forward mode fails: {str(error).splitlines()[0][:100]}")
    seconds = medians(work, repeats)
    base = seconds["network's forward pass"]
    return [
        {"evaluation": name, "ms": round(1e3 * value, 2), "forwards": round(value / base, 2)}
        for name, value in seconds.items()
    ]


def likelihoods(
    denoiser: Denoise, sde: sd.SDE, x: Tensor, probe: Tensor, tolerance: float, repeats: int
) -> list[dict[str, object]]:
    """A row for the peer and for each of our methods."""
    bits = 1.0 / (x[0].numel() * math.log(2.0))

    def own(method: str, tolerance: float, variable: str = "log_angle") -> tuple[Tensor, int]:
        found = sd.log_likelihood(
            denoiser,
            x,
            sde,
            method=method,
            rtol=tolerance,
            probes=1,
            generator=torch.Generator().manual_seed(SEED),
            variable=variable,
        )
        return found.nats.double(), found.nfe

    exact = own("dop853", 1e-7)[0]
    runs: dict[str, Callable[[], tuple[Tensor, int]]] = {
        "peer": lambda: peer_likelihood(denoiser, sde, x, probe, tolerance),
        "rk45": lambda: own("rk45", tolerance),
        "per_sample": lambda: own("per_sample", tolerance),
        "rk45 in t": lambda: own("rk45", tolerance, "t"),
    }
    found: dict[str, tuple[Tensor, int]] = {}

    def keep(name: str, run: Callable[[], tuple[Tensor, int]]) -> Callable[[], None]:
        return lambda: found.update({name: run()})

    seconds = medians({name: keep(name, run) for name, run in runs.items()}, repeats)
    return [
        {
            "likelihood": name,
            "tolerance": f"{tolerance:.0e}",
            "nfe": found[name][1],
            "seconds": round(seconds[name], 2),
            "of peer": round(seconds[name] / seconds["peer"], 2),
            "error": float(bits * (found[name][0] - exact).square().mean().sqrt()),
        }
        for name in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="FOLDER", help="a trained run of images")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5])
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    trained = read_checkpoint(flags.run)
    network, sde = denoiser_of(trained), trained.spec.process
    held_out = load_splits(trained.title, DataOptions()).test
    index = torch.arange(flags.samples) % len(held_out)
    labels = None if held_out.labels is None else held_out.labels[index]
    conditional = trained.spec.options.get("num_classes", 0) > 0 and labels is not None
    denoiser = sd.ConditionedDenoiser(network, labels=labels) if conditional else network
    generator = torch.Generator().manual_seed(0)
    x = trained.transform.dequantize(held_out.samples[index], labels, generator=generator)
    # The draw that log_likelihood makes, [B, 1, *D], so that both methods have the same probe.
    probe = rademacher((len(x), 1, *x.shape[1:]), torch.Generator().manual_seed(SEED), like=x)[:, 0]
    print(f"{trained.title}, {trained.spec.network}, x {tuple(x.shape)}, {flags.threads} threads")
    print(table(evaluations(denoiser, sde, x, probe, 10 * flags.repeats)), flush=True)
    for tolerance in flags.tolerances:
        print(table(likelihoods(denoiser, sde, x, probe, tolerance, flags.repeats)), flush=True)


if __name__ == "__main__":
    main()
