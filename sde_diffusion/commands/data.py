"""--mode data: what a training would read, as a table and a picture, and the settings that suit it."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from shlex import quote

from sde_diffusion.commands.words import program
from sde_diffusion.data import DataTransform, Splits, folder
from sde_diffusion.data.inventory import Inventory, counted
from sde_diffusion.data.settings import DataSettings
from sde_diffusion.data.survey import Survey, suggestions
from sde_diffusion.pipelines.batch import samples_of, stored
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.report.wrap import wrapped
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import LOCK, write_aside

SHOWN = 36  # samples of the picture
CLASSES = 20  # that are named


def data(settings: Settings, run: Path, engine: Engine) -> None:
    """Print what would be read, and write data.png, a batch of it, to the run folder."""
    settings.data.check_apart(run)
    own = settings.data
    survey = folder.survey_of(own.root) if own.dataset == "folder" else None
    if survey and not own.image_size and len(survey.sizes) > 1:
        settings = replace(settings, data=replace(own, image_size=survey.side()))
    splits = settings.splits()
    print(table(wrapped([{"of": name, "what": text} for name, text in found(splits, survey)], {"what": 90})))
    if survey and splits.inventory:
        chosen = {each.key: each.value for each in suggestions(survey, splits.inventory)} | given(own)
        flags = [f"--config.{key}={quote(str(value))}" for key, value in chosen.items()]
        if vectors := tuple(splits.train.columns):
            flags.append(f'--config.model.conditions="{vectors}"')
        print(f"suggested: {program()} --config folder --config.data.root={quote(own.root)} {' '.join(flags)}")
    engine.on_main(partial(write_batch, settings, splits, run / "data.png"))
    print(f"wrote {run / 'data.png'}: the first {SHOWN} samples that a training reads")


def given(own: DataSettings) -> dict[str, object]:
    """What was asked of the data beside their place, by key: a suggestion without it would be of other samples."""
    known = DataSettings()
    asked = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != getattr(known, f.name)}
    return {f"data.{name}": value for name, value in asked.items() if name not in ("dataset", "root")}


def found(splits: Splits, survey: Survey | None) -> list[tuple[str, str]]:
    """What a set holds, line by line."""
    train, test = splits.train, splits.test
    held = len(test) if test is not None else 0
    rows = [
        ("samples", f"{f'{train.size:,}' if train.size else 'a stream'} to train on, {held:,} held out"),
        ("shape", f"{list(train.shape)}"),
    ]
    rows += [("sizes", str(survey))] if survey else []
    rows += files(splits.inventory) if splits.inventory else []
    if train.classes and not splits.inventory:
        rows.append(("classes", ", ".join(train.classes[:CLASSES])))
    rows += [(vector, ", ".join(names[:CLASSES])) for vector, names in train.columns.items()]
    rows += [("cannot be read", ", ".join(train.left_out))] if train.left_out else []
    return rows


def files(inventory: Inventory) -> list[tuple[str, str]]:
    """What was found at a place, line by line."""
    classes = [f"{i} = {name} ({count:,})" for i, (name, count) in enumerate(inventory.classes.items())][:CLASSES]
    more = f" and {len(inventory.classes) - CLASSES} others" if len(inventory.classes) > CLASSES else ""
    rows = [("place", inventory.place), ("picture files", f"{inventory.pictures:,}: {counted(inventory.types)}")]
    rows += [("parts", counted(inventory.parts))] if len(inventory.parts) > 1 else []
    rows += [("classes", ", ".join(classes) + more if classes else "none")]
    rows += [("labels", inventory.labels)] if inventory.labels else []
    rows += [("changed", text) for text in inventory.changed()]
    return rows + [("not read", str(each)) for each in inventory.skipped]


def write_batch(settings: Settings, splits: Splits, file: Path) -> None:
    """The first samples that a training reads, as it reads them, as a picture."""
    with settings.data.batches(splits.train, SHOWN, settings.seed, range(SHOWN), 0, None) as stream:
        samples, conditions = next(stream)
    transform = DataTransform(splits.train.levels)
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / LOCK).touch()  # by which it is known as a run, and its picture as none of the data
    write_aside(file, png(picture(samples_of(stored(transform, transform.encode(samples), conditions)))))
