"""Train, sample and evaluate score-based diffusion models.

    sde-diffusion --config vpsde_digits                          train or resume, then sample, evaluate and compare
    sde-diffusion --config vpsde_digits --mode sample --sampler pc --steps 1000 --num_samples 64 --seed 0
    sde-diffusion --config vpsde_digits --mode sample --sampler dpmpp_2m --sampler.order 2 --grid karras --grid.rho 7
    sde-diffusion --config vpsde_digits --mode edit --input PICTURE --strength 0.5
    sde-diffusion --config vpsde_digits --mode compare --samplers ddpm,ddim,pc,ode --steps 10,20,50,100
    sde-diffusion --config oracle_gmm                            the same where the truth is known, without a network
    sde-diffusion --config vpsde_digits --mode likelihood        bits/dim by the flow and by the bound
    sde-diffusion --config vpsde_digits --mode latents           encode, decode, interpolate
    sde-diffusion --mode import --source score_sde --path FILE --source_config cifar10_ddpmpp_continuous --workdir RUN
    sde-diffusion --config vpsde_digits --mode ema               averages of other lengths, from snapshots
    torchrun --nproc_per_node 8 -m sde_diffusion --config vpsde_cifar   the same, by several processes
    sde-diffusion --mode samplers                                the samplers and grids with their options
    sde-diffusion --mode settings sampling                       every key of a section; without its name, of all
    sde-diffusion --config folder --config.data.root=DIR         the same on a folder or a zip archive of your pictures
    sde-diffusion --config folder --config.data.root=DIR --mode data    what would be read of it
Any setting can be changed by --config.SECTION.KEY=VALUE.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import warnings
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from absl import app

from sde_diffusion.commands import flags as own
from sde_diffusion.commands.configurations import chosen_config, name_bundled, resolve_config
from sde_diffusion.commands.flags import FLAGS, resolve_options
from sde_diffusion.commands.modes import LISTINGS, MODES
from sde_diffusion.commands.request import apply_flags
from sde_diffusion.commands.words import explain, program, sentence
from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.runtime.ranks import everyones, process_number
from sde_diffusion.settings.moved import check_moved, refused
from sde_diffusion.training.guard import Preempted


def run(argv: list[str]) -> None:
    """Carry out the command line."""
    choose("mode", FLAGS.mode, dict.fromkeys((*MODES, *LISTINGS)))
    listing = LISTINGS.get(FLAGS.mode)
    most = len(inspect.signature(listing).parameters) if listing else 0
    if len(argv) - 1 > most:
        raise UserError(f"unexpected argument {argv[1 + most]!r}; flags begin with --, see --help")
    if listing:
        return print(listing(*argv[1:]))
    config, name = chosen_config()
    folder = Path(FLAGS.workdir or f"runs/{name}")

    from sde_diffusion.settings.completing import completed
    from sde_diffusion.settings.root import Settings

    try:
        chosen = completed(config, folder)
        apply_flags(config)
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
        print(*chosen, sep="\n", end="\n" * bool(chosen))
        MODES[FLAGS.mode](settings, folder, engine)


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
        sys.exit(explain(refused(what)))


def cli() -> None:
    """Carry out sys.argv, and end the process."""
    name_bundled()
    # absl shows the main module's docstring and flags; these are it, whichever module was started.
    sys.modules["__main__"].__doc__ = str(__doc__).replace("sde-diffusion", program())
    for flag in FLAGS.get_flags_for_module(own):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        # ml_collections looks for --config.KEY in sys.argv itself.
        sys.argv = resolve_options(resolve_config(sys.argv))
        check_moved(argument.removeprefix("--config.").partition("=")[0] for argument in sys.argv[1:])
    except UserError as error:
        sys.exit(explain(error))
    app.run(main, flags_parser=parse)
