"""Data: stored samples, their map to model space, and the sets that can be loaded by name."""

from collections.abc import Callable
from dataclasses import dataclass

from sde_diffusion.data import arrow, cifar10, folder, small, toy2d
from sde_diffusion.data.augment import Augmentation
from sde_diffusion.data.dataset import Dataset, Splits, batches
from sde_diffusion.data.dequantize import DEQUANTIZERS, Dequantized, Dequantizer, LogitNormal, Uniform
from sde_diffusion.data.transform import DataTransform
from sde_diffusion.errors import UserError, choose

__all__ = [
    "DATASETS",
    "DEQUANTIZERS",
    "Augmentation",
    "DataOptions",
    "DataTransform",
    "Dataset",
    "Dequantized",
    "Dequantizer",
    "LogitNormal",
    "Splits",
    "Uniform",
    "batches",
    "load_pictures",
    "load_splits",
]


@dataclass(frozen=True)
class DataOptions:
    """What a data set may be told; each reads only what concerns it.

    root: folder of the data (cifar10, folder). image_size: side in pixels, 0 for the set's own.
    source: where cifar10 comes from ("auto", "parquet", "huggingface", "binary").
    name: name on the Hugging Face hub. shape, size, seed: the figure, the number of training points
    (0 for the default) and the seed of toy2d.
    """

    root: str = ""
    image_size: int = 0
    source: str = "auto"
    name: str = ""
    shape: str = "moons"
    size: int = 0
    seed: int = 0


DATASETS: dict[str, Callable[[DataOptions], Splits]] = {
    "digits": lambda o: small.digits(),
    "mnist5k": lambda o: small.mnist5k(),
    "toy2d": lambda o: toy2d.load(o.shape, o.size or toy2d.DEFAULT_SIZE, o.seed),
    "cifar10": lambda o: cifar10.load(o.root, o.source, o.name),
    "folder": lambda o: folder.load(o.root, o.image_size),
    "huggingface": lambda o: arrow.huggingface(o.name, o.image_size),
}


def load_pictures(root: str, image_size: int = 0) -> tuple[Dataset, list[str]]:
    """All pictures of a folder, in class folders or without them, as one set, and their names in it.

    Raises UserError as the loader does.
    """
    return folder.load_whole(root, image_size)


def load_splits(dataset: str, options: DataOptions) -> Splits:
    """Load the data set of that name.

    Raises UserError for an unknown name, an image size the set does not come in, and as its loader does.
    """
    if options.image_size < 0:
        raise UserError(f"the image size must be 0 or more pixels, not {options.image_size}.")
    splits = choose("data set", dataset, DATASETS)(options)
    shape, size = splits.train.shape, options.image_size
    if size and shape[1:] != (size, size):
        raise UserError(
            f"{dataset} has samples of shape {list(shape)} and is not resized: leave the image size at 0, not {size}."
        )
    return splits
