"""Checkpoints: all that is needed to resume a training, or to use its network, in a folder that survives.

    checkpoints/step_000001000/
        weights_raw.safetensors, weights_ema.safetensors, ...   the network's weights and each average of them
        optimizer.safetensors                                   the optimiser's moments, by parameter
        state.safetensors                                       the data's mean, what the time sampler has learned
        manifest.json                                           the rest, with size and SHA-256 of the files above
        manifest.sha256                                         of all of them, for `sha256sum -c` too

The folder is written aside, flushed to the disk and renamed, so that it is whole or absent; reading one verifies every
file, and no file is ever loaded in a way that runs code. Of a run folder the newest whole checkpoint is read, and those
that a disk or a person has damaged since are named.

Formats 1 and 2 were single files of torch.save, step_000001000.pt; they are read as what they hold today.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.network import NetworkDenoiser, NetworkSpec
from sde_diffusion.nets import NETWORKS
from sde_diffusion.storage.files import flush_folder, free_bytes, mebibytes, write_aside, write_flushed, written

T = TypeVar("T")
FORMAT = 3
FOLDER, MANIFEST, CHECKSUMS = "checkpoints", "manifest.json", "manifest.sha256"
FORMER = ".former"
"""The ending of a checkpoint's name while another one of the same step takes its place."""
_WEIGHTS, _OPTIMIZER, _STATE = "weights_", "optimizer", "state"
_CHECKPOINT = re.compile(rf"step_\d{{9,}}(\.pt|{re.escape(FORMER)})?")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a part of a checkpoint may be called: a plain file name, of no other folder."""
_SUFFIX = ".safetensors"
AVERAGES = "ema"
"""The folder of a run with the averages that were made after its training."""


class Damaged(UserError):
    """A checkpoint that is not whole; the sentence begins with the file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after `step` updates.

    weights     by name: "raw", and the averages, "ema" first of all; each as the network's state dict
    optimizer   {"state": {parameter: {"exp_avg": Tensor, ...}}, "param_groups": [{"params": [parameter], "lr": 1e-4}]},
                parameters by name; {} for an imported network
    random      the seed; noise, times, dropout and the order of the data depend on (seed, step)
    classes     the data set's class names; title: how figures name it
    times       what the time sampler has learned
    config      the training's whole configuration; progress: what else its loop needs. Both as JSON can hold
    """

    step: int
    spec: NetworkSpec
    transform: DataTransform
    weights: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    title: str = ""
    classes: tuple[str, ...] = ()
    times: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first, whole or not: folders, and files of formats 1 and 2."""
    found = (path for path in (folder / FOLDER).glob("step_*") if _CHECKPOINT.fullmatch(path.name))
    return sorted(found, key=lambda path: (_step(path), not path.suffix))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


# --- writing --------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int, milestone_every: int = 0) -> Path:
    """Write a checkpoint into a run folder, then remove what is older than the newest `keep` whole ones.

    Those at multiples of milestone_every stay for ever (0: none). One of the same step is replaced. A kill at any
    moment leaves the run folder as it was before or as it is afterwards. One process at a time may write.
    Raises UserError for a full disk or a folder that may not be written, with the last checkpoint that is whole.
    """
    root = folder / FOLDER
    path = root / f"step_{checkpoint.step:09d}"
    manifest, parts = _split(checkpoint)
    try:
        with written(path):
            root.mkdir(parents=True, exist_ok=True)
            _clear(root)
            _check_space(path, parts)
            aside = _aside(path)
            try:
                _write_parts(aside, manifest, parts)
                _put(aside, path)
            finally:
                _discard(aside)
    except UserError as error:
        last = next((found for found in reversed(checkpoint_files(folder)) if _is_whole(found)), None)
        left = f"the last checkpoint, {last}, is whole" if last else "there is no whole checkpoint before it"
        raise UserError(f"{error}; {left}") from error.__cause__
    with written(root):
        _prune(folder, path, keep, milestone_every)
    return path


def _split(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A checkpoint's plain values, and its tensors by the file that holds them; `_joined` is the inverse."""
    for name in checkpoint.weights:
        if not _PART.fullmatch(name):
            raise UserError(f"weights cannot be called {name!r}: letters, digits, '_', '.' and '-' are expected")
    optimizer = dict(checkpoint.optimizer)
    rows = optimizer.pop("state", {})
    moments, numbers = _by_kind({f"{key}.{name}": value for key, row in rows.items() for name, value in row.items()})
    offsets, transform = _by_kind(checkpoint.transform.to_state())
    generators, random = _by_kind(checkpoint.random)
    state = {"transform": offsets, "random": generators, "times": checkpoint.times}
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "title": checkpoint.title,
        "classes": checkpoint.classes,
        "spec": checkpoint.spec.state(),
        "transform": transform,
        "random": random,
        "progress": checkpoint.progress,
        "config": checkpoint.config,
        "optimizer": {**optimizer, "state": numbers} if optimizer else {},
    }
    parts = {_WEIGHTS + name: weights for name, weights in checkpoint.weights.items()}
    parts[_OPTIMIZER] = moments
    parts[_STATE] = {f"{part}.{name}": value for part, found in state.items() for name, value in found.items()}
    return manifest, {name + _SUFFIX: tensors for name, tensors in parts.items()}


def _by_kind(values: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Values that are tensors, and those that are not."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def _check_space(path: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raises UserError where the disk has no room for the tensors of a checkpoint, and a mebibyte beside them."""
    need = sum(value.nbytes for tensors in parts.values() for value in tensors.values()) + 2**20
    free = free_bytes(path)
    if free < need:
        raise UserError(
            f"{path} cannot be written: it needs {mebibytes(need)}, and {mebibytes(free)} are free on its disk"
        )


def _write_parts(aside: Path, manifest: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    aside.mkdir()
    files = {}
    for name, tensors in parts.items():
        data = to_safetensors(_packed(tensors), metadata={"format": "pt"})
        write_flushed(aside / name, data)
        files[name] = _described(data)
    content = (json.dumps({**manifest, "files": files}, indent=2) + "\n").encode()
    write_flushed(aside / MANIFEST, content)
    write_flushed(aside / CHECKSUMS, _checksums(content, files))
    flush_folder(aside)


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each contiguous and in memory of its own, as safetensors needs them."""
    packed: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        packed[name] = value.clone() if memory in taken else value
        taken.add(memory)
    return packed


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _described(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"sha256": _sha256(data), "bytes": len(data)}


def _checksums(manifest: bytes, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The lines of `sha256sum`, and as a comment their own sum, to tell a damaged manifest from a damaged line."""
    sums = {MANIFEST: _sha256(manifest), **{name: entry["sha256"] for name, entry in files.items()}}
    lines = "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()
    return lines + f"# {_sha256(lines)}\n".encode()


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _put(aside: Path, path: Path) -> None:
    """Give a checkpoint its name, from which on it is found; one of the same step is found until then."""
    if path.exists():
        path.rename(path.with_name(path.name + FORMER))
    aside.rename(path)
    for folder in path.parents[:2]:
        flush_folder(folder)


def _clear(root: Path) -> None:
    """Remove what a kill left of writing and removing."""
    replaced = (former for former in root.glob(f"step_*{FORMER}") if former.with_suffix("").exists())
    for left in [*root.glob(".step_*"), *replaced]:
        _discard(left)


def _remove(path: Path) -> None:
    """Remove a checkpoint: by name first, so that it is never found in part."""
    aside = _aside(path)
    path.rename(aside)
    _discard(aside)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prune(folder: Path, newest: Path, keep: int, milestone_every: int) -> None:
    """Remove what is older than the newest `keep` whole checkpoints, milestones apart.

    Counted from the one just written: what has a later step was passed over, and must not make others be removed.
    The kept ones are verified, since one that turns out damaged later would have cost those before it.
    """
    earlier = checkpoint_files(folder)
    kept = 1
    for path in reversed(earlier[: earlier.index(newest)]):
        if _step(path) == _step(newest):
            _remove(path)
        elif kept < keep:
            kept += _is_whole(path)
        elif not milestone_every or _step(path) % milestone_every:
            _remove(path)


# --- reading --------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or the newest whole one of a run folder, on the CPU.

    A warning names each newer one of the run folder that is damaged. Raises UserError where there is none, or the one
    that is asked for is damaged, or has a format that is not known here.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"{source} does not exist: train first, or name another run folder or a checkpoint")
    if not source.is_dir() or (source / MANIFEST).exists() or _CHECKPOINT.fullmatch(source.name):
        return _read(source)
    return _newest(source, _read)[1]


def newest_whole(folder: Path) -> Path:
    """The newest whole checkpoint of a run folder, with warnings and errors as of `read_checkpoint`."""
    return _newest(folder, _check)[0]


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step of a run. Raises UserError where there is none, with the steps that there are."""
    stored = {_step(path): path for path in checkpoint_files(folder)}
    if step not in stored:
        there = ", ".join(map(str, stored)) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; its checkpoints are of steps: {there}")
    return read_checkpoint(stored[step])


def _newest(folder: Path, look: Callable[[Path], T]) -> tuple[Path, T]:
    """The newest checkpoint that is found whole by a look at it, and what the look gives."""
    files = checkpoint_files(folder)
    if not files:
        raise UserError(f"there is no checkpoint in {folder / FOLDER}: train first, or name another --workdir")
    damage = []
    for file in reversed(files):
        try:
            return file, look(file)
        except Damaged as error:
            if not file.exists():  # the training has removed it meanwhile, for newer ones
                return _newest(folder, look)
            warnings.warn(f"{error}; this checkpoint is passed over", stacklevel=3)
            damage.append(str(error))
    raise UserError(f"no checkpoint in {folder / FOLDER} is whole: {'; '.join(damage)}")


def _read(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or in a file of format 1 or 2. Raises Damaged where it is not whole."""
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _check(path: Path) -> None:
    """Raises Damaged for a checkpoint that is not whole."""
    if path.is_dir():
        for _ in _contents(path, _manifest(path)):
            pass
    else:
        _read_file(path)


def _is_whole(path: Path) -> bool:
    try:
        _check(path)
    except UserError:
        return False
    return True


def _read_folder(folder: Path) -> Checkpoint:
    manifest = _manifest(folder)
    tensors = {}
    for name, data in _contents(folder, manifest):
        try:
            # In one order everywhere: the reader's is another in each process.
            tensors[name.removesuffix(_SUFFIX)] = dict(sorted(from_safetensors(data).items()))
        # What is no safetensors file may fail anywhere in the reader: SafetensorError, KeyError, AssertionError, ...
        except Exception as error:
            raise Damaged(f"{folder / name} is no file of safetensors ({_line(error)})") from error
    try:
        return _joined(manifest, tensors)
    except UserError as error:
        raise UserError(f"{folder / MANIFEST}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST} does not describe a checkpoint ({_line(error)})") from error


def _manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, verified. Raises Damaged, and UserError for a format that is not known here."""
    path = folder / MANIFEST
    content, listed = _bytes(path), _bytes(folder / CHECKSUMS)
    lines, _, seal = listed.rpartition(b"# ")
    if seal != f"{_sha256(lines)}\n".encode():
        raise Damaged(f"{folder / CHECKSUMS} is damaged: its last line is not the sum of the others")
    if not lines.startswith(f"{_sha256(content)}  {MANIFEST}\n".encode()):
        raise Damaged(f"{path} is damaged: its sum is not that in {CHECKSUMS}")
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise UserError(f"{path} is of format {found['format']!r}; this release reads formats 1 to {FORMAT}")
        for name in dict(found["files"]):
            if not _PART.fullmatch(name):
                raise Damaged(f"{path} names the file {name!r}, which is not one of its folder")
    except (LookupError, TypeError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"{path} is no manifest of a checkpoint ({_line(error)})") from error
    return dict(found)


def _contents(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The files that a manifest names, verified one after another. Raises Damaged."""
    for name, entry in manifest["files"].items():
        data = _bytes(folder / name)
        if _described(data) != entry:
            raise Damaged(
                f"{folder / name} is damaged: its {len(data):,} bytes are not those that {MANIFEST} describes"
            )
        yield name, data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


def _joined(manifest: Mapping[str, Any], parts: Mapping[str, dict[str, Tensor]]) -> Checkpoint:
    """The checkpoint of which `_split` made a manifest and parts."""

    def state(part: str) -> dict[str, Tensor]:
        found = parts[_STATE].items()
        return {name.removeprefix(part + "."): value for name, value in found if name.startswith(part + ".")}

    rows: dict[str, dict[str, Any]] = {}
    optimizer = manifest["optimizer"]
    for name, value in {**parts[_OPTIMIZER], **optimizer.get("state", {})}.items():
        parameter, _, kind = name.rpartition(".")
        rows.setdefault(parameter, {})[kind] = value
    return Checkpoint(
        step=int(manifest["step"]),
        spec=NetworkSpec.from_state(manifest["spec"]),
        transform=DataTransform.from_state({**manifest["transform"], **state("transform")}),
        weights={name.removeprefix(_WEIGHTS): value for name, value in parts.items() if name.startswith(_WEIGHTS)},
        optimizer={"state": rows, "param_groups": list(map(_group, optimizer["param_groups"]))} if optimizer else {},
        random={**manifest["random"], **state("random")},
        title=manifest["title"],
        classes=tuple(manifest["classes"]),
        times=state("times"),
        config=manifest["config"],
        progress=manifest["progress"],
    )


def _group(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A group of parameters, with tuples (Adam's betas), which JSON turned into lists."""
    return {
        key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in stored.items()
    }


# --- formats 1 and 2 ------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Checkpoint:
    """The checkpoint in a file of format 1 or 2. Raises Damaged, and UserError for a file of another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()  # torch.load does not look at the checksums
        if torn is not None:
            raise Damaged(f"{path} is damaged in {torn}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # A damaged file may fail anywhere in the readers: RuntimeError, KeyError, UnpicklingError, BadZipFile, ...
    except Exception as error:
        raise Damaged(f"{path} cannot be read ({_line(error)})") from error
    stored = state.get("format") if isinstance(state, dict) else None
    if stored not in (1, 2):
        raise UserError(f"{path} is not a checkpoint of format 1 or 2; one of format {FORMAT} is a folder")
    try:
        return _migrated(state, stored)
    except (LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} does not hold a checkpoint of format {stored} ({_line(error)})") from error


def _migrated(state: Mapping[str, Any], stored: int) -> Checkpoint:
    """A checkpoint of format 1 or 2: one average of the weights, and the optimiser's parameters by number."""
    spec = NetworkSpec.from_state(state["spec"])
    weights = {"raw": dict(state["network"]), "ema": dict(state["ema"])}
    if stored == 1 and spec.network == "unet":
        weights = {name: from_format_1(found, spec.options) for name, found in weights.items()}
    optimizer: dict[str, Any] = {}
    if state["optimizer"]:
        # A state dict has the parameters in the order in which the network that was trained gave them to the optimiser.
        own = dict(outline(spec).named_parameters())
        names = [name for name in weights["raw"] if name in own]
        groups = [
            {**group, "params": [names[n] for n in group["params"]]} for group in state["optimizer"]["param_groups"]
        ]
        for group in groups:
            group.pop("initial_lr", None)  # left by the schedule of that time
        optimizer = {
            "state": {names[number]: row for number, row in state["optimizer"]["state"].items()},
            "param_groups": groups,
        }
    return Checkpoint(
        step=state["step"],
        spec=spec,
        transform=DataTransform.from_state(state["transform"]),
        weights=weights,
        optimizer=optimizer,
        random=state["random"],
        title=state.get("title", ""),
        classes=tuple(state.get("classes", ())),
        times=state.get("times", {}),
    )


def from_format_1(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a `unet` under today's names; in format 1 its stages were numbered one after another."""
    levels, blocks = len(options.get("multipliers", (1, 2, 2, 2))), options.get("blocks", 2)
    places = {"head.0": "head.norm", "head.2": "head.conv"}
    down = up = 0
    for level in range(levels):
        if level:
            places[f"down.{down}.0"] = f"encoder.{level}.down.0.conv"
            down += 1
        for block in range(blocks):
            places[f"down.{down}"] = f"encoder.{level}.stages.{block}"
            down += 1
        for block in range(blocks + 1):
            places[f"up.{up}"] = f"decoder.{level}.stages.{block}"
            up += 1
        # The last stage of a level ended with the doubling: a layer without weights, then its convolution.
        last = [int(key.split(".")[2]) for key in weights if key.startswith(f"up.{up - 1}.")]
        if level < levels - 1:
            places[f"up.{up - 1}.{max(last)}"] = f"decoder.{level}.up.0.conv"

    def renamed(key: str) -> str:
        former = max((place for place in places if key.startswith(place + ".")), key=len, default="")
        return places[former] + key[len(former) :] if former else key

    return {renamed(key): value for key, value in weights.items()}


# --- networks -----------------------------------------------------------------------------------------------------


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network that a spec describes, with fresh weights.

    Raises UserError for an unknown network or for arguments that it does not take.
    """
    network = choose("network", spec.network, NETWORKS)
    try:
        return network(**spec.options)
    except TypeError as error:
        raise UserError(f"network {spec.network!r}: {error}") from error


def outline(spec: NetworkSpec) -> nn.Module:
    """The network that a spec describes, on the meta device: nothing is drawn, and no weight takes memory."""
    with torch.device("meta"):
        return build_network(spec)


def refuse_misfits(what: str, missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> None:
    """Raises UserError that names the first three keys of each kind and how many there are, unless there are none."""
    kinds = {"missing": missing, "not expected": extra, "of another shape": shapes}
    found = [
        f"{kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({len(keys)})"
        for kind, keys in kinds.items()
        if keys
    ]
    if found:
        raise UserError(f"{what}; {'; '.join(found)}")


def load_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights strictly. Raises UserError that names the first keys and shapes that differ."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{key}: {tuple(weights[key].shape)} where {tuple(own[key].shape)} is expected"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    refuse_misfits("the weights do not fit the network", missing, extra, shapes)
    net.load_state_dict(weights)


def denoiser_of(checkpoint: Checkpoint, weights: str = "ema", device: torch.device | str = "cpu") -> NetworkDenoiser:
    """The checkpoint's network as a denoiser, in evaluation mode with its parameters frozen.

    weights: "ema", "raw", or another of the checkpoint's. Raises UserError for a name that it does not have.
    """
    net = build_network(checkpoint.spec)
    load_weights(net, choose("weights", weights, checkpoint.weights))
    return NetworkDenoiser(net.to(device).eval().requires_grad_(False), checkpoint.spec)


def save_average(folder: Path, name: str, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep an average of the weights at a step, made after a training, to be chosen by its name."""
    write_aside(folder / AVERAGES / f"{name}{_SUFFIX}", to_safetensors(_packed(weights), metadata={"step": str(step)}))


def with_average(checkpoint: Checkpoint, folder: Path, name: str) -> Checkpoint:
    """The checkpoint with the weights of that name, which may have been made after the training in a run folder.

    It is at their step then. Raises UserError where there are none of that name, or their file cannot be read.
    """
    made = {path.name.removesuffix(_SUFFIX): path for path in (folder / AVERAGES).glob(f"*{_SUFFIX}")}
    choose("weights", name, {**checkpoint.weights, **made})
    if name in checkpoint.weights:
        return checkpoint
    try:
        with safe_open(made[name], framework="pt") as file:
            found = {key: file.get_tensor(key) for key in sorted(file.keys())}
            step = int(file.metadata()["step"])
    except Exception as error:  # as of a checkpoint's files
        raise UserError(f"{made[name]} cannot be read ({_line(error)}): --mode ema makes it again") from error
    return replace(checkpoint, step=step, weights={**checkpoint.weights, name: found})


def load(path: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu") -> NetworkDenoiser:
    """The denoiser of a run folder (its newest whole checkpoint) or of a checkpoint.

    weights: "ema", "raw", or another average that was trained. The result has `.net` and `.spec`. Raises UserError as
    `read_checkpoint` does, and for a name that the checkpoint does not have.
    """
    return denoiser_of(with_average(read_checkpoint(path), Path(path), weights), weights, device)
