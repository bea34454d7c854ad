"""A person's own pictures, in folders."""

from pathlib import Path

import torch

from sde_diffusion.data.dataset import Dataset, Splits, hold_out, split_at
from sde_diffusion.data.pictures import open_picture, stack_pictures
from sde_diffusion.errors import UserError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
HELD_OUT = ("test", "val", "valid", "validation")


def load(root: str, image_size: int = 0) -> Splits:
    """Pictures in class folders, or in one folder without classes, uint8 [N, C, H, W].

    Layouts: root/train/CLASS/* with root/test/CLASS/*, or root/CLASS/* of which a tenth is held out (always
    the same pictures); CLASS may be left out. Channels: 1 if every picture is grey, else 3.
    image_size: side of the square cut from each picture, in pixels; 0 if all are of one size already.
    Raises UserError for a missing or empty folder, a broken picture, or pictures of different sizes.
    """
    base = _base(root, "CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png")
    names = {entry.name for entry in _folders(base)}
    # A folder "train" among other names is a class of trains.
    if "train" not in names or not names <= {"train", *HELD_OUT}:
        return hold_out(_load(base, _classes(base), _find(base), image_size))

    train, classes = base / "train", _classes(base / "train")
    tests = [base / name for name in HELD_OUT if name in names][:1]
    for test in tests:
        if _classes(test) != classes:
            raise UserError(f"{test} and {train} must hold the same class folders: {', '.join(classes) or 'none'}.")
    fitted = _find(train)
    # Read as one set, so that one grey picture decides the channels of neither part alone.
    whole = _load(base, classes, fitted + [path for test in tests for path in _find(test)], image_size)
    return split_at(whole, len(fitted)) if tests else hold_out(whole)


def load_whole(root: str, image_size: int = 0) -> tuple[Dataset, list[str]]:
    """All pictures of root/CLASS/* or root/*, without a split, and their names. Raises UserError as `load` does."""
    base = _base(root, "*.png or CLASS/*.png")
    paths = _find(base)
    return _load(base, _classes(base), paths, image_size), [str(path.relative_to(base)) for path in paths]


def _base(root: str, layout: str) -> Path:
    base = Path(root).expanduser()
    if not root or not base.is_dir():
        raise UserError(f"no folder {root!r}: expected one that holds {layout}.")
    return base


def _folders(base: Path) -> list[Path]:
    return sorted(entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(base: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _folders(base))


def _pictures(base: Path) -> list[Path]:
    return sorted(p for p in base.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _find(base: Path) -> list[Path]:
    """The pictures of each class folder of `base`, or of `base` itself where it has no folders."""
    loose, folders = _pictures(base), _folders(base)
    if loose and folders:
        raise UserError(
            f"{base} holds both pictures ({loose[0].name}) and folders ({folders[0].name}): "
            "put every picture into a class folder, or none."
        )
    found = {place: _pictures(place) for place in folders or [base]}
    for place, paths in found.items():
        if not paths:
            raise UserError(f"{place} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    return [path for paths in found.values() for path in paths]


def _load(base: Path, classes: tuple[str, ...], paths: list[Path], image_size: int) -> Dataset:
    images = [open_picture(path, str(path), image_size) for path in paths]
    labels = torch.tensor([classes.index(path.parent.name) for path in paths]) if classes else None
    return Dataset(stack_pictures(images, str(base)), labels, 256, classes, base.resolve().name)
