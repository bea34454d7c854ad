"""Key names of the NCSNv2 checkpoints of yang-song/score_sde_pytorch (models/ncsnv2.py)."""

from itertools import product

from torch import nn

from sde_diffusion.nets.ncsnv2 import NCSNv2

# The source's names of the levels from the top down and of the refinements from the bottom up, by their number. The
# level that its network for 256 pixels has beyond that for 128 is squeezed in as "31".
LEVELS = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 3 31 4 5"}
REFINES = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 31 3 4 5"}
BLOCK = {"norm1": "normalize1", "conv1": "conv1", "norm2": "normalize2", "conv2": "conv2", "skip": "shortcut"}


def ncsnv2_keys(net: NCSNv2) -> dict[str, str]:
    """Each key of our state dict with the source's key of the same tensor, free of its `module.` prefix.

    The source's buffer `sigmas` has no counterpart: the division by sigma is not the network's task.
    """
    count = len(net.levels)
    layers = {"stem": "begin_conv", "head.0": "normalizer", "head.2": "end_conv"}

    for i, name in enumerate(LEVELS[count].split()):
        for j, block in enumerate(("enter", "stay")):
            layers |= {f"levels.{i}.{block}.{ours}": f"res{name}.{j}.{theirs}" for ours, theirs in BLOCK.items()}
        if isinstance(net.levels[i].pool, nn.AvgPool2d):  # where the source wraps the last convolutions
            for last in ("conv2", "skip"):
                layers[f"levels.{i}.enter.{last}"] += ".conv"

    for i, name in enumerate(REFINES[count].split()):
        chains = {"out": "output_convs", "adapt.0": "adapt_convs.0", "adapt.1": "adapt_convs.1"}
        for ours, theirs in chains.items():
            for unit, conv in product(range(3), (1, 2)):
                layers[f"refines.{i}.{ours}.{unit}.conv{conv}"] = f"refine{name}.{theirs}.{unit + 1}_{conv}_conv"
        for j in range(2):
            layers[f"refines.{i}.fuse.{j}"] = f"refine{name}.msf.convs.{j}"
            layers[f"refines.{i}.pool.convs.{j}"] = f"refine{name}.crp.convs.{j}"

    split = {key: key.rpartition(".") for key in net.state_dict()}
    return {key: f"{layers[layer]}.{tensor}" for key, (layer, _, tensor) in split.items()}


REGISTERED = [
    *("begin_conv", "normalizer", "end_conv", "res", "refine"),
    *("conv1", "normalize2", "conv2", "shortcut", "normalize1"),
    *("adapt_convs", "output_convs", "msf", "crp"),
    *("alpha", "gamma", "beta", "weight", "bias"),
]
"""Names of modules and tensors, those of one module in the order in which the source registers them."""


def registration(key: str) -> list[tuple[int, str, str]]:
    """A sort key: with it the source's keys come in the order of its parameters."""

    def place(part: str) -> tuple[int, str, str]:
        name = part if part in REGISTERED else part.rstrip("0123456789")
        rank = REGISTERED.index(name) if name in REGISTERED else len(REGISTERED)
        return rank, part[len(name) :], part

    return [place(part) for part in key.split(".")]
