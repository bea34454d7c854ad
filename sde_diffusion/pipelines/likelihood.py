"""Bits/dim of a split or a folder of images: a row for each sample, and what the rows come to."""

from __future__ import annotations

import csv
import io
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.core.errors import NotFinite, UserError
from sde_diffusion.core.processes import process_state
from sde_diffusion.core.sizes import said
from sde_diffusion.data import Dataset, Source, Splits, load_pictures
from sde_diffusion.data.naming import few, numbers_only
from sde_diffusion.denoisers.network import NetworkDenoiser
from sde_diffusion.denoisers.wrappers import ConditionedDenoiser
from sde_diffusion.metrics.bits import Batch
from sde_diffusion.pipelines.batch import stored, taken_by
from sde_diffusion.pipelines.run_data import in_names_of
from sde_diffusion.pipelines.run_folder import network_of, trained_network
from sde_diffusion.report.likelihood import captioned, histogram, summary
from sde_diffusion.report.pictures import picture, png
from sde_diffusion.report.table import table
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.runtime.metrics_log import Board
from sde_diffusion.runtime.progress import Progress, progress
from sde_diffusion.settings.figures import NamedFigure
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.records import Records, digest, tensor_digest
from sde_diffusion.storage.results import set_result, write_json

NUMERICS = 1
"""Raised when the bits/dim of one request become others, so that stored rows are not mixed with new ones."""
LIKELIEST = 16


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Data whose likelihood is asked for: its name in files, and the names of its images where they have any."""

    dataset: Dataset
    name: str
    files: list[str]


def evaluated_data(settings: Settings, trained: Checkpoint, splits: Splits | None = None) -> Evaluated:
    """The pictures of likelihood.folder, or a split of the data set.

    Raises UserError for data that the network cannot know: of other grey levels or another shape.
    """
    own = settings.likelihood
    if own.folder:
        place = Path(own.folder).expanduser().resolve()
        dataset, files = load_pictures(own.folder, own.image_size, settings.data.options(settings.seed))
        # Folders of one name, and a folder named as a split, have files of their own.
        name = f"{place.name}-{digest(str(place).encode())[:6]}"
    else:
        files, name = [], own.split
        source = _split(splits or settings.splits(), own.split)
        if not isinstance(source, Dataset):
            raise UserError(
                f"likelihood.split={own.split!r} is not in memory (data.storage={settings.data.storage!r}), where "
                "bits/dim are computed of; choose data.storage='memory', the split 'test', or likelihood.folder"
            )
        dataset = source
    levels = trained.transform.levels
    if dataset.levels != levels:
        raise UserError(
            f"{dataset.title} has {dataset.levels or 'no'} grey levels, and the network was trained on "
            f"{levels or 'continuous vectors'}: bits/dim would not be about the same data"
        )
    if dataset.shape != trained.spec.shape:
        size = f"={shlex.quote(said(trained.spec.shape[1:]))}" if len(trained.spec.shape) == 3 else ""
        raise UserError(
            f"{dataset.title} has samples of shape {list(dataset.shape)}, and the network takes "
            f"{list(trained.spec.shape)}; --config.likelihood.image_size{size} makes the pictures of a folder fit"
        )
    return Evaluated(_in_classes_of(trained, dataset), name, files)


def _split(splits: Splits, name: str) -> Source:
    if name == "test":
        return splits.held_out("bits/dim of the split 'test'", "choose likelihood.split='train', or likelihood.folder")
    return splits.train


def _in_classes_of(trained: Checkpoint, dataset: Dataset) -> Dataset:
    """The data in the names of the network; without labels, which is printed, where it never learned their classes."""
    if "labels" in trained.spec.conditions and not numbers_only(trained.classes):
        strange = [name for name in dataset.classes if name not in trained.classes]
        if strange:
            print(f"the network never learned {few(strange)} of {dataset.title}: it is told no classes")
            return replace(dataset, labels=None, classes=())
    found = in_names_of(trained, dataset, all_of_them=False)
    assert isinstance(found, Dataset)  # which it was
    return found


def asked_for(settings: Settings, dataset: Dataset) -> int:
    """How many samples likelihood.num_samples comes to."""
    return min(settings.likelihood.num_samples or len(dataset), len(dataset))


def _given(names: Sequence[str]) -> str:
    """What samples are told of by these conditions, in words."""
    return " and ".join("its class" if name == "labels" else name for name in names) or "nothing"


def likelihood_protocol(
    settings: Settings, trained: Checkpoint, data: Evaluated, figures: Mapping[str, NamedFigure]
) -> dict[str, Any]:
    """All that the bits/dim of a sample depend on."""
    weights = trained.weights[settings.sampling.weights]
    dataset = data.dataset
    count = asked_for(settings, dataset)
    return {
        "data": dataset.title,
        "data_digest": tensor_digest({"samples": dataset.samples, **dataset.conditions}),
        "given": _given([name for name in trained.spec.conditions if name in dataset.conditions]),
        "checkpoint_step": trained.step,
        "weights": settings.sampling.weights,
        "weights_digest": tensor_digest(weights),
        "process": process_state(trained.spec.model_process),
        "seed": settings.seed,
        "numerics": NUMERICS,
        # Only a solver with step sizes for each sample makes a row independent of its batch.
        "batches": None if settings.likelihood.method == "per_sample" else [settings.likelihood.batch_size, count],
        "figures": {name: {"space": figure.space, **figure.protocol} for name, figure in figures.items()},
    }


def likelihood_rows(
    settings: Settings,
    engine: Engine,
    trained: Checkpoint,
    data: Evaluated,
    folder: Path,
    figures: Mapping[str, NamedFigure],
    protocol: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row of bits/dim for each sample; those that an earlier run has stored are not computed again.

    Each process takes a batch of every round, and the main one stores the rows of all before the next round.
    """
    denoiser = network_of(settings, trained, engine.device)
    dataset, size = data.dataset, settings.likelihood.batch_size
    count = asked_for(settings, dataset)
    records = Records(folder, data.name, protocol)
    with ExitStack() as held:

        def absent() -> list[int]:
            held.enter_context(records)
            return [index for index in range(count) if index not in records.rows]

        missing = engine.on_main(absent)
        if len(missing) < count:
            print(f"{count - len(missing)} of {count} samples are in {records.path} already")
        chunks = [missing[first : first + size] for first in range(0, len(missing), size)]
        done = count - len(missing)
        with progress(count, "sample", "likelihood", done=done, visible=engine.main) as bar:

            def rows_of(chunks: list[list[int]]) -> list[dict[str, Any]]:
                mine = engine.mine(chunks)
                return row_figures(settings, denoiser, dataset, mine[0], figures, bar) if mine else []

            for first in range(0, len(chunks), engine.count):
                everywhere = engine.each(partial(rows_of, chunks[first : first + engine.count]))
                rows = [row for part in everywhere for row in part]
                engine.on_main(partial(records.append, rows))
                bar.update(len(rows))
        found = engine.on_main(lambda: [records.rows[index] for index in range(count)])
    names = [] if dataset.labels is None else [dataset.classes[int(label)] for label in dataset.labels[:count]]
    return [
        {
            "index": row["index"],
            **({"file": data.files[row["index"]]} if data.files else {}),
            **({"class": names[row["index"]]} if names else {}),
            **row,
        }
        for row in found
    ]


def row_figures(
    settings: Settings,
    denoiser: NetworkDenoiser,
    dataset: Dataset,
    indices: Sequence[int],
    figures: Mapping[str, NamedFigure],
    bar: Progress,
) -> list[dict[str, Any]]:
    """A row for each of some samples: every figure with its parts, the evaluations it took and the seconds."""
    samples, conditions = dataset.read(torch.tensor(indices))
    batch = Batch(samples, conditions.get("labels"), indices, settings.seed)
    model = ConditionedDenoiser(denoiser, **taken_by(denoiser, conditions))
    rows: list[dict[str, Any]] = [{"index": index} for index in indices]
    for name, figure in figures.items():

        def told(done: int, total: int, name: str = name) -> None:
            if done % 20 == 0:
                bar.note(**{name: f"{done}/{total}"})

        started = time.perf_counter()
        columns, nfe = figure.compute(model, batch, told)
        seconds = (time.perf_counter() - started) / len(indices)
        _check_finite(columns, indices)
        for i, row in enumerate(rows):
            row.update({column: float(values[i]) for column, values in columns.items()})
            row.update({f"{name}_nfe": nfe, f"{name}_seconds": round(seconds, 5)})
    return rows


def _check_finite(columns: Mapping[str, torch.Tensor], indices: Sequence[int]) -> None:
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            wrong = indices[int(values.isfinite().logical_not().nonzero()[0])]
            raise NotFinite(f"{name} is not finite for sample {wrong}: check the model's output")


def figure_summary(name: str, figure: NamedFigure, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard error and interval of a figure's bits/dim, the means of its parts, and how it was computed."""
    own = summary(np.array([row[name] for row in rows]))
    parts = [column for column in rows[0] if column.startswith(f"{name}_")]
    means = {
        column.removeprefix(f"{name}_"): float(np.mean([row[column] for row in rows]))
        for column in parts
        if not column.endswith(("_nfe", "_seconds"))
    }
    return {
        "bits_per_dim": own.mean,
        "standard_error": own.standard_error,
        "interval": own.interval,
        "space": figure.space,
        "nfe": max(row[f"{name}_nfe"] for row in rows),
        "seconds": round(sum(row[f"{name}_seconds"] for row in rows), 2),
        **means,
        **figure.protocol,
    }


def report_likelihood(
    settings: Settings, folder: Path, engine: Engine, trained: Checkpoint, splits: Splits | None = None
) -> None:
    """Compute, store, print and draw the bits/dim of a split or a folder of images."""
    data = evaluated_data(settings, trained, splits)
    figures = settings.figures(trained.spec.model_process, trained.transform, engine.device)
    place = folder / "likelihood"
    protocol = likelihood_protocol(settings, trained, data, figures)
    rows = likelihood_rows(settings, engine, trained, data, place, figures, protocol)
    if engine.main:
        write_likelihood(settings, folder, trained, data, figures, protocol, rows)


def write_likelihood(
    settings: Settings,
    folder: Path,
    trained: Checkpoint,
    data: Evaluated,
    figures: Mapping[str, NamedFigure],
    protocol: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Store, print and draw the rows of bits/dim."""
    place = folder / "likelihood"
    summaries = {name: figure_summary(name, figure, rows) for name, figure in figures.items()}
    first = next(iter(summaries.values()))
    result = {
        **first,
        "figure": next(iter(summaries)),
        "samples": len(rows),
        "split": data.name,
        "bin_width": trained.transform.bin_width or 1.0,
        **{key: value for key, value in protocol.items() if key not in ("figures", "process")},
        "figures": summaries,
    }
    set_result(folder, "likelihood", result)
    write_json(place / f"{data.name}.json", result)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_aside(place / f"{data.name}.csv", text.getvalue().encode())
    draw_likelihood(settings, folder, trained, data, rows, list(figures))
    print(likelihood_text(result, rows))
    print(f"wrote {place / data.name}.csv, .json, _histogram.png, _most_likely.png and _least_likely.png")


def draw_likelihood(
    settings: Settings,
    folder: Path,
    trained: Checkpoint,
    data: Evaluated,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    """The histogram, the most and the least likely samples, and all of it in TensorBoard."""
    place, step = folder / "likelihood", trained.step
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    title = f"{data.name} of {trained.title}" if not data.files else data.name
    write_aside(place / f"{data.name}_histogram.png", histogram(columns, "bits/dim", f"{title}, {len(rows)} samples"))
    order = np.argsort(columns[names[0]], kind="stable")
    extremes = {"most_likely": order[:LIKELIEST], "least_likely": order[::-1][:LIKELIEST]}
    with Board(folder / "tensorboard") as board:
        for name, values in columns.items():
            board.add_scalar(f"bits_per_dim/{data.name}/{name}", float(values.mean()), step)
            board.add_histogram(f"bits_per_dim/{data.name}/{name}", values, step)
        for which, picked in extremes.items():
            index = torch.from_numpy(picked.copy())
            samples, conditions = data.dataset.read(index)
            x = trained.transform.encode(samples, conditions.get("labels"))
            shown = stored(trained.transform, x, conditions)
            captions = [f"{value:.3f}" for value in columns[names[0]][picked]]
            drawn = captioned(shown["images"], captions) if "images" in shown else picture(shown["samples"])
            write_aside(place / f"{data.name}_{which}.png", png(drawn))
            board.add_image(f"{data.name}/{which}", drawn, step, dataformats="HWC")


def likelihood_text(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Bits/dim by every figure side by side, what they are made of, and how they were computed."""
    summaries: Mapping[str, Mapping[str, Any]] = result["figures"]

    def interval(row: Mapping[str, Any]) -> str:
        return "-" if row["interval"] is None else f"{row['interval'][0]:.4f} .. {row['interval'][1]:.4f}"

    lines = [
        f"bits/dim of {result['samples']} samples of {result['data']} ({result['split']}) given {result['given']}",
        table(
            [
                {
                    "figure": name,
                    "bits/dim": f"{row['bits_per_dim']:.4f}",
                    "std. error": "-" if row["standard_error"] is None else f"{row['standard_error']:.4f}",
                    "95% interval": interval(row),
                    "smallest time": f"{row['smallest_time']:g}",
                    "nfe": row["nfe"],
                    "seconds": row["seconds"],
                    "space": row["space"],
                }
                for name, row in summaries.items()
            ]
        ),
    ]
    for name, row in summaries.items():
        if "method" in row:
            probes = f", {row['probes']} {row['probe']} probe{'s' * (row['probes'] > 1)}" if "probes" in row else ""
            steps = f"at rtol {row['rtol']:g}" if "rtol" in row else f"in {row['steps']} steps"
            lines.append(f"{name}: {row['divergence']} trace{probes}, {row['method']} {steps}")
        if "probe_error" in row:
            lines.append(f"{name}: the probes give each sample a standard error of {row['probe_error']:.4f} bits/dim")
        if "t_min_change" in row:
            lines.append(f"{name}: twice the smallest time changes bits/dim by {row['t_min_change']:+.1e}")
        if "prior" in row:
            terms = f", {row['terms']} of them for each sample" if row.get("terms") else ""
            how = f"{row['steps']} levels{terms}, variance {row['variance']}" if "steps" in row else "continuous time"
            lines.append(
                f"{name}: prior {row['prior']:.2e}, denoising {row['denoising']:.4f}, reconstruction "
                f"{row['reconstruction']:.4f}; {how}"
            )
    base, *others = summaries
    for name in others:
        gap = summary(np.array([row[name] - row[base] for row in rows]))
        lines.append(f"{name} - {base}, sample by sample: {gap}")
    return "\n".join(lines)


def bits_of_run(settings: Settings, folder: Path, engine: Engine) -> None:
    """Bits/dim of the held-out (or training) split, or of a folder of images, by the network of a run folder."""
    settings, trained = trained_network(settings, folder, engine)
    report_likelihood(settings, folder, engine, trained)
