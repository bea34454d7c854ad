"""Networks of other code bases on the real command line: imported, then sampled and evaluated by their folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm import Warm

import sde_diffusion as sd
from sde_diffusion.data import DataTransform
from tests.importers.golden import reference
from tests.importers.writing import (
    diffusers_folder,
    edm_bytes,
    edm_file,
    openai_file,
    saved,
    score_sde_file,
    system_call,
    written,
)

CLASSES = 5
SEED = 3


def song(folder: Path) -> tuple[Path, Path]:
    """A network for images of [0, 1] under the VE-SDE, and its configuration."""
    path = folder / "song.json"
    path.write_text(json.dumps(reference("song_ncsnpp_ve").config))
    return score_sde_file(folder / "song.pth", "song_ncsnpp_ve"), path


def nichol(folder: Path) -> tuple[Path, Path]:
    """A network with classes and a learned variance, told a thousandth of the time; and its configuration."""
    path = folder / "nichol.json"
    flags = {"image_size": 16, "noise_schedule": "cosine", "diffusion_steps": 400, "rescale_timesteps": True}
    path.write_text(json.dumps({**reference("iddpm_unet_ss_cond").config, **flags}))
    return openai_file(folder / "nichol.pt", "iddpm_unet_ss_cond"), path


FILES: dict[str, Callable[[Path], tuple[Path, ...]]] = {
    "score_sde": song,
    "edm": lambda folder: (edm_file(folder / "edm.pkl", "edm_precond_edm"),),
    "openai": nichol,
    "diffusers": lambda folder: (diffusers_folder(folder / "ddpm", "diffusers_unet2d_ddpm_family"),),
}
"""Of every source a file and, where it does not hold one, a configuration."""
PRINTED = {
    "score_sde": "songunet 190,835 VESDE sigma_score log_sigma 0 .. 1 3x16x16 7",
    "edm": "songunet 76,723 EDM edm edm -1 .. 1 3x16x16 0",
    "openai": "adm 320,198 DiscreteVP eps index_1000 -1 .. 1 3x16x16 0",
    "diffusers": "unet2d 285,667 DiscreteVP eps index -1 .. 1 3x16x16 0",
}


def flags(source: str, files: tuple[Path, ...]) -> tuple[object, ...]:
    path, *config = files
    return "--mode", "import", "--source", source, "--path", path, *(f"--source_config={file}" for file in config)


@pytest.fixture(scope="module")
def runs(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of every source."""
    place = tmp_path_factory.mktemp("imported")
    folders = {}
    for source, write in FILES.items():
        folders[source] = place / f"run_{source}"
        text = warm.run(*flags(source, write(place)), "--workdir", folders[source])
        assert PRINTED[source] in " ".join(text.split())
    return folders


@pytest.mark.parametrize("source", FILES)
def test_the_folder_says_where_it_comes_from(source: str, runs: dict[str, Path], tmp_path: Path) -> None:
    stored = json.loads((runs[source] / "config.json").read_text())
    path, *config = FILES[source](tmp_path)
    assert stored["imported"] == {"source": source, "file": path.name}
    direct = sd.import_checkpoint(path, source, *config)
    again = sd.load(runs[source])
    assert again.spec.state() == direct.spec.state()
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), direct.net.parameters(), strict=True))


LOOSE = ("--sampler.rtol", "1e-1", "--sampler.atol", "1e-1")
SAMPLERS = {"ddim": 4, "heun": 7, "dpmpp_2m": 4, "pc": 8, "ode": None}
"""With how often each evaluates the network in four steps."""


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("source", FILES)
def test_every_sampler_needs_the_folder_only(source: str, sampler: str, warm: Warm, runs: dict[str, Path]) -> None:
    folder = runs[source]
    options = ("--sampler", sampler, "--steps", 4, "--num_samples", 2, "--seed", SEED)
    warm.run("--mode", "sample", "--workdir", folder, *options, *(LOOSE if sampler == "ode" else ()))
    with np.load(folder / f"samples_{sampler}.npz") as arrays:
        images = arrays["images"]
        assert ("labels" in arrays) == (source == "openai")
    assert images.dtype == np.uint8 and images.shape == (2, 16, 16, 3) and images.std() > 10
    manifest = json.loads((folder / f"samples_{sampler}.json").read_text())
    assert SAMPLERS[sampler] in (None, manifest["nfe"]) and manifest["data"].startswith("the data of ")
    assert manifest.pop("files").keys() == {f"samples_{sampler}.npz"}
    assert manifest.pop("request") and manifest.pop("classes", None) == ([*"01234"] if source == "openai" else None)
    assert json.loads((folder / "results.json").read_text())["samples"][sampler] == manifest


@pytest.mark.parametrize("source", FILES)
def test_samples_are_those_of_the_library(source: str, warm: Warm, runs: dict[str, Path], tmp_path: Path) -> None:
    options = ("--sampler", "ddim", "--steps", 6, "--num_samples", 3, "--seed", SEED)
    warm.run("--mode", "sample", "--workdir", runs[source], *options)
    grid = json.loads((runs[source] / "samples_ddim.json").read_text())["grid"]
    with np.load(runs[source] / "samples_ddim.npz") as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)

    path, *config = FILES[source](tmp_path)
    network = sd.import_checkpoint(path, source, *config)
    labels = {"labels": torch.arange(3) % CLASSES} if source == "openai" else {}
    drawn = sd.sample(
        sd.ConditionedDenoiser(network, **labels),
        (3, 3, 16, 16),
        sd.make_grid(network.spec.model_process, 6, grid),
        sampler="ddim",
        generator=sd.sample_generators(SEED, range(3)),
    )
    expected = DataTransform(256).to_uint8(drawn.x)
    # Sums in another order may round a pixel to the grey level beside it.
    assert (images.int() - expected.int()).abs().max() <= 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, of two of the classes that the network with classes knows by number."""
    place, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("2", "4"):
        (place / name).mkdir()
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name / "a.png")
    return place


@pytest.mark.parametrize("source", FILES)
def test_bits_per_dim_of_a_folder_of_pictures(
    source: str, warm: Warm, runs: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """Other keys need a configuration; whatever it says, the network, its process and its grey levels are their own."""
    keys = {
        "folder": pictures,
        "figures": "('ode','elbo')",
        "method": "midpoint",
        "fixed_steps": 3,
        "levels": 10,
        "terms": 3,
    }
    settings = [f"--config.likelihood.{key}={value}" for key, value in keys.items()]
    warm.run("--mode", "likelihood", "--workdir", runs[source], "--config", "vpsde_cifar", *settings)
    found = json.loads((runs[source] / "results.json").read_text())["likelihood"]
    assert found["samples"] == 2 and found["bin_width"] == 2 / 255
    assert found["given"] == ("its class" if source == "openai" else "nothing")
    figures = found["figures"]
    assert set(figures) == {"ode", "elbo"} and all(0 < row["bits_per_dim"] < np.inf for row in figures.values())
    assert figures["ode"]["nfe"] == 6
    if source != "openai":  # the same flow by hand, its Jacobian 255/2 a number: one probe of another seed apart
        files = sorted(pictures.rglob("*.png"))
        levels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
        noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(3))
        x = (levels + noise - 0.5) / 127.5 - 1.0
        denoiser = sd.load(runs[source])
        ll = sd.log_likelihood(
            denoiser,
            x,
            denoiser.spec.model_process,
            method="midpoint",
            steps=3,
            probes=8,
            generator=torch.Generator().manual_seed(4),
        )
        by_hand = float(sd.bits_per_dim(ll.nats, 3 * 16 * 16, 2 / 255).mean())
        assert figures["ode"]["bits_per_dim"] == pytest.approx(by_hand, rel=0.05)


@pytest.mark.parametrize("source", ["score_sde", "edm"])
def test_a_file_that_would_run_code_is_one_sentence(source: str, warm: Warm, tmp_path: Path) -> None:
    marker, (path, *config) = tmp_path / "marker", FILES[source](tmp_path)
    call = system_call(marker)
    written(path, edm_bytes({"ema": call}) if source == "edm" else saved({"model": call}, zipped=True))
    said = warm.refused(*flags(source, (path, *config)), "--workdir", tmp_path / "run")
    assert "asks for 'posix.system'; this was refused and nothing was run" in said
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--source", "edm"], "--path is needed: the file to import, or the folder of diffusers"),
        (["--source", "edn", "--path", "FILE"], "unknown source 'edn'; did you mean 'edm'?"),
        (["--source", "edm", "--path", "FILE"], "there is no file or folder FILE to import"),
        (["--source", "edm", "--path", "FILE", "--source_config", "x"], "no file or folder FILE"),
    ],
)
def test_bad_requests_are_one_sentence(asked: list[str], says: str, warm: Warm, tmp_path: Path) -> None:
    assert says in warm.refused("--mode", "import", *asked, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_an_imported_folder_is_neither_trained_nor_overwritten(
    warm: Warm, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = runs["edm"]
    before = contents(folder)
    for mode in ("train", "all"):
        said = warm.refused("--mode", mode, "--workdir", folder)
        assert "holds an imported network, which is sampled and evaluated, not trained on" in said
    said = warm.refused(*flags("diffusers", FILES["diffusers"](tmp_path)), "--workdir", folder)
    assert "holds checkpoints already; choose another folder" in said
    assert contents(folder) == before
