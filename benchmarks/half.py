"""Samples of 16-bit states beside those of float32, from the same noise: mean and standard deviation.

    python benchmarks/half.py [--steps 10 200 1000] [--samples 1000] [--samplers ddim heun]

For each sampler, the process for which the difference is largest, in percent of the float32 samples' rms: of the means
and of the standard deviations, whichever coordinate is furthest. (Not of the standard deviation: `euler` at 10 steps
takes all samples of a VE process to one point, whose spread is below the rounding of 16 bits.) The denoiser is that
of a mixture of three Gaussians in the plane, which is exact. A difference of more than 2 % is marked, and the exit code
is 1.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.report.table import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.proofs.cases import MIXTURES, PROCESSES

WANTED = 0.02
ORACLE = MIXTURES[2].denoiser()
OPTIONS = {"ode": {"rtol": 1e-3, "atol": 1e-3}, "adaptive_sde": {"rtol": 1e-2, "atol": 1e-2}}
"""Of samplers with step sizes of their own, whose grid has two nodes whatever the steps."""


def drawn(sampler: str, grid: sd.TimeGrid, samples: int, dtype: torch.dtype) -> Tensor:
    """Samples [N, 2] in float64."""
    made = sd.sample(
        ORACLE,
        (samples, 2),
        grid,
        sampler=sampler,
        generator=torch.Generator().manual_seed(0),
        dtype=dtype,
        **OPTIONS.get(sampler, {}),
    )
    assert made.x.dtype == dtype
    return made.x.double()


def differences(sampler: str, steps: int, samples: int) -> Iterator[tuple[float, str, str]]:
    """(the larger difference of mean and std, process, dtype)."""
    for process, sde in PROCESSES.items():
        grid = sd.make_grid(sde, 2 if sampler in OPTIONS else steps)
        exact = drawn(sampler, grid, samples, torch.float32)
        rms = exact.square().mean(0).sqrt()
        for dtype in (torch.bfloat16, torch.float16):
            found = drawn(sampler, grid, samples, dtype)
            apart = torch.stack([found.mean(0) - exact.mean(0), found.std(0) - exact.std(0)]).abs() / rms
            yield float(apart.max()), process, str(dtype).removeprefix("torch.")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 200, 1000])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--samplers", nargs="*", default=list(sd.SAMPLERS))
    given = parser.parse_args()
    rows, worst = [], 0.0
    for sampler in given.samplers:
        row = {"sampler": sampler}
        for steps in given.steps if sampler not in OPTIONS else given.steps[:1]:
            apart, process, dtype = max(differences(sampler, steps, given.samples))
            row[f"{steps} steps"] = f"{100 * apart:.3f} % ({process}, {dtype}){'' if apart <= WANTED else ' BAD'}"
            worst = max(worst, apart)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(table(rows))
    print(f"largest difference: {100 * worst:.3f} %")
    sys.exit(worst > WANTED)


if __name__ == "__main__":
    main()
