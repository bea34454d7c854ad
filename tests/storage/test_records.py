"""Rows in files that survive kills: real files, real processes, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage.records import Records, digest
from tests.faults import killed

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = {"method": "rk45", "rtol": 1e-5, "levels": [1, 2]}
ROWS = [{"index": i, "bits": 0.1 * i, "name": f"é{i}"} for i in range(5)]
WRITER = """
import itertools, json, sys
from pathlib import Path
from sde_diffusion.storage.records import Records

with Records(Path(sys.argv[1]), "rows", json.loads(sys.argv[2])) as records:
    for i in itertools.count(len(records.rows)):
        records.append([{"index": i, "bits": i / 7, "padding": "x" * 5000}])
"""
"""Appends rows for ever."""


def written(folder: Path) -> Path:
    """A file with ROWS, in two parts."""
    with Records(folder, "rows", PROTOCOL) as records:
        records.append(ROWS[:3])
        records.append(ROWS[3:])
    return records.path


def read(folder: Path) -> dict[int, dict[str, object]]:
    with Records(folder, "rows", PROTOCOL) as records:
        return dict(records.rows)


def test_rows_survive(tmp_path: Path) -> None:
    """What was appended is there again, to the last digit, in the same file; the folder is made."""
    path = written(tmp_path / "new" / "folder")
    assert read(tmp_path / "new" / "folder") == {row["index"]: row for row in ROWS}
    assert list((tmp_path / "new" / "folder").iterdir()) == [path]
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [PROTOCOL, *ROWS]


def test_rows_go_on_after_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with Records(tmp_path, "rows", PROTOCOL) as records:
        records.append([{"index": 9, "bits": 1 / 3}])
        assert records.rows[9] == {"index": 9, "bits": 1 / 3}
    assert path.read_bytes().startswith(before)
    assert set(read(tmp_path)) == {0, 1, 2, 3, 4, 9}


def test_rows_are_on_the_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    with Records(tmp_path, "rows", PROTOCOL) as records:
        assert json.loads(records.path.read_text()) == PROTOCOL
        records.append(ROWS[:2])
        assert records.path.read_text().count("\n") == 3


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, lost: int) -> None:
    """Bytes that a kill took from the last row cost that row only, and the next one starts a line of its own."""
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with Records(tmp_path, "rows", PROTOCOL) as records:
        assert records.rows == {row["index"]: row for row in ROWS[:4]}
        records.append(ROWS[4:])
    assert path.read_bytes() == whole


def test_every_length_of_a_torn_file_is_read(tmp_path: Path) -> None:
    """Wherever a file of whole appends is cut, the rows before the cut are there, and none that was not written."""
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = max(0, whole[:length].count(b"\n") - 1)
        assert read(tmp_path) == {row["index"]: row for row in ROWS[:kept]}
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: kept + 1])


def test_another_protocol_has_another_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with Records(tmp_path, "rows", {**PROTOCOL, "rtol": 1e-4}) as other:
        assert other.path != path and not other.rows
        other.append([{"index": 0, "bits": 9.0}])
    with Records(tmp_path, "names", PROTOCOL) as named:
        assert named.path not in (path, other.path)
    assert path.read_bytes() == before and read(tmp_path)[0] == ROWS[0]


def test_a_file_of_another_protocol_under_this_name_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps({"method": "euler"}) + "\n" + json.dumps(ROWS[0]) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="another protocol"):
        read(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [b"\x00" * 20, b"{'index': 1}", b'{"index": 1, "bits": 0.', b"\xff\xfe", b"", b"{}", b"[1]", b"7"],
    ids=["zeros", "quotes", "half", "no text", "empty", "no index", "list", "number"],
)
def test_a_damaged_line_is_named_and_nothing_is_touched(tmp_path: Path, damage: bytes) -> None:
    """A row that cannot be one, with whole rows after it: one sentence with file and line, and the file as it was."""
    path = written(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="is damaged in line 3; remove it to start again") as refusal:
        read(tmp_path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before
    path.write_bytes(b"\n".join(lines[:2] + lines[3:]) + b"\n")
    assert set(read(tmp_path)) == {0, 2, 3, 4}  # and it was not left locked


# --- two processes --------------------------------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that appends to the file of PROTOCOL, and has begun."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), json.dumps(PROTOCOL)], cwd=ROOT)
    (expected,) = (tmp_path / f"rows-{digest(PROTOCOL)}.jsonl",)
    deadline = time.monotonic() + 120
    while not (expected.exists() and expected.stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_two_processes_at_once_and_kill_9(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    """The second is refused and disturbs nothing; the first is killed, and its rows are there, and the file free."""
    with pytest.raises(UserError, match=r"rows-\w+\.jsonl is being written by another process") as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)
    with Records(tmp_path, "rows", {"method": "euler"}) as other:  # another protocol's file is free
        other.append(ROWS)
    (path,) = (p for p in tmp_path.iterdir() if p != other.path)
    size = path.stat().st_size
    deadline = time.monotonic() + 60
    while path.stat().st_size == size and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer.poll() is None and path.stat().st_size > size
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    complete = path.read_bytes().count(b"\n") - 1
    found = read(tmp_path)
    assert complete >= 20 and sorted(found) == list(range(complete))
    assert all(row["bits"] == i / 7 for i, row in found.items())


def test_one_process_cannot_open_a_file_twice(tmp_path: Path) -> None:
    path = written(tmp_path)
    with Records(tmp_path, "rows", PROTOCOL), pytest.raises(UserError, match="another process"):
        read(tmp_path)
    assert read(tmp_path) and path.exists()


def test_an_error_inside_closes_the_file_and_keeps_the_rows(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Records(tmp_path, "rows", PROTOCOL) as records:
        records.append(ROWS[:2])
        raise ZeroDivisionError
    assert set(read(tmp_path)) == {0, 1}


# --- the digest -----------------------------------------------------------------------------------------------


def test_the_digest_agrees_on_equal_values_and_differs_on_others() -> None:
    """It does not depend on the order of keys, nor on the process, and sees any value, at any depth."""
    assert digest({"a": 1, "b": {"c": 2.0, "d": 3}}) == digest({"b": {"d": 3, "c": 2.0}, "a": 1})
    values: list[bytes | dict[str, object]] = [
        *({"a": 1}, {"a": 2}, {"a": 1.5}, {"b": 1}, {"a": None}, {"a": "1"}, {"a": [1, 2]}, {"a": [2, 1]}),
        *({"a": {"b": 1}}, {"a": {"b": 1 + 1e-15}}, {}, b"", b"a", b"b"),
    ]
    found = [digest(value) for value in values]
    assert len(set(found)) == len(values)
    assert all(len(value) == 12 and set(value) <= set("0123456789abcdef") for value in found)
    # SHA-256 of the empty string is e3b0c44298fc1c149afb... (FIPS 180-4).
    assert digest(b"") == "e3b0c44298fc"


def test_a_kill_at_any_change_of_the_disk(tmp_path: Path) -> None:
    """Appended a row at a time and killed at each change once: what was there stays, and the end is the same bytes."""

    def work(folder: Path) -> None:
        with Records(folder, "rows", PROTOCOL) as records:
            for row in ROWS:
                if row["index"] not in records.rows:
                    records.append([row])

    def content(folder: Path) -> bytes:
        (path,) = folder.glob("rows*")
        return path.read_bytes()

    work(tmp_path / "whole")
    whole, number = content(tmp_path / "whole"), 0
    while killed(number, folder := tmp_path / str(number), lambda: work(folder)):
        known = read(folder)
        assert list(known.values()) == ROWS[: len(known)]
        work(folder)
        assert content(folder) == whole, number
        number += 1
    assert content(folder) == whole and number > len(ROWS)
