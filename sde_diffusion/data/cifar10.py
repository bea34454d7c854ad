"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs, 32x32, from parquet files, the hub, or its own archive."""

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.data.arrow import first_row, huggingface, parquet, parquet_files
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.data.layouts import belonging, some
from sde_diffusion.data.mapped import Reading
from sde_diffusion.data.pictures import format_of
from sde_diffusion.data.places import Folder

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version".
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_BYTES = 170_052_171
EXTRACTED_NAME = "cifar-10-batches-bin"
HUB_NAME = "uoft-cs/cifar10"
SIDE = 32  # pixels
RECORD_BYTES = 1 + 3 * SIDE * SIDE
TRAIN_FILES = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
TEST_FILES = ("test_batch.bin",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TITLE = "CIFAR-10"


def load(root: str, source: str, name: str, reading: Reading) -> Splits:
    """50,000 training and 10,000 test photographs, uint8 [N, 3, 32, 32].

    source: "parquet" (root holds train-*.parquet and test-*.parquet), "huggingface" (from the hub, by
    `name`), "binary" (root holds the official archive or its extracted folder, else it is downloaded
    there), or "auto": parquet files if root has some, else binary in a root that exists. root defaults to the
    user's cache folder. Nothing is downloaded into a folder that holds other files.
    reading: mapped and streaming are for parquet and huggingface.
    The title says "CIFAR-10 (JPEG)" where the pixels went through JPEG: figures on them do not compare
    with published ones. Raises UserError for a damaged or missing file, and for a failed download.
    """
    read = choose("CIFAR-10 source", source, _SOURCES)
    return read(Path(root).expanduser() if root else _cache(), name, reading)


def _cache() -> Path:
    with extra("data"):
        import pooch

    return Path(pooch.os_cache("sde_diffusion"))


def _auto(root: Path, name: str, reading: Reading) -> Splits:
    if not root.exists() and root != _cache():
        raise UserError(
            f"{root} does not exist; expected a folder of CIFAR-10 parquet files, or the official archive. "
            "With the source 'binary' the archive is downloaded to it, and without a root to the user's cache folder."
        )
    return (_parquet if any(root.glob("*.parquet")) else _binary)(root, name, reading)


def _parquet(root: Path, _name: str, reading: Reading) -> Splits:
    firsts = [first_row(file, TITLE) for files in parquet_files(root).values() for file in files]
    jpeg = any(format_of(first, 0) == "JPEG" for first in firsts)
    return parquet(root, f"{TITLE} (JPEG)" if jpeg else TITLE, reading)


def _huggingface(_root: Path, name: str, reading: Reading) -> Splits:
    return huggingface(name or HUB_NAME, reading)


def _binary(root: Path, _name: str, reading: Reading) -> Splits:
    extracted = next((p for p in (root, root / EXTRACTED_NAME) if (p / TEST_FILES[0]).is_file()), None)
    files = _read_archive(_archive(root)) if extracted is None else _read_folder(extracted)
    return reading.only_memory(Splits(train=_decode(files, TRAIN_FILES), test=_decode(files, TEST_FILES)))


def _archive(root: Path) -> Path:
    """The verified archive in `root` (or `root` itself), downloaded if it is not there."""
    with extra("data"):
        import pooch

    path = root if root.is_file() else root / ARCHIVE_NAME
    if not path.exists():
        _check_free(root)
        known = f"md5:{ARCHIVE_MD5}"
        try:
            pooch.retrieve(ARCHIVE_URL, known, fname=path.name, path=root, progressbar=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot download {ARCHIVE_URL} to {path} ({error}). Check the network, or fetch the file "
                "on another machine and put it there."
            ) from error
    if path.suffix == ".zip":
        raise UserError(f"{path} is a zip archive, and CIFAR-10's is {ARCHIVE_NAME}; data.dataset=folder reads zips.")
    # pooch replaces a file whose checksum differs; a person's own file is theirs to delete.
    found = pooch.file_hash(path, alg="md5")
    if found != ARCHIVE_MD5:
        raise UserError(
            f"{path} is truncated or not the official archive: expected {ARCHIVE_BYTES} bytes with md5 "
            f"{ARCHIVE_MD5}, found {path.stat().st_size} bytes with md5 {found}. "
            "Move it away to have it downloaded again."
        )
    return path


def _check_free(root: Path) -> None:
    """Raises UserError where a download would go into a folder of something else."""
    if root == _cache() or not root.is_dir():
        return
    names = Folder.at(root).names
    if names:
        hint = belonging(names, "cifar10") or "Name an empty folder, or that of CIFAR-10."
        raise UserError(
            f"{root} holds {some(names)}, and neither CIFAR-10's parquet files nor its archive, which is not "
            f"downloaded into a folder of other files. {hint}"
        )


def _read_archive(path: Path) -> dict[str, bytes]:
    """The record files in the archive, by name; read in one pass, and nothing is extracted to disk."""
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if name in TRAIN_FILES + TEST_FILES else None
                if content is not None:
                    files[name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is not a readable tar.gz archive ({error}); fetch it again.") from error
    return files


def _read_folder(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in TRAIN_FILES + TEST_FILES if (path / name).is_file()}


def _decode(files: dict[str, bytes], names: tuple[str, ...]) -> Dataset:
    """Records of 1 label byte and 3072 pixel bytes (channel by channel, row by row) to a data set."""
    for name in names:
        if name not in files:
            raise UserError(f"CIFAR-10: {name} is missing; fetch {ARCHIVE_NAME} again.")
        size = len(files[name])
        if size == 0 or size % RECORD_BYTES:
            raise UserError(
                f"CIFAR-10: {name} has {size} bytes, expected 10000 records of {RECORD_BYTES}; it is "
                f"truncated or damaged: fetch {ARCHIVE_NAME} again."
            )
    content = b"".join(files[name] for name in names)
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    if labels.max() > 9:
        raise UserError(
            f"CIFAR-10: {', '.join(names)} holds the label {labels.max()}, expected 0 to 9; it is damaged: "
            f"fetch {ARCHIVE_NAME} again."
        )
    samples = torch.from_numpy(records[:, 1:].copy()).reshape(-1, 3, 32, 32)
    return Dataset(samples, labels, 256, CLASSES, TITLE)


_SOURCES: dict[str, Callable[[Path, str, Reading], Splits]] = {
    "auto": _auto,
    "parquet": _parquet,
    "huggingface": _huggingface,
    "binary": _binary,
}
