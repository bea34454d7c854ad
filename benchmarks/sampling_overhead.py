"""Times a sampler's own work, the denoiser left out, against a floor: the memory passes that its update needs.

    python benchmarks/sampling_overhead.py [--threads 1] [--device cuda] [--repeats 41]

The denoiser returns a tensor made beforehand, so all that is left of `sd.sample` is the sampler: its schedule, its
Python, its wrappers around the denoiser, its allocations and its arithmetic. The whole call is timed, with a grid made
beforehand and finish="none", over 50 steps (51 nodes) of VP's logsnr grid.

The floor does the same linear combinations with constants known beforehand, by in-place kernels into buffers made
beforehand: torch.mul(x, a, out=buffer), then buffer.add_(term, alpha=b) for each further term, and buffer.normal_() for
each draw of noise. It runs in the same process and interleaved with the sampler, so that the ratio means something on
a machine that is busy with other work.

    overhead     (time - floor)/floor on x of shape (64, 3, 32, 32), float32: medians over the repeats
    us a step    the same sampler on one number, less the floor on one number: Python and schedule alone
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from common import elapsed
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.report.table import table

STEPS = 50
IMAGES, NUMBER = (64, 3, 32, 32), (1,)


@dataclass(frozen=True)
class Row:
    """A sampler and the fewest memory passes of one of its steps.

    terms     the number of terms of each linear combination in a step
    draws     of noise in a step
    target    the overhead that is aimed at
    """

    sampler: str
    terms: tuple[int, ...]
    draws: int = 0
    target: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.sampler, *(f"{key}={value:g}" for key, value in self.options.items())])


ROWS = [
    Row("ddim", (2,), target=1.0),  # x, x0_hat
    Row("euler", (2,), target=1.0),
    Row("dpmpp_2m", (3,), target=1.0),  # x, x0_hat and the one before
    Row("heun", (2, 3), target=1.0),  # the state ahead; x, x0_hat, x0_hat ahead
    Row("ddpm", (3,), draws=1, target=0.3),  # x, x0_hat, noise
    Row("pc", (3, 3), draws=2, target=0.3),  # corrector and predictor
    Row("dpmpp_3m", (4,)),
    Row("unipc", (4, 3)),  # corrector: x, x0_hat, the new x0_hat and an earlier one; predictor
    Row("deis", (2, 4)),  # eps_hat; x and three of them
    Row("lms", (2, 5)),  # eps_hat; x and four of them
    Row("dpmpp_2s", (2, 2)),  # the state half way; x, x0_hat there
    Row("euler_maruyama", (3,), draws=1),
    Row("ddim", (3,), draws=1, options={"eta": 1.0}),
    Row("dpmpp_2m_sde", (4,), draws=1),
]


def sampler_run(row: Row, grid: sd.TimeGrid, x: Tensor, x0_hat: Tensor) -> Callable[[], object]:
    """The sampler over the whole grid."""
    generator = torch.Generator(x.device).manual_seed(0)

    def denoiser(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        return x0_hat

    return lambda: sd.sample(
        denoiser, grid=grid, x=x, sampler=row.sampler, generator=generator, finish="none", **row.options
    )


def floor_run(row: Row, x: Tensor, x0_hat: Tensor) -> Callable[[], object]:
    """The same number of steps of combinations and draws into buffers made beforehand."""
    generator = torch.Generator(x.device).manual_seed(0)
    others = [x0_hat, *(x0_hat.clone() for _ in range(max(row.terms) - 2))]  # noise is the last one
    targets = [torch.empty_like(x) for _ in range(2)]

    def run() -> None:
        state, buffers = x, cycle(targets)
        for _ in range(STEPS):
            for _ in range(row.draws):
                others[-1].normal_(generator=generator)
            for terms in row.terms:
                buffer = next(buffers)
                torch.mul(state, 0.5, out=buffer)
                for other in islice(others, terms - 1):
                    buffer.add_(other, alpha=0.1)
                state = buffer

    return run


def measure(row: Row, shape: tuple[int, ...], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds a step of the sampler and of its floor."""
    grid = sd.make_grid(sd.VPSDE(), STEPS + 1, "logsnr")
    x, x0_hat = (torch.randn(shape, device=device) for _ in range(2))
    works = sampler_run(row, grid, x, x0_hat), floor_run(row, x, x0_hat)
    pairs = [[elapsed(work, device) / STEPS for work in works] for _ in range(repeats + 3)]
    sampler, floor = zip(*pairs[3:], strict=True)  # the first three warm up
    return statistics.median(sampler), statistics.median(floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=41)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    lines: list[dict[str, object]] = []
    for row in ROWS:
        sampler, floor = (1e6 * seconds for seconds in measure(row, IMAGES, flags.device, flags.repeats))
        alone, nothing = (1e6 * seconds for seconds in measure(row, NUMBER, flags.device, flags.repeats))
        overhead = sampler / floor - 1.0
        met = "" if row.target is None else f"<= {row.target}: {'yes' if overhead <= row.target else 'NO'}"
        lines.append(
            {
                "sampler": row.name,
                "step, us": round(sampler, 1),
                "floor, us": round(floor, 1),
                "overhead": round(overhead, 3),
                "target": met,
                "us a step": round(alone - nothing, 1),
            }
        )
    print(f"{flags.device}, {flags.threads} thread(s), x {IMAGES}, {STEPS} steps, all of sd.sample with finish='none'")
    print(table(lines))


if __name__ == "__main__":
    main()
