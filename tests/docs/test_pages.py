"""The code of README.md and of docs/: Python is run, command lines are read by the program itself.

A block that cannot be run here has the reason above it, as a comment <!-- not run: needs ... -->. The blocks of a page
share their names, from top to bottom, and run in a folder that holds the small runs of `folder`. Of a command line
`python main.py` its flags, its configuration, its keys and their values are checked, and then nothing is done.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- not run: \w.+? -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A block of code that is not marked as not run, and the line of its page that it begins after."""

    code: str
    line: int


def blocks(page: Path, language: str) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        if found["language"] == language and not found["mark"]:
            yield Block(found["code"], text.count("\n", 0, found.start("code")))


def having(language: str) -> list[Any]:
    """The pages that have blocks of a language."""
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if any(blocks(page, language))]


def command_lines(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The arguments of every command line of main.py on a page, and its line there."""
    for block in blocks(page, "bash"):
        lines = re.sub(r"\\\n *", " ", block.code).splitlines()
        for number, text in enumerate(lines):
            words = shlex.split(text, comments=True)
            if "main.py" in words:
                yield block.line + number + 1, words[words.index("main.py") + 1 :]


def in_a_process(do: Callable[[], None]) -> str:
    """What a function says in a process of its own, forked from this one; "" where it ends well."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # the threads of the parent are not there
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        code = 1
        try:
            do()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or f"exit code {code}" if code else ""


def program(*flags: str, does: bool) -> Callable[[], None]:
    """main.py with those flags. Where it does nothing it stops when all is read, before the mode begins."""

    import main  # here, so that the forks need not import it again
    from sde_diffusion.commands import command_line

    def do() -> None:
        if not does:
            command_line.MODES = dict.fromkeys(command_line.MODES, lambda settings, folder, engine: None)
        sys.argv = ["main.py", *flags]
        main.cli()

    return do


TINY = (
    *("training.steps=1", "training.batch_size=8", "training.held_out_batches=1", "training.sample_every=0"),
    *("model.unet.channels=8", "model.unet.multipliers=(1,1)"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/vpsde_digits, a tiny network after one step, and with the other runs that pages name."""
    place = tmp_path_factory.mktemp("pages")
    (place / "FOLDER").mkdir()  # what pages call a folder of the reader's
    for index in range(4):
        Image.new("RGB", (16, 16), (index, 0, 9)).save(place / "FOLDER" / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(ROOT))
        flags = ("--config", "vpsde_digits", "--mode", "train", *(f"--config.{key}" for key in TINY))
        assert not (error := in_a_process(program(*flags, does=True))), error
    return place


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT))
    return folder


@pytest.mark.parametrize("page", having("python"))
def test_python_runs(page: Path, inside: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


@pytest.mark.parametrize("page", having("bash"))
def test_command_lines_are_understood(page: Path, inside: Path) -> None:
    wrong = []
    for line, flags in command_lines(page):
        workdir = flags[flags.index("--workdir") + 1] if "--workdir" in flags else ""
        if workdir and not Path(workdir).is_absolute():
            (inside / workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if error := in_a_process(program(*flags, does=False)):
            wrong.append(f"{page.name}, line {line}: {' '.join(flags)}\n    {error}")
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_line_is_seen(inside: Path) -> None:
    for flags in (
        "--config vpsde_digit",
        "--config vpsde_digits --flag 1",
        "--config vpsde_digits --config.training.step=3",
        "--config vpsde_digits --mode smaple",
        "--config vpsde_digits --mode sample --sampler dim",
        "--config vpsde_digits --mode compare --samplers ddim::order=2",
    ):
        assert in_a_process(program(*flags.split(), does=False)), flags
    assert not in_a_process(program("--config", "vpsde_digits", does=False))


def test_links_lead_somewhere() -> None:
    """Every relative link and picture of a page is a file; of links to a heading, see the build of the pages."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_settings_page_is_that_of_the_configuration() -> None:
    writer = runpy.run_path(str(ROOT / "docs" / "write_settings.py"))
    assert writer["PAGE"].read_text() == writer["page"](), "write it again: python docs/write_settings.py"


def test_files_that_are_named_exist() -> None:
    """`samplers/march.py`, from the package or from the repository, and the program of `python benchmarks/...`."""
    for page in PAGES:
        for name in re.findall(r"`(?:python )?((?:\w+/)+\w+\.py)\b", page.read_text()):
            assert (ROOT / name).exists() or (ROOT / "sde_diffusion" / name).exists(), f"{page.name}: {name}"
