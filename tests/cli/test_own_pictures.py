"""A folder of two hundred pictures of every kind by one command; what is printed of it is what is in it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm import Warm

SMALL = (
    *("--config", "folder", "--device", "cpu", "--config.training.steps=2", "--config.training.batch_size=4"),
    *("--config.model.unet.channels=8", "--config.model.unet.multipliers=(1,1)", "--config.model.unet.blocks=0"),
    *("--config.model.unet.attention_resolutions=()", "--config.training.held_out_batches=1"),
    *("--config.sampling.num_samples=4", "--config.sampling.steps=2", "--config.sampling.gallery=('ddim:2',)"),
    *("--config.likelihood.figures=('elbo',)", "--config.likelihood.terms=2", "--config.likelihood.num_samples=2"),
    *("--config.compare.samplers=('ddim',)", "--config.compare.steps=(2,)", "--config.compare.flow_samples=2"),
    *("--config.compare.bootstraps=2", "--config.compare.features=values", "--config.compare.likelihood=False"),
)
PLAIN, TURNED = 150, 10


def noise(seed: int, size: tuple[int, int] = (20, 18)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """198 pictures in three classes, at several depths; one more that is broken, a video, and what systems leave."""
    root = tmp_path_factory.mktemp("mine") / "my pictures"
    for name in ("birds/2021/may", "cats", "dogs/old", "cats/@eaDir/0.jpg"):
        (root / name).mkdir(parents=True)
    for index in range(PLAIN):
        noise(index).save(root / ("birds/2021/may", "cats", "dogs/old")[index % 3] / f"{index}.jpg")
    turn = Image.Exif()
    turn[0x0112] = 6
    for index in range(TURNED):
        noise(200 + index, (18, 20)).save(root / "cats" / f"turned{index}.jpeg", exif=turn)
    for index in range(8):
        clear = noise(300 + index)
        clear.putalpha(Image.new("L", clear.size, 90))
        clear.save(root / "dogs" / f"clear{index}.png")
        noise(400 + index).convert("P").save(root / "dogs" / f"palette{index}.gif")
        noise(500 + index).convert("CMYK").save(root / "birds" / f"print{index}.tif")
        noise(600 + index).convert("L").save(root / "cats" / f"grey{index}.png")
    for index in range(6):
        deep = np.random.default_rng(index).integers(0, 65536, (20, 20), np.uint16)
        Image.fromarray(deep).save(root / "birds" / f"deep{index}.png")
    (root / "cats" / "broken.jpg").write_bytes((root / "cats" / "1.jpg").read_bytes()[:300])
    (root / "cats" / "clip.mp4").write_bytes(b"")
    (root / "cats" / "@eaDir" / "0.jpg" / "thumb.jpg").write_bytes(b"")
    return root


def rows(text: str) -> dict[str, str]:
    """The table's cells by its first column; those that go on below are put together."""
    found: dict[str, str] = {}
    name = ""
    for line in text.split("---\n", 1)[1].splitlines():
        start = re.match(r"(\S.*?)(?:  +|$)", line)
        if line.startswith(("suggested", "wrote")):
            break
        name = start[1] if start else name
        found[name] = f"{found.get(name, '')} {line[len(start[0]) :].strip() if start else line.strip()}".strip()
    return found


def test_what_would_be_read_is_what_is_there(warm: Warm, mine: Path, tmp_path: Path) -> None:
    text = warm.run("--config", "folder", f"--config.data.root={mine}", "--mode", "data", "--workdir", tmp_path / "run")
    assert "chosen: data.image_size=16 (198 of 198 pictures have it)" in text
    assert "chosen: model.class_conditional=True (3 classes were found)" in text
    found = rows(text)
    assert found["samples"] == "179 to train on, 19 held out"
    assert found["shape"] == "[3, 16, 16]"
    assert found["picture files"] == "199: .jpg 151, .png 22, .jpeg 10, .gif 8, .tif 8"
    assert found["classes"] == "0 = birds (64), 1 = cats (69), 2 = dogs (66)" and found["place"] == str(mine)
    assert found["sizes"] == "20x18 192, 20x20 6, from 20x18 to 20x20 (height x width)"
    assert "8 pictures are transparent, and laid on white (data.background)" in found["changed"]
    assert "6 pictures are of 16 bits, and divided by 257" in found["changed"]
    assert "1 file was not read: .mp4 1 (cats/clip.mp4)" in found["not read"] and "@eaDir/" in found["not read"]
    assert found["cannot be read"] == f"{mine}/cats/broken.jpg"
    shown = Image.open(tmp_path / "run" / "data.png")
    assert shown.width == shown.height > 6 * 64
    (suggested,) = re.findall(r"^suggested: .*?(--config.*)$", text, re.M)
    assert shlex.split(suggested) == [
        *("--config", "folder", f"--config.data.root={mine}", "--config.data.image_size=16"),
        "--config.model.class_conditional=True",
    ]


def test_a_suggestion_keeps_what_was_asked_of_the_data(warm: Warm, tmp_path: Path) -> None:
    for index in range(3):
        noise(index).save(tmp_path / f"{index}.png")
    (tmp_path / "metadata.csv").write_text("file_name,kind,note\n0.png,a,x\n1.png,b,y\n2.png,a,z\n")
    asked = ["--config.data.image_size=(16, 24)", "--config.data.fit=pad", "--config.data.label_column=kind"]
    flags = ("--config", "folder", f"--config.data.root={tmp_path}", "--mode", "data", "--workdir", tmp_path / "run")
    text = warm.run(*flags, *asked)
    assert "classes by the column 'kind'; not used: note" in rows(text)["labels"]
    (suggested,) = re.findall(r"^suggested: .*?(--config.*)$", text, re.M)
    assert set(asked) < set(shlex.split(suggested)) and "--config.data.image_size=16" not in shlex.split(suggested)


def test_a_run_among_the_pictures_goes_on_without_its_own(warm: Warm, tmp_path: Path) -> None:
    for index in range(4):
        noise(index, (16, 16)).save(tmp_path / f"{index}.png")
    flags = (*SMALL, f"--config.data.root={tmp_path}", "--workdir", tmp_path / "runs" / "mine")
    warm.run(*flags, "--mode", "data")
    warm.run(*flags, "--mode", "train")
    warm.run("--mode", "sample", "--workdir", tmp_path / "runs" / "mine")
    text = warm.run(*flags, "--mode", "train", "--config.training.steps=3")
    assert "3 samples, step 2 to 3" in text and "have changed" not in text
    said = warm.refused(*flags[:-1], tmp_path, "--mode", "train")
    assert "data.root and --workdir are one folder" in said and not (tmp_path / ".lock").exists()


def test_one_command_trains_samples_and_reports(warm: Warm, mine: Path, tmp_path: Path) -> None:
    """The size and the classes are those of the pictures; they stay so when the pictures are gone; given ones win."""
    run = tmp_path / "run"
    chosen = "--config.sampling.classes=('dgos',)"
    assert "there is no class 'dgos'; did you mean 'dogs'" in warm.refused(
        *SMALL, f"--config.data.root={mine}", "--workdir", tmp_path / "none", chosen
    )
    assert not (tmp_path / "none" / "checkpoints").exists()
    text = warm.run(*SMALL, f"--config.data.root={mine}", "--workdir", run, chosen.replace("dgos", "dogs"))
    assert "179 samples" in text and "1 file was not read: .mp4 1 (cats/clip.mp4)" in text
    assert "8 pictures are transparent, and laid on white" in text and "broken.jpg" in text
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"]["image_size"] == 16 and stored["model"]["class_conditional"] is True
    assert np.load(run / "samples_ddim.npz")["images"].shape == (4, 16, 16, 3) and (run / "report.html").is_file()
    assert np.load(run / "samples_ddim.npz")["labels"].tolist() == [2] * 4 and "2 = dogs" in text
    text = warm.run(*SMALL, "--config.data.root=gone", "--workdir", run, "--mode", "sample", "--sampler", "heun")
    assert f"chosen: data.image_size=16 (as in {run / 'config.json'})" in text
    assert np.load(run / "samples_heun.npz")["images"].shape == (4, 16, 16, 3)
    given = ("--config.data.image_size=8", "--config.model.class_conditional=False", "--config.training.steps=1")
    text = warm.run(*SMALL, f"--config.data.root={mine}", "--workdir", tmp_path / "own", "--mode", "train", *given)
    assert "chosen" not in text
    stored = json.loads((tmp_path / "own" / "config.json").read_text())
    assert stored["data"]["image_size"] == 8 and stored["model"]["class_conditional"] is False


def test_what_leaves_nothing_to_choose_by_is_refused(warm: Warm, tmp_path: Path) -> None:
    assert "no folder ''" in warm.refused("--config", "folder", "--mode", "data")
    other = warm.refused("--config", "folder", "--mode", "data", "--config.data.dataset=digits")
    assert "data.image_size is left open" in other
    (tmp_path / "0.npz").write_bytes(b"")
    assert "0.npz, which is read by data.dataset=array" in warm.refused(
        "--config", "folder", f"--config.data.root={tmp_path}", "--workdir", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()
