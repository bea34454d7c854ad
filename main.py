"""Train, sample and evaluate score-based diffusion models.

    python main.py --config vpsde_digits                          train or resume, then sample, evaluate and compare
    python main.py --config vpsde_digits --mode sample --sampler pc --steps 1000 --num_samples 64 --seed 0
    python main.py --config vpsde_digits --mode sample --sampler dpmpp_2m --sampler.order 2 --grid karras --grid.rho 7
    python main.py --config vpsde_digits --mode edit --input PICTURE --strength 0.5
    python main.py --config vpsde_digits --mode compare --samplers ddpm,ddim,pc,ode --steps 10,20,50,100
    python main.py --config oracle_gmm                            the same where the truth is known, without a network
    python main.py --config vpsde_digits --mode likelihood        bits/dim by the flow and by the bound
    python main.py --config vpsde_digits --mode latents           encode, decode, interpolate
    python main.py --mode import --source score_sde --path FILE --source_config cifar10_ddpmpp_continuous --workdir RUN
    python main.py --config vpsde_digits --mode ema               averages of other lengths, from snapshots
    torchrun --nproc_per_node 8 main.py --config vpsde_cifar      the same, by several processes
    python main.py --mode samplers                                the samplers and grids with their options
    python main.py --config vpsde_cifar --config.training.batch_size=64 --config.data.root=FOLDER

Any key of configs/base.py can be set by --config.SECTION.KEY=VALUE.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sde_diffusion.core.errors import UserError, choose, nearest
from sde_diffusion.runtime.engine import EVERYONES, everyones, process_number
from sde_diffusion.training.guard import Preempted

CONFIGS = Path(__file__).resolve().parent / "configs"
MODE_NAMES = (
    *("all", "train", "sample", "edit", "compare", "likelihood"),
    *("latents", "evaluate", "ema", "import", "export", "samplers"),
)
NAMED_OPTIONS = {
    "sampler": "option",
    "config.sampling.options": "option",
    "grid": "grid_option",
    "config.sampling.grid_options": "grid_option",
    "network": "network_option",
    "config.model.options": "network_option",
}
"""--KEY.NAME VALUE -> the flag that takes it as NAME=VALUE."""

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "A configuration's name (a file of configs/) or path.", lock_config=True
)
flags.DEFINE_string(
    "mode",
    "all",
    f"What to do: {', '.join(MODE_NAMES)}. 'all' trains, samples, evaluates and compares; 'compare' puts samplers in "
    "one report; 'samplers' lists samplers and grids; 'edit' gives pictures noise and takes them back; "
    "'ema' makes averages of the weights of any length from the snapshots of a training; "
    "'import' takes a checkpoint of another code base, 'export' writes a folder of diffusers.",
)
flags.DEFINE_string("workdir", None, "The run folder; runs/<configuration> unless given.")
flags.DEFINE_string("source", None, "import: the code base: score_sde, edm, openai or diffusers (importing.source).")
flags.DEFINE_string("path", None, "import, export: the file, or the folder of diffusers (importing.path).")
flags.DEFINE_string(
    "source_config", None, "import: JSON file of the source's own keys, or a published name (importing.config)."
)
flags.DEFINE_string("sampler", None, "The sampler (sampling.sampler).")
flags.DEFINE_list("steps", None, "Steps of the sampler (sampling.steps); compare: budgets 10,20,50 (compare.steps).")
flags.DEFINE_string(
    "samplers", None, "compare: NAME[:[STEPS][:OPTION=VALUE,...]] with commas between them (compare.samplers)."
)
flags.DEFINE_list("metrics", None, "compare: metrics with commas between them (compare.metrics).")
flags.DEFINE_integer("num_samples", None, "How many samples to draw (sampling.num_samples).")
flags.DEFINE_integer("seed", None, "The seed of training, samples and likelihoods (seed).")
flags.DEFINE_string("input", None, "edit: a picture, a folder or a zip of them, or an .npz (edit.input).")
flags.DEFINE_float("strength", None, "edit: the share of the grid's steps that are taken, in (0, 1] (edit.strength).")
flags.DEFINE_string("device", None, "cpu, cuda, ... (device).")
flags.DEFINE_multi_string("option", [], "A sampler's option NAME=VALUE, also --sampler.NAME VALUE; may be repeated.")
flags.DEFINE_string("grid", None, "The grid of noise levels (sampling.grid).")
flags.DEFINE_multi_string("grid_option", [], "A grid's option NAME=VALUE, also --grid.NAME VALUE; may be repeated.")
flags.DEFINE_multi_string("network_option", [], "A network's option NAME=VALUE, also --network.NAME VALUE.")


def resolve_config(argv: list[str]) -> list[str]:
    """The arguments with a configuration's name replaced by its path.

    Raises UserError for a name that is neither a file of configs/ nor a path.
    """
    resolved = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and i + 1 == len(argv):
            raise UserError(f"--config needs a name; {nearest('', config_names())}")
        at = i if equals else i + 1
        name, colon, variants = (value if equals else argv[i + 1]).partition(":")
        file = config_path(name)
        if colon:
            check_variants(file, variants)
        path = f"{file}{colon}{variants}"
        resolved[at] = f"{flag}={path}" if equals else path
    return resolved


def resolve_options(argv: list[str]) -> list[str]:
    """The arguments with --sampler.NAME VALUE and --grid.NAME VALUE as flags that absl knows.

    Raises UserError for one without a name or a value.
    """
    keys = "|".join(map(re.escape, NAMED_OPTIONS))
    resolved, left = [], iter(argv)
    for argument in left:
        match = re.fullmatch(rf"--?({keys})\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            resolved.append(argument)
            continue
        key, name, value = match.groups()
        if not name:
            raise UserError(f"{argument} lacks the name of an option, as in --{key}.NAME VALUE; see --mode samplers")
        if value is None:
            value = next(left, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{argument} needs a value, as in {argument} VALUE")
        resolved.append(f"--{NAMED_OPTIONS[key]}={name}={value}")
    return resolved


def check_variants(file: Path, chosen: str) -> None:
    """Raises UserError for a variant that the configuration does not have, before absl's own reading of the flag."""
    get_config = runpy.run_path(str(file))["get_config"]
    if not inspect.signature(get_config).parameters:
        raise UserError(f"the configuration {file.stem!r} has no variants, and {chosen!r} is asked of it")
    get_config(chosen)


def config_names() -> list[str]:
    """The configurations that a name can choose."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("__init__", "base", "variants"))


def config_path(name: str) -> Path:
    """The file of a configuration that is given by name or path."""
    if Path(name).is_file():
        return Path(name)
    if name.endswith(".py") or "/" in name:
        raise UserError(f"there is no configuration file {name}; {nearest(Path(name).stem, config_names())}")
    choose("configuration", name, dict.fromkeys(config_names()))
    return CONFIGS / f"{name}.py"


def choose_named(section: ConfigDict, key: str, name: str | None, options: str, given: Iterable[str]) -> None:
    """Choose a sampler or a grid by name and set its options; those of another one are dropped."""
    from sde_diffusion.core.options import option

    name = section[key] if name is None else name
    kept = section[options].to_dict() if name == section[key] else {}
    section[key] = name
    section[options] = ConfigDict({**kept, **dict(map(option, given))})


def apply_flags(config: ConfigDict) -> None:
    """Write the short flags into the configuration."""
    from sde_diffusion.core.options import option
    from sde_diffusion.denoisers.settings import ModelSettings, ProcessSettings
    from sde_diffusion.settings.sampling import SamplingSettings

    sampling = config.sampling
    with config.unlocked():
        choose_named(sampling, "sampler", FLAGS.sampler, "options", FLAGS.option)
        choose_named(sampling, "grid", FLAGS.grid, "grid_options", FLAGS.grid_option)
        own = SamplingSettings.from_values(sampling.to_dict())
        sde = ProcessSettings.from_values(config.process.to_dict()).process()
        sampling.options = ConfigDict(own.sampler_options)
        sampling.grid_options = ConfigDict(own.options_of_grid(own.sampler, sde))
        if FLAGS.steps is None:  # given sigmas, or a respacing, are as many steps as they are
            sampling.steps = own.given_steps(sde)
        given = dict(map(option, FLAGS.network_option))
        config.model.options = ConfigDict({**config.model.options.to_dict(), **given})
        config.model.options = ConfigDict(ModelSettings.from_values(config.model.to_dict()).own_options())
    for flag, key in (("source", "source"), ("path", "path"), ("source_config", "config")):
        if FLAGS[flag].value is not None:
            config.importing[key] = FLAGS[flag].value
    apply_lists(config)
    apply_edit(config)
    if FLAGS.num_samples is not None:
        sampling.num_samples = FLAGS.num_samples
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    if FLAGS.device is not None:
        config.device = FLAGS.device
    if (
        FLAGS.mode == "all"
        and not config.oracle.kind
        and (FLAGS.sampler is not None or FLAGS.steps is not None or FLAGS.option)
    ):
        options = ",".join(f"{name}={value}" for name, value in sampling.options.items())
        sampling.gallery = (f"{sampling.sampler}:{sampling.steps}" + (f":{options}" if options else ""),)
        config.compare.samplers = ()  # one sampler is what is asked for


def apply_edit(config: ConfigDict) -> None:
    """Write the flags of an edit into the configuration. Raises UserError where another mode is asked for."""
    for flag in ("input", "strength"):
        if FLAGS[flag].value is None:
            continue
        if FLAGS.mode != "edit":
            raise UserError(f"--{flag} is for --mode edit, and the mode is {FLAGS.mode!r}")
        config.edit[flag] = FLAGS[flag].value


def apply_lists(config: ConfigDict) -> None:
    """Write the flags that a comparison takes several values of into the configuration.

    Raises UserError for several values where another mode takes one, and for steps that are no whole numbers.
    """
    compares = FLAGS.mode == "compare" or (FLAGS.mode == "all" and bool(config.oracle.kind))
    if compares and (FLAGS.sampler is not None or FLAGS.option):
        raise UserError("--mode compare takes --samplers NAME[:[STEPS][:OPTION=VALUE,...]],..., not --sampler")
    if FLAGS.steps is not None:
        wrong = [text for text in FLAGS.steps if not text.strip().isdigit()]
        if wrong or not FLAGS.steps:
            raise UserError(f"--steps takes whole numbers, such as 50 or 10,20,50, got {','.join(FLAGS.steps)!r}")
        steps = tuple(map(int, FLAGS.steps))
        if compares:
            config.compare.steps = steps
        elif len(steps) > 1:
            raise UserError(f"--steps {','.join(FLAGS.steps)}: several numbers of steps are for --mode compare")
        else:
            config.sampling.steps = steps[0]
    for flag, key in (("samplers", "samplers"), ("metrics", "metrics")):
        given = FLAGS[flag].value
        if given is not None and not compares:
            raise UserError(f"--{flag} is for --mode compare, and the mode is {FLAGS.mode!r}")
        if given is not None:
            config.compare[key] = tuple(split_entries(given) if flag == "samplers" else given)


def split_entries(text: str) -> list[str]:
    """Samplers with commas between them; a part OPTION=VALUE without a sampler's name belongs to the one before."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


def chosen_config() -> tuple[ConfigDict, str]:
    """The configuration and its name: of --config, or the one that the run folder holds, or for an import the base.

    Raises UserError where there is none.
    """
    if FLAGS.config is not None:
        path, _, variants = config_flags.get_config_filename(FLAGS["config"]).partition(":")
        return FLAGS.config, "_".join([Path(path).stem, *filter(None, re.split(r"[\s,]+", variants))])
    from configs import base

    stored = Path(FLAGS.workdir or "") / "config.json"
    if FLAGS.workdir and stored.is_file():
        config = base.get_config()
        known = {name: value for name, value in json.loads(stored.read_text()).items() if name in config}
        with config.unlocked():
            config.update(known)
        return config, Path(FLAGS.workdir).name
    if FLAGS.mode == "import" or (FLAGS.workdir and (Path(FLAGS.workdir) / "checkpoints").is_dir()):
        return base.get_config(), Path(FLAGS.path or "import").stem
    raise UserError(f"--config is needed; {nearest('', config_names())}")


def run(argv: list[str]) -> None:
    """Carry out the command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --, see --help")
    choose("mode", FLAGS.mode, dict.fromkeys(MODE_NAMES))
    if FLAGS.mode == "samplers":
        from sde_diffusion.commands.catalogue import catalogue

        print(catalogue())
        return
    config, name = chosen_config()
    apply_flags(config)

    import run_lib
    from sde_diffusion.settings.root import Settings

    try:
        settings = Settings.from_config(config)
        settings.check()
    except UserError as error:
        raise everyones(error) from error.__cause__
    if settings.oracle.kind and FLAGS.mode not in ("all", "compare"):
        raise UserError(
            f"--mode {FLAGS.mode} needs a network, and {name} is a closed-form model; --mode compare is what it is for"
        )
    engine = settings.engine(training=FLAGS.mode in ("all", "train"))
    with ExitStack() as silence:
        silence.callback(engine.close)
        if not engine.main:  # one process speaks for all
            silence.enter_context(redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
            warnings.simplefilter("ignore")
        run_lib.MODES[FLAGS.mode](settings, Path(FLAGS.workdir or f"runs/{name}"), engine)


def explain(error: BaseException) -> int:
    """One sentence on the screen, by one of several processes if all of them have it to tell; the exit code."""
    number, shared = process_number(), EVERYONES in getattr(error, "__notes__", ())
    if not (number and shared):
        who = f" (process {number})" if number else ""
        print(f"error{who}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the place in the code."""
    return f"warning: {message}\n"


def main(argv: list[str]) -> None:
    """The entry point of absl, with the errors and warnings that are meant for a person as one sentence."""
    warnings.formatwarning = sentence
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clearing up what is half written
    try:
        run(argv)
    except Preempted as stopped:
        if not process_number():
            print(stopped)
    except (UserError, OSError) as error:
        sys.exit(explain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; a configuration key that does not exist is a sentence, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections raises these for --config.KEY=VALUE, with the nearest key in the message.
        what = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        sys.exit(explain(UserError(f"unknown configuration key {what} configs/base.py lists every key")))


def cli() -> None:
    """The console script."""
    sys.path.insert(0, str(CONFIGS.parent))
    try:
        # ml_collections looks for --config.KEY in sys.argv itself.
        sys.argv = resolve_options(resolve_config(sys.argv))
    except UserError as error:
        sys.exit(explain(error))
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
