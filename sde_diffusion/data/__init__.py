"""Data: stored samples, their map to model space, and the sets that can be loaded by name."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.sizes import Size, said, sides
from sde_diffusion.data import arrays, arrow, cifar10, folder, small, toy2d, webdataset
from sde_diffusion.data.augment import Augmentation
from sde_diffusion.data.columns import Columns
from sde_diffusion.data.cut import Cut
from sde_diffusion.data.dataset import Dataset, Source, Splits
from sde_diffusion.data.dequantize import DEQUANTIZERS, Dequantized, Dequantizer, LogitNormal, Uniform
from sde_diffusion.data.loader import Stream, batches
from sde_diffusion.data.mapped import Reading
from sde_diffusion.data.modes import MAX_PIXELS, Decoding
from sde_diffusion.data.transform import MEANS, DataTransform
from sde_diffusion.data.watching import Watch, unwatched

__all__ = [
    "DATASETS",
    "DEQUANTIZERS",
    "MEANS",
    "Augmentation",
    "DataOptions",
    "DataTransform",
    "Dataset",
    "Dequantized",
    "Dequantizer",
    "LogitNormal",
    "Source",
    "Splits",
    "Stream",
    "Uniform",
    "batches",
    "load_pictures",
    "load_splits",
]


@dataclass(frozen=True)
class DataOptions:
    """What a data set may be told; each reads only what concerns it.

    root: folder of the data (cifar10, folder, webdataset), a zip archive of it (folder), or names of archives
    (webdataset). image_size: a side of a square in pixels, or (height, width); 0 for the set's own.
    source: where cifar10 comes from ("auto", "parquet", "huggingface", "binary").
    label_column, attribute_columns, target_columns: as in `Columns`, of a table beside the pictures, or of vectors.
    name: name on the Hugging Face hub. shape, size, seed: the figure, the number of training points
    (0 for the default) and the seed of toy2d.
    storage, split, held_out, corrupt_limit, shuffle_window, lanes, cache, watch: as in `Reading`, which calls
    shuffle_window window. crop, min_crop, fit, draft: as in `Cut`; background, channels,
    max_pixels: as in `Decoding`.
    Raises UserError for values that no set can be read with.
    """

    root: str = ""
    image_size: Size = 0
    source: str = "auto"
    name: str = ""
    shape: str = "moons"
    size: int = 0
    seed: int = 0
    storage: str = "auto"
    split: str = "auto"
    held_out: int = 0
    corrupt_limit: float = 0.01
    shuffle_window: int = 4096
    lanes: int = 32
    cache: bool = True
    draft: bool = False
    label_column: str = ""
    attribute_columns: tuple[str, ...] = ()
    target_columns: tuple[str, ...] = ()
    crop: str = "centre"
    min_crop: float = 0.8
    fit: str = "crop"
    background: str = "white"
    channels: int = 0
    max_pixels: int = MAX_PIXELS
    watch: Watch = field(default=unwatched, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Any size will do, so that random crops are refused for the memory and not for a size that the set may give.
        self.reading(self.image_size or 1)

    @property
    def columns(self) -> Columns:
        """Which columns of a table tell what."""
        return Columns(self.label_column, tuple(self.attribute_columns), tuple(self.target_columns))

    def reading(self, image_size: Size) -> Reading:
        """How pictures are read."""
        cut = Cut(image_size, self.crop, self.min_crop, self.fit, self.background, self.draft)
        decoding = Decoding(self.background, self.max_pixels, self.channels)
        limit, window = self.corrupt_limit, self.shuffle_window
        how = (self.split, self.lanes, self.cache, self.watch, decoding)
        return Reading(self.storage, cut, self.held_out, limit, window, *how)

    def reading_others(self, image_size: Size) -> Reading:
        """How pictures that are not of the set are read: decoded as the set's, brought to a size without chance."""
        cut = Cut(image_size, fit=self.fit if image_size else "crop", background=self.background)
        return Reading(cut=cut, decoding=Decoding(self.background, self.max_pixels, self.channels))


def _without_root(name: str, options: DataOptions) -> None:
    """Raises UserError where a set that comes from elsewhere is given a folder."""
    if options.root:
        raise UserError(
            f"the data set {name!r} is not read from a folder, and data.root is {options.root!r}: for your own files "
            "choose data.dataset=folder."
        )


def _in_memory(load: Callable[[Reading], Splits], options: DataOptions) -> Splits:
    reading = options.reading(options.image_size or 1)
    splits = reading.only_memory(load(reading))
    _without_root(splits.train.title, options)
    return splits


def _huggingface(options: DataOptions) -> Splits:
    _without_root("huggingface", options)
    return arrow.huggingface(options.name, options.reading(options.image_size))


DATASETS: dict[str, Callable[[DataOptions], Splits]] = {
    "digits": lambda o: _in_memory(small.digits, o),
    "mnist5k": lambda o: _in_memory(small.mnist5k, o),
    "toy2d": lambda o: _in_memory(lambda _: toy2d.load(o.shape, o.size or toy2d.DEFAULT_SIZE, o.seed), o),
    "cifar10": lambda o: cifar10.load(o.root, o.source, o.name, o.reading(cifar10.SIDE if o.crop == "random" else 0)),
    "folder": lambda o: folder.load(o.root, o.reading(o.image_size), o.columns),
    "webdataset": lambda o: webdataset.load(o.root, o.reading(o.image_size)),
    "array": lambda o: arrays.load(o.root, o.reading(o.image_size or 1), o.columns),
    "huggingface": _huggingface,
}


def load_pictures(root: str, image_size: Size = 0, like: DataOptions | None = None) -> tuple[Dataset, list[str]]:
    """All pictures of a folder, in class folders or without them, as one set, and their names in it.

    image_size: as in `Cut`; like: of the set as whose pictures these are read. Raises UserError as the loader does.
    """
    return folder.load_whole(root, (like or DataOptions()).reading_others(image_size))


def load_splits(dataset: str, options: DataOptions) -> Splits:
    """Load the data set of that name.

    Raises UserError for an unknown name, an image size the set does not come in, and as its loader does.
    """
    splits = choose("data set", dataset, DATASETS)(options)
    shape, size = splits.train.shape, options.image_size
    if size and shape[1:] != sides(size):
        raise UserError(
            f"{dataset} has samples of shape {list(shape)} and is not resized: leave the image size at 0, not "
            f"{said(size)}."
        )
    return splits
