"""Checkpoints: round trips, strict loading, whole files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.checkpoint import (
    Checkpoint,
    build_network,
    checkpoint_files,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    write_aside,
)
from sde_diffusion.data import DataTransform


def network_spec(process: sd.SDE) -> sd.NetworkSpec:
    options = {"shape": [3], "width": 16, "blocks": 1}
    return sd.NetworkSpec(process, prediction="eps", shape=(3,), network="mlp", options=options)


def checkpoint(step: int, process: sd.SDE) -> Checkpoint:
    torch.manual_seed(step)
    net, ema = build_network(network_spec(process)), build_network(network_spec(process))
    transform = DataTransform(17, mean=torch.randn(3))
    random = {"seed": 1}
    return Checkpoint(
        step, network_spec(process), transform, net.state_dict(), ema.state_dict(), {}, random, "a title", ("a", "b")
    )


@pytest.mark.parametrize(
    "process", [sd.SubVPSDE(0.2, 9.0), sd.DiscreteVP.cosine(30), sd.DiscreteVE.geometric(0.1, 9, 7)]
)
def test_round_trip(process: sd.SDE, tmp_path: Path) -> None:
    saved = checkpoint(5, process)
    save_checkpoint(tmp_path, saved, keep=2)
    found = read_checkpoint(tmp_path)
    assert (found.step, found.title, found.classes, found.random) == (5, "a title", ("a", "b"), {"seed": 1})
    assert found.transform.mean is not None and saved.transform.mean is not None
    assert torch.equal(found.transform.mean, saved.transform.mean)
    for t in (0.1, 0.9):
        assert torch.equal(found.spec.process.kernel(t).sigma, process.kernel(t).sigma)
    for weights in ("raw", "ema"):
        expected = saved.network if weights == "raw" else saved.ema
        loaded = sd.load(tmp_path, weights=weights).net.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in expected.items())


FORMER = {  # of two levels with one block each and attention on the second
    "encoder.0.stages.0": "down.0",
    "encoder.1.down.0.conv": "down.1.0",
    "encoder.1.stages.0": "down.2",
    "decoder.0.stages.0": "up.0",
    "decoder.0.stages.1": "up.1",
    "decoder.0.up.0.conv": "up.1.3",  # after a block, attention and a layer without weights
    "decoder.1.stages.0": "up.2",
    "decoder.1.stages.1": "up.3",
    "head.norm": "head.0",
    "head.conv": "head.2",
}


def test_a_unet_of_format_1_is_read_under_todays_names(tmp_path: Path) -> None:
    options = {"in_channels": 1, "image_size": 4, "channels": 8, "multipliers": [1, 2], "blocks": 1}
    options["attention_resolutions"] = [2]
    spec = sd.NetworkSpec(sd.VPSDE(), shape=(1, 4, 4), network="unet", options=options)
    weights = build_network(spec).state_dict()
    names = {key: key for key in weights}
    for key in weights:
        for new, old in FORMER.items():
            if key.startswith(new + "."):
                names[key] = old + key[len(new) :]
    assert sum(names[key] != key for key in weights) > 40
    former = {names[key]: value for key, value in weights.items()}
    saved = Checkpoint(3, spec, DataTransform(17), former, former, {}, {})
    path = save_checkpoint(tmp_path, saved, keep=1)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format": 1}, path)
    found = sd.load(tmp_path).net.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, checkpoint(step, sd.VPSDE()), keep=2)
    assert [path.stem for path in checkpoint_files(tmp_path)] == ["step_000000002", "step_000000030"]
    assert read_checkpoint(tmp_path).step == 30


def test_a_mismatch_names_the_keys() -> None:
    net = build_network(network_spec(sd.VPSDE()))
    weights = dict(net.state_dict())
    first = sorted(weights)[0]
    value = weights.pop(first)
    weights["other.key"] = torch.zeros(1)
    with pytest.raises(sd.UserError, match=rf"missing: {first} \(1\); not expected: other.key \(1\)"):
        load_weights(net, weights)
    with pytest.raises(sd.UserError, match="of another shape"):
        load_weights(net, {**net.state_dict(), first: torch.zeros(*value.shape, 2)})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_aside(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_aside(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(sd.UserError, match="does not exist"):
        sd.load(tmp_path / "none")
    with pytest.raises(sd.UserError, match="no checkpoint in"):
        sd.load(tmp_path)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(sd.UserError, match="not a checkpoint of format 2, nor of format 1"):
        sd.load(other)


class Hostile:
    """An object that would run a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path, mark = tmp_path / "hostile.pt", tmp_path / "mark"
    torch.save({"format": 1, "network": Hostile(mark)}, path)
    with pytest.raises(sd.UserError, match="cannot be read"):
        sd.load(path)
    assert not mark.exists()
