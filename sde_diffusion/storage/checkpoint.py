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

Formats 1 and 2 were single files of torch.save, step_000001000.pt; they are found, and no longer read.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataTransform
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.storage.files import flush_folder, free_bytes, mebibytes, similar_folder, written
from sde_diffusion.storage.manifest import (
    MANIFEST,
    PART,
    SUFFIX,
    Damaged,
    contents,
    first_line,
    read_manifest,
    tensors_of,
    write_parts,
)

T = TypeVar("T")
FOLDER = "checkpoints"
FORMER = ".former"
"""The ending of a checkpoint's name while another one of the same step takes its place."""
_WEIGHTS, _OPTIMIZER, _STATE = "weights_", "optimizer", "state"
_CHECKPOINT = re.compile(rf"step_\d{{9,}}(\.pt|{re.escape(FORMER)})?")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after `step` updates.

    weights     by name: "raw", and the averages, "ema" first of all; each as the network's state dict
    optimizer   {"state": {parameter: {"exp_avg": Tensor, ...}}, "param_groups": [{"params": [parameter], "lr": 1e-4}]},
                parameters by name; {} for an imported network
    random      the seed; noise, times, dropout and the order of the data depend on (seed, step)
    classes     the data set's class names; columns: the names of the values of each of its vectors; title: how figures
                name it
    times       what the time sampler has learned
    examples    the conditions of some training samples, [K, ...] by name, of a network that is told vectors
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
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: dict[str, Tensor] = field(default_factory=dict)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first, whole or not; files of formats 1 and 2 too."""
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
                write_parts(aside, manifest, parts)
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
        if not PART.fullmatch(name):
            raise UserError(f"weights cannot be called {name!r}: letters, digits, '_', '.' and '-' are expected")
    optimizer = dict(checkpoint.optimizer)
    rows = optimizer.pop("state", {})
    moments, numbers = _by_kind({f"{key}.{name}": value for key, row in rows.items() for name, value in row.items()})
    offsets, transform = _by_kind(checkpoint.transform.to_state())
    generators, random = _by_kind(checkpoint.random)
    state = {"transform": offsets, "random": generators, "times": checkpoint.times, "examples": checkpoint.examples}
    manifest = {
        "step": checkpoint.step,
        "title": checkpoint.title,
        "classes": checkpoint.classes,
        "columns": {name: list(names) for name, names in checkpoint.columns.items()},
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
    return manifest, {name + SUFFIX: tensors for name, tensors in parts.items()}


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
        raise UserError(
            f"{source} does not exist: train first, or name another run folder or a checkpoint{similar_folder(source)}"
        )
    if not source.is_dir() or (source / MANIFEST).exists() or _CHECKPOINT.fullmatch(source.name):
        return _read(source)
    return _newest(source, _read)[1]


def newest_whole(folder: Path) -> Path:
    """The newest whole checkpoint of a run folder, with warnings and errors as of `read_checkpoint`."""
    return _newest(folder, _check)[0]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step of a run lies. Raises UserError where there is none, with the steps that are."""
    stored = {_step(path): path for path in checkpoint_files(folder)}
    if step not in stored:
        there = ", ".join(map(str, stored)) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; its checkpoints are of steps: {there}")
    return stored[step]


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step of a run. Raises UserError where there is none, with the steps that there are."""
    return read_checkpoint(checkpoint_path(folder, step))


def _newest(folder: Path, look: Callable[[Path], T]) -> tuple[Path, T]:
    """The newest checkpoint that is found whole by a look at it, and what the look gives."""
    files = checkpoint_files(folder)
    if not files:
        hint = similar_folder(folder)
        raise UserError(f"there is no checkpoint in {folder / FOLDER}: train first, or name another --workdir{hint}")
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


def _check(path: Path) -> None:
    """Raises Damaged for a checkpoint that is not whole."""
    for _ in contents(path, read_manifest(path)):
        pass


def _is_whole(path: Path) -> bool:
    try:
        _check(path)
    except UserError:
        return False
    return True


def _read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises Damaged where it is not whole."""
    manifest = read_manifest(folder)
    tensors = tensors_of(folder, manifest)
    try:
        return _joined(manifest, tensors)
    except UserError as error:
        raise UserError(f"{folder / MANIFEST}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST} does not describe a checkpoint ({first_line(error)})") from error


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
        columns={name: tuple(names) for name, names in manifest.get("columns", {}).items()},  # former ones have none
        times=state("times"),
        examples=state("examples"),
        config=manifest["config"],
        progress=manifest["progress"],
    )


def _group(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A group of parameters, with tuples (Adam's betas), which JSON turned into lists."""
    return {
        key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in stored.items()
    }
