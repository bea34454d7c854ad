"""Feature networks: the values themselves, which one suits a set, and the Inception network with its refusals."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.noise import randn, seeded
from sde_diffusion.data import Dataset, DataTransform, Splits
from sde_diffusion.metrics import EXTRACTORS, Extractor, as_samples, extractor, inception
from sde_diffusion.metrics.extraction import eight_bits
from sde_diffusion.metrics.inception import FILES
from sde_diffusion.metrics.packages import contained, fidelity
from sde_diffusion.pipelines.batch import stored

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
needs_fidelity = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")


def vectors() -> Dataset:
    return Dataset(randn((20, 3), seeded(0)), None, None, (), "points")


def pictures(count: int = 20, *, labels: bool = False, channels: int = 3, levels: int = 256) -> Dataset:
    samples = torch.randint(0, levels, (count, channels, 8, 6), dtype=torch.uint8, generator=seeded(1))
    return Dataset(samples, torch.arange(count) % 2 if labels else None, levels, ("a", "b") if labels else (), "some")


class Passing:
    """A set that streams by."""

    size, levels, classes, title = None, 256, (), "a stream"


# --- samples and values ---------------------------------------------------------------------------------------


def test_real_samples_are_converted_as_a_run_converts_its_own(digits: Splits) -> None:
    """Level k of 17 is round(255 k / 16), half to even, as in what a run writes; pictures are [N, H, W, C]."""
    found = as_samples(digits.train)
    samples, _ = digits.train.read(torch.arange(len(found)))
    written = stored(DataTransform(17), DataTransform(17).encode(samples), {})["images"]
    assert found.dtype == np.uint8 and found.shape == (1497, 8, 8, 1) and np.array_equal(found, written)
    assert sorted(set(found.flat)) == [round(255 * k / 16) for k in range(17)]


def test_at_most_so_many_samples_always_the_same_ones() -> None:
    whole = pictures(300, labels=True)
    part = eight_bits(whole, 50)
    assert len(part) == 50 and part.labels is not None
    rows = {tuple(row.flatten().tolist()): int(label) for row, label in zip(whole.samples, whole.labels, strict=True)}
    assert all(rows[tuple(row.flatten().tolist())] == label for row, label in zip(part.samples, part.labels))
    assert np.array_equal(as_samples(whole, 50), part.samples.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(as_samples(whole), whole.samples.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(as_samples(vectors()), vectors().samples.numpy())


def test_values_are_the_samples(tmp_path: Path) -> None:
    network = extractor("values", pictures(), tmp_path, CPU)
    found = network(as_samples(pictures()))
    expected = as_samples(pictures()).reshape(20, -1) / 127.5 - 1
    assert found.logits is None and (network.dims, network.digest) == (144, "-")
    torch.testing.assert_close(found.values, torch.from_numpy(expected), rtol=0, atol=1e-15)
    assert found.values.min() == -1 and found.values.max() == 1
    points = extractor("values", vectors(), tmp_path, CPU)
    assert torch.equal(points(as_samples(vectors())).values, vectors().samples.double())
    assert (network.preprocessing, points.preprocessing) == ("8-bit values scaled to [-1, 1]", "none")


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    network = extractor("values", vectors(), tmp_path, CPU)
    with pytest.raises(UserError, match=r"take samples of shape \[N, 3\], not \[5, 2\]"):
        network(np.zeros((5, 2)))


# --- which one ------------------------------------------------------------------------------------------------


def test_unknown_names_and_streams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown feature network 'inceptoin'; did you mean 'inception'\? Valid names: "
    ):
        extractor("inceptoin", pictures(), tmp_path, CPU)
    with pytest.raises(UserError, match="a stream streams by, so that samples cannot be compared with it"):
        as_samples(Passing())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "weights", "expected"),
    [
        (vectors(), True, "values"),
        (pictures(labels=True), True, "classifier"),
        (pictures(), True, "inception"),
        (pictures(), False, "values"),
    ],
)
def test_auto_takes_what_suits_a_set(
    source: Dataset, weights: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sde_diffusion.metrics.features.available", lambda: weights)
    for name in EXTRACTORS:
        monkeypatch.setitem(EXTRACTORS, name, lambda *_, name=name: name)
    assert extractor("auto", source, tmp_path, CPU) == expected


# --- Inception ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's hub folder, empty, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@needs_fidelity
def test_inception_without_its_weights(hub: Path, tmp_path: Path) -> None:
    """What is missing, where it is looked for, and what else there is; for auto the values."""
    says = (
        rf"could not be downloaded \(<urlopen error Name or.*put {FILES[0]} or {FILES[1]} into {hub}, or give its path"
    )
    with pytest.raises(UserError, match=says) as found:
        extractor("inception", pictures(), tmp_path, CPU)
    assert "\n" not in str(found.value)
    assert extractor("auto", pictures(), tmp_path, CPU).name == "values"


@needs_fidelity
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn", "a pickle of nothing"])
def test_inception_with_a_file_that_is_something_else(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=rf"^{path} does not hold the Inception network's weights: ") as found:
        inception(path)
    assert "\n" not in str(found.value)


def test_inception_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r'need torch-fidelity \(.*\): pip install "sde-diffusion\[fid\]", or'):
        extractor("inception", pictures(), tmp_path, CPU)
    assert extractor("auto", pictures(), tmp_path, CPU).name == "values"


def drawn_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch-fidelity's network as it is before its weights are loaded."""
    kind = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with monkeypatch.context() as patch, contained(0):
        patch.setattr(sys.modules[kind.__module__], "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        return kind("inception-v3-compat", ["2048", "logits_unbiased"])


@needs_fidelity
def test_inception_is_torch_fidelitys_network(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights that are drawn here, found in the hub folder: grey pictures are repeated to three channels."""
    network = drawn_network(monkeypatch)
    hub.mkdir(parents=True)
    torch.save(network.state_dict(), hub / FILES[0])
    found: Extractor = extractor("inception", pictures(), tmp_path, CPU)
    grey, coloured = as_samples(pictures(2, channels=1)), as_samples(pictures(2))
    for samples, inputs in ((grey, np.repeat(grey, 3, axis=3)), (coloured, coloured)):
        features = found(samples)
        values, logits = (part.double() for part in network(torch.from_numpy(inputs).permute(0, 3, 1, 2)))
        assert features.values.shape == (2, found.dims) and features.logits is not None
        assert features.logits.shape == (2, 1008)
        scale = values.abs().max().item(), logits.abs().max().item()
        torch.testing.assert_close(features.values, values, rtol=0, atol=1e-5 * scale[0])
        torch.testing.assert_close(features.logits, logits, rtol=0, atol=1e-5 * scale[1])
        assert values.std() > 1e-3 * scale[0]
    with pytest.raises(UserError, match="takes grey or RGB pictures, not 2 channels"):
        found(np.zeros((1, 8, 8, 2), np.uint8))


# --- the packages ---------------------------------------------------------------------------------------------


def test_packages_that_measure_are_imported_where_they_are_used() -> None:
    code = (
        "import sys, sde_diffusion.metrics; print([m for m in ('torchmetrics', 'torch_fidelity') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_context_gives_the_global_random_state_back() -> None:
    def first(seed: int) -> Tensor:
        with contained(seed):
            return torch.rand(3)

    before = torch.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    with pytest.raises(ZeroDivisionError), contained(0):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
