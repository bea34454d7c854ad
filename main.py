"""Train, sample and evaluate score-based diffusion models.

    python main.py --config vpsde_digits                          train or resume, then sample and evaluate
    python main.py --config vpsde_digits --mode sample --sampler pc --steps 1000 --num_samples 64 --seed 0
    python main.py --config vpsde_digits --mode likelihood
    python main.py --config vpsde_cifar --config.training.batch_size=64 --config.data.root=FOLDER

Any key of configs/base.py can be set by --config.SECTION.KEY=VALUE.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sde_diffusion.errors import UserError, choose, nearest

CONFIGS = Path(__file__).resolve().parent / "configs"
MODE_NAMES = ("all", "train", "sample", "likelihood", "evaluate")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "A configuration's name (a file of configs/) or path.", lock_config=True
)
flags.DEFINE_string("mode", "all", f"What to do: {', '.join(MODE_NAMES)}. 'all' trains, samples and evaluates.")
flags.DEFINE_string("workdir", None, "The run folder; runs/<configuration> unless given.")
flags.DEFINE_string("sampler", None, "The sampler (sampling.sampler).")
flags.DEFINE_integer("steps", None, "Steps of the sampler (sampling.steps).")
flags.DEFINE_integer("num_samples", None, "How many samples to draw (sampling.num_samples).")
flags.DEFINE_integer("seed", None, "The seed of training, samples and likelihoods (seed).")
flags.DEFINE_string("device", None, "cpu, cuda, ... (device).")
flags.DEFINE_multi_string("option", [], "A named option of the sampler, NAME=VALUE; may be repeated.")


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
        path = str(config_path(value if equals else argv[i + 1]))
        resolved[at] = f"{flag}={path}" if equals else path
    return resolved


def config_names() -> list[str]:
    """The configurations that a name can choose."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("__init__", "base"))


def config_path(name: str) -> Path:
    """The file of a configuration that is given by name or path."""
    if Path(name).is_file():
        return Path(name)
    if name.endswith(".py") or "/" in name:
        raise UserError(f"there is no configuration file {name}; {nearest(Path(name).stem, config_names())}")
    choose("configuration", name, dict.fromkeys(config_names()))
    return CONFIGS / f"{name}.py"


def apply_flags(config: ConfigDict) -> None:
    """Write the short flags into the configuration."""
    from sde_diffusion import build

    sampling = config.sampling
    if FLAGS.sampler is not None:
        if FLAGS.sampler != sampling.sampler:
            with config.unlocked():
                sampling.options = ConfigDict()
        sampling.sampler = FLAGS.sampler
    if FLAGS.option:
        with config.unlocked():
            sampling.options.update(dict(map(build.option, FLAGS.option)))
    if FLAGS.steps is not None:
        sampling.steps = FLAGS.steps
    if FLAGS.num_samples is not None:
        sampling.num_samples = FLAGS.num_samples
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    if FLAGS.device is not None:
        config.device = FLAGS.device
    if FLAGS.mode == "all" and (FLAGS.sampler is not None or FLAGS.steps is not None):
        options = ",".join(f"{name}={value!r}" for name, value in sampling.options.items())
        sampling.gallery = (f"{sampling.sampler}:{sampling.steps}" + (f":{options}" if options else ""),)


def run(argv: list[str]) -> None:
    """Carry out the command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --, see --help")
    choose("mode", FLAGS.mode, dict.fromkeys(MODE_NAMES))
    if FLAGS.config is None:
        raise UserError(f"--config is needed; {nearest('', config_names())}")
    config: ConfigDict = FLAGS.config
    apply_flags(config)
    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem

    import run_lib
    from sde_diffusion import build

    build.check(config)
    run_lib.MODES[FLAGS.mode](config, Path(FLAGS.workdir or f"runs/{name}"))


def explain(error: BaseException) -> int:
    """One sentence on the screen; the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def main(argv: list[str]) -> None:
    """The entry point of absl, with the errors that are meant for a person as one sentence."""
    try:
        run(argv)
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
        argv = resolve_config(sys.argv)
    except UserError as error:
        sys.exit(explain(error))
    app.run(main, argv=argv, flags_parser=parse)


if __name__ == "__main__":
    cli()
