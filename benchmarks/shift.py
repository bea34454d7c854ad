"""The error of `euler` at few steps for several shifts of its grid, and of digits what a classifier makes of them.

    python benchmarks/shift.py [--run runs/rectified_digits] [--steps 8] [--shifts 0.5 1 2 3] [--samples 200]
    python benchmarks/shift.py --judge runs/rectified_digits runs/vpsde_digits [--samples 500]

The first prints, for each shift, the distance (rms over samples and coordinates) to the converged flow from the same
noise: of a mixture of two Gaussians in 12 dimensions under rectified flow, at a tolerance of 1e-6, and of a run's
network under its home, at 1e-4. The flow goes from t = 1 to the process's smallest sampling time and takes x0_hat
there.

The second judges samples of digits: a support-vector machine (gamma = 0.001), fitted on the set's real training digits
and calibrated, gives each a probability; the share of at least 0.8 is told with its 95 % interval (Wilson 1927), of as
many held-out real digits beside it.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.data import DataOptions, load_splits
from sde_diffusion.report.table import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.proofs.cases import MIXTURES

SURE = 0.8


def network(folder: str, samples: int) -> tuple[sd.Denoiser, tuple[int, ...], sd.SDE]:
    """The network of a run, told the classes in turn, its sample's shape and its home."""
    denoiser = sd.load(folder)
    spec = denoiser.spec
    classes = spec.options.get("num_classes", 0)
    wrapped = sd.ConditionedDenoiser(denoiser, labels=torch.arange(samples) % classes) if classes else denoiser
    return wrapped, spec.shape, spec.model_process


def distances(
    denoiser: sd.Denoiser, x: Tensor, sde: sd.SDE, steps: int, shifts: list[float], tolerance: float
) -> list[dict[str, object]]:
    """A row for each shift."""
    exact = sd.sample(denoiser, x=x, grid=sd.make_grid(sde, 2), sampler="ode", rtol=tolerance, atol=tolerance).x
    rows: list[dict[str, object]] = []
    for shift in shifts:
        grid = sd.make_grid(sde, steps, shift=shift)
        found = sd.sample(denoiser, x=x, grid=grid, sampler="euler").x
        distance = float((found - exact).double().square().mean().sqrt())
        rows.append({"shift": f"{shift:g}", "last t": f"{float(grid.times[-1]):.2g}", "distance": f"{distance:.4f}"})
    return rows


def wilson(count: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, spread = count / n, z**2 / n
    centre = (share + 0.5 * spread) / (1.0 + spread)
    half = math.sqrt(spread * share * (1.0 - share) + 0.25 * spread**2) / (1.0 + spread)
    return centre - half, centre + half


def judge(folders: list[str], samples: int) -> list[dict[str, object]]:
    """A row for each run and sampler: the share of its digits of which the classifier is sure."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    splits = load_splits("digits", DataOptions())
    real, held_out = (split.samples.flatten(1).numpy() for split in (splits.train, splits.test))
    machine = CalibratedClassifierCV(SVC(gamma=0.001, random_state=0), cv=3, ensemble=False)
    machine.fit(real, splits.train.labels.numpy())
    levels = splits.train.levels
    assert levels is not None

    def row(name: str, x: object) -> dict[str, object]:
        sure = machine.predict_proba(x).max(1) >= SURE
        low, high = wilson(int(sure.sum()), len(sure))
        return {
            "samples": name,
            "n": len(sure),
            "share": f"{sure.mean():.3f}",
            "95% interval": f"{low:.3f} .. {high:.3f}",
        }

    rows = [row("real, held out", held_out)]
    for folder in folders:
        denoiser, shape, sde = network(folder, samples)
        for sampler, steps, kind in (("euler", 50, "uniform"), ("dpmpp_2m", 20, "logsnr"), ("ode", 2, "uniform")):
            g = torch.Generator().manual_seed(0)
            x = sd.sample(denoiser, (samples, *shape), sd.make_grid(sde, steps, kind), sampler=sampler, generator=g).x
            grey = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * (levels - 1)).round()
            rows.append(row(f"{folder.rpartition('/')[2]}, {sampler}", grey.flatten(1).numpy()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="", help="a run folder; without it the mixture alone")
    parser.add_argument("--judge", nargs="*", default=[], help="run folders whose digits are judged")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--shifts", type=float, nargs="*", default=[0.5, 1.0, 2.0, 3.0])
    parser.add_argument("--samples", type=int, default=200)
    given = parser.parse_args()
    if given.judge:
        print(table(judge(given.judge, given.samples)))
        return
    flow, g = sd.RectifiedFlow(), torch.Generator().manual_seed(0)
    x = torch.randn(given.samples, 12, generator=g, dtype=torch.float64)
    print(f"a mixture in 12 dimensions under rectified flow, euler at {given.steps} steps")
    print(table(distances(MIXTURES[12].denoiser(), x, flow, given.steps, given.shifts, 1e-6)))
    if given.run:
        denoiser, shape, sde = network(given.run, given.samples)
        x = sde.prior_std * torch.randn(given.samples, *shape, generator=g)
        print(f"{given.run}, euler at {given.steps} steps")
        print(table(distances(denoiser, x, sde, given.steps, given.shifts, 1e-4)))


if __name__ == "__main__":
    main()
