"""Checkpoints: bit-exact round trips, damage and kills at any moment, and what is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import sde_diffusion as sd
from sde_diffusion.data import DataTransform
from sde_diffusion.nets.building import build_network, load_weights
from sde_diffusion.storage.checkpoint import (
    FOLDER,
    Checkpoint,
    _joined,
    _split,
    checkpoint_files,
    read_checkpoint,
    save_checkpoint,
)
from sde_diffusion.storage.files import sha256_of
from tests.faults import deaths, recorded

FILES = (
    "manifest.json",
    "manifest.sha256",
    "optimizer.safetensors",
    "state.safetensors",
    "weights_ema.safetensors",
    "weights_power_0.05.safetensors",
    "weights_raw.safetensors",
)


def network_spec(process: sd.SDE) -> sd.NetworkSpec:
    options = {"shape": [3], "width": 16, "blocks": 1}
    return sd.NetworkSpec(process, prediction="eps", shape=(3,), network="mlp", options=options)


def network(spec: sd.NetworkSpec) -> nn.Module:
    return build_network(spec.network, spec.options)


def adam(net: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Updates whose gradients depend on the weights and on the step."""
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        (net(x, x[:, 0]) - x).square().sum().backward()
        optimizer.step()


def checkpoint(step: int, process: sd.SDE | None = None) -> Checkpoint:
    """A checkpoint that has something of everything."""
    torch.manual_seed(step)
    spec = network_spec(process or sd.VPSDE())
    net, ema, power = (network(spec) for _ in range(3))
    optimizer = adam(net)
    train(net, optimizer, range(3))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return Checkpoint(
        step,
        spec,
        DataTransform(17, mean=torch.randn(2, 3), per_class=True),
        {"raw": net.state_dict(), "ema": ema.state_dict(), "power_0.05": power.state_dict()},
        get_optimizer_state_dict(net, optimizer, options=options),
        {"seed": 2**62 + 1, "torch": torch.get_rng_state()},
        "a title",
        ("a", "é"),
        {"history": torch.randn(4, 10, dtype=torch.float64), "seen": torch.arange(4)},
        {"seed": 1, "model": {"channels": [1, 2], "rate": 0.1, "name": None}},
        {"loss": 1 / 3, "skipped": 2, "stream": {"offset": 12}},
    )


def same(found: Any, expected: Any) -> bool:
    """Equality of plain containers and tensors: of types, of the order of lists, and bit for bit."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and bool(torch.equal(found, expected))
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        return (
            type(found) is type(expected)
            and len(found) == len(expected)
            and all(same(*pair) for pair in zip(found, expected))
        )
    return type(found) is type(expected) and found == expected


def content(found: Checkpoint) -> dict[str, Any]:
    """All of a checkpoint as plain containers and tensors."""
    spec = json.loads(json.dumps(found.spec.state()))
    return {**vars(found), "spec": spec, "transform": found.transform.to_state()}


# --- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process", [sd.SubVPSDE(0.2, 9.0), sd.DiscreteVP.cosine(30), sd.DiscreteVE.geometric(0.1, 9, 7)]
)
def test_round_trip(process: sd.SDE, tmp_path: Path) -> None:
    """Everything comes back bit for bit, whichever name the checkpoint is asked for by."""
    saved = checkpoint(5, process)
    path = save_checkpoint(tmp_path, saved, keep=2)
    assert path == tmp_path / "checkpoints" / "step_000000005" and tuple(sorted(os.listdir(path))) == FILES
    shutil.copytree(path, tmp_path / "best")
    for place in (tmp_path, str(path), tmp_path / "best"):
        found = read_checkpoint(place)
        assert same(content(found), content(saved))
    for t in (0.1, 0.9):
        assert torch.equal(found.spec.process.kernel(t).sigma, process.kernel(t).sigma)
    for name, weights in saved.weights.items():
        assert same(sd.load(tmp_path / "best", weights=name).net.state_dict(), weights)
    with pytest.raises(
        sd.UserError, match=r"unknown weights 'power_0.1'; did you mean 'power_0.05'\? Valid names: ema"
    ):
        sd.load(tmp_path / "best", weights="power_0.1")


def test_a_network_without_a_training(tmp_path: Path) -> None:
    """As imported ones are: no optimiser, no mean, no seed."""
    weights = {"raw": network(network_spec(sd.VPSDE())).state_dict()}
    saved = Checkpoint(0, network_spec(sd.VPSDE()), DataTransform(None), weights, {}, {})
    save_checkpoint(tmp_path, saved, keep=1)
    found = read_checkpoint(tmp_path)
    assert same(content(found), content(saved)) and found.optimizer == {}


def test_an_optimiser_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Three steps, a checkpoint and three more, or six: equal weights and moments."""
    saved = checkpoint(1)
    save_checkpoint(tmp_path, saved, keep=1)
    resumed, whole = (network(saved.spec) for _ in range(2))
    torch.manual_seed(1)
    whole.load_state_dict(network(saved.spec).state_dict())
    found = read_checkpoint(tmp_path)
    load_weights(resumed, found.weights["raw"])
    optimizer, reference = adam(resumed), adam(whole)
    set_optimizer_state_dict(resumed, optimizer, found.optimizer, options=StateDictOptions(full_state_dict=True))
    train(resumed, optimizer, range(3, 6))
    train(whole, reference, range(6))
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(optimizer.state_dict()["state"], reference.state_dict()["state"])
    assert not same(whole.state_dict(), found.weights["raw"])


def test_tensors_of_any_layout(tmp_path: Path) -> None:
    """Tied, overlapping, transposed, channels-last, expanded and empty ones, of any type."""
    base = torch.randn(4, 6)
    weights = {
        "tied": base,
        "twin": base,
        "row": base[1],
        "columns": base[:, 2:4],
        "transposed": base.T,
        "expanded": torch.randn(1, 3).expand(5, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(2)),
        "empty": torch.zeros(0, 3),
        "another": torch.zeros(0),
        "scalar": torch.tensor(7),
        "half": torch.randn(3).bfloat16(),
        "double": torch.tensor([1 / 3, -0.0, float("inf")], dtype=torch.float64),
        "flag": torch.tensor([True, False]),
    }
    optimizer = {"state": {"a.b": {"momentum_buffer": None, "step": 3}}, "param_groups": [{"params": ["a.b"]}]}
    saved = replace(checkpoint(1), weights={"raw": weights}, optimizer=optimizer)
    save_checkpoint(tmp_path, saved, keep=1)
    found = read_checkpoint(tmp_path)
    assert same(found.weights, saved.weights) and same(found.optimizer, optimizer)


def test_the_files_are_readable_by_others(tmp_path: Path) -> None:
    """By safetensors, by a person, and by `sha256sum -c`."""
    saved = checkpoint(5)
    path = save_checkpoint(tmp_path, saved, keep=1)
    assert same(load_file(path / "weights_ema.safetensors"), saved.weights["ema"])
    text = (path / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=2) + "\n"
    assert (manifest["format"], manifest["step"], manifest["config"]) == (3, 5, saved.config)
    assert sorted(manifest["files"]) == [name for name in FILES if name.endswith(".safetensors")]
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": sha256_of(path / name), "bytes": (path / name).stat().st_size}
    done = subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=path, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()[::2]) == [f"{name}:" for name in FILES if name != "manifest.sha256"]
    assert set(done.stdout.split()[1::2]) == {"OK"} and not done.stderr


def test_names_of_weights_are_names_of_files(tmp_path: Path) -> None:
    saved = checkpoint(1)
    for name in ("../x", "a/b", "", ".x"):
        with pytest.raises(sd.UserError, match="weights cannot be called"):
            save_checkpoint(tmp_path, replace(saved, weights={name: {}}), keep=1)
    assert not list(tmp_path.iterdir())


# --- damage ---------------------------------------------------------------------------------------------------

Harm = Callable[[Path], None]


def flipped(where: float) -> Harm:
    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[round(where * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return harm


def cut(share: float) -> Harm:
    def harm(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: round(share * (len(data) - 1))])

    return harm


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Harm] = {
    **{f"a byte flipped at {share:.0%}": flipped(share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)},
    **{f"cut to {share:.0%}": cut(share) for share in (0.0, 0.5, 1.0)},
    "a byte added": lengthened,
    "deleted": Path.unlink,
    "a folder": replaced_by_a_folder,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        save_checkpoint(folder, checkpoint(step), keep=2)
    return folder


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_passed_over(name: str, harm: str, run: Path, tmp_path: Path) -> None:
    """The very file is named; where the checkpoint itself is asked for, or all are damaged, there is no other."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before, newest = checkpoint_files(folder)
    HARMS[harm](newest / name)
    with pytest.warns(UserWarning, match=f"^{newest / name} .*; this checkpoint is passed over$") as said:
        found = read_checkpoint(folder)
    assert len(said) == 1 and same(content(found), content(checkpoint(1)))
    with pytest.raises(sd.UserError, match=f"^{newest / name} "):
        read_checkpoint(newest)
    HARMS[harm](before / name)
    says = f"no checkpoint in .* is whole: {newest / name} .*; {before / name} "
    with pytest.warns(UserWarning), pytest.raises(sd.UserError, match=says):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_no_byte_of_a_manifest_or_its_sums_may_change(name: str, run: Path, tmp_path: Path) -> None:
    """Each of the two is named, and not the other, for any one byte."""
    path = tmp_path / "step_000000002"
    shutil.copytree(run / FOLDER / path.name, path)
    data = (path / name).read_bytes()
    for at in range(0, len(data), max(1, len(data) // 500)):
        (path / name).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(sd.UserError, match=f"^{path / name} is damaged"):
            read_checkpoint(path)


def forged(path: Path, **changes: Any) -> None:
    """Change a manifest, with sums that agree."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    text = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(text)
    lines = f"{sha256(text).hexdigest()}  manifest.json\n".encode()
    (path / "manifest.sha256").write_bytes(lines + f"# {sha256(lines).hexdigest()}\n".encode())


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", "", "C:x", "a\0b", ".x"])
def test_a_manifest_names_no_file_of_another_folder(name: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "inner" / "step_000000002"
    shutil.copytree(run / FOLDER / path.name, path)
    save_file({"secret": torch.ones(1)}, tmp_path / "inner" / "x.safetensors")
    entry = {"sha256": sha256_of(tmp_path / "inner" / "x.safetensors"), "bytes": 80}
    forged(path, files={name: entry})
    with pytest.raises(sd.UserError, match=r"manifest\.json names the file .*, which is not one of its folder"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": [1]},
        {"files": {"weights_raw.safetensors": 3}},
        {"files": None},
        {"spec": {}},
        {"spec": None},
        {"step": []},
        {"optimizer": {"param_groups": 3}},
        {"optimizer": {"state": 3, "param_groups": []}},
        {"transform": {"unknown": 1}},
        {"random": 3},
        {"classes": 3},
    ],
)
def test_a_manifest_of_something_else_is_a_sentence(changes: dict[str, Any], run: Path, tmp_path: Path) -> None:
    path = tmp_path / "step_000000002"
    shutil.copytree(run / FOLDER / path.name, path)
    forged(path, **changes)
    with pytest.raises(sd.UserError, match=f"^{path}"):
        read_checkpoint(path)


def test_a_later_format_is_not_passed_over(run: Path, tmp_path: Path) -> None:
    """It is whole, and going on from the one before would lose it."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    forged(checkpoint_files(folder)[-1], format=4)
    with pytest.raises(sd.UserError, match=r"manifest\.json is of format 4; this release reads format 3"):
        read_checkpoint(folder)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(sd.UserError, match="does not exist"):
        sd.load(tmp_path / "none")
    with pytest.raises(sd.UserError, match="no checkpoint in"):
        sd.load(tmp_path)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(sd.UserError, match="formats 1 and 2 are no longer read, and one of format 3 is a folder"):
        sd.load(other)
    (tmp_path / FOLDER / "step_000000009").mkdir(parents=True)
    with pytest.warns(UserWarning), pytest.raises(sd.UserError, match=r"step_000000009/manifest.json cannot be read"):
        sd.load(tmp_path)


def test_one_that_is_removed_while_it_is_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a training that goes on: there is a newer one then, and nothing is said."""
    folder, read = tmp_path / "run", Path.read_bytes
    shutil.copytree(run, folder)

    def interrupted(path: Path) -> bytes:
        if path.parent.name == "step_000000002" and path.name == "weights_ema.safetensors":
            monkeypatch.undo()
            save_checkpoint(folder, checkpoint(3), keep=1)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_checkpoint(folder).step == 3


# --- kills and full disks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", ["none", "older ones", "one of that step", "a damaged one of that step"])
def test_a_kill_between_any_two_changes_of_the_disk(present: str, run: Path, tmp_path: Path) -> None:
    """Before or after, and never in between: what is read is whole, and the same save succeeds next time."""
    start, saved = tmp_path / "start", checkpoint(2)
    if present != "none":
        shutil.copytree(run, start)
    newest = start / FOLDER / "step_000000002"
    former = replace(saved, title="the former")
    if present == "older ones":
        newest.rename(start / FOLDER / "step_000000000")
    elif present == "one of that step":
        save_checkpoint(start, former, keep=2)
    elif present == "a damaged one of that step":
        flipped(0.5)(newest / "optimizer.safetensors")
    steps: dict[str, set[tuple[int, str]]] = {"before": set(), "after": {(2, "a title")}}
    if present != "none":
        steps["before"] = {(2, "the former")} if present == "one of that step" else {(1, "a title")}
    found, folder = [], tmp_path / "run"
    if start.exists():
        shutil.copytree(start, folder)
    for number, left in enumerate(deaths(folder, lambda: save_checkpoint(folder, saved, keep=1), tmp_path / "left")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged one
            read = {(c.step, c.title) for c in [read_checkpoint(left)]} if checkpoint_files(left) else set()
        for path in checkpoint_files(left):  # neither is one found of which a part is removed
            assert "damaged" in present or read_checkpoint(path)
        assert read in steps.values(), number
        found.append(read)
        save_checkpoint(left, saved, keep=1)
        assert [path.name for path in (left / FOLDER).iterdir()] == ["step_000000002"], number
    assert found == sorted(found, key=lambda read: read == steps["after"])  # once it is there, it stays
    assert found[0] == steps["before"] and found[-1] == steps["after"] and len(found) > 25


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder are flushed, then it is renamed, then the new name is flushed."""
    with recorded(monkeypatch) as seen:
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    aside = f".step_000000002.{os.getpid()}"
    assert sorted(seen[: len(FILES)]) == [f"flush {name}" for name in FILES]
    named = [f"flush {aside}", f"{aside} -> step_000000002", f"flush {FOLDER}", f"flush {tmp_path.name}"]
    assert seen[len(FILES) :] == named


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_the_last_checkpoint(
    call: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever call it shows: one sentence that names what is left, and nothing in part."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    original = getattr(os, call)
    for number in range(20):
        calls = 0

        def refuse(*given: Any, number: int = number, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            try:
                save_checkpoint(folder, checkpoint(3), keep=5)
            except sd.UserError as error:
                text = str(error)
            else:
                break
        last = checkpoint_files(folder)[-1]
        assert "No space left on device; " in text and text.endswith(f"the last checkpoint, {last}, is whole")
        assert not list((folder / FOLDER).glob(".*"))
    assert number and read_checkpoint(folder).step == 3


def test_a_disk_without_room_is_told_before(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole ones the newest is named, and not a damaged one."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before, newest = checkpoint_files(folder)
    saved = checkpoint(3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**19))
    says = r"step_000000003 cannot be written: it needs 1\.\d MiB, and 0\.5 MiB are free on its disk; "
    with pytest.raises(sd.UserError, match=says + f"the last checkpoint, {newest}, is whole$"):
        save_checkpoint(folder, saved, keep=1)
    flipped(0.5)(newest / "weights_raw.safetensors")
    with pytest.raises(sd.UserError, match=says + f"the last checkpoint, {before}, is whole$"):
        save_checkpoint(folder, saved, keep=1)
    assert checkpoint_files(folder) == [before, newest]
    with pytest.raises(sd.UserError, match=says + "there is no whole checkpoint before it$"):
        save_checkpoint(tmp_path / "new", saved, keep=1)


# --- what is kept ---------------------------------------------------------------------------------------------


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in checkpoint_files(folder)]


def test_the_newest_and_the_milestones_are_kept(tmp_path: Path) -> None:
    saved = checkpoint(1)
    for step in (2, 4, 5, 7, 10, 999_999_999, 1_000_000_001):
        path = save_checkpoint(tmp_path, replace(saved, step=step), keep=2, milestone_every=5)
        assert path == checkpoint_files(tmp_path)[-1]
    assert steps_of(tmp_path) == [5, 10, 999_999_999, 1_000_000_001]
    assert read_checkpoint(tmp_path).step == 1_000_000_001
    save_checkpoint(tmp_path, replace(saved, step=1_000_000_002), keep=0)
    assert steps_of(tmp_path) == [1_000_000_002]


def test_a_damaged_one_costs_no_whole_one(tmp_path: Path) -> None:
    """Neither later ones, which were passed over, nor one that was damaged since, count as kept."""
    saved = checkpoint(1)

    def save(step: int) -> list[int]:
        save_checkpoint(tmp_path, replace(saved, step=step), keep=2)
        return steps_of(tmp_path)

    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, replace(saved, step=step), keep=4)
    for step in (30, 40):
        flipped(0.7)(tmp_path / FOLDER / f"step_{step:09d}" / "weights_ema.safetensors")
    assert save(25) == [20, 25, 30, 40]  # gone on from 20
    assert save(30) == [25, 30, 40]  # the damaged one is replaced
    assert save(35) == [30, 35, 40]
    assert save(45) == [35, 40, 45]  # 40 is damaged, and does not count
    assert save(50) == [45, 50]
    assert read_checkpoint(tmp_path).step == 50


# --- what is not read -----------------------------------------------------------------------------------------


def test_a_former_format_is_no_longer_read(run: Path, tmp_path: Path) -> None:
    """Nor is one passed over for an older checkpoint, from which a training would go on without a word."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / FOLDER / "step_000000003.pt"
    torch.save({"format": 2}, path)
    for place in (folder, path):
        with pytest.raises(sd.UserError, match=f"^{path} is a file; formats 1 and 2 are no longer read"):
            read_checkpoint(place)


class Hostile:
    """An object that would run a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_loading_runs_no_code(run: Path, tmp_path: Path) -> None:
    """Neither from a file of a former format, nor in place of a file of today's."""
    path, mark = tmp_path / "hostile.pt", tmp_path / "mark"
    torch.save({"format": 1, "network": Hostile(mark)}, path)
    with pytest.raises(sd.UserError, match="no longer read"):
        sd.load(path)
    folder = tmp_path / "step_000000002"
    shutil.copytree(run / FOLDER / folder.name, folder)
    name = "weights_raw.safetensors"
    shutil.copy(path, folder / name)
    forged(folder, files={name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}})
    with pytest.raises(sd.UserError, match=f"{name} is no file of safetensors"):
        sd.load(folder)
    assert not mark.exists()


def test_a_checkpoint_from_before_the_names_of_columns_is_read() -> None:
    """Their manifests have no "columns"."""
    saved = replace(checkpoint(5, sd.VPSDE()), columns={"attributes": ("a", "b")})
    manifest, parts = _split(saved)
    tensors = {name.removesuffix(".safetensors"): part for name, part in parts.items()}
    assert _joined(manifest, tensors).columns == saved.columns
    del manifest["columns"]
    assert _joined(manifest, tensors).columns == {}
