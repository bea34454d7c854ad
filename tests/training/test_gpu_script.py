"""The table of benchmarks/gpu.py at toy size, CPU beside CPU: what it says, and what it says of rows that go wrong."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.training.guard import Preempted

ROOT = Path(__file__).parents[2]
ROWS = (
    "`ddim` as on the CPU",
    "likelihood, `per_sample`, as on the CPU",
    "`ddim` waits for nothing",
    "`ode` waits for nothing",
    "fp16's scale",
    "a training resumes",
    "two processes",
    "training, ddpm_cifar, fp32",
    "training, ddpm_cifar, tf32",
    "sampling, DDPM++, fp32",
    "sampling, DDPM++, bf16",
    "sampling, DDPM++, bf16, graphs",
)


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """The modules of benchmarks/ by name, as the script imports them."""
    before = sys.path.copy()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    yield importlib.import_module
    sys.path[:] = before


def commands(monkeypatch: pytest.MonkeyPatch, processes_made: int) -> Callable[..., None]:
    """Trainings by the flags of a command line, in this process; a signal is one that a file stands for."""
    import run_lib
    from configs import vpsde_digits
    from sde_diffusion.settings.root import Settings
    from sde_diffusion.training import run as training

    class Told:
        def __init__(self, stop: Path | None) -> None:
            self.stop = stop

        @property
        def name(self) -> str:
            there = self.stop is not None and self.stop.is_file() and self.stop.stat().st_size > 0
            return "SIGTERM" if there else ""

    def command(flags: list[str], stop: Path | None = None, processes: int = 1) -> None:
        assert processes in (1, processes_made)
        config = vpsde_digits.get_config()
        for flag in flags:
            if flag.startswith("--config."):
                key, _, value = flag.removeprefix("--config.").partition("=")
                config.update_from_flattened_dict({key: ast.literal_eval(value)})

        @contextmanager
        def listening() -> Iterator[Told]:
            yield Told(stop)

        monkeypatch.setattr(training, "listening", listening)
        with pytest.raises(Preempted) if stop else torch.enable_grad():
            run_lib.MODES["train"](
                Settings.from_config(config), Path(flags[flags.index("--workdir") + 1]), Engine("cpu")
            )

    return command


@pytest.fixture(scope="module")
def toy(script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """The exit code and the rows of the toy table, with some of the test's own that go wrong."""
    gpu, rows, folder = script("gpu"), script("gpu_rows"), tmp_path_factory.mktemp("gpu")
    place_module, agreement = script("gpu_place"), script("gpu_agreement")
    generator = torch.Generator().manual_seed(0)

    def breaks(place: Any) -> Any:
        raise ValueError("a kernel | is\nmissing")

    def differs(steps: int, device: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(4, dtype=dtype) + 1e-7 * torch.rand(4, generator=generator, dtype=dtype)

    own = [
        rows.Row("breaks", breaks),
        rows.Row("differs", partial(agreement.as_on_the_cpu, differs)),
        rows.Row("after", lambda place: place_module.Found("1 unit")),
    ]
    chosen = {row.name: row for row in rows.rows()}
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        place = place_module.Place(torch.device("cpu"), True, folder, commands(patch, 2))
        patch.setattr("builtins.print", lambda *words, **_: lines.extend(" ".join(map(str, words)).splitlines()))
        code = gpu.report([chosen[name] for name in ROWS] + own, place, 5.0)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return code, {name: dict(zip(gpu.HEAD[1:], rest, strict=True)) for name, *rest in cells[1:]}


def test_the_cpu_is_as_the_cpu(toy: tuple[int, dict[str, Any]]) -> None:
    for name in ROWS[:2]:
        assert toy[1][name]["figure"] == "0.0e+00 float64, 0.0e+00 float32" and toy[1][name]["outcome"] == "good"


def test_a_resumed_training_ends_with_the_same_losses(toy: tuple[int, dict[str, Any]]) -> None:
    """It stops at the update after its first line of metrics, and goes on to the losses of one in a single piece."""
    row = toy[1]["a training resumes"]
    losses = re.findall(r"(\d\.\d{6}) and (\d\.\d{6})", row["figure"])
    assert len(losses) == 2 and all(ours == theirs for ours, theirs in losses)
    assert row["outcome"] == "good" and row["figure"].endswith("stopped at step_000000003")


def test_speeds_memory_and_losses_are_told(toy: tuple[int, dict[str, Any]]) -> None:
    for name in ("training, ddpm_cifar, fp32", "sampling, DDPM++, bf16"):
        row = toy[1][name]
        assert "images/s" in row["figure"] and "GiB" in row["figure"] and row["outcome"] == "good"
    assert float(toy[1]["sampling, DDPM++, bf16"]["figure"].split("rms ")[1]) > 0.0


def test_what_is_for_a_gpu_says_so(toy: tuple[int, dict[str, Any]]) -> None:
    for name in ("`ddim` waits for nothing", "fp16's scale", "sampling, DDPM++, bf16, graphs"):
        assert "CUDA only" in toy[1][name]["figure"] and toy[1][name]["outcome"] == "-"
    assert "to choose its steps" in toy[1]["`ode` waits for nothing"]["figure"]


def test_a_row_that_goes_wrong_is_told_and_the_others_go_on(toy: tuple[int, dict[str, Any]]) -> None:
    """An error is one sentence in its cell; a difference of 1e-7 in float64 is bad; the exit code says so."""
    code, rows = toy
    assert rows["breaks"]["figure"] == "ValueError: a kernel / is missing" and rows["breaks"]["outcome"] == "FAILED"
    assert rows["differs"]["outcome"] == "BAD"
    assert rows["two processes"]["outcome"] == "BAD"  # as one process did it
    assert rows["after"] == {"figure": "1 unit", "wanted": "", "outcome": "measured", "s": "0.0"}
    assert code == 1


def test_rows_are_not_begun_without_time_for_them(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    gpu, rows, place_module = script("gpu"), script("gpu_rows"), script("gpu_place")
    row = rows.Row("slow", lambda place: place_module.Found("done"), 20.0)
    real, small = (place_module.Place(torch.device("cpu"), toy, tmp_path) for toy in (False, True))
    assert [gpu.outcome(row, real, left)[3] for left in (30.0, 10.0)] == ["measured", "not run"]
    assert [gpu.outcome(row, small, left)[3] for left in (10.0, 0.0)] == ["measured", "not run"]
    assert gpu.report([rows.Row("good", lambda place: place_module.Found("1", "1", True))], small, 1.0) == 0


def test_every_sampler_has_its_rows(script: Callable[[str], ModuleType]) -> None:
    names = {row.name for row in script("gpu_rows").rows()}
    assert {f"`{name}` {what}" for name in sd.SAMPLERS for what in ("as on the CPU", "waits for nothing")} <= names


def test_the_way_to_train_is_the_one_that_passes_most_images(script: Callable[[str], ModuleType]) -> None:
    """A compiler's start must pay in the time there is; a way whose losses are others is not taken."""
    training = script("gpu_headline")
    plain, half, compiled, wrong = (
        training.Way("fp32", "", 1000.0, 1.0, 1.0),
        training.Way("bf16", "", 2000.0, 1.0, 1.01),
        training.Way("bf16", "inductor", 3000.0, 60.0, 1.02),
        training.Way("bf16", "other", 9000.0, 1.0, 1.2),
    )
    ways = [plain, half, compiled, wrong]
    assert training.fastest(ways, 100.0) is half  # 178,000 images beside 90,000
    assert training.fastest(ways, 300.0) is compiled  # 630,000 beside 538,000
    keys = training.plan(half, 100.0, 128)
    assert keys["training.steps"] == 1388 and keys["training.checkpoint_every"] == 347  # 178,000 / 128 = 1390.6
    assert keys["training.ema_decay"] == pytest.approx(1.0 - 20.0 / 1388, abs=1e-6)
