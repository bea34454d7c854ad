"""A published network, on the real command line: imported, trained on one's own pictures, sampled and given back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from warm import Warm

import sde_diffusion as sd
from sde_diffusion.storage.checkpoint import read_checkpoint

TRAINING = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "log_every": 10,
    "evaluate_every": 50,
    "held_out_batches": 1,
}
SETTINGS = ("--config", "vpsde_cifar", "--mode", "train", "--config.data.dataset=folder", "--config.data.image_size=16")


def keys(**training: Any) -> list[str]:
    return [f"--config.training.{key}={value}" for key, value in {**TRAINING, "steps": 50, **training}.items()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of one colour each."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        Image.new("RGB", (16, 16), tuple(map(int, generator.integers(0, 256, 3)))).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def imported(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a network that diffusers has written."""
    diffusers = pytest.importorskip("diffusers")
    place = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(1000)).save_pretrained(place / "ddpm")
    warm.run("--mode", "import", "--source", "diffusers", "--path", place / "ddpm", "--workdir", place / "r")
    return place / "r"


@pytest.fixture(scope="module")
def tuned(warm: Warm, pictures: Path, imported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that began with it, and what the training said."""
    folder = tmp_path_factory.mktemp("tuned") / "mine"
    ask = (*SETTINGS, f"--config.data.root={pictures}", "--workdir", folder, f"--config.training.init_from={imported}")
    return folder, warm.run(*ask, *keys())


def losses(folder: Path, name: str = "loss/train") -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_what_is_taken_and_what_is_fresh_is_said(tuned: tuple[Path, str], imported: Path) -> None:
    folder, said = tuned
    assert f"beginning with {imported}, step 0, weights 'raw': unet2d of" in said
    assert "model.network 'unet2d' (here 'unet')" in said and "process.name 'DiscreteVP' (here 'VPSDE')" in said
    assert "fresh are the optimiser, the averages" in said
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model"]["network"] == "unet2d" and stored["model"]["options"]["channels"] == [16, 16]
    assert stored["training"]["init_from"] == str(imported) and stored["training"]["init_weights"] == "raw"
    assert read_checkpoint(folder).spec.state() == read_checkpoint(imported).spec.state() | {
        "options": read_checkpoint(folder).spec.options
    }


def test_the_loss_falls(tuned: tuple[Path, str]) -> None:
    """That of a few held-out pictures too, which is noted before the first update."""
    found, (before, after) = losses(tuned[0]), losses(tuned[0], "loss/held_out")
    assert len(found) == 5 and found[-1] < found[0] and after < before


def test_it_is_sampled_and_diffusers_reads_it(warm: Warm, tuned: tuple[Path, str], tmp_path: Path) -> None:
    """With the weights that were trained, under the same outputs."""
    diffusers = pytest.importorskip("diffusers")
    folder = tuned[0]
    warm.run("--mode", "sample", "--workdir", folder, "--sampler", "ddim", "--steps", 4, "--num_samples", 3)
    with np.load(folder / "samples_ddim.npz") as arrays:
        assert arrays["images"].shape == (3, 16, 16, 3)
    warm.run("--mode", "export", "--workdir", folder, "--path", tmp_path / "back")
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "back").unet
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, t).sample, sd.load(folder).net(x, t.float()), rtol=1e-5, atol=1e-5)


def test_an_imported_network_without_an_average_stamps_raw(warm: Warm, imported: Path) -> None:
    """Whatever a configuration would take: it is said, and stands in the protocol of what is drawn."""
    assert json.loads((imported / "config.json").read_text())["sampling"]["weights"] == "raw"
    ask = ("--mode", "sample", "--sampler", "ddim", "--steps", 2, "--num_samples", 1, "--workdir", imported)
    said = warm.run("--config", "vpsde_cifar", *ask)
    assert f"{imported} has no averaged weights: sampling.weights is 'raw'" in said
    assert json.loads((imported / "samples_ddim.json").read_text())["weights"] == "raw"


def test_it_goes_on_without_its_source(warm: Warm, tuned: tuple[Path, str], pictures: Path, tmp_path: Path) -> None:
    """The key may stay, with or without the network's own configuration; another source is refused."""
    folder = tmp_path / "mine"
    shutil.copytree(tuned[0], folder)
    origin = json.loads((folder / "config.json").read_text())["training"]["init_from"]
    ask = (*SETTINGS, f"--config.data.root={pictures}", "--workdir", folder, *keys(steps=52))
    said = warm.refused(*ask, f"--config.training.init_from={tmp_path}")
    assert f"holds a training that began with '{origin}', weights 'raw', not with training.init_from=" in said
    moved = Path(origin).rename(Path(origin).with_name("elsewhere"))
    try:
        text = warm.run(*ask, f"--config.training.init_from={origin}")
    finally:
        moved.rename(origin)
    assert "step 50 to 52" in text and "beginning with" not in text
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model"]["network"] == "unet2d" and stored["training"]["init_weights"] == "raw"
    warm.run(*SETTINGS, f"--config.data.root={pictures}", "--workdir", folder, *keys(steps=53))


def test_bad_requests_are_one_sentence(warm: Warm, imported: Path, pictures: Path, tmp_path: Path) -> None:
    ask = (*SETTINGS, f"--config.data.root={pictures}", *keys())
    folder = tmp_path / "mine"
    for origin, says in (
        (tmp_path / "nowhere", f"{tmp_path / 'nowhere'} does not exist"),
        (
            imported.with_name("ddpm"),
            f"a run first, by --mode import --source NAME --path {imported.with_name('ddpm')}",
        ),
        (f"{imported} --config.training.init_weights=ema", "unknown weights 'ema'; Valid names: raw"),
        (f"{imported} --config.model.class_conditional=True", "model.class_conditional needs labels, which"),
        (f"{imported} --config.data.image_size=15", "image_size=15 cannot be halved"),
    ):
        said = warm.refused(*ask, "--workdir", folder, *f"--config.training.init_from={origin}".split())
        assert says in said and not folder.exists()
    said = warm.refused(*ask, "--workdir", imported)
    assert f"train it in another --workdir, with --config.training.init_from={imported}" in said
