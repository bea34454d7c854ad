"""The flags that say what is wanted of a network: which classes, how strongly, of which pictures, by which name."""

from __future__ import annotations

from ml_collections import ConfigDict

from sde_diffusion.commands.flags import FLAGS
from sde_diffusion.core.errors import UserError


def apply_edit(config: ConfigDict) -> None:
    """Write the flags of an edit into the configuration. Raises UserError where another mode is asked for."""
    for flag in ("input", "strength"):
        if FLAGS[flag].value is None:
            continue
        if FLAGS.mode != "edit":
            raise UserError(f"--{flag} is for --mode edit, and the mode is {FLAGS.mode!r}")
        config.edit[flag] = FLAGS[flag].value


def apply_classes(config: ConfigDict) -> None:
    """Write what is to be drawn, and its name, into the configuration. Raises UserError where another mode is asked."""
    for flag in ("classes", "attributes", "out"):
        if FLAGS[flag].value is not None and FLAGS.mode not in ("sample", "edit"):
            raise UserError(f"--{flag} is for --mode sample and edit, and the mode is {FLAGS.mode!r}")
    if FLAGS.out is not None:
        config.sampling.out = FLAGS.out
    if FLAGS.attributes is not None:
        config.sampling.attributes = tuple(FLAGS.attributes)
    if FLAGS.classes is not None:
        config.sampling.classes = tuple(FLAGS.classes)
        counts = [entry.rpartition(":")[2] for entry in FLAGS.classes if ":" in entry]
        if FLAGS.num_samples is not None and counts and all(count.isdigit() for count in counts):
            raise UserError(f"--classes {','.join(FLAGS.classes)} says how many of each; leave --num_samples out")


def apply_guidance(config: ConfigDict) -> None:
    """Write the weight of guidance into the configuration. Raises UserError where it is given in both ways."""
    weight, scale = FLAGS["guidance"].value, FLAGS["guidance.scale"].value
    if weight is not None and scale is not None:
        raise UserError(f"--guidance {weight:g} and --guidance.scale {scale:g} are the same setting; give one of them")
    if scale is not None and scale < 1.0:
        raise UserError(f"--guidance.scale is 1 (none) or more, got {scale:g}; it is the weight of --guidance plus 1")
    if scale is not None:
        weight = scale - 1.0
    if weight is not None:
        config.sampling.guidance = weight
