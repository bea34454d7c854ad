"""The flags of the command line, and short ways of writing them."""

from __future__ import annotations

import re

from absl import flags
from ml_collections import config_flags

from sde_diffusion.commands.modes import LISTINGS, MODES
from sde_diffusion.core.errors import UserError

NAMED_OPTIONS = {
    "sampler": "option",
    "config.sampling.options": "option",
    "grid": "grid_option",
    "config.sampling.grid_options": "grid_option",
    "network": "network_option",
    "config.model.options": "network_option",
}
"""--KEY.NAME VALUE -> the flag that takes it as NAME=VALUE. A table, as the settings' fields come with torch, and flags
are read before that."""

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "A configuration's name (a file of configs/) or path.", lock_config=True
)
flags.DEFINE_string(
    "mode",
    "all",
    f"What to do: {', '.join((*MODES, *LISTINGS))}. 'all' trains, samples, evaluates and compares; "
    "'data' says what a training would read; "
    "'compare' puts samplers in one report; 'samplers' lists samplers and grids, 'settings [SECTION]' every key; "
    "'edit' gives pictures noise and takes them back; "
    "'ema' makes averages of the weights of any length from the snapshots of a training; "
    "'import' takes a checkpoint of another code base, 'export' writes a folder of diffusers.",
)
flags.DEFINE_string("workdir", None, "The run folder; runs/<configuration> unless given.")
flags.DEFINE_string(
    "source", None, "import: the code base: score_sde, edm, openai, ddim, lucidrains or diffusers (importing.source)."
)
flags.DEFINE_string("path", None, "import, export: the file, or the folder of diffusers (importing.path).")
flags.DEFINE_string(
    "source_config", None, "import: JSON or YAML file of the source's own keys, or a published name (importing.config)."
)
flags.DEFINE_string("sampler", None, "The sampler (sampling.sampler).")
flags.DEFINE_list("steps", None, "Steps of the sampler (sampling.steps); compare: budgets 10,20,50 (compare.steps).")
flags.DEFINE_string(
    "samplers", None, "compare: NAME[:[STEPS][:OPTION=VALUE,...]] with commas between them (compare.samplers)."
)
flags.DEFINE_list("metrics", None, "compare: metrics with commas between them (compare.metrics).")
flags.DEFINE_integer("num_samples", None, "How many samples to draw (sampling.num_samples).")
flags.DEFINE_list(
    "classes", None, "Classes by number or name, with or without counts: cat:10,dog:2 (sampling.classes)."
)
flags.DEFINE_list("attributes", None, "Attributes that all samples have, the others being off (sampling.attributes).")
flags.DEFINE_string("out", None, "sample, edit: samples are called samples_<out>.* (sampling.out).")
flags.DEFINE_float("guidance", None, "The weight w of x0_hat + w (x0_hat - that without a class) (sampling.guidance).")
flags.DEFINE_float("guidance.scale", None, "The same as Imagen and diffusers count it: w + 1.")
flags.DEFINE_integer("seed", None, "The seed of training, samples and likelihoods (seed).")
flags.DEFINE_string("input", None, "edit: a picture, a folder or a zip of them, or an .npz (edit.input).")
flags.DEFINE_float("strength", None, "edit: the share of the grid's steps that are taken, in (0, 1] (edit.strength).")
flags.DEFINE_string("device", None, "cpu, cuda, ... (device).")
flags.DEFINE_multi_string("option", [], "A sampler's option NAME=VALUE, also --sampler.NAME VALUE; may be repeated.")
flags.DEFINE_string("grid", None, "The grid of noise levels (sampling.grid).")
flags.DEFINE_multi_string("grid_option", [], "A grid's option NAME=VALUE, also --grid.NAME VALUE; may be repeated.")
flags.DEFINE_multi_string("network_option", [], "A network's option NAME=VALUE, also --network.NAME VALUE.")


def value_of(argv: list[str], name: str) -> str | None:
    """The value of a flag, before absl reads the flags; None where it is not given."""
    found = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", argument, re.DOTALL)
        if match:
            found = following if match[1] is None else match[1]
    return found


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


def split_entries(text: str) -> list[str]:
    """Samplers with commas between them; a part OPTION=VALUE without a sampler's name belongs to the one before."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found
