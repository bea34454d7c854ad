"""A person's own data on the command line: what is held out, what is told, what changed."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from warm import Warm

from sde_diffusion.pipelines.run_data import FILES
from sde_diffusion.storage.checkpoint import read_checkpoint

TINY = (
    *("--config", "vpsde_digits", "--config.data.dataset=folder", "--config.data.image_size=8"),
    *("--config.model.unet.channels=8", "--config.model.unet.multipliers=(1,)", "--config.model.unet.blocks=1"),
    *("--config.model.unet.attention_resolutions=()", "--config.training.batch_size=4", "--config.training.steps=2"),
    *(
        "--config.training.warmup_steps=0",
        "--config.model.class_conditional=False",
        "--config.training.label_dropout=0.0",
    ),
    *("--config.sampling.num_samples=4", "--config.sampling.steps=2", "--config.sampling.gallery=('ddim:2',)"),
)


def paint(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def test_a_single_picture_trains_and_nothing_is_held_out(warm: Warm, tmp_path: Path) -> None:
    paint(tmp_path / "data" / "one.png", 90)
    flags = (*TINY, f"--config.data.root={tmp_path / 'data'}", "--workdir", tmp_path / "run")
    text = warm.run(*flags, "--config.compare.samplers=('ddim',)", "--config.compare.split=test")
    assert "nothing is held out of data: there are no held-out losses" in text
    assert text.index("nothing is held out") < text.index("ddim"), "it is said before anything is trained"
    assert "--config.compare.split=train" in text and (tmp_path / "run" / "samples_ddim.npz").exists()
    remedies = {"evaluate": "--mode likelihood", "likelihood": "likelihood.split='train'", "latents": "data.split"}
    for mode, remedy in remedies.items():
        line = warm.refused(*flags, "--mode", mode)
        assert "needs samples that are held out" in line and remedy in line and "data.split" in line
    assert "compare.split='train'" in warm.refused(*flags, "--mode", "compare", "--config.compare.split=test")


def coloured(folder: Path, **counts: int) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            paint(folder / name / f"{index}.png", 60 * number + index)
    return folder


def test_classes_are_matched_by_name_when_a_training_goes_on(warm: Warm, tmp_path: Path) -> None:
    data = coloured(tmp_path / "data", **{"1": 4, "2": 4, "10": 4})
    flags = (*TINY, "--config.model.class_conditional=True", "--workdir", tmp_path / "run", "--mode", "train")
    text = warm.run(*flags, f"--config.data.root={data}")
    assert "3 classes: 0 = 1, 1 = 10, 2 = 2" in text
    assert (tmp_path / "run" / FILES).read_text().count("\n") == 12
    paint(data / "2" / "more.png", 9)
    (data / "1" / "0.png").unlink()
    text = warm.run(*flags, f"--config.data.root={data}", "--config.training.steps=3")
    assert "the data have changed since the last session: 1 file came (2/more.png), 1 file went (1/0.png)" in text
    (data / "2").rename(data / "two")
    line = warm.refused(*flags, f"--config.data.root={data}", "--config.training.steps=4")
    assert "new are two, missing are 2 (the data have 1, 10, two; the network has 1, 10, 2)" in line
    # Of an unchanged folder nothing is said.
    (data / "two").rename(data / "2")
    assert "changed" not in warm.run(*flags, f"--config.data.root={data}", "--config.training.steps=4")


def test_attributes_are_trained_sampled_and_matched_by_name(warm: Warm, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for index in range(12):
        paint(data / f"{index}.png", 200 * (index % 2))
    rows = {f"{index}.png": (index % 2, index % 3 // 2) for index in range(12)}
    head = "file_name,bright,third\n"
    (data / "metadata.csv").write_text(head + "".join(f"{name},{a},{b}\n" for name, (a, b) in rows.items()))
    flags = (
        *TINY,
        f"--config.data.root={data}",
        "--config.model.conditions=('attributes',)",
        "--workdir",
        tmp_path / "r",
    )
    told = (*flags, "--config.training.label_dropout=0.2")
    text = warm.run(*told, "--mode", "train")
    assert "attributes by bright, third" in text and "2 attributes: bright, third" in text
    kept = read_checkpoint(tmp_path / "r")
    assert kept.columns == {"attributes": ("bright", "third")} and kept.spec.options["vectors"] == {"attributes": 2}
    assert kept.spec.conditions == ("attributes",)
    warm.run(*told, "--mode", "evaluate", "--config.likelihood.num_samples=1")
    sampled = tmp_path / "r" / "samples_ddim.json"
    warm.run(*told, "--mode", "sample", "--config.sampling.guidance=2.0")
    conditions = json.loads(sampled.read_text())["conditions"]["attributes"]
    assert sorted(map(tuple, conditions)) == sorted(map(tuple, kept.examples["attributes"].tolist()))
    assert len(conditions) == 11 and {(row[0], row[1]) for row in conditions} <= {(0, 0), (0, 1), (1, 0), (1, 1)}
    warm.run(*told, "--mode", "sample", "--attributes", "bright")
    assert json.loads(sampled.read_text())["conditions"] == {"attributes": [[1.0, 0.0]], "counts": []}
    head = "file_name,third,bright\n"
    (data / "metadata.csv").write_text(head + "".join(f"{name},{b},{a}\n" for name, (a, b) in rows.items()))
    text = warm.run(*told, "--mode", "train", "--config.training.steps=3")
    assert "the columns of data come in another order; they are matched by name" in text
    assert read_checkpoint(tmp_path / "r").columns == kept.columns
    line = warm.refused(
        *told, "--mode", "train", "--config.training.steps=4", "--config.data.target_columns=('third',)"
    )
    assert "data.target_columns" in line
    line = warm.refused(*TINY, f"--config.data.root={data}", "--mode", "train", "--workdir", tmp_path / "other",
                        "--config.model.conditions=('targets',)")  # fmt: skip
    assert "names 'targets', which data does not have; it has 'attributes'" in line
