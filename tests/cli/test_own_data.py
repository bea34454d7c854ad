"""A person's own data on the command line: what is held out, what is told, what changed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from warm import Warm

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
