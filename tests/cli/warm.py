"""Command lines in processes that are forked from one that has imported everything: the same program, seconds sooner.

Run as a program this file is that process: a request is a line of JSON, and so is the answer.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = (
    *("main", "run_lib", "scipy.integrate", "scipy.stats", "sklearn.datasets", "accelerate", "datasets"),
    *("torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.utils.tensorboard"),
    *("altair", "matplotlib.figure", "matplotlib.backends.backend_agg", "torchmetrics"),
)


class Warm:
    """Command lines, one after the other, each in a process of its own.

    cache: a folder for what depends on nothing that a test changes. mark: what all its processes have in their
    environment, and no others.
    """

    def __init__(self, cache: Path) -> None:
        self.mark = f"{cache}/{os.getpid()}"
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WARM": self.mark},
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, flags: tuple[object, ...], **request: Any) -> tuple[int, str]:
        """The exit code of a command line, the negative signal where one ended it, and what it prints."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"flags": [str(flag) for flag in flags], **request}) + "\n")
        self.process.stdin.flush()
        code, text = json.loads(self.process.stdout.readline())
        return code, text

    def run(self, *flags: object, code: int = 0, processes: int = 1, reads: tuple[Path, Path] | None = None) -> str:
        """What a command line prints; it must end with the exit code.

        processes: as many of them, with the environment that torchrun gives, in which all must end so.
        reads: a folder, and another to which each process writes what it has read of it (tests/faults.py), RANK.json.
        """
        counted = {"reads": list(map(str, reads))} if reads else {}
        found, text = self.ask(flags, processes=processes, **counted)
        if found != code or "Traceback" in text:
            pytest.fail(f"exit code {found} where {code} was expected:\n{text}")
        return text

    def refused(self, *flags: object, processes: int = 1) -> str:
        """The one sentence of a request that is refused."""
        text = self.run(*flags, code=1, processes=processes)
        (line,) = [line for line in text.splitlines() if "error" in line.lower()]
        return line

    def begin(self, *flags: object) -> int:
        """The number of a process that has begun with a command line; `wait` for it before another is asked for."""
        return self.ask(flags, begin=True)[0]

    def wait(self, process: int) -> tuple[int, str]:
        """The exit code of what has begun, and what it prints."""
        return self.ask((), wait=process)

    def killed(self, number: int, folder: Path, *flags: object) -> bool:
        """Whether a command line was killed at its change of a folder of that number, from 0 (tests/faults.py).

        Where it makes fewer changes it must end well.
        """
        code, text = self.ask(flags, number=number, folder=str(folder))
        if code not in (0, -signal.SIGKILL) or "Traceback" in text:
            pytest.fail(f"exit code {code}:\n{text}")
        return code != 0


# --- the process ----------------------------------------------------------------------------------------------


def command(flags: list[str]) -> int:
    """The exit code of main.py."""
    import main

    sys.argv = ["main.py", *flags]
    try:
        main.cli()
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def forked(out: IO[bytes], request: dict[str, Any], rank: int, port: int, scripts: Path) -> int:
    """The number of a process that answers a request and writes to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        if (processes := request.get("processes", 1)) > 1:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({key: str(value) for key, value in told.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        from sde_diffusion.report import html

        if scripts.exists():  # the same for every report, and three seconds to make
            html.vega = scripts.read_text  # type: ignore[assignment]
        if "number" in request:
            from tests.faults import Disk

            Disk(Path(request["folder"]), request["number"]).install()
        if "reads" in request:
            from tests.faults import Reads

            reads, place = Reads(Path(request["reads"][0])), Path(request["reads"][1]) / f"{rank}.json"
            reads.install()
        code = command(request["flags"])
        if "reads" in request:
            place.write_text(json.dumps(reads.ranges))
        if not scripts.exists() and html.vega.cache_info().currsize:
            from sde_diffusion.storage.files import write_aside

            write_aside(scripts, html.vega().encode())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(children: list[int]) -> int:
    """The exit code of processes that work together, or of the first that fails: the others would wait for it."""
    code = 0
    while children:
        child, status = os.waitpid(children[0] if len(children) == 1 else -1, 0)
        if child in children:
            children.remove(child)
            if status and not code:
                code = os.waitstatus_to_exitcode(status)
                for other in children:
                    os.kill(other, signal.SIGTERM)
    return code


def serve(cache: Path) -> None:
    """Answer requests until there are no more."""
    import socket

    sys.path.insert(0, str(ROOT))
    for name in IMPORTED:
        importlib.import_module(name)
    from tests.conftest import acknowledged

    os.fsync = acknowledged
    gc.collect()
    gc.freeze()  # else every child would walk, and so copy, all that was imported
    begun: dict[int, IO[bytes]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            children, out = [request["wait"]], begun.pop(request["wait"])
        else:
            out = tempfile.TemporaryFile()  # noqa: SIM115, as what has begun may outlive this line
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            ranks = range(request.get("processes", 1))
            children = [forked(out, request, rank, port, cache / "vega.js") for rank in ranks]
        if "begin" in request:
            begun[children[0]] = out
            answer = [children[0], ""]
        else:
            code = ended(children)
            out.seek(0)
            answer = [code, out.read().decode()]
            out.close()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
