"""Every sampler at every budget, on the same weights and from the same noise, in one report.

    compare/<run>/        the samples of each run, its trajectory and its figures (runs.py)
    compare.json  compare.csv  compare.md  report.html  compare/*.png

Runs that are there already are taken as they are, so that a comparison that was killed, or one with more samplers,
costs what is missing. A run that fails is marked with its reason, and the report is made of the others.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from sde_diffusion.compare.evaluator import Evaluator, baselines, evaluator, figures_of, split_of
from sde_diffusion.compare.report_files import write_report
from sde_diffusion.compare.runs import Run
from sde_diffusion.compare.variants import Variant, variants
from sde_diffusion.core.errors import UserError
from sde_diffusion.core.grids import make_grid
from sde_diffusion.core.noise import seeded
from sde_diffusion.data import DataTransform, Source
from sde_diffusion.denoisers.analytic import GaussianMixture
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.pipelines.likelihood import bits_of_run
from sde_diffusion.pipelines.sampling import draw, in_words, made_by
from sde_diffusion.report.likelihood import summary
from sde_diffusion.report.recommendation import recommend
from sde_diffusion.runtime.engine import Engine, everyones
from sde_diffusion.samplers import SAMPLER_TABLE
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.files import FolderLock

FEW = 10_000
"""Samples below which figures of features are biased so much that they compare with nothing but one another."""
BITS_STREAM, BITS_SAMPLES, BITS_RTOL = 17, 500, 1e-6


def row_of_run(run: Run, values: Mapping[str, Any], failed: str = "") -> dict[str, Any]:
    """What the report says of a run."""
    trial, entry = run.trial, SAMPLER_TABLE[run.trial.sampler]
    made = {} if failed else run.made()
    timing = {}
    if made:
        spent = made.pop("seconds")
        timing = {"seconds": spent, "milliseconds_per_sample": round(1000.0 * spent / run.count, 4)}
    return {
        "id": run.name,
        "sampler": trial.sampler,
        "label": trial.label,
        "variant": run.variant.name,
        "noise": entry.noise,
        "order": entry.order,
        "steps": trial.steps,
        "tolerance": None if trial.steps else trial.options.get("rtol"),
        "nfe": made.get("nfe"),
        "samples": run.count,
        "values": values,
        "timing": timing,
        "failed": failed,
        "protocol": made or dict(run.protocol),
    }


def warned(settings: Settings, source: Source, evaluator: Evaluator) -> list[str]:
    """What a reader must know before comparing these figures with others."""
    found = list(evaluator.cannot)
    for count, what in (
        (settings.sampling.num_samples, "samples a run"),
        (len(evaluator.real.values), "real samples"),
    ):
        if count < FEW:
            found.append(
                f"{count:,} {what} are fewer than {FEW:,}: distances of so few are biased upwards, so that these "
                "figures compare with one another, not with those of other numbers of samples"
            )
    if source.levels and "frechet" in evaluator.names and evaluator.extractor.name != "inception":
        found.append(
            f"the features are those of the network {evaluator.extractor.name!r}, so a Fréchet distance here is not "
            "the FID of papers, which is by Inception"
        )
    if "JPEG" in source.title:
        found.append(f"{source.title} holds JPEG copies: its figures do not compare with published ones")
    return found


def flow_bits(settings: Settings, folder: Path, engine: Engine, variant: Variant) -> dict[str, Any]:
    """Bits/dim of the network: those of results.json if they are of these weights, or computed now where they can be.

    Those of other weights or checkpoints than the run's usual ones are a matter of --mode likelihood.
    """

    def known() -> dict[str, Any]:
        path = folder / "results.json"
        found = json.loads(path.read_text()).get("likelihood", {}) if path.exists() else {}
        mine = found.get("weights_digest") == variant.model.protocol["weights_digest"]
        return found if mine and found.get("split") == "test" else {}

    found, usual = engine.on_main(known), not (settings.compare.weights or settings.compare.checkpoints)
    if not found and settings.compare.likelihood and usual and settings.likelihood.split == "test":
        try:
            bits_of_run(settings, folder, engine)
        except UserError as error:  # the report is worth more than this table of it
            warnings.warn(f"there are no bits/dim in the report: {error}", stacklevel=2)
        found = engine.on_main(known)
    kept = ("bits_per_dim", "standard_error", "interval", "space", "nfe", "smallest_time")
    shared = {key: found.get(key) for key in ("data", "split", "samples", "given", "weights", "checkpoint_step")}
    return {name: {key: row.get(key) for key in kept} | shared for name, row in found.get("figures", {}).items()}


def exact_bits(settings: Settings, variant: Variant, truth: GaussianMixture) -> dict[str, Any]:
    """Bits/dim of exact samples of a closed-form model: by its density, and by the flow of its denoiser."""
    x, sde = truth.sample(BITS_SAMPLES, generator=seeded(settings.seed, stream=BITS_STREAM)), variant.model.sde
    flow = log_likelihood(variant.model.denoiser({}), x, sde, rtol=BITS_RTOL, divergence="exact", space="continuous")
    rows = {"exact density": (truth.log_prob(x), 0, 0.0), "ode": (flow.nats, flow.nfe, sde.t_likelihood)}
    found = {}
    for name, (nats, nfe, smallest_time) in rows.items():
        own = summary((-nats / (x[0].numel() * math.log(2.0))).numpy())
        found[name] = {
            "bits_per_dim": own.mean,
            "standard_error": own.standard_error,
            "interval": own.interval,
            "space": DataTransform(None).space(),
            "nfe": nfe,
            "smallest_time": smallest_time,
        }
    return found


def compared(settings: Settings, folder: Path, engine: Engine) -> None:
    """Draw and judge every run that is missing, and write the report."""
    trials = settings.compare.trials()
    if not trials:
        raise everyones(UserError("compare.samplers is empty; name some, as in --samplers ddim,dpmpp_2m,pc"))
    if settings.sampling.num_samples < 2:
        raise everyones(UserError("a comparison needs two samples a run at least: --num_samples 500"))
    settings, models, splits = variants(settings, folder, engine)
    place, evaluators = folder / "compare", list[Evaluator]()
    runs = [Run.of(settings, variant, trial, place) for variant in models for trial in trials]
    with ExitStack() as held:

        def prepare() -> None:
            held.enter_context(FolderLock(place, "compared"))
            evaluators.append(evaluator(settings, models[0], splits, engine.device))
            for sentence in evaluators[0].cannot:
                print(sentence)

        engine.on_main(prepare)
        for variant in models:
            warm_up(variant)
        rows = [row_of(settings, engine, run, evaluators, f"{i} of {len(runs)}") for i, run in enumerate(runs, 1)]
        truth = models[0].truth
        bits = exact_bits(settings, models[0], truth) if truth else flow_bits(settings, folder, engine, models[0])
        if engine.main:
            report = whole_report(
                settings, models, split_of(settings, splits), evaluators[0], rows, bits, engine, place
            )
            write_report(folder, report, runs)


def warm_up(variant: Variant) -> None:
    """One evaluation, so that the first run's time has no start of a GPU and no compilation in it."""
    model = variant.model
    with suppress(UserError), in_words("a first evaluation", 1):  # which the runs will tell of
        draw(model, "ddim", make_grid(model.sde, 1, "logsnr"), 0, range(1), {})


def row_of(settings: Settings, engine: Engine, run: Run, evaluators: Sequence[Evaluator], place: str) -> dict[str, Any]:
    """The row of a run, which is drawn and judged if it has not been; what fails is told in the row.

    judges: of the main process, which judges for all.
    """
    trial = run.trial
    told = f"{trial.label}{f', {trial.steps} steps' if trial.steps else ''} ({place})"
    try:
        run.draw(settings, engine, told)
        return engine.on_main(lambda: row_of_run(run, figures_of(settings, run, evaluators[0])))
    except UserError as error:
        warnings.warn(f"{told} fails: {error}", stacklevel=2)
        return row_of_run(run, {}, str(error))


def whole_report(
    settings: Settings,
    models: Sequence[Variant],
    source: Source,
    judge: Evaluator,
    rows: Sequence[Mapping[str, Any]],
    bits: Mapping[str, Any],
    engine: Engine,
    place: Path,
) -> dict[str, Any]:
    """The report as plain values; the clock decides what is under "timing", and which sampler is called the fastest."""
    model = models[0].model
    title = f"{model.protocol['data']} under {type(model.sde).__name__}"
    variants_named = ", ".join(variant.name for variant in models)
    made = made_by(engine)
    report = {
        "title": title,
        "subtitle": f"{len({row['label'] for row in rows})} samplers from the same noise, seed {settings.seed}; "
        f"{settings.sampling.num_samples:,} samples a run; weights: {variants_named}",
        "metrics": judge.described,
        "runs": list(rows),
        "baselines": baselines(judge, settings, models[0], source, place),
        "reference": judge.protocol["reference"],
        "likelihood": dict(bits),
        "protocol": {
            **{name: value for name, value in judge.protocol.items() if name != "versions"},
            "seed": settings.seed,
            **{variant.name: dict(variant.model.protocol) for variant in models},
            **made,
            "versions": {**made["versions"], **judge.protocol["versions"]},
        },
        "warnings": warned(settings, source, judge),
    }
    return {**report, "recommendation": recommend(report)}
