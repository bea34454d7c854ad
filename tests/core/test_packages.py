"""The core works with its five libraries alone; every other one is refused in a sentence that names its extra."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sde_diffusion as sd
from sde_diffusion.core.packages import EXTRAS, extra, require

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "torchdiffeq", "scipy", "numpy", "safetensors"}
MODULES = {
    **{"scikit-learn": "sklearn", "pillow": "PIL", "vl-convert-python": "vl_convert", "absl-py": "absl"},
    **{"ml-collections": "ml_collections", "torch-fidelity": "torch_fidelity", "mlflow-skinny": "mlflow"},
    "pyyaml": "yaml",
}
"""What is imported, where it is not called as it is installed."""
OWN_COMMANDS = ("settings", "pipelines", "compare", "commands", "configs")
"""Reached from the command line alone, which has looked for the libraries of the extra "cli"."""


def libraries(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements} - {PROJECT["name"]}
    return {MODULES.get(name, name) for name in names}


def test_the_table_of_extras_is_that_of_the_project() -> None:
    assert libraries(PROJECT["dependencies"]) == CORE
    stated = {name: libraries(own) for name, own in PROJECT["optional-dependencies"].items()}
    assert {name: set(own) for name, own in EXTRAS.items()} == {name: stated[name] for name in EXTRAS}


def test_the_oldest_versions_that_were_run_are_the_lower_bounds() -> None:
    optional = PROJECT["optional-dependencies"]
    stated = [
        *PROJECT["dependencies"],
        *(line for name in ("data", "report", "train", "cli") for line in optional[name]),
    ]
    bounds = dict(line.split(">=") for line in stated if ">=" in line)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    run = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert bounds.keys() == run.keys()
    for name, bound in bounds.items():
        assert f"{run[name]}.".startswith(f"{bound}."), f"{name}: {bound} is stated and {run[name]} was run"


def imports(node: ast.AST, guard: str = "") -> Iterator[tuple[str, str, int]]:
    """Libraries that a tree imports, the extra in whose context, and the line; but those for type checkers."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.With) and (call := re.match(r"extra\('(\w+)'\)", ast.unparse(node.items[0]))):
        guard = call[1]
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [str(node.module)]
    for name in names:
        # torch has the writer, and the library is beneath it
        yield (
            "tensorboard" if name == "torch.utils.tensorboard" else name.partition(".")[0],
            guard,
            getattr(node, "lineno", 0),
        )
    for child in ast.iter_child_nodes(node):
        yield from imports(child, guard)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "sde_diffusion").rglob("*.py")), ids=lambda file: f"{file.parent.name}/{file.name}"
)
def test_what_is_no_core_library_is_imported_in_the_context_of_its_extra(file: Path) -> None:
    known = {*sys.stdlib_module_names, *CORE, sd.__name__}
    if file.relative_to(ROOT / "sde_diffusion").parts[0] in OWN_COMMANDS:
        known |= set(EXTRAS["cli"])
    for name, guard, line in imports(ast.parse(file.read_text())):
        assert name in known or name in EXTRAS.get(guard, ()), f"{file}:{line}: {name} in the context {guard!r}"


def test_a_missing_library_is_one_sentence() -> None:
    said = "nothing_such is not installed; it comes with the extra 'report': pip install \"sde-diffusion[report]\""
    with pytest.raises(sd.UserError, match=f"^{re.escape(said)}$"), extra("report"):
        import nothing_such.part  # type: ignore[import-not-found]  # noqa: F401
    with (
        pytest.raises(ImportError, match="no_name"),
        extra("report"),
    ):  # what is there and broken is no matter of extras
        from jinja2 import no_name  # type: ignore[attr-defined]  # noqa: F401
    with pytest.MonkeyPatch.context() as patch, pytest.raises(sd.UserError, match=r"^nothing_such is not installed"):
        patch.setitem(EXTRAS, "report", ("jinja2", "nothing_such"))
        require("train", "report")


def test_public_names_come_from_the_stub() -> None:
    assert {*sd.__all__, "samplers", "nets"} <= set(dir(sd)) and "samplers" not in sd.__all__
    everything: dict[str, object] = {}
    exec("from sde_diffusion import *", everything)
    assert {name: everything[name] for name in sd.__all__} == {name: getattr(sd, name) for name in sd.__all__}
    with pytest.raises(AttributeError, match="module 'sde_diffusion' has no attribute 'smaple'"):
        sd.smaple  # type: ignore[attr-defined]  # noqa: B018


CORE_ALONE = """
import json, sys, warnings
HIDDEN = set(json.loads(sys.argv.pop()))

class Without:
    '''A finder that does not find the hidden libraries.'''
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *place):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *place)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
import sde_diffusion as sd
from sde_diffusion.__main__ import cli
said = {}

def ask(what, action):
    try:
        action()
    except (sd.UserError, SystemExit) as refusal:
        said[what] = str(refusal)

ask("command line", cli)
said["torch"] = "torch" in sys.modules

import torch
# Of mean 0, so that the prior of t = 1 differs in the second order of alpha alone, 5e-5.
means, stds, weights = ([1.0, 0.5], [-1.0, -0.5]), (0.4, 0.6), (0.5, 0.5)
mixture = sd.GaussianMixture(*(torch.tensor(values) for values in (means, stds, weights)))
denoiser, sde, x = mixture.denoiser(), sd.VPSDE(), torch.tensor([[0.8, 0.2], [-1.2, 0.5]], dtype=torch.float64)
for sampler in ("ddpm", "dpmpp_2m", "pc", "ode"):
    drawn = sd.sample(denoiser, (2, 2), sd.make_grid(sde, 3), sampler=sampler, generator=torch.Generator())
said["samples"] = list(drawn.x.shape)
found = sd.log_likelihood(denoiser, x, sde, rtol=1e-6, atol=1e-6)
said["nats"] = (found.nats - mixture.log_prob(x, sde.kernel(found.t_min))).abs().max().item()

from sde_diffusion.data import DataOptions, load_splits
from sde_diffusion.metrics import extraction, packages
from sde_diffusion.report import charts, likelihood, pictures, templating
from sde_diffusion.runtime import engine, metrics_log, progress
ask("digits", lambda: load_splits("digits", DataOptions()))
ask("mnist5k", lambda: load_splits("mnist5k", DataOptions()))
ask("huggingface", lambda: load_splits("huggingface", DataOptions(name="some/set")))
ask("cifar10", lambda: load_splits("cifar10", DataOptions()))
ask("page", templating.environment)
ask("chart", lambda: charts.faint(1.0))
ask("histogram", lambda: likelihood.histogram({}, "", ""))
ask("picture", lambda: pictures.png(None))
ask("metric", lambda: packages.torchmetrics("image.fid"))
ask("engine", engine.Engine)
ask("memory", progress.memory)
ask("board", lambda: metrics_log.Board(None))
print(json.dumps(said))
"""


def test_the_core_alone() -> None:
    """A process that finds no other library: it samples, computes likelihoods, and refuses the rest in words."""
    hidden = sorted({library for own in EXTRAS.values() for library in own})
    done = subprocess.run(
        [sys.executable, "-c", CORE_ALONE, json.dumps(hidden)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("torch") is False  # which is imported when it is used
    assert said.pop("samples") == [2, 2] and said.pop("nats") < 1e-4
    assert (
        said.pop("command line")
        == "error: absl is not installed; it comes with the extra 'cli': pip install \"sde-diffusion[cli]\""
    )
    extras = {
        what: re.fullmatch(r'\w+ is not installed; .*: pip install "sde-diffusion\[(\w+)\]"', text)
        for what, text in said.items()
    }
    assert {what: found and found[1] for what, found in extras.items()} == {
        **dict.fromkeys(("digits", "mnist5k", "huggingface", "cifar10"), "data"),
        **dict.fromkeys(("page", "chart", "histogram", "picture", "metric"), "report"),
        **dict.fromkeys(("engine", "memory", "board"), "train"),
    }
