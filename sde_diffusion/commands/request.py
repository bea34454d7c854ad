"""The configuration that a command line asks for: chosen, and with the short flags written in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from ml_collections import ConfigDict, config_flags

from sde_diffusion.commands.configurations import config_names
from sde_diffusion.commands.flags import FLAGS
from sde_diffusion.core.errors import UserError, nearest


def chosen_config() -> tuple[ConfigDict, str]:
    """The configuration and its name: of --config, or the one that the run folder holds, or for an import the base.

    Raises UserError where there is none.
    """
    if FLAGS.config is not None:
        path, _, variants = config_flags.get_config_filename(FLAGS["config"]).partition(":")
        return FLAGS.config, "_".join([Path(path).stem, *filter(None, re.split(r"[\s,]+", variants))])
    base: Callable[[], ConfigDict] = import_module("configs.base").get_config
    stored = Path(FLAGS.workdir or "") / "config.json"
    if FLAGS.workdir and stored.is_file():
        config = base()
        known = {name: value for name, value in json.loads(stored.read_text()).items() if name in config}
        with config.unlocked():
            config.update(known)
        return config, Path(FLAGS.workdir).name
    if FLAGS.mode == "import" or (FLAGS.workdir and (Path(FLAGS.workdir) / "checkpoints").is_dir()):
        return base(), Path(FLAGS.path or "import").stem
    raise UserError(f"--config is needed; {nearest('', config_names())}")


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
