"""Samples by the ten thousand, in shards that survive a kill.

A shard is what is stored of consecutive samples: one or several files, and a mark, a JSON file that names them with
their SHA-256 and is written last. What no mark names is not stored. Shards are kept in a working folder, hidden, of
their own protocol; at the end they become one file or one folder, which does not show how they were cut.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.storage.files import flush_folder, sha256_of, write_aside, write_together, written
from sde_diffusion.storage.former import keep_former, of_another
from sde_diffusion.storage.png import png
from sde_diffusion.storage.records import digest

Array = NDArray[Any]
BLOCK = 2**20
"""Bytes that are compressed at a time."""
KINDS = ("images", "samples")

# --- formats of files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A file with the samples first..last."""

    name: str
    first: int
    last: int
    content: bytes


def _from_png(content: bytes) -> Array:
    """A PNG file as images [1, H, W, C]."""
    with extra("report"):
        from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(content)))
    return image.reshape(1, *image.shape[:2], -1)


def _span(indices: range, suffix: str) -> str:
    return f"{indices[0]:08d}-{indices[-1]:08d}.{suffix}"


def _to_npz(indices: range, kind: str, samples: Array) -> Iterator[Part]:
    buffer = io.BytesIO()
    # Without allow_pickle, which NumPy before 2.2 would store as one more array.
    np.savez(buffer, **{kind: samples})  # type: ignore[arg-type]
    yield Part(_span(indices, "npz"), indices[0], indices[-1], buffer.getvalue())


def _from_npz(content: bytes) -> Array:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        (samples,) = arrays.values()
    return samples


def _to_pngs(indices: range, kind: str, samples: Array) -> Iterator[Part]:
    if kind != "images" or samples.dtype != np.uint8 or samples.shape[-1] not in (1, 3):
        raise UserError(
            f"{kind} of {samples.dtype} and shape {list(samples.shape[1:])} cannot be written as PNG: it takes images "
            "of one or three channels in uint8, and npz any"
        )
    for index, image in zip(indices, samples, strict=True):
        yield Part(f"{index:06d}.png", index, index, png(image))


def _to_zip(indices: range, kind: str, samples: Array) -> Iterator[Part]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # a PNG is compressed already
        for part in _to_pngs(indices, kind, samples):
            archive.writestr(zipfile.ZipInfo(part.name), part.content)  # ZipInfo's date is always 1980
    yield Part(_span(indices, "zip"), indices[0], indices[-1], buffer.getvalue())


def _from_zip(content: bytes) -> Array:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return np.concatenate([_from_png(archive.read(name)) for name in sorted(archive.namelist())])


@dataclass(frozen=True)
class Format:
    """Consecutive samples as files, and a file's content as samples; at the end they are one file, or stay a folder."""

    encode: Callable[[range, str, Array], Iterable[Part]]
    decode: Callable[[bytes], Array]
    one_file: bool = False


FORMATS = {
    "npz": Format(_to_npz, _from_npz, one_file=True),  # one file of arrays
    "png": Format(_to_pngs, _from_png),  # a folder with a PNG for each image
    "zip": Format(_to_zip, _from_zip),  # a folder of uncompressed zips of such PNGs
}

# --- shards ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """The samples first..last are stored in these files, {name: {"sha256", "first", "last"}}, as images or samples.

    notes: plain values about their making.
    """

    first: int
    last: int
    kind: str
    files: dict[str, dict[str, Any]]
    labels: list[int] | None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        return range(self.first, self.last + 1)

    def to_json(self) -> bytes:
        """With a digest of its own: damage to a label is damage as well."""
        return json.dumps({**vars(self), "digest": digest(vars(self))}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Mark:
        """Raises ValueError for what `to_json` has not written."""
        row = json.loads(content)
        if not isinstance(row, dict) or row.pop("digest", None) != digest(row):
            raise ValueError("the digest is another")
        return cls(**row)


class Shards:
    """The samples of one protocol, on their way to folder/samples_<name>.npz, or to a folder of PNG files or zips.

    protocol: all that the samples depend on; another protocol has a working folder of its own.
    Several processes may write, each its own shards. `missing` is for before they begin (in one of them, or in all
    with a barrier behind), `finish` for one of them after all have ended.
    """

    def __init__(self, folder: Path, name: str, protocol: Mapping[str, Any], fmt: str = "npz") -> None:
        self._format = choose("format of samples", fmt, FORMATS)
        self.name, self.request = name, digest(protocol)
        self.work = folder / f".samples_{name}-{digest({**protocol, 'format': fmt})}"
        self.result = folder / (f"samples_{name}.npz" if self._format.one_file else f"samples_{name}")
        self.manifest = folder / f"samples_{name}.json"
        self._marks, self._files = self.work / "marks", self.work / "files"
        self._former = folder / f".samples_{name}.former"
        self._finished = self.work.with_name(f"{self.work.name}.finished")

    def missing(self, count: int, size: int) -> list[range]:
        """What of the first `count` samples is not stored, as ranges of at most `size`.

        A shard whose files are not what its mark says is named in a warning and removed.
        """
        gaps, at = [], 0
        for mark in [*self._whole(count), None]:
            stop = min(mark.first, count) if mark else count
            gaps += [range(start, min(start + size, stop)) for start in range(at, stop, size)]
            at = max(at, mark.last + 1) if mark else at
        return gaps

    def write(self, indices: range, arrays: Mapping[str, Array], notes: Mapping[str, Any] | None = None) -> Mark:
        """Store consecutive samples: "images" uint8 [n, H, W, C] or "samples" [n, D], with or without "labels" [n].

        notes: plain values about their making, which `notes` gives again.

        Raises UserError for other arrays, or where the disk is full or may not be written.
        """
        kinds, labels = [kind for kind in KINDS if kind in arrays], arrays.get("labels")
        known = len(kinds) == 1 and arrays.keys() <= {*kinds, "labels"}
        if not known or indices.step != 1 or {len(array) for array in arrays.values()} != {len(indices) or None}:
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise UserError(
                f"the samples of {indices} are to be stored as images or samples, with or without labels; got {given}"
            )
        files: dict[str, dict[str, Any]] = {}

        def noted(parts: Iterable[Part]) -> Iterator[tuple[str, bytes]]:
            for part in parts:
                sha256 = hashlib.sha256(part.content).hexdigest()
                files[part.name] = {"sha256": sha256, "first": part.first, "last": part.last}
                yield part.name, part.content

        encoded = self._format.encode(indices, kinds[0], np.ascontiguousarray(arrays[kinds[0]]))
        write_together(self._files, noted(encoded))
        told = None if labels is None else [int(label) for label in labels]
        mark = Mark(indices[0], indices[-1], kinds[0], files, told, dict(notes or {}))
        write_aside(self._marks / _span(indices, "json"), mark.to_json())
        return mark

    def notes(self, count: int) -> list[dict[str, Any]]:
        """What was noted of the making of the shards with the first `count` samples, which are not finished yet."""
        return [mark.notes for mark in self._whole(count)]

    def first(self, n: int) -> dict[str, Array]:
        """The first n samples, stored and not finished yet, for a picture of them."""
        pieces = [self._read(mark, part) for mark, part in self._cover(n)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def keep_former(self, count: int) -> str:
        """Rename the samples that the first `count` of these would replace, but for those among them; what is said."""
        whole = self.manifest.with_suffix("")
        results = [whole, *map(self.manifest.with_suffix, (".npz", ".png"))]
        return keep_former(self.manifest, results, self.request, count)

    def finish(self, count: int, manifest: Mapping[str, Any], classes: Sequence[str] = ()) -> list[Path]:
        """The first `count` samples as they were asked for, with a manifest, in place of former ones; their paths.

        The manifest says beside what is given which files there are, {name: {"sha256", "first", "last"}}, a digest of
        the protocol, the names of the classes where there are labels, and the labels where the files have none. Until
        all is in its place the shards stay, so that after a kill it can be called again, with the same result. Raises
        UserError where samples are missing or the disk refuses.
        """
        with written(self.result):
            if self.work.exists() or not self._finished.exists():
                # A shard that reaches over the end, or over another, is cut.
                shards = [
                    mark if part == mark.indices else self.write(part, self._read(mark, part), mark.notes)
                    for mark, part in self._cover(count)
                ]
                if len({(mark.kind, mark.labels is None) for mark in shards}) > 1:
                    raise UserError(f"the shards in {self.work} are not of one kind; remove it to start again")
                names = classes if shards[0].labels is not None else ()
                content = self._assemble(shards, count, names) if self._format.one_file else self._move(shards)
                content |= {"request": self.request, **({"classes": list(names)} if names else {})}
                write_aside(
                    self.work / self.manifest.name, (json.dumps({**manifest, **content}, indent=2) + "\n").encode()
                )
                os.replace(self.work / self.manifest.name, self.manifest)
                # Renamed first: of a folder half removed nobody could tell that its samples are in their place.
                _remove(self._finished)
                os.replace(self.work, self._finished)
                flush_folder(self.work.parent)
            _remove(self._former)
            _remove(self._finished)
        return [self.result, self.manifest]

    def _read(self, mark: Mark, indices: range) -> dict[str, Array]:
        """Those samples of a shard."""
        pieces = [
            self._format.decode((self._files / name).read_bytes())[
                max(indices.start - file["first"], 0) : indices.stop - file["first"]
            ]
            for name, file in mark.files.items()
            if file["first"] < indices.stop and file["last"] >= indices.start
        ]
        found = {mark.kind: np.concatenate(pieces)}
        if mark.labels is not None:
            found["labels"] = np.array(mark.labels[indices.start - mark.first : indices.stop - mark.first], np.int64)
        return found

    def _whole(self, count: int) -> list[Mark]:
        """The marks of stored shards with any of the first `count` samples, in their order; damaged ones are removed.

        What comes after the first `count` is not looked at: it may have been cut off already.
        """
        marks = sorted(self._marks.glob("*.json"))
        moved = self.result.is_dir() and not of_another(self.manifest, self.request)
        if marks and not self._files.exists() and moved:
            # A kill came between the move of the files to their place and that of the marks.
            with suppress(FileNotFoundError):  # another process has done it
                os.replace(self.result, self._files)
        whole: list[Mark] = []
        damaged: dict[Path, set[str]] = {}
        for path in marks:
            try:
                mark = Mark.from_json(path.read_bytes())
                wrong = next((name for name in mark.files if not self._is_whole(name, mark, count)), None)
            except ValueError:
                mark, wrong = None, path.name
            if mark and not wrong:
                whole.append(mark)
                continue
            warnings.warn(f"{wrong} in {self.work} is damaged or lost: its samples are drawn again", stacklevel=3)
            damaged[path] = set(mark.files) if mark else set()
        needed = {name for mark in whole for name in mark.files}
        for path, names in damaged.items():
            path.unlink(missing_ok=True)
            for name in names - needed:
                (self._files / name).unlink(missing_ok=True)
        return [mark for mark in whole if mark.first < count]

    def _is_whole(self, name: str, mark: Mark, count: int) -> bool:
        """Whether a file is what its mark says, if it has any of the first `count` samples."""
        path, file = self._files / name, mark.files[name]
        return file["first"] >= count or (path.is_file() and sha256_of(path) == file["sha256"])

    def _cover(self, count: int) -> Iterator[tuple[Mark, range]]:
        """The first `count` samples as parts of shards, one after another: whole shards wherever they can be."""
        if count < 1:
            raise UserError("one sample at least is needed")
        marks, at = self._whole(count), 0
        longest = {mark.first: mark for mark in sorted(marks, key=lambda mark: mark.last)}
        while at < count:
            mark = longest.get(at) or next((mark for mark in marks if mark.first <= at <= mark.last), None)
            if mark is None:
                raise UserError(f"sample {at} of {count} is not stored in {self.work}: draw what is missing first")
            stop = min(mark.last + 1, count)
            yield mark, range(at, stop)
            at = stop

    def _assemble(self, shards: list[Mark], count: int, classes: Sequence[str]) -> dict[str, Any]:
        """One npz with the samples of all shards, which are read one at a time, in its place."""
        kind = shards[0].kind
        unfinished = self.work / self.result.name
        try:
            with open(unfinished, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    _compress(archive, kind, count, (self._read(mark, mark.indices)[kind] for mark in shards))
                    if shards[0].labels is not None:
                        _compress(archive, "labels", count, (np.array(mark.labels, np.int64) for mark in shards))
                    if classes:
                        _compress(archive, "classes", len(classes), [np.array(classes)])
                file.flush()
                os.fsync(file.fileno())
            entry = {"sha256": sha256_of(unfinished), "first": 0, "last": count - 1}
            os.replace(unfinished, self.result)
        finally:
            unfinished.unlink(missing_ok=True)
        flush_folder(self.result.parent)
        return {"files": {self.result.name: entry}}

    def _move(self, shards: list[Mark]) -> dict[str, Any]:
        """The folder of files in its place, without those that no shard names."""
        files = {name: file for mark in shards for name, file in mark.files.items()}
        marks = {_span(mark.indices, "json") for mark in shards}
        # The marks first: one whose files were gone would be damaged.
        for place, names in ((self._marks, marks), (self._files, files.keys())):
            for path in place.iterdir():
                if path.name not in names:
                    path.unlink()
        if self.result.exists():
            _remove(self._former)
            os.replace(self.result, self._former)
        os.replace(self._files, self.result)
        flush_folder(self.result.parent)
        labels = [label for mark in shards for label in mark.labels or ()]
        return {"files": files, **({"labels": labels} if labels else {})}


def _compress(archive: zipfile.ZipFile, name: str, count: int, parts: Iterable[Array]) -> None:
    """An array [count, ...] from its consecutive parts as a member of an npz.

    It is compressed in blocks of one size: what a compressor makes of other blocks may differ.
    """
    entry = zipfile.ZipInfo(f"{name}.npy")  # whose date is always 1980
    entry.compress_type = zipfile.ZIP_DEFLATED
    like: Array | None = None
    rest = bytearray()
    with archive.open(entry, "w", force_zip64=True) as member:
        for part in parts:
            if like is None:
                like = part[:0]
                header = {
                    "descr": dtype_to_descr(part.dtype),
                    "fortran_order": False,
                    "shape": (count, *part.shape[1:]),
                }
                write_array_header_1_0(member, header)
            if part.dtype != like.dtype or part.shape[1:] != like.shape[1:]:
                raise UserError(
                    f"{name} of {part.dtype} {part.shape[1:]} follow those of {like.dtype} {like.shape[1:]}"
                )
            rest += part.tobytes()
            for _ in range(len(rest) // BLOCK):
                member.write(rest[:BLOCK])
                del rest[:BLOCK]
        member.write(rest)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
