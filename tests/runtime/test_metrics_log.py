"""What a training measures, after kills, damage and on a disk that is really full."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.runtime.metrics_log import Board, MetricsLog, read_metrics
from tests.faults import killed

ROWS = [{"step": 10 * i, "loss": 1 / (i + 1), "note": "é"} for i in range(6)]


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own, in memory, which is soon full."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here, so that none can be filled: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that leaves so many bytes free, rounded down to pages."""
    path = disk / "filling"
    path.write_bytes(b"x" * (shutil.disk_usage(disk).free - leave))
    return path


def written(folder: Path) -> Path:
    """A file with ROWS."""
    path = folder / "run" / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        for row in ROWS:
            log.write(**row)  # type: ignore[arg-type]
    return path


# --- lines of JSON ---------------------------------------------------------------------------------------------


def test_lines_come_back_and_are_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.write(1, loss=0.1 + 0.2, worst=math.inf, text="ä\n", flag=True, none=None)
        log.write(
            2,
            loss=torch.tensor(math.nan),
            norms=np.array([1.0, -math.inf]),
            phases={"data": 0.25, "update": math.nan, "deep": [np.float32(0.5), (1, math.nan)]},
        )
        assert path.read_bytes().count(b"\n") == 2  # before the file is closed
    expected = [
        {"step": 1, "loss": 0.1 + 0.2, "worst": None, "text": "ä\n", "flag": True, "none": None},
        {
            "step": 2,
            "loss": None,
            "norms": [1.0, None],
            "phases": {"data": 0.25, "update": None, "deep": [0.5, [1, None]]},
        },
    ]
    assert read_metrics(path) == expected

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()] == expected


@pytest.mark.parametrize("step", [-1, 0, 25, 30, 1000])
def test_a_resumed_training_drops_what_came_later(tmp_path: Path, step: int) -> None:
    """The file of a training that was interrupted is, in the end, byte for byte that of one that was not."""
    path = written(tmp_path)
    whole = path.read_bytes()
    with MetricsLog(path, step) as log:
        assert read_metrics(path) == [row for row in ROWS if row["step"] <= step]
        for row in ROWS:
            if row["step"] > step:
                log.write(**row)  # type: ignore[arg-type]
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_every_length_of_a_torn_file_is_read(tmp_path: Path) -> None:
    """Wherever a kill cuts the file, the lines before the cut are there, nothing is warned of, and it goes on."""
    path = written(tmp_path)
    whole = path.read_bytes()
    ends = [len(line) for line in whole.splitlines()]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        lines = whole[:length].split(b"\n")
        # A line that lacks only its end is whole.
        kept = len(lines) - 1 + (len(lines[-1]) == ends[len(lines) - 1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_metrics(path) == ROWS[:kept]
            with MetricsLog(path, 10**6) as log:
                log.write(99, loss=1.0)
            assert read_metrics(path) == [*ROWS[:kept], {"step": 99, "loss": 1.0}]


@pytest.mark.parametrize(
    "damage",
    [b"\x00" * 20, b"{'step': 1}", b'{"step": 1, "loss": 0.', b"\xff\xfe", b"", b"{}", b"[1]", b"7", b'{"step": "1"}'],
    ids=["zeros", "quotes", "half", "no text", "empty", "no step", "list", "number", "step as text"],
)
def test_a_damaged_line_is_named_and_left_out(tmp_path: Path, damage: bytes) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is damaged in line 3, which is left out") as told:
        assert read_metrics(path) == ROWS[:2] + ROWS[3:]
    with pytest.warns(UserWarning, match="line 3"):
        MetricsLog(path, 40).close()
    assert len(told) == 1 and path.read_bytes() == b"\n".join(lines[:2] + lines[3:5]) + b"\n"


def test_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist: a training writes it"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl", 0)


def test_lines_on_a_full_disk(tmp_path: Path) -> None:
    """One warning; no half line; and once there is room again, lines again."""
    with small_disk(tmp_path / "disk", 64) as disk, MetricsLog(disk / "metrics.jsonl", 0) as log:
        log.write(1, loss=1.0)
        filling = fill(disk)
        with pytest.warns(UserWarning, match=r"metrics\.jsonl cannot be written \(No space left on device\)") as told:
            for step in range(2, 200):
                log.write(step, text="x" * 100)
        assert len(told) == 1
        before = len(read_metrics(log.path))
        assert 1 < before < 199 and log.path.read_bytes().endswith(b"}\n")
        filling.unlink()
        log.write(200, loss=2.0)
        rows = read_metrics(log.path)
        assert [row["step"] for row in rows] == [*range(1, before + 1), 200]


# --- TensorBoard -----------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[int, float]:
    """What TensorBoard shows of "loss"."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in shown.Scalars("loss")}


def test_a_board_has_what_was_added_and_purges_what_a_resumed_training_repeats(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        for step in range(10):
            board.add_scalar("loss", step, step)
        board.add_image("picture", np.zeros((4, 4, 3), dtype=np.uint8), 0)
        board.add_histogram("values", np.arange(5.0), 0)
        board.add_text("note", "a", 0)
        board.flush()
        assert scalars(tmp_path) == {step: step for step in range(10)}
    with Board(tmp_path, purge_step=6) as board:
        board.add_scalar("loss", 60, 6)
    assert scalars(tmp_path) == {**{step: step for step in range(6)}, 6: 60}


def writing_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "tensorboard" in type(thread).__module__}


@pytest.mark.parametrize("free", [0, 4096, 200_000])
@pytest.mark.parametrize("flush", [True, False])
def test_a_board_on_a_full_disk_warns_once_and_the_work_goes_on(
    tmp_path: Path, free: int, flush: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whichever call meets it, the first or a later one, or only the writer's thread."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    threads = writing_threads()
    with small_disk(tmp_path / "disk", 1024) as disk:
        folder = disk / "tensorboard"
        folder.mkdir()
        fill(disk, free)
        with pytest.warns(UserWarning) as told, Board(folder) as board:
            for step in range(100):
                board.add_scalar("loss", step, step)
                board.add_image("picture", noise, step)
                if flush:
                    board.flush()
        (warning,) = told
        assert str(folder) in str(warning.message) and "No space left on device" in str(warning.message)
        assert str(warning.message).startswith("TensorBoard is switched off, and the work goes on")
        board.add_scalar("loss", 0.0, 0)  # and nothing more comes of it
        board.close()
        if free == 200_000:
            found = scalars(folder)
            assert found == {step: step for step in range(len(found))} and 5 < len(found) < 100
    assert capfd.readouterr().err == ""  # no traceback of the thread
    assert writing_threads() == threads


def test_a_board_that_fails_in_its_last_breath_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread cannot write after the last call is told by `close`.

    SummaryWriter's own close flushes first, which may look for the error just before the thread has noted it. Here it
    always does.
    """
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with small_disk(tmp_path / "disk", 256) as disk, pytest.warns(UserWarning) as told:
        board = Board(disk / "tensorboard")
        board.flush()
        fill(disk)
        monkeypatch.setattr(EventFileWriter, "flush", lambda self: None)
        board.add_text("note", "x" * 10_000, 1)
        board.close()
    assert len(told) == 1


def test_a_board_without_a_place_warns(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.warns(UserWarning, match="TensorBoard is switched off") as told,
        Board(tmp_path / "file" / "x") as board,
    ):
        board.add_scalar("loss", 0.0, 0)
    assert len(told) == 1


def test_other_errors_and_other_threads_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from sde_diffusion.runtime import metrics_log

    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_type))
    metrics_log._note_failures_of_writers.cache_clear()
    with Board(tmp_path) as board, pytest.raises((TypeError, ValueError, AssertionError)):
        board.add_image("picture", np.zeros((1, 2, 3, 4, 5)), 0)

    def fail() -> None:
        raise OSError(28, os.strerror(28))

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert seen == [OSError]
    metrics_log._note_failures_of_writers.cache_clear()


def test_a_kill_at_any_change_of_the_disk(tmp_path: Path) -> None:
    """Six steps, killed at each change once: going on from those that are there loses none and repeats none."""

    def work(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        done = [row["step"] for row in read_metrics(path)] if path.exists() else []
        with MetricsLog(path, max(done, default=-1)) as log:
            for row in ROWS:
                if row["step"] not in done:
                    log.write(**row)

    number = 0
    while killed(number, folder := tmp_path / str(number), lambda: work(folder)):
        work(folder)
        assert read_metrics(folder / "metrics.jsonl") == ROWS, number
        number += 1
    assert read_metrics(folder / "metrics.jsonl") == ROWS and number > len(ROWS)
