"""What a training reads: the section "data" of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.settings import Section, at_least, one_of, optional, setting, whole_or_size
from sde_diffusion.data import DATASETS, MEANS, DataOptions, Source, Splits, Stream, batches, load_splits
from sde_diffusion.data.cut import FITS
from sde_diffusion.data.mapped import SPLITS
from sde_diffusion.data.modes import MAX_PIXELS
from sde_diffusion.data.watching import Watch, unwatched


@dataclass(frozen=True)
class DataSettings(Section):
    """The data set, how it is stored and how it is read."""

    key: ClassVar[str] = "data"

    dataset: str = setting(
        "digits",
        "digits, mnist5k, toy2d, cifar10, folder, array, webdataset or huggingface",
        one_of("data set", DATASETS),
    )
    root: str = setting(
        "",
        "folder of the data; or an archive (folder), a file (array), archives as DIR/train-{000..009}.tar (webdataset)",
    )
    source: str = setting("auto", 'cifar10: "parquet", "huggingface" or "binary"; "auto" looks at the root')
    name: str = setting("", "name of a data set on the Hugging Face hub")
    image_size: int | tuple[int, int] = setting(
        0,
        "pixels a side of a square, or (height, width); 0 keeps the set's own",
        whole_or_size("the set's own"),
        also=tuple,
    )
    fit: str = setting(
        "crop",
        'how pictures come to that size: "crop" cuts the middle out, "pad" sets all of it on data.background, '
        '"stretch" changes its proportions',
        one_of("fit", FITS),
    )
    background: str = setting(
        "white", "colour on which transparent pictures are laid, and padded ones: a name or #rrggbb"
    )
    channels: int = setting(0, "1 makes pictures grey, 3 gives them colours; 0: 1 where all are grey, else 3")
    max_pixels: int = setting(MAX_PIXELS, "pictures of more pixels count as broken", at_least(1))
    shape: str = setting("moons", 'toy2d: "moons", "checkerboard" or "mixture"')
    size: int = setting(0, "toy2d: number of training points; 0 for its default")
    label_column: str = setting("", 'of a table: the class of each row; "" for "label", "labels" or "class"')
    attribute_columns: tuple[str, ...] = setting((), "of a table, of 0 and 1; () for all such columns")
    target_columns: tuple[str, ...] = setting((), "of a table, of numbers; () for all such columns")
    flip: bool = setting(False, "random horizontal flips in training")
    subtract_mean: str = setting(
        "none", '"all": the mean of the training set; "class": of each class', one_of("mean to subtract", MEANS)
    )
    storage: str = setting("auto", '"memory", "mapped" or "streaming"; "auto" takes memory for sets below 2 GiB')
    split: str = setting(
        "auto",
        '"auto" holds out what the set has for it, or a tenth; "none" trains on all of it',
        one_of("split", dict.fromkeys(SPLITS)),
    )
    held_out: int = setting(0, "samples that are held out at most; 0 for all there are", optional("all"))
    crop: str = setting("centre", 'or "random", from pictures that are decoded as they are read')
    min_crop: float = setting(0.8, '"random": smallest side of the crop, as a share of the largest crop\'s')
    workers: int = setting(0, "processes that decode pictures (mapped, streaming)", optional("none"))
    cache: bool = setting(True, "keep what is decoded once in the user's cache folder (2,000 pictures or more)")
    draft: bool = setting(False, "unpack large JPEG pictures at a smaller size: faster, and not quite the same pixels")
    prefetch: int = setting(2, "batches that each of them is ahead", at_least(1))
    shuffle_window: int = setting(4096, "streaming: pictures that are shuffled among one another", at_least(1))
    lanes: int = setting(32, "streaming: lanes of a batch at most, by which processes share files", at_least(1))
    corrupt_limit: float = setting(0.01, "share of unreadable pictures beyond which reading stops")
    dequantize: bool = setting(False, "train on dequantised grey levels, the density that bits/dim is about")

    def options(self, seed: int) -> DataOptions:
        """What the loader of the set is told. Raises UserError for values that no set can be read with."""
        names = {f.name for f in fields(DataOptions)} & {f.name for f in fields(self)}
        return DataOptions(**{name: getattr(self, name) for name in names}, seed=seed)

    def check_apart(self, run: Path) -> None:
        """Raises UserError for a run folder that is the folder of the pictures, which would be joined by its own."""
        if self.dataset == "folder" and self.root and Path(self.root).expanduser().resolve() == run.resolve():
            raise UserError(
                f"data.root and --workdir are one folder, {run}: what a run writes would be read as pictures; choose "
                "another --workdir"
            )

    def splits(self, seed: int, watch: Watch = unwatched) -> Splits:
        """The training and the held-out set. Raises UserError as their loader does.

        watch: is shown how many pictures are decoded.
        """
        splits = load_splits(self.dataset, replace(self.options(seed), watch=watch))
        if self.flip and splits.train.levels is None:
            raise UserError(f"data.flip: {splits.train.title} holds vectors, which cannot be flipped left to right")
        return splits

    def batches(
        self, source: Source, size: int, seed: int, rows: range, start_step: int, state: Mapping[str, int] | None
    ) -> AbstractContextManager[Stream]:
        """The rows of every batch of `size` that are this process's, from a step on; state: of a stream there."""
        stream = batches(
            source,
            size,
            seed=seed,
            start_step=start_step,
            flip=self.flip,
            part=slice(rows.start, rows.stop),
            workers=self.workers,
            prefetch=self.prefetch,
            state=state,
        )
        return closing(stream)
