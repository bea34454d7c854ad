"""Command lines in processes that are forked from one that has imported everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WARM = """
import json, os, signal, sys, tempfile, threading, traceback
sys.path.insert(0, sys.argv[1])
import main, run_lib, scipy.integrate, scipy.stats, sklearn.datasets
import accelerate, datasets, torch._dynamo, torch.distributed.checkpoint.state_dict
from torch.utils.tensorboard import SummaryWriter

def request(arguments):
    sys.argv = ["main.py", *arguments]
    try:
        main.cli()
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    arguments, end, after = json.loads(line)
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            code = request(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        timer = threading.Timer(after, os.kill, [child, end])
        if end:
            timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        out.seek(0)
        print(json.dumps([os.waitstatus_to_exitcode(status), out.read().decode()]), flush=True)
"""
"""A process that has imported everything, and forks for each command line: the same entry point, seconds sooner."""


class Warm:
    """Command lines, one after the other, each in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WARM, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def signalled(self, number: int, seconds: float, *flags: object) -> tuple[int, str]:
        """The exit code of a command line, the negative signal where one ended it, and what it prints.

        The signal of that number is sent to it after some seconds; 0 for none.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([[str(flag) for flag in flags], number, seconds]) + "\n")
        self.process.stdin.flush()
        code, text = json.loads(self.process.stdout.readline())
        return code, text

    def run(self, *flags: object, code: int = 0) -> str:
        """What a command line prints; it must end with the exit code."""
        found, text = self.signalled(0, 0.0, *flags)
        if found != code or "Traceback" in text:
            pytest.fail(f"exit code {found} where {code} was expected:\n{text}")
        return text

    def refused(self, *flags: object) -> str:
        """The one sentence of a request that is refused."""
        (line,) = [line for line in self.run(*flags, code=1).splitlines() if "error" in line.lower()]
        return line
