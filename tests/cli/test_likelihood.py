"""Bits/dim on the real command line, of small trainings: files, interruptions, refusals."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import TINY, command
from warm import Warm

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import Dataset, DataTransform
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import read_checkpoint, save_checkpoint

DIGITS = ("--config", "vpsde_digits", *TINY, "--device", "cpu")
COUNT = 16
LOOSE = (
    *("--config.likelihood.terms=5", "--config.likelihood.rtol=1e-3", "--config.likelihood.atol=1e-3"),
    *("--config.likelihood.batch_size=2", f"--config.likelihood.num_samples={COUNT}"),
)
"""Likelihoods in seconds."""
LIKELIHOOD = (*DIGITS, "--mode", "likelihood", *LOOSE)
PARTS = ("prior", "denoising", "reconstruction")

# --- one run that nothing happens to --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after a training, and nothing else; to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "digits"
    warm.run(*DIGITS, "--mode", "train", "--workdir", folder, "--config.training.steps=60")
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.fixture(scope="module")
def whole(warm: Warm, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder after a likelihood that was never disturbed, and what was printed."""
    folder = copied(trained, tmp_path_factory.mktemp("whole") / "digits")
    return folder, warm.run(*LIKELIHOOD, "--workdir", folder)


def rows_of(folder: Path, name: str = "test") -> list[dict[str, str]]:
    with open(folder / "likelihood" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def summary_of(folder: Path, name: str = "test") -> dict[str, Any]:
    """The JSON of a request, which must be one that every reader accepts: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "likelihood" / f"{name}.json").read_text(), parse_constant=refuse)


def name_of(folder: Path, place: str) -> str:
    """The name in files of the one folder of pictures so called, which tells it from others of its name."""
    (path,) = (folder / "likelihood").glob(f"{place}-??????.csv")
    return path.stem


def records_of(folder: Path) -> list[Path]:
    return sorted((folder / "likelihood").glob("*.jsonl"))


def adds_up(rows: list[dict[str, str]], name: str) -> bool:
    """Whether each bound is the sum of its parts."""
    total = sum(column(rows, f"{name}_{part}") for part in PARTS)
    return bool(np.allclose(column(rows, name), total, rtol=1e-9, atol=0.0))


def test_a_row_for_each_sample(whole: tuple[Path, str]) -> None:
    """The CSV: every index once, in order, with its class, both figures and the parts of the bound, which add up."""
    rows = rows_of(whole[0])
    assert [row["index"] for row in rows] == [str(i) for i in range(COUNT)]
    figures = ["ode", "ode_nfe", "ode_seconds", "elbo", *(f"elbo_{part}" for part in PARTS), "elbo_nfe", "elbo_seconds"]
    assert list(rows[0]) == ["index", "class", *figures]
    from sde_diffusion.data import DataOptions, load_splits

    digits = load_splits("digits", DataOptions()).test
    assert digits.labels is not None
    assert [row["class"] for row in rows] == [digits.classes[int(label)] for label in digits.labels[:COUNT]]
    assert adds_up(rows, "elbo")
    # The prior hardly knows the data; a network of 60 steps is worse than log2(17) bits, but not by much.
    assert (column(rows, "elbo_prior") > 0).all() and (column(rows, "elbo_prior") < 1e-3).all()
    assert (column(rows, "ode") > 1.0).all() and (column(rows, "ode") < 8.0).all()
    assert (column(rows, "elbo") > column(rows, "ode")).mean() > 0.8
    assert (column(rows, "elbo_nfe") == 6).all() and (column(rows, "ode_nfe") % 6 == 2).all()
    assert (column(rows, "ode_seconds") > 0).all()


def test_the_summary_is_that_of_the_rows(whole: tuple[Path, str]) -> None:
    """test.json: means, standard errors and Student's intervals of the CSV's columns, and how they were computed."""
    from scipy.stats import sem, t

    folder, _ = whole
    rows, found = rows_of(folder), summary_of(folder)
    for name, row in found["figures"].items():
        values = column(rows, name)
        assert row["bits_per_dim"] == pytest.approx(values.mean(), rel=1e-12)
        assert row["standard_error"] == pytest.approx(sem(values), rel=1e-9)
        assert row["interval"] == pytest.approx(t.interval(0.95, COUNT - 1, values.mean(), sem(values)), rel=1e-9)
        assert row["nfe"] == column(rows, f"{name}_nfe").max()
        assert row["seconds"] == pytest.approx(column(rows, f"{name}_seconds").sum(), abs=0.006)
        assert row["space"] == "17 grey levels, uniformly dequantised"
    ode, elbo = found["figures"]["ode"], found["figures"]["elbo"]
    for part in PARTS:
        assert elbo[part] == pytest.approx(column(rows, f"elbo_{part}").mean(), rel=1e-9)
    assert ode["smallest_time"] == 1e-5 and elbo["smallest_time"] == 1e-3
    assert (ode["probes"], ode["probe"], ode["divergence"]) == (1, "rademacher", "hutchinson")
    assert (ode["method"], ode["rtol"], ode["atol"]) == ("per_sample", 1e-3, 1e-3)
    assert (elbo["steps"], elbo["terms"], elbo["variance"]) == (1000, 5, "posterior")
    assert found["figure"] == "ode" and all(found[key] == value for key, value in ode.items())
    said = {"samples": COUNT, "split": "test", "bin_width": 2 / 16, "data": "digits", "given": "its class", "seed": 0}
    assert {key: found[key] for key in said} == said and found["checkpoint_step"] == 60


def test_results_and_tensorboard_have_the_same_numbers(whole: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = whole
    found = summary_of(folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["likelihood"] == found and results["training"]["steps"] == 60
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    for name, row in found["figures"].items():
        (event,) = board.Scalars(f"bits_per_dim/test/{name}")
        assert event.step == 60 and event.value == pytest.approx(row["bits_per_dim"], rel=1e-6)
        (spread,) = board.Histograms(f"bits_per_dim/test/{name}")
        values = column(rows_of(folder), name)
        assert spread.histogram_value.num == COUNT
        assert spread.histogram_value.min == pytest.approx(values.min(), rel=1e-6)
        assert spread.histogram_value.max == pytest.approx(values.max(), rel=1e-6)
    assert set(board.Tags()["images"]) >= {"test/most_likely", "test/least_likely"}


def test_pictures_show_the_extremes(whole: tuple[Path, str]) -> None:
    """The most and the least likely digits in order, enlarged as in other pictures; 16 samples make them mirrors."""
    from sde_diffusion.data import DataOptions, load_splits
    from sde_diffusion.report.pictures import BORDER, TILE, tiles

    folder, _ = whole
    place = folder / "likelihood"
    assert Image.open(place / "test_histogram.png").size == (840, 480)
    digits = load_splits("digits", DataOptions()).test.samples[:COUNT, 0].double().numpy()
    order = np.argsort(column(rows_of(folder), "ode"))
    for which, picked in (("most_likely", order), ("least_likely", order[::-1])):
        with Image.open(place / f"test_{which}.png") as image:
            sheet = np.asarray(image.convert("RGB"))
        assert sheet.shape == (2 * (TILE + 16 + BORDER) + BORDER, 8 * (TILE + BORDER) + BORDER, 3)
        for at, index in enumerate(picked):
            down, across = divmod(at, 8)
            top, left = BORDER + down * (TILE + 16 + BORDER), BORDER + across * (TILE + BORDER)
            grey = np.round(digits[index] * 255 / 16).astype(np.uint8)[None, :, :, None]
            tile = tiles(grey, 1)[BORDER:-BORDER, BORDER:-BORDER]
            np.testing.assert_array_equal(sheet[top : top + TILE, left : left + TILE], tile)
            assert (sheet[top + TILE : top + TILE + 16, left : left + TILE] < 100).any()


def test_the_screen_shows_the_figures_side_by_side(whole: tuple[Path, str]) -> None:
    """Both figures with mean, interval, NFE, seconds and smallest time; the paired difference; where the files are."""
    folder, text = whole
    found = summary_of(folder)
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("figure "))
    for title in ("bits/dim", "95% interval", "nfe", "seconds", "smallest time", "space"):
        assert title in lines[head]
    for line, (name, row) in zip(lines[head + 2 :], found["figures"].items()):
        assert line.split()[0] == name
        assert f"{row['bits_per_dim']:.4f}" in line
        assert f"{row['interval'][0]:.4f} .. {row['interval'][1]:.4f}" in line
        assert f"{row['smallest_time']:g}" in line and f" {row['nfe']} " in line and f" {row['seconds']} " in line
    gap = column(rows_of(folder), "elbo") - column(rows_of(folder), "ode")
    assert f"elbo - ode, sample by sample: {gap.mean():.4f} +-" in text
    assert f"bits/dim of {COUNT} samples of digits (test) given its class" in text
    assert str(folder / "likelihood" / "test.csv") in text
    assert "1 rademacher probe" in text and "per_sample at rtol 0.001" in text


# --- batches and interruptions --------------------------------------------------------------------------------


def test_neither_the_batch_nor_the_number_of_samples_changes_a_row(
    warm: Warm, trained: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    """7 samples in batches of 5, then all in one batch: it goes on from the 7, and every row is as in batches of 2.

    Products of matrices of another size round differently. The flow's bits/dim change by less than 1e-6; so does the
    bound in relation to its size, a few of whose terms stand for 200 each.
    """
    folder = copied(trained, tmp_path / "run")
    expected = rows_of(whole[0])
    said = []
    for size, count in ((5, 7), (500, COUNT)):
        flags = (f"--config.likelihood.batch_size={size}", f"--config.likelihood.num_samples={count}")
        said.append(warm.run(*LIKELIHOOD, "--workdir", folder, *flags))
        rows = rows_of(folder)
        assert len(rows) == count and list(rows[0]) == list(expected[0])
        assert [row["class"] for row in rows] == [row["class"] for row in expected[:count]]
        assert np.abs(column(rows, "ode") - column(expected[:count], "ode")).max() < 1e-6
        for name in ("elbo", *(f"elbo_{part}" for part in PARTS)):
            np.testing.assert_allclose(column(rows, name), column(expected[:count], name), rtol=1e-6, err_msg=name)
    (records,) = records_of(folder)
    assert records.name == records_of(whole[0])[0].name
    assert "already" not in said[0] and f"7 of {COUNT} samples are in {records} already" in said[1]
    # Rows are only ever appended, and none twice.
    indices = [json.loads(line)["index"] for line in records.read_text().splitlines()[1:]]
    assert indices == list(range(COUNT))


def test_killed_in_the_middle_and_run_again(warm: Warm, trained: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    """kill -9 after some rows, then the same command: the rows of one never killed, to the last digit.

    While the first process lives, a second one is refused with a sentence.
    """
    folder = copied(trained, tmp_path / "run")
    flags = (*LIKELIHOOD, "--workdir", folder)
    process = subprocess.Popen(command(*flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any(path.read_bytes().count(b"\n") >= 3 for path in records_of(folder)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it stands still
        (records,) = records_of(folder)
        before = records.read_bytes()
        assert f"{records} is being written by another process" in warm.refused(*flags)
        assert records.read_bytes() == before and process.poll() is None
    finally:
        process.kill()
        process.wait()
    done = before.count(b"\n") - 1
    assert 2 <= done < COUNT and not (folder / "likelihood" / "test.csv").exists()
    assert f"{done} of {COUNT} samples are in {records} already" in warm.run(*flags)
    assert records.read_bytes().startswith(before[: before.rindex(b"\n") + 1])

    def results(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows]

    assert results(rows_of(folder)) == results(rows_of(whole[0]))
    assert summary_of(folder)["interval"] == summary_of(whole[0])["interval"]


# --- what can be asked for ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variants(
    warm: Warm, whole: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Three other requests in a folder that has an answer: their CSV, JSON and text, and results.json after each."""
    folder = copied(whole[0], tmp_path_factory.mktemp("variants") / "digits")
    few = ("--config.likelihood.num_samples=3", "--config.likelihood.batch_size=3", "--workdir", folder)
    requests = (
        (
            *("--config.likelihood.divergence=exact", "--config.likelihood.method=rk4"),
            *("--config.likelihood.fixed_steps=6", "--config.likelihood.figures=('elbo','vlb','ode')"),
            *("--config.likelihood.points=4", "--config.likelihood.split=train"),
        ),
        (
            *("--config.likelihood.dequantizer=logit_normal", "--config.likelihood.probes=4", "--seed", "1"),
            *("--config.likelihood.sensitivity=True", "--config.likelihood.probe=gaussian"),
            *("--config.likelihood.figures=('ode','elbo')", "--config.sampling.weights=raw"),
        ),
        ("--config.likelihood.figures=('elbo',)",),
    )
    found = []
    for request, name in zip(requests, ("train", "test", "test")):
        text = warm.run(*LIKELIHOOD, *few, *request)
        results = json.loads((folder / "results.json").read_text())["likelihood"]
        found.append({"rows": rows_of(folder, name), **summary_of(folder, name), "text": text, "results": results})
    return folder, found


def test_three_figures_the_exact_trace_and_fixed_steps(variants: tuple[Path, list[dict[str, Any]]]) -> None:
    """figures=('elbo','vlb','ode') of the training split: the first is the headline, and all are about the same."""
    found = variants[1][0]
    assert list(found["figures"]) == ["elbo", "vlb", "ode"] and found["figure"] == "elbo" and found["split"] == "train"
    ode, vlb = found["figures"]["ode"], found["figures"]["vlb"]
    assert (ode["divergence"], ode["method"], ode["nfe"]) == ("exact", "rk4", 24)
    assert vlb["points"] == 4 and vlb["nfe"] == 4 and vlb["smallest_time"] == 1e-3
    assert adds_up(found["rows"], "elbo") and adds_up(found["rows"], "vlb")
    assert "ode_probe_error" not in found["rows"][0]
    assert "exact trace" in found["text"] and "continuous time" in found["text"]
    for name in ("vlb", "ode"):
        assert f"{name} - elbo, sample by sample: " in found["text"]
        assert 1.0 < found["figures"][name]["bits_per_dim"] < 12.0
    # A solver of one step size for all makes a row depend on the batch, which is then part of the protocol.
    assert found["batches"] == [3, 3]


def test_probes_noise_weights_and_the_smallest_time(
    whole: tuple[Path, str], variants: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Four Gaussian probes with their error, logit-normal noise, raw weights, and t_min doubled: all in the answer."""
    found, before = variants[1][1], summary_of(whole[0])
    ode = found["figures"]["ode"]
    assert ode["space"] == "17 grey levels, dequantised by logit-normal noise (0, 1.5)"
    assert found["figures"]["elbo"]["space"] == ode["space"]
    assert (ode["probes"], ode["probe"], ode["sensitivity"], found["seed"]) == (4, "gaussian", True, 1)
    assert found["weights"] == "raw" and found["weights_digest"] != before["weights_digest"]
    assert found["data_digest"] == before["data_digest"] and found["batches"] is None
    errors, changes = (column(found["rows"], f"ode_{name}") for name in ("probe_error", "t_min_change"))
    assert (errors > 0).all() and (errors < 0.5).all() and ode["probe_error"] == pytest.approx(errors.mean())
    assert (changes != 0).all() and (np.abs(changes) < 0.01).all() and ode["t_min_change"] == changes.mean()
    assert f"the probes give each sample a standard error of {ode['probe_error']:.4f} bits/dim" in found["text"]
    assert f"twice the smallest time changes bits/dim by {ode['t_min_change']:+.1e}" in found["text"]
    assert "4 gaussian probes" in found["text"]
    # Another seed: other noise, other numbers.
    assert (np.abs(column(found["rows"], "ode") - column(rows_of(whole[0])[:3], "ode")) > 1e-6).all()


def test_earlier_rows_of_other_requests_are_kept(
    whole: tuple[Path, str], variants: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Each protocol has its own records, so that the first request could still be gone on with."""
    (first,) = records_of(whole[0])
    kept = {path.name: path for path in records_of(variants[0])}
    assert len(kept) == 4 and kept[first.name].read_bytes() == first.read_bytes()


@pytest.mark.parametrize("at", range(3))
def test_results_hold_the_last_request_only(variants: tuple[Path, list[dict[str, Any]]], at: int) -> None:
    """No key of an earlier request, such as the solver of a flow, is left beside the figures of the last one."""
    found = variants[1][at]
    assert found["results"] == {key: found[key] for key in found if key not in ("rows", "text", "results")}


def test_a_discrete_model_with_learned_variance(warm: Warm, tmp_path: Path) -> None:
    """iDDPM, the bare job: the bound is one on the grey levels, with every level and the learned variance."""
    text = warm.run(
        *("--config", "iddpm_digits", *TINY, "--device", "cpu", "--workdir", tmp_path, *LOOSE),
        *("--config.training.steps=30", "--config.sampling.gallery=('ddim:2',)", "--config.sampling.num_samples=4"),
        *("--config.likelihood.num_samples=5", "--config.likelihood.batch_size=3", "--config.likelihood.terms=0"),
    )
    rows, found = rows_of(tmp_path), summary_of(tmp_path)
    elbo, ode = found["figures"]["elbo"], found["figures"]["ode"]
    assert elbo["space"] == "17 grey levels, discrete" and ode["space"] == "17 grey levels, uniformly dequantised"
    assert (elbo["variance"], elbo["steps"], elbo["terms"], elbo["nfe"]) == ("learned", 100, None, 100)
    assert elbo["smallest_time"] == ode["smallest_time"] == 0.01
    assert adds_up(rows, "elbo")
    # Probabilities, not densities: no part of the bound is negative.
    assert all((column(rows, f"elbo_{part}") >= 0).all() for part in PARTS)
    assert "100 levels, variance learned" in text and "held-out loss" in text
    assert json.loads((tmp_path / "results.json").read_text())["likelihood"] == found


def test_continuous_vectors(warm: Warm, tmp_path: Path) -> None:
    """Points of the plane: a density, exact trace, no classes needed, pictures all the same."""
    warm.run(
        *("--config", "vpsde_toy2d", *TINY, "--device", "cpu", "--workdir", tmp_path, *LOOSE),
        *("--config.training.steps=20", "--config.sampling.gallery=('ddim:2',)", "--config.sampling.num_samples=4"),
        *("--config.likelihood.num_samples=5", "--config.likelihood.figures=('ode','elbo','vlb')"),
        *("--config.compare.samplers=('ddim',)", "--config.compare.steps=(2,)", "--config.compare.bootstraps=3"),
        "--config.compare.reference_samples=500",
    )
    compared = json.loads((tmp_path / "compare.json").read_text())
    assert compared["protocol"]["features"]["network"] == "values" and "energy" in compared["runs"][0]["values"]
    assert compared["likelihood"].keys() == {"ode", "elbo", "vlb"}
    rows, found = rows_of(tmp_path), summary_of(tmp_path)
    assert {row["space"] for row in found["figures"].values()} == {"a density of continuous vectors"}
    assert (
        found["bin_width"] == 1.0 and found["figures"]["ode"]["divergence"] == "exact" and found["given"] == "nothing"
    )
    assert adds_up(rows, "elbo") and adds_up(rows, "vlb")
    for which in ("histogram", "most_likely", "least_likely"):
        Image.open(tmp_path / "likelihood" / f"test_{which}.png").verify()


# --- folders of images ----------------------------------------------------------------------------------------


def draw_pictures(folder: Path, count: int, seed: int, side: int = 8) -> Path:
    """Grey 8-bit pictures of a bright disc with some noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    y, x = np.mgrid[:side, :side]
    for index in range(count):
        centre, radius = rng.uniform(0.3 * side, 0.7 * side, 2), rng.uniform(0.2 * side, 0.4 * side)
        disc = 200.0 / (1.0 + np.exp(2.0 * (np.hypot(y - centre[0], x - centre[1]) - radius)))
        image = np.clip(disc + rng.normal(25.0, 6.0, (side, side)), 0, 255).round().astype(np.uint8)
        Image.fromarray(image).save(folder / f"disc_{index:02d}_{seed}.png")
    return folder


@pytest.fixture(scope="module")
def pictured(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[str, ...]]:
    """A run on a folder of pictures, the place of the folders, and the flags; others/ is not what it was trained on."""
    place = tmp_path_factory.mktemp("pictures")
    draw_pictures(place / "mine", 60, seed=0)
    draw_pictures(place / "others", 6, seed=1)
    draw_pictures(place / "test", 3, seed=2)
    draw_pictures(place / "large", 3, seed=3, side=12)
    (place / "empty").mkdir()
    (draw_pictures(place / "broken", 2, seed=4) / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    flags = (
        *("--config", "vpsde_digits", *TINY, "--device", "cpu", *LOOSE, "--config.data.dataset=folder"),
        *(f"--config.data.root={place / 'mine'}", "--config.model.class_conditional=False"),
        *("--config.training.label_dropout=0.0", "--workdir", str(place / "run"), "--config.training.steps=40"),
    )
    warm.run(*flags, "--mode", "train")
    return place / "run", place, flags


def test_a_folder_of_images(warm: Warm, pictured: tuple[Path, Path, tuple[str, ...]]) -> None:
    """Pictures that are no part of the data set: a row for each with its file's name, in files named as the folder."""
    folder, place, flags = pictured
    text = warm.run(*flags, "--mode", "likelihood", f"--config.likelihood.folder={place / 'others'}")
    name = name_of(folder, "others")
    rows, found = rows_of(folder, name), summary_of(folder, name)
    assert list(rows[0])[:3] == ["index", "file", "ode"]
    assert [row["file"] for row in rows] == [f"disc_{i:02d}_1.png" for i in range(6)]
    assert adds_up(rows, "elbo")
    said = {"split": name, "samples": 6, "bin_width": 2 / 255, "data": "others", "given": "nothing"}
    assert {key: found[key] for key in said} == said
    assert found["space"] == "256 grey levels, uniformly dequantised"
    assert f"bits/dim of 6 samples of others ({name}) given nothing" in text
    for which in ("histogram", "most_likely", "least_likely"):
        Image.open(folder / "likelihood" / f"{name}_{which}.png").verify()
    # 60 steps short of knowing anything: about the 8 bits of the levels themselves.
    assert 4.0 < found["bits_per_dim"] < 10.0


def test_pictures_in_class_folders_have_the_classes_of_the_network(trained: Path, tmp_path: Path) -> None:
    """Class folders are matched with the trained classes by name; where one is unknown, all go without a class."""
    from sde_diffusion.pipelines.likelihood import evaluated_data

    state = replace(read_checkpoint(trained), classes=("ants", "bees", "cats"), transform=DataTransform(256))
    config = importlib.import_module("configs.vpsde_digits").get_config()
    for at, name in enumerate(("bees", "cats")):
        draw_pictures(tmp_path / "known" / name, 2, seed=at)
        draw_pictures(tmp_path / "unknown" / name, 2, seed=at)
    draw_pictures(tmp_path / "unknown" / "dogs", 1, seed=2)

    config.likelihood.folder = str(tmp_path / "known")
    known = evaluated_data(Settings.from_config(config), state)
    assert known.files == [f"{name}/disc_0{i}_{at}.png" for at, name in enumerate(("bees", "cats")) for i in range(2)]
    assert known.dataset.labels is not None and known.dataset.labels.tolist() == [1, 1, 2, 2]
    assert known.dataset.classes == state.classes
    config.likelihood.folder = str(tmp_path / "unknown")
    unknown = evaluated_data(Settings.from_config(config), state)
    assert unknown.dataset.labels is None and len(unknown.files) == len(unknown.dataset) == 5


# --- latents --------------------------------------------------------------------------------------------------


def test_latents(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """Two pairs of a class each are encoded, decoded and interpolated: in the pictures, what went in comes out."""
    from sde_diffusion.report.pictures import BORDER

    folder = copied(trained, tmp_path / "run")
    few = ("--config.latents.pairs=2", "--config.latents.points=3", "--config.latents.temperatures=(0.5,1.0)")
    text = warm.run(*DIGITS, "--mode", "latents", "--workdir", folder, *few)
    found = json.loads((folder / "latents" / "latents.json").read_text())
    assert json.loads((folder / "results.json").read_text())["latents"] == found
    assert (found["pairs"], found["temperatures"], found["smallest_time"]) == (2, [0.5, 1.0], 1e-5)
    assert 0.0 < found["round_trip_rms"] <= found["round_trip_worst"] < 1e-2 and 0.5 < found["latent_rms"] < 2.0
    assert f"4 samples encoded and decoded: rms error {found['round_trip_rms']:.1e}" in text
    alike = found["reconstruction"]
    assert alike["rmse"]["value"] < 1.0 and alike["ssim"]["value"] > 0.99
    assert alike["psnr"]["value"] is None or alike["psnr"]["value"] > 48.0
    assert "rmse: " in text and "ssim: " in text
    shown = {}
    for name, columns in (("round_trip", 4), ("interpolation", 3), ("temperature", 2)):
        with Image.open(folder / "latents" / f"{name}.png") as image:
            sheet = np.asarray(image.convert("L")).astype(int)
        down, across = ((side - BORDER) // count for side, count in zip(sheet.shape, (2, columns)))
        shown[name] = [
            [
                sheet[BORDER + i * down :, BORDER + j * across :][: down - BORDER, : across - BORDER]
                for j in range(columns)
            ]
            for i in range(2)
        ]
    for way, path, warmth in zip(shown["round_trip"], shown["interpolation"], shown["temperature"], strict=True):
        first, first_again, second, second_again = way
        assert np.abs(first - first_again).max() <= 1 and np.abs(second - second_again).max() <= 1
        assert np.abs(path[0] - first).max() <= 1 and np.abs(path[-1] - second).max() <= 1
        assert np.abs(warmth[1] - first).max() <= 1 < np.abs(warmth[0] - first).max()


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("pairs=0", "latents.pairs must be at least 1, got 0"),
        ("temperatures=(0.0,)", "latents.temperatures must be one or more positive numbers"),
        ("rtol=0", "latents.rtol must be positive"),
    ],
)
def test_latents_that_cannot_be(warm: Warm, trained: Path, flag: str, says: str) -> None:
    assert says in warm.refused(*DIGITS, "--mode", "latents", "--workdir", trained, f"--config.latents.{flag}")
    assert not (trained / "latents").exists()


def test_pairs_share_a_class_or_are_refused() -> None:
    from sde_diffusion.commands.latents import pairs_of

    def labelled(*labels: int) -> Dataset:
        samples = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
        return Dataset(samples, torch.tensor(labels), 17, ("a", "b", "c"), "letters")

    assert pairs_of(labelled(0, 1, 2, 1, 0, 1), 5, same_class=True).T.tolist() == [[0, 4], [1, 3]]
    assert pairs_of(labelled(0, 1, 2, 1), 5, same_class=False).T.tolist() == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="no class has two held-out samples"):
        pairs_of(labelled(0, 1, 2), 5, same_class=True)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["figures=('ode','elob')"], "unknown figure 'elob'; did you mean 'elbo'? Valid names: elbo, ode, vlb"),
        (["figures=()"], "likelihood.figures is empty"),
        (["dequantizer=logitnormal"], "unknown dequantizer 'logitnormal'; did you mean 'logit_normal'"),
        (["method=per_sampel"], "unknown ODE method 'per_sampel'; did you mean 'per_sample'"),
        (["divergence=exat"], "unknown divergence 'exat'; did you mean 'exact'"),
        (["probe=gauss"], "did you mean 'gaussian'"),
        (["split=tset"], "did you mean 'test'"),
        (["probes=0"], "likelihood.probes must be at least 1, got 0"),
        (["batch_size=0"], "likelihood.batch_size must be at least 1"),
        (["levels=1"], "likelihood.levels must be at least 2, got 1"),
        (["num_samples=-5"], "likelihood.num_samples must be"),
        (["t_min=0.7"], "likelihood.t_min must be below 0.5, or negative for the process's own, got 0.7"),
        (["t_min=0.0", "sensitivity=True"], "likelihood.t_min must not be 0"),
        (["dequantizer=none"], "grey levels need noise on their bins"),
        (["image_size=8"], "is one of the pictures of likelihood.folder, and there is no folder"),
        (["rtol=0"], "likelihood.rtol must be positive, got 0.0"),
        (["max_nfe=10"], "the flow needs more than 10 evaluations: at rtol 0.001, atol 0.001 the slowest sample has"),
        (["folder=/no/such/folder"], "likelihood.folder: there is no folder /no/such/folder"),
        (["folder={place}/others"], "others has 256 grey levels, and the network was trained on 17"),
        (["folder={place}/empty"], "empty holds no pictures"),
        (["folder={place}/broken"], "no.png is not a readable picture"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_bad_requests_are_one_sentence(
    warm: Warm,
    trained: Path,
    pictured: tuple[Path, Path, tuple[str, ...]],
    tmp_path: Path,
    flags: list[str],
    says: str,
) -> None:
    """Exit code 1, one line, and no answer is written."""
    folder = copied(trained, tmp_path / "run")
    given = ["--config.likelihood." + flag.format(place=pictured[1]) for flag in flags]
    assert says in warm.refused(*LIKELIHOOD, "--workdir", folder, *given)
    assert not (folder / "likelihood" / "test.csv").exists() and "likelihood" not in json.loads(
        (folder / "results.json").read_text()
    )


def with_weights(folder: Path, factor: float) -> Path:
    """The run folder with averaged weights a factor larger."""
    trained = read_checkpoint(folder)
    ema = {key: factor * value for key, value in trained.weights["ema"].items()}
    save_checkpoint(folder, replace(trained, weights={**trained.weights, "ema": ema}), keep=1)
    return folder


def test_too_many_evaluations_say_the_time_and_keep_earlier_rows(warm: Warm, trained: Path, tmp_path: Path) -> None:
    """A limit that the first samples meet and a later one does not: their rows are stored, and are as they should be.

    Weights three times larger make a rough flow, which takes some samples more evaluations than others; the first
    seed is taken with which the first sample is not the slowest one.
    """
    free, limited = (with_weights(copied(trained, tmp_path / name), 3.0) for name in ("free", "limited"))
    alone = ("--config.likelihood.batch_size=1", "--config.likelihood.num_samples=6", "--config.likelihood.rtol=1e-5")
    limit = done = 0
    for seed in range(10):
        flags = (
            *LIKELIHOOD,
            *alone,
            "--config.likelihood.atol=1e-5",
            "--config.likelihood.figures=('elbo','ode')",
            "--seed",
            seed,
        )
        warm.run(*flags, "--workdir", free)
        expected = rows_of(free)
        nfe = column(expected, "ode_nfe").astype(int)
        limit, done = int(nfe.max()) - 1, int(nfe.argmax())
        if done > 0:
            break
    assert done > 0
    said = warm.refused(*flags, "--workdir", limited, f"--config.likelihood.max_nfe={limit}")
    assert f"the flow needs more than {limit} evaluations" in said
    assert "the slowest sample has come to t = " in said and "% of its way" in said and "raise max_nfe" in said
    (records,) = records_of(limited)
    rows = [json.loads(line) for line in records.read_text().splitlines()[1:]]
    assert [row["index"] for row in rows] == list(range(done))
    for name in ("ode", "elbo"):
        assert [row[name] for row in rows] == column(expected[:done], name).tolist()


def test_before_a_training(warm: Warm, tmp_path: Path) -> None:
    """A folder that is not there is named and not made; one without a checkpoint is to be trained in first."""
    assert f"{tmp_path / 'none'} does not exist" in warm.refused(*LIKELIHOOD, "--workdir", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    said = warm.refused(*LIKELIHOOD, "--workdir", tmp_path)
    assert f"there is no checkpoint in {tmp_path / 'checkpoints'}: train first" in said
    assert not list(tmp_path.iterdir())


def test_another_configuration(warm: Warm, trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "run")
    said = warm.refused("--config", "subvpsde_digits", *LIKELIHOOD[2:], "--workdir", folder)
    assert "process.name ('VPSDE' there, 'SubVPSDE' here)" in said and not (folder / "likelihood").exists()


def test_images_of_another_size(warm: Warm, pictured: tuple[Path, Path, tuple[str, ...]]) -> None:
    """They are refused, with what would help."""
    folder, place, flags = pictured
    said = warm.refused(*flags, "--mode", "likelihood", f"--config.likelihood.folder={place / 'large'}")
    assert "large has samples of shape [1, 12, 12], and the network takes [1, 8, 8]" in said
    assert "image_size" in said and not list((folder / "likelihood").glob("large*"))


def test_images_are_cut_to_the_size_as_the_refusal_says(
    warm: Warm, pictured: tuple[Path, Path, tuple[str, ...]]
) -> None:
    """The flag that the refusal of images of another size writes is one that makes them fit."""
    folder, place, flags = pictured
    large = (*flags, "--mode", "likelihood", f"--config.likelihood.folder={place / 'large'}")
    (flag,) = re.findall(r"--config\.[\w.]*image_size=\S+", warm.refused(*large))
    warm.run(*large, flag, "--config.likelihood.figures=elbo")
    assert len(rows_of(folder, name_of(folder, "large"))) == 3


def test_a_folder_does_not_overwrite_a_split(warm: Warm, pictured: tuple[Path, Path, tuple[str, ...]]) -> None:
    """A folder that happens to be called "test" has files of its own beside those of the split, and of its namesake."""
    folder, place, flags = pictured
    few = (*flags, "--mode", "likelihood", "--config.likelihood.num_samples=3", "--config.likelihood.figures=elbo")
    warm.run(*few)
    before = {path.name: path.read_bytes() for path in (folder / "likelihood").glob("test[._]*")}
    assert {"test.csv", "test.json"} <= set(before)
    warm.run(*few, f"--config.likelihood.folder={place / 'test'}")
    draw_pictures(place / "elsewhere" / "test", 3, seed=5)
    warm.run(*few, f"--config.likelihood.folder={place / 'elsewhere' / 'test'}")
    assert len(list((folder / "likelihood").glob("test-??????.csv"))) == 2
    assert before == {name: (folder / "likelihood" / name).read_bytes() for name in before}


@pytest.mark.parametrize("figure", ["ode", "elbo", "vlb"])
def test_a_network_that_is_not_a_number(warm: Warm, trained: Path, tmp_path: Path, figure: str) -> None:
    """Weights of NaN in a checkpoint: a sentence, and no row that is not a number is stored or reported."""
    folder = with_weights(copied(trained, tmp_path / "run"), math.nan)
    said = warm.refused(*LIKELIHOOD, "--workdir", folder, f"--config.likelihood.figures={figure}")
    assert "not finite" in said and "check the model's output" in said
    assert not (folder / "likelihood" / "test.csv").exists()
    assert all(path.read_text().count("\n") == 1 for path in records_of(folder))


@pytest.fixture(scope="module")
def protocol(trained: Path) -> Callable[..., str]:
    """The protocol of a request about the digits, with some of its parts changed."""
    from sde_diffusion.data import DataOptions, load_splits
    from sde_diffusion.pipelines.likelihood import Evaluated, likelihood_protocol

    state, digits = read_checkpoint(trained), load_splits("digits", DataOptions()).test

    def of(change: Callable[[Dataset], Dataset] = lambda data: data, seed: int = 0, **settings: Any) -> str:
        asked = importlib.import_module("configs.vpsde_digits").get_config()
        asked.seed = seed
        changed = {name: settings.pop(name) for name in ("step", "weights") if name in settings}
        asked.likelihood.update(settings)
        trained = replace(state, **changed)
        figures = Settings.from_config(asked).figures(trained.spec.process, trained.transform, torch.device("cpu"))
        found = likelihood_protocol(
            Settings.from_config(asked), trained, Evaluated(change(digits), "test", []), figures
        )
        return json.dumps(found, sort_keys=True, default=str)

    return of


CHANGES: dict[str, dict[str, Any]] = {
    "pixels": {"change": lambda data: replace(data, samples=data.samples.flip(0))},
    "classes": {"change": lambda data: replace(data, labels=data.labels.flip(0))},
    "weights": {"weights": {"ema": {"weight": torch.zeros(1)}}},
    "step": {"step": 61},
    "seed": {"seed": 1},
    "rtol": {"rtol": 1e-3},
    "t_min": {"t_min": 1e-4},
    "probes": {"probes": 2},
    "dequantizer": {"dequantizer": "logit_normal"},
    "terms": {"terms": 7},
    "figures": {"figures": ("ode",)},
    "samples of a shared step size": {"method": "rk45", "num_samples": 7},
}


@pytest.mark.parametrize("name", CHANGES)
def test_rows_are_not_used_for_what_has_other_numbers(protocol: Callable[..., str], name: str) -> None:
    """Of other data or classes, another network, or computed in another way."""
    same = {"method": "rk45"} if "method" in CHANGES[name] else {}
    assert protocol(**CHANGES[name]) != protocol(**same)


@pytest.mark.parametrize("name,value", [("num_samples", 5), ("batch_size", 7), ("max_nfe", 50), ("cdf", "tanh")])
def test_rows_are_used_for_what_has_the_same_numbers(protocol: Callable[..., str], name: str, value: int) -> None:
    """More samples, other batches, or more patience with the flow: an earlier request is gone on with."""
    assert protocol(**{name: value}) == protocol()
