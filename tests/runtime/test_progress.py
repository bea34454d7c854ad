"""Progress on a terminal and in a log, time by phase against a clock of our own, memory against what is allocated."""

from __future__ import annotations

import errno
import io
import itertools
import os
import pty
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sde_diffusion.runtime import progress as module
from sde_diffusion.runtime.progress import LINE_EVERY, MEMORY, Phases, clock, memory, progress


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of progress.py."""
    hands = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=hands, perf_counter=hands))
    return hands


Log = pytest.CaptureFixture[str]


# --- lines of a log --------------------------------------------------------------------------------------------


def test_a_line_says_how_far_how_fast_and_what_is_left(hands: Clock, capsys: Log) -> None:
    with progress(5000, "step", "train", done=1107) as bar:
        bar.note(loss="0.1234")
        hands.now += 30.0
        bar.update(93)
        assert capsys.readouterr().err == "train 1,200/5,000 steps, 24 %, 3.1 step/s, 0:20:26 left, loss 0.1234\n"
        hands.now += 30.0
        bar.note(loss="0.1", images="90/s")
    assert capsys.readouterr().err.splitlines() == [
        # (93 kept) / (30 kept + 30) a second, kept = exp(-30 / 300)
        "train 1,200/5,000 steps, 24 %, 1.5 step/s, 0:43:01 left, loss 0.1, images 90/s"
    ]


def test_lines_are_whole_and_thirty_seconds_apart(hands: Clock, capsys: Log) -> None:
    told: list[tuple[float, str]] = []
    with progress(1000, "step", "sample", leave=True) as bar:
        for _ in range(1000):
            hands.now += 0.7
            bar.update()
            bar.note(loss="1")
            told += [(hands.now, line) for line in capsys.readouterr().err.splitlines(keepends=True)]
    assert all(later - earlier >= LINE_EVERY for (earlier, _), (later, _) in itertools.pairwise(told))
    assert len(told) == int(700 / 30.1)  # 43 updates of 0.7 s are the first to fill 30 s
    pattern = r"sample \d+/1,000 steps, \d+ %, 1.4 step/s, 0:\d\d:\d\d left, loss 1\n"
    assert all(re.fullmatch(pattern, line) for _, line in told)
    assert capsys.readouterr().err == "sample 1,000/1,000 steps, 100 %, 1.4 step/s, in 0:11:40, loss 1\n"


def test_the_rate_forgets(hands: Clock, capsys: Log) -> None:
    """After T seconds at rate b, a former rate a counts as exp(-T / MEMORY): the closed form of the two sums."""
    a, b, passed = 4, 20, 20
    with progress(10**6, "step", "train") as bar:
        for rate in (a, b):
            for _ in range(passed):
                hands.now += LINE_EVERY
                bar.update(int(rate * LINE_EVERY))
    kept = np.exp(-passed * LINE_EVERY / MEMORY)
    expected = (a * kept + b) / (1 + kept)  # the two sums over equal times, the former ones times kept
    shown = re.findall(r"([\d.]+) step/s", capsys.readouterr().err)
    assert float(shown[passed - 1]) == a and float(shown[-1]) == pytest.approx(expected, abs=0.05)


def test_slow_work_is_told_in_seconds_a_unit(hands: Clock, capsys: Log) -> None:
    with progress(3, "sample", "likelihood") as bar:
        hands.now += 45.0
        bar.note(rk45="20/77")
        hands.now += 45.0
        bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "likelihood 0/3 samples, 0 %, rk45 20/77",
        # one sample in 45 + 45 exp(-45 / 300) seconds
        "likelihood 1/3 samples, 33 %, 83.7 s/sample, 0:02:47 left, rk45 20/77",
    ]


def test_short_work_leaves_a_line_only_if_it_is_to(hands: Clock, capsys: Log) -> None:
    for leave in (False, True):
        with progress(2, "step", "train", leave=leave) as bar:
            bar.update(2)
    assert capsys.readouterr().err == "train 2/2 steps, 100 %, in 0:00:00\n"


def test_work_that_nobody_is_to_see(hands: Clock, capsys: Log) -> None:
    with progress(100, "step", "train", leave=True, visible=False) as bar:
        hands.now += 100.0
        bar.update(50)
        bar.note(loss="1")
    assert capsys.readouterr().err == ""


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_on_a_full_disk_does_not_stop_the_work(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with progress(10, "step", "train", leave=True) as bar:
        hands.now += 40.0
        bar.update()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360_000_5, "1,000:00:05")]
)
def test_the_clock_counts_hours(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# --- a bar on a terminal ---------------------------------------------------------------------------------------


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[Callable[[str], str]]:
    """Standard error is a terminal; the result reads what it was sent, which takes a moment, until there is a text."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, columns))
    os.set_blocking(reading, False)
    with open(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def seen(until: str) -> str:
            text, deadline = "", time.monotonic() + 10
            while until not in text and time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    text += os.read(reading, 100_000).decode()
            return text

        yield seen
    os.close(reading)


def test_a_terminal_has_a_bar_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDRAW", 0.0)
    with terminal(monkeypatch, columns=100) as seen:
        with progress(8, "step", "train", done=4, leave=True) as bar:
            bar.update()
            bar.note(loss="0.5")
            text = seen("loss=0.5")
            assert "\n" not in text and text.count("\r") >= 2  # redrawn in its place
            assert "train" in text and "5/8" in text and "loss=0.5" in text and "step/s" in text
            bar.update(3)
        text = seen("\n")
        assert "8/8" in text and text.endswith("\n")


def test_a_terminal_without_a_width_has_lines(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, columns=0) as seen:
        with progress(8, "step", "train", done=4) as bar:
            hands.now += 60
            bar.update()
        assert seen("\n") == "train 5/8 steps, 62 %, 60.0 s/step, 0:03:00 left\r\n"


# --- phases and memory -----------------------------------------------------------------------------------------


def test_phases_are_not_counted_twice(hands: Clock) -> None:
    phases = Phases()
    for _ in range(2):
        hands.now += 100.0  # in no phase
        with phases("update"):
            hands.now += 1.0
            with phases("data"):
                hands.now += 4.0
                with phases("update"):
                    hands.now += 16.0
                hands.now += 64.0
            hands.now += 256.0
    assert phases.seconds == {"update": 2 * (1 + 16 + 256), "data": 2 * (4 + 64)}
    assert phases.share() == {"update": 546 / 682, "data": 136 / 682}


def test_an_error_leaves_its_phases(hands: Clock) -> None:
    phases = Phases()
    assert phases.share() == {}
    with pytest.raises(ZeroDivisionError), phases("a"), phases("b"):
        hands.now += 2.0
        raise ZeroDivisionError
    hands.now += 50.0
    with phases("c"):
        hands.now += 6.0
    assert phases.seconds == {"b": 2.0, "a": 0.0, "c": 6.0} and phases.share() == {"b": 0.25, "a": 0.0, "c": 0.75}


def test_a_phase_costs_little() -> None:
    """Microseconds: the best of many, since others use this machine as well."""
    phases, best = Phases(), float("inf")
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(100):
            with phases("x"):
                pass
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 10e-6


def test_memory_grows_by_what_is_allocated() -> None:
    before = memory()
    block = np.ones(2**24)  # 128 MiB
    after = memory()
    assert after["resident"] - before["resident"] == pytest.approx(128, abs=16)
    assert after["resident_peak"] >= after["resident"] - 1
    del block
    assert memory()["resident_peak"] >= after["resident_peak"]
    assert ("cuda_peak" in after) == torch.cuda.is_available()
