"""A person's own pictures, in folders or in a zip archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data import arrays
from sde_diffusion.data.archive import Archive
from sde_diffusion.data.class_folders import Labels
from sde_diffusion.data.columns import Columns
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.data.inventory import Inventory, by_ending
from sde_diffusion.data.labels import labels_of
from sde_diffusion.data.listing import Listing, parted, whole
from sde_diffusion.data.mapped import Mapped, Reading, kept
from sde_diffusion.data.pictures import Notes, common_shape
from sde_diffusion.data.places import Folder, Place
from sde_diffusion.data.survey import LOOKED_AT, Suggestion, Survey, suggestions, surveyed


def load(root: str, reading: Reading, columns: Columns | None = None) -> Splits:
    """Pictures in class folders, or in one folder without classes, uint8 [N, C, H, W].

    Layouts: root/train/CLASS/** with root/test/CLASS/**, or root/CLASS/** of which a part is held out (always the same
    pictures); CLASS may be left out. root: a folder, or a zip archive of one, which is read in place.
    columns: of a table beside the pictures, as `sde_diffusion.data.labels` reads it.
    Channels: 1 if every picture is grey, else 3.
    Raises UserError for a missing or empty folder, for too many broken pictures, for pictures of different sizes that
    are not cut, for an unsafe archive, and for streaming.
    """
    if reading.streams:
        raise UserError("folders and archives are not streamed: choose the storage 'mapped', which reads any picture.")
    place = place_at(root)
    listing = parted(place)
    labels, notes = labels_of(place, listing, columns), Notes(len(listing.names))
    # All parts are looked at for the channels, so that one grey picture decides those of neither part alone.
    train, *held = _mapped(place, listing, labels, reading, notes)
    splits = kept(train, held[0] if held else None, reading)
    files = {name: place.size(name) for name in listing.names}
    files |= {name: crc32(place.read(name)) for name in labels.files}  # other labels may have as many bytes
    inventory = replace(inventory_of(place, listing, labels), notes=notes.counts(), decoded=int(notes.seen.sum()))
    return replace(splits, inventory=inventory, files=files)


def load_whole(root: str, reading: Reading, shape: tuple[int, int, int] | None = None) -> tuple[Dataset, list[str]]:
    """All pictures of root/CLASS/** or root/**, without a split, and their names.

    shape: (C, H, W) that they are brought to; by default the pictures' own. Raises UserError for a broken one.
    """
    place = place_at(root)
    listing = whole(place)
    (mapped,) = _mapped(place, listing, labels_of(place, listing), reading, None, shape)
    dataset, failures = mapped.in_memory()
    if failures:  # each has a name, by which it would be missed
        name, reason = failures[0]
        raise UserError(f"{name} is not a readable picture ({reason}); repair or remove it.")
    return dataset, listing.names


def survey_of(root: str, most: int = 0) -> Survey:
    """The sizes of the pictures at a place, or of `most` of them, by their headers."""
    place = place_at(root)
    return surveyed(place.pictures(parted(place).names), most)


def suggested(root: str) -> list[Suggestion]:
    """Settings that suit the pictures at a place, whose sizes are those of 1,000 of them at most."""
    place = place_at(root)
    listing = parted(place)
    inventory = inventory_of(place, listing, labels_of(place, listing))
    return suggestions(surveyed(place.pictures(listing.names), LOOKED_AT), inventory)


def place_at(root: str) -> Place:
    """The folder or the archive at a path. Raises UserError where there is neither."""
    path = Path(root).expanduser()
    if root and path.is_file():
        if path.suffix.lower() in arrays.READERS:
            raise UserError(f"{path} is a file of arrays or a table, not of pictures: choose data.dataset='array'.")
        return Archive.at(path)
    if not root or not path.is_dir():
        raise UserError(
            f"no folder {root!r}: expected one that holds pictures, CLASS/*.png, or train/CLASS/*.png and "
            "test/CLASS/*.png, or a zip archive of it (data.root)."
        )
    return Folder.at(path)


def inventory_of(place: Place, listing: Listing, labels: Labels) -> Inventory:
    """What was found at a place."""
    parts = {part.base or "all": len(part.names) for part in listing.parts}
    found = Inventory(place.said(""), by_ending(listing.names), parts, labels.counts(), listing.skipped(labels.files))
    return replace(found, labels=labels.said)


def _mapped(
    place: Place,
    listing: Listing,
    labels: Labels,
    reading: Reading,
    notes: Notes | None = None,
    shape: tuple[int, int, int] | None = None,
) -> list[Mapped]:
    """The pictures of each part, as parts of one set."""
    pictures = place.pictures(listing.names)
    shape = shape or common_shape([pictures], reading.cut, place.said(""), reading.decoding)
    about = (labels.classes, place.title, shape, reading.cut, reading.corrupt_limit)
    parts, start = [], 0
    for part, own, others in zip(listing.parts, labels.parts, labels.others or ({},) * len(labels.parts)):
        rows = torch.arange(start, start := start + len(part.names))
        mapped = Mapped(pictures, rows, own, *about, decoding=reading.decoding, notes=notes)
        parts.append(replace(mapped, others=others, columns=labels.columns))
    return parts
