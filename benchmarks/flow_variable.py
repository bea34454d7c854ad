"""Evaluations and errors of sampler "ode" in each variable that it may step in.

    python benchmarks/flow_variable.py [--process VPSDE] [--run runs/NAME] [--samples 64] [--threads 1]

The flow is solved from one draw of the prior down to the grid's last node, in every variable of
sde_diffusion.solvers.flow.VARIABLES that is finite at the prior's level, by methods per_sample and rk45, at tolerances
(rtol = atol) of 1e-3, 1e-4, 1e-5.

    nfe         calls of the denoiser for the whole batch; per_sample goes on until its slowest sample is done
    of rk45/t   nfe divided by that of rk45 in t, what score_sde_pytorch does, at the same tolerance
    rms, max    distance to the reference over all coordinates: dop853 in log_angle at 1e-8 on mixtures, 1e-6 on
                networks
    lost        samples further than 0.1 (rms) from the reference: they went to another mode
    seconds     of the whole call

The data are two mixtures of three Gaussians of shape (3, 32, 32) around random images in [-1, 1], in float64: one
with the standard deviations 0.05, 0.1 and 0.2, one whose standard deviations differ from pixel to pixel, 0.05 to 0.5.
--run adds a trained network, under its home process where that is continuous; a class-conditional one is given the
labels 0 .. 9 in turn.
"""

import argparse
from collections.abc import Iterator
from itertools import product

import torch
from common import elapsed
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.report.table import table
from sde_diffusion.solvers.flow import VARIABLES

SHAPE = (3, 32, 32)
METHODS = ("rk45", "per_sample")
TOLERANCES = (1e-3, 1e-4, 1e-5)
CPU = torch.device("cpu")


def mixtures() -> dict[str, sd.GaussianMixture]:
    """Name -> three Gaussians, isotropic and anisotropic."""
    g = torch.Generator().manual_seed(0)
    means, spread = (torch.rand(3, *SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    means, weights = 2.0 * means - 1.0, [1.0, 2.0, 3.0]
    return {
        "isotropic mixture": sd.GaussianMixture(means, [0.05, 0.1, 0.2], weights),
        "anisotropic mixture": sd.GaussianMixture(means, 0.05 + 0.45 * spread, weights),
    }


def network(folder: str, samples: int) -> tuple[sd.Denoiser, tuple[int, ...], sd.SDE | None]:
    """The network of a run, its sample's shape and its home, None for a discrete one."""
    denoiser = sd.load(folder)
    spec, home = denoiser.spec, denoiser.spec.process
    conditional = spec.options.get("num_classes", 0) > 0
    wrapped = sd.ConditionedDenoiser(denoiser, labels=torch.arange(samples) % 10) if conditional else denoiser
    return wrapped, spec.shape, home if home.times is None else None


def measure(denoiser: sd.Denoiser, x: Tensor, grid: sd.TimeGrid, tight: float) -> Iterator[dict[str, object]]:
    """A row for each tolerance, method and variable that is finite at the first node, rk45 in t first."""
    solve = {"denoiser": denoiser, "grid": grid, "x": x, "sampler": "ode", "finish": "none"}
    exact = sd.sample(**solve, method="dop853", rtol=tight, atol=tight).x
    first = grid.nodes[0]
    finite = [name for name, variable in VARIABLES.items() if bool(variable.of(first.t, first.kernel).isfinite())]
    variables = sorted(finite, key=lambda name: name != "t")
    for tolerance in TOLERANCES:
        baseline = 0
        for variable, method in product(variables, METHODS):
            found: list[sd.Sample] = []
            options = {"variable": variable, "method": method, "rtol": tolerance, "atol": tolerance}
            seconds = elapsed(lambda: found.append(sd.sample(**solve, **options)), CPU)  # noqa: B023
            out = found[0]
            baseline = baseline or out.nfe
            distance = (out.x - exact).abs()
            yield {
                "tolerance": f"{tolerance:.0e}",
                "variable": variable,
                "method": method,
                "nfe": out.nfe,
                "of rk45/t": round(out.nfe / baseline, 2),
                "rms": float(distance.square().mean().sqrt()),
                "max": float(distance.max()),
                "lost": int((distance.flatten(1).square().mean(1).sqrt() > 0.1).sum()),
                "seconds": round(seconds, 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--process", default="VPSDE", choices=[name for name in sd.PROCESSES if "Discrete" not in name])
    parser.add_argument("--run", metavar="FOLDER", help="a run folder or a checkpoint of a trained network")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    sde = sd.PROCESSES[flags.process]()
    double, single = torch.float64, torch.float32
    cases = [(name, data.denoiser(), SHAPE, sde, double, 1e-8) for name, data in mixtures().items()]
    if flags.run:
        denoiser, shape, home = network(flags.run, flags.samples)
        cases.append((flags.run, denoiser, shape, home or sde, single, 1e-6))
    for name, denoiser, shape, process, dtype, tight in cases:
        generator = torch.Generator().manual_seed(1)
        x = process.prior_sample((flags.samples, *shape), generator=generator, dtype=dtype)
        print(f"\n{name}, {type(process).__name__}, x {tuple(x.shape)}, {str(dtype).removeprefix('torch.')}")
        print(table(list(measure(denoiser, x, sd.make_grid(process, 2, "logsnr"), tight))), flush=True)


if __name__ == "__main__":
    main()
