"""The configuration that a command line asks for: chosen, and with the short flags written in."""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from sde_diffusion.commands.flags import FLAGS, split_entries
from sde_diffusion.commands.wanted import apply_classes, apply_edit, apply_guidance
from sde_diffusion.core.errors import UserError

SHORT = {
    "source": "importing.source",
    "path": "importing.path",
    "source_config": "importing.config",
    "num_samples": "sampling.num_samples",
    "seed": "seed",
    "device": "device",
}
"""Flags that are short for a key."""


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
    for flag, key in SHORT.items():
        if FLAGS[flag].value is not None:
            config.update_from_flattened_dict({key: FLAGS[flag].value})
    apply_lists(config)
    apply_edit(config)
    apply_classes(config)
    apply_guidance(config)
    if (
        FLAGS.mode == "all"
        and not config.oracle.kind
        and (FLAGS.sampler is not None or FLAGS.steps is not None or FLAGS.option)
    ):
        options = ",".join(f"{name}={value}" for name, value in sampling.options.items())
        sampling.gallery = (f"{sampling.sampler}:{sampling.steps}" + (f":{options}" if options else ""),)
        config.compare.samplers = ()  # one sampler is what is asked for


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
    for flag in ("samplers", "metrics"):
        given = FLAGS[flag].value
        if given is not None and not compares:
            raise UserError(f"--{flag} is for --mode compare, and the mode is {FLAGS.mode!r}")
        if given is not None:
            config.compare[flag] = tuple(split_entries(given) if flag == "samplers" else given)
