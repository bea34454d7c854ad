"""A training in a tracker beside TensorBoard, offline; and pictures of its samples in the run folder."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.commands.training import train
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import EXTRAS
from sde_diffusion.runtime import tracking
from sde_diffusion.runtime.metrics_log import read_metrics
from sde_diffusion.runtime.previews import Previews
from sde_diffusion.runtime.tracking import TRACKERS, Tracker, flat
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import read_checkpoint
from tests.faults import killed
from tests.runtime.test_metrics_log import fill, small_disk

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def trained(folder: Path, steps: int, **tracker: str) -> dict[str, torch.Tensor]:
    """Two-dimensional points, a picture every second step; the weights that it ends with."""
    settings = Settings.from_values(
        {
            "device": "cpu",
            "data": {"dataset": "toy2d", "size": 64},
            "model": {"network": "mlp"},
            "training": {
                **{"steps": steps, "batch_size": 8, "log_every": 1, "sample_every": 2, "checkpoint_every": 2},
                **{"held_out_batches": 1, "keep_previews": 2},
            },
            **tracker,
        }
    )
    train(settings, folder, settings.engine())
    return read_checkpoint(folder).weights["ema"]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return trained(tmp_path_factory.mktemp("untracked") / "run", 6)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss/train"] for row in read_metrics(folder / "metrics.jsonl") if "loss/train" in row}


# --- the real ones, without a network ------------------------------------------------------------------------------


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB, which wandb's files are behind seven bytes: blocks of 32 KiB, cut in parts."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        if kind in (1, 4):  # the whole of a record, or its last part
            yield whole
            whole = b""
        at += 7 + size


def offline_rows(folder: Path) -> list[dict[str, Any]]:
    """What a session of wandb has stored: the run that it belongs to with its settings, and the history."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    rows, about = list[dict[str, Any]](), dict[str, Any]()
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        about |= values([*record.run.config.update, *record.config.update])
        if record.HasField("run"):
            about["run"] = (record.run.project, record.run.display_name, record.run.run_id)
        if record.HasField("history"):
            rows.append(values(record.history.item))
    return [about, *rows]


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untracked: dict[str, torch.Tensor]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path / "mine", 4, tracking="wandb")
    assert same(trained(tmp_path / "mine", 6, tracking="wandb"), untracked)
    sessions = sorted((tmp_path / "mine" / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    (first, *rows), (second, *more) = map(offline_rows, sessions)
    run = json.loads((tmp_path / "mine" / "tracking.json").read_text())["wandb"]
    assert first["run"] == second["run"] == ("sde_diffusion", "mine", run)
    assert first["training.steps"] == 4 and second["training.steps"] == 6 and first["training.batch_size"] == 8
    found = {row["step"]: row["loss/train"] for row in rows + more if "loss/train" in row}
    assert found == losses(tmp_path / "mine") and sorted(found) == [1, 2, 3, 4, 5, 6]
    pictures = [row for row in rows + more if any(name.startswith("samples") for name in row)]
    assert [row["step"] for row in pictures] == [2, 4, 6]
    (stored,) = (sessions[1] / "files" / "media" / "images").glob("*.png")
    own = np.asarray(Image.open(tmp_path / "mine" / "previews" / "step_000000006.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(stored).convert("RGB")), own)


def test_mlflow_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untracked: dict[str, torch.Tensor]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    trained(tmp_path / "mine", 4, tracking="mlflow")
    assert same(trained(tmp_path / "mine", 6, tracking="mlflow"), untracked)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("sde_diffusion")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "mine" / "tracking.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["training.steps"] == "4" and run.data.tags["training.steps"] == "6"
    assert run.data.params["training.batch_size"] == "8" and "training.batch_size" not in run.data.tags
    found = client.get_metric_history(run.info.run_id, "loss/train")
    assert {point.step: point.value for point in found} == losses(tmp_path / "mine") and len(found) == 6
    assert any("held_out_by_level" in name for name in run.data.metrics)
    shown = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
    assert len(shown) == 3


# --- what fails is no matter of the training -----------------------------------------------------------------------


class Kept:
    """A tracker that keeps what it is given, and fails at the call of `fails`."""

    fails, waits = "", threading.Event()
    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, folder: Path, former: str) -> None:
        self.run = former or "run-1"
        self._kept("begin", former)

    def _kept(self, what: str, *values: Any) -> None:
        self.calls.append((what, *values))
        if what == self.fails:
            raise ConnectionError(f"no network at {what}\nand a second line")

    def configuration(self, values: Mapping[str, Any]) -> None:
        self._kept("configuration", dict(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._kept("scalars", step, dict(values))

    def image(self, name: str, image: np.ndarray[Any, Any], step: int) -> None:
        self._kept("image", name, step)

    def end(self) -> None:
        self._kept("end")


class Hanging(Kept):
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.waits.wait(10.0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    monkeypatch.setitem(TRACKERS, "wandb", Kept)
    monkeypatch.setitem(EXTRAS, "wandb", ())
    monkeypatch.setattr(Kept, "calls", [])
    return Kept


@pytest.mark.parametrize("fails", ["begin", "configuration", "scalars", "image", "end"])
def test_a_tracker_that_fails_is_switched_off_in_a_sentence(
    tmp_path: Path,
    kept: type[Kept],
    monkeypatch: pytest.MonkeyPatch,
    untracked: dict[str, torch.Tensor],
    fails: str,
) -> None:
    """At whichever call: the training ends with the same bits, and nothing more is asked of the tracker."""
    monkeypatch.setattr(kept, "fails", fails)
    with pytest.warns(UserWarning, match="wandb") as said:
        assert same(trained(tmp_path / "run", 6, tracking="wandb"), untracked)
    reason = f"no network at {fails}"
    assert [str(one.message) for one in said] == [f"wandb is switched off, and the training goes on: {reason}"]
    assert kept.calls[-1][0] == fails and [name for name, *_ in kept.calls].count(fails) == 1
    assert (tmp_path / "run" / "tracking.json").exists() == (fails != "begin")


def test_a_tracker_that_hangs_is_left_after_its_time(
    tmp_path: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Hanging)
    tracker = Tracker("wandb", tmp_path, {})
    for step in range(100):
        tracker.scalars(step, {"loss": 1.0})
    with pytest.warns(UserWarning, match=r"wandb is switched off, .*: it has not taken all .* within 0\.05 seconds"):
        tracker.close(patience=0.05)
    Kept.waits.set()


def test_a_tracker_is_given_everything_once_and_goes_on_with_its_run(tmp_path: Path, kept: type[Kept]) -> None:
    for former in ("", "run-1"):
        with Tracker("wandb", tmp_path, {"seed": 0, "training": {"steps": 4, "betas": [1, 2]}, "empty": {}}) as tracker:
            tracker.scalars(1, {"loss": 0.5})
            tracker.image("samples", PICTURE, 1)
        settings = {"seed": 0, "training.steps": 4, "training.betas": [1, 2], "empty": {}}
        given = [("scalars", 1, {"loss": 0.5}), ("image", "samples", 1), ("end",)]
        assert kept.calls == [("begin", former), ("configuration", settings), *given]
        kept.calls.clear()
    (tmp_path / "tracking.json").write_text("{")
    with pytest.warns(UserWarning, match=r"tracking\.json is damaged; remove it to begin a new run there"):
        Tracker("wandb", tmp_path, {}).close()
    assert kept.calls == [] and (tmp_path / "tracking.json").read_text() == "{"


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "mlflow", ("nothing_such",))
    with pytest.raises(UserError, match=r"^nothing_such is not installed; .* 'mlflow': pip install"):
        trained(tmp_path / "run", 2, tracking="mlflow")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"unknown tracker 'wandbb'; did you mean 'wandb'"):
        Settings.from_values({"tracking": "wandbb"})


def test_nested_values_by_key() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": None}) == {"a.b.c": 1, "a.d": {}, "e": None}
    assert set(TRACKERS) <= set(EXTRAS) and tracking.NONE not in TRACKERS


# --- previews ------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_previews_are_the_newest_and_those_of_later_steps_come_again(tmp_path: Path) -> None:
    previews = Previews(tmp_path, 0, 2)
    for step in (1000, 2000, 1_000_000_000):
        previews.add(PICTURE + np.uint8(step // 1000 % 256), step)
    (tmp_path / "step_mine.png").touch()
    assert names(tmp_path) == ["step_000002000.png", "step_1000000000.png", "step_mine.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "step_000002000.png")), PICTURE + np.uint8(2))
    Previews(tmp_path, 2000, 2)
    assert names(tmp_path) == ["step_000002000.png", "step_mine.png"]
    Previews(tmp_path, 0, 0).add(PICTURE, 1)  # none are wanted, and what is there stays
    assert names(tmp_path) == ["step_000002000.png", "step_mine.png"]


def test_a_training_leaves_no_more_previews_than_stated(tmp_path: Path) -> None:
    trained(tmp_path / "run", 6)
    assert names(tmp_path / "run" / "previews") == ["step_000000004.png", "step_000000006.png"]
    assert not (tmp_path / "run" / "tracking.json").exists()


def test_a_preview_is_whole_or_absent_whenever_it_is_killed(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        for step in (1, 2):
            Previews(folder, 2, 1).add(PICTURE, step)

    number = 0
    while killed(number, folder := tmp_path / str(number), partial(work, tmp_path / str(number))):
        for path in folder.glob("step_*.png"):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), PICTURE)
        work(folder)
        assert [path.name for path in folder.glob("*.png")] == ["step_000000002.png"]
        number += 1
    assert number > 4


def test_previews_on_a_full_disk_warn_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with small_disk(tmp_path / "disk", 256) as disk:
        fill(disk)
        previews = Previews(disk / "previews", 0, 5)
        with pytest.warns(UserWarning, match=r"cannot be written: No space left .* previews are left out") as said:
            for step in (1, 2):
                previews.add(noise, step)
        assert len(said) == 1
