"""The network that a training begins with: one that was trained elsewhere, brought to the data that it meets here.

Its weights, its process and what it predicts are taken. Where the data differ from its own, what differs is mapped, by
rules that keep what the network knows:

    classes     rows are kept by the class's name. A class that is new begins as "no class", or as the mean of all where
                there is no such row. A network without classes gets rows of zeros, so that at first no class changes
                anything; one whose data have no classes keeps what it does without a class.
    channels    f_1(x) = mean of the channels of f_n(x, ..., x): the first layers' weights are summed over the channels
                of x, the last layer's averaged. f_n(x) = f_1(mean of the channels of x) in every channel: the first
                layers' weights are divided by n. A grey picture is to both what it was before.
    sizes       layers that do not depend on the size stay as they are: attention at the levels where it was.

What cannot be mapped is refused in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.sizes import size_of
from sde_diffusion.data import DataTransform, Source
from sde_diffusion.denoisers.network import NetworkSpec
from sde_diffusion.nets.building import arguments, outline, refuse_misfits
from sde_diffusion.storage.checkpoint import Checkpoint

Weights = dict[str, Tensor]

CLASSES, AUGMENT = "conditioning.classes.weight", "conditioning.augment.weight"
"""The rows of the classes, and what takes the labels of augmentations, in networks that have them."""


@dataclass(frozen=True)
class Wanted:
    """What a configuration asks of a network beside what it is.

    dropout     share of the activations that the training drops
    classes     whether it is to be told the class, if it is not yet
    no_class    whether it must have a row for "no class"
    augment     how many numbers describe an augmentation, 0 for none
    """

    dropout: float = 0.0
    classes: bool = False
    no_class: bool = False
    augment: int = 0


@dataclass(frozen=True, eq=False)
class Initial:
    """The network of a training's first step: its description, weights and data transform.

    changes: what was mapped, in words.
    """

    spec: NetworkSpec
    weights: Weights
    transform: DataTransform
    changes: tuple[str, ...] = ()


def initial(name: str, found: Checkpoint, weights: Mapping[str, Tensor], data: Source, wanted: Wanted) -> Initial:
    """A network of a checkpoint for a set of data; name: where it lies, and weights: which of its own are taken.

    Raises UserError where it cannot be brought to the data, with the key that does something about it.
    """
    spec = found.spec
    _check_shapes(name, spec, data)
    rows = Rows.of(found, weights, data, wanted)
    given = {**spec.options, **_chosen_options(name, spec, rows, data, wanted), **_recoloured_options(spec, data)}
    options, sizes = _sized_options(spec, given, data)
    target = outline(spec.network, options).state_dict()
    mapped = _mapped(name, rows.applied(name, spec, weights), target, spec.shape, data.shape)
    own = replace(spec, shape=tuple(data.shape), options=options, conditions=_conditions(spec, rows.told))
    transform, mean = _transform(name, found, data)
    augment = ["what is told of augmentations begins at zero"] if AUGMENT in mapped and AUGMENT not in weights else []
    return Initial(own, mapped, transform, (*rows.words(name), *_channel_words(spec, data), *sizes, *augment, *mean))


def _chosen_options(name: str, spec: NetworkSpec, rows: Rows, data: Source, wanted: Wanted) -> dict[str, Any]:
    """The arguments that the configuration and the classes decide, of those that the network has."""
    known = arguments(spec.network)
    if wanted.classes and not data.classes:
        raise UserError(f"model.class_conditional needs labels, which {data.title} does not have")
    if rows.told and "num_classes" not in known:
        raise UserError(f"model.class_conditional: the network {spec.network!r} of {name} is not told classes")
    chosen: dict[str, Any] = {"dropout": wanted.dropout, "num_classes": len(data.classes) if rows.told else 0}
    chosen |= {"no_class": rows.no_class} if rows.told else {}
    chosen |= {"augment_dims": wanted.augment} if wanted.augment else {}
    return {key: value for key, value in chosen.items() if key in known}


def _conditions(spec: NetworkSpec, told: bool) -> tuple[str, ...]:
    others = tuple(name for name in spec.conditions if name != "labels")
    return ("labels", *others) if told else others


def _check_shapes(name: str, spec: NetworkSpec, data: Source) -> None:
    if len(spec.shape) == 3 == len(data.shape) or tuple(spec.shape) == tuple(data.shape):
        return
    raise UserError(
        f"{name} holds a network of samples of shape {list(spec.shape)}, and those of {data.title} are "
        f"{list(data.shape)}: training.init_from needs one of the same kind of data"
    )


# --- classes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of the classes, there and here.

    table       there, [classes (+ 1), width]; None for a network that is not told classes
    blank       what "no class" adds, [width]; None for a network that must be told one
    there, here: the names of the classes
    told        whether the network is told a class here; no_class: whether it has a row for none
    """

    table: Tensor | None
    blank: Tensor | None
    there: tuple[str, ...]
    here: tuple[str, ...]
    told: bool
    no_class: bool

    @classmethod
    def of(cls, found: Checkpoint, weights: Mapping[str, Tensor], data: Source, wanted: Wanted) -> Rows:
        """The rows of a network and of the data that it is to be trained on."""
        table, count = weights.get(CLASSES), int(found.spec.options.get("num_classes") or 0)
        blank = table[count] if table is not None and len(table) > count else None
        names = found.classes if len(found.classes) == count else tuple(map(str, range(count)))
        told = bool(data.classes) and (table is not None or wanted.classes)
        no_class = table is None or blank is not None or wanted.no_class
        return cls(table, blank, names, tuple(data.classes), told, no_class)

    @property
    def kept(self) -> tuple[str, ...]:
        """The classes here that the network knows."""
        return tuple(name for name in self.here if name in self.there) if self.table is not None else ()

    def words(self, name: str) -> list[str]:
        """What becomes of the classes."""
        if self.table is None:
            said = f"{len(self.here)} classes, which {name} does not know: at first they change nothing"
            return [said] if self.told else []
        if not self.told:
            return ["no classes: what the network does without a class is kept"]
        new = [name for name in self.here if name not in self.there]
        found = [f"the classes {_listed(self.kept)} are kept"] if self.kept and self.here != self.there else []
        begin = "no class" if self.blank is not None else "the mean of all"
        found += [f"the classes {_listed(new)} are new and begin as {begin}"] if new else []
        return found + (["a row for no class, the mean of all"] if self.no_class and self.blank is None else [])

    def applied(self, name: str, spec: NetworkSpec, weights: Mapping[str, Tensor]) -> Weights:
        """The weights with the rows of the classes here. Raises UserError for a network that needs a class."""
        others = {key: value for key, value in weights.items() if key != CLASSES}
        if self.told:
            return {**others, CLASSES: self._here(spec, others)}
        if self.table is None:
            return others
        if self.blank is None:
            raise UserError(
                f"the network of {name} must be told a class, and the data have none: give data with classes, a folder "
                "for each"
            )
        return _folded(spec, others, self.blank)

    def _here(self, spec: NetworkSpec, others: Mapping[str, Tensor]) -> Tensor:
        if self.table is None:
            layer = "hidden" if _classes_first(spec) else "out"
            like = others[f"conditioning.{layer}.weight"]
            width = like.shape[1] if layer == "hidden" else like.shape[0]
            return torch.zeros(len(self.here) + 1, width, dtype=like.dtype)
        blank = self.table[: len(self.there)].mean(dim=0) if self.blank is None else self.blank
        at = {name: i for i, name in enumerate(self.there)}
        rows = [self.table[at[name]] if name in at else blank for name in self.here]
        return torch.stack([*rows, blank] if self.no_class else rows)


def _classes_first(spec: NetworkSpec) -> bool:
    """Whether the network adds the class's row to the features of the noise level, before its layers."""
    net = outline(spec.network, {**spec.options, "num_classes": 1})
    return bool(getattr(net.get_submodule("conditioning"), "classes_first", False))


def _folded(spec: NetworkSpec, weights: Weights, row: Tensor) -> Weights:
    """The weights that do without a row what they did with that one: it goes into the bias of the next layer."""
    layer = "hidden" if _classes_first(spec) else "out"
    bias = weights[f"conditioning.{layer}.bias"]
    added = weights["conditioning.hidden.weight"] @ row if layer == "hidden" else row
    return {**weights, f"conditioning.{layer}.bias": bias + added}


# --- channels and sizes -------------------------------------------------------------------------------------------


def _recoloured_options(spec: NetworkSpec, data: Source) -> dict[str, Any]:
    """The arguments that count the channels, for those of the data."""
    there, here, options = spec.shape[0], data.shape[0], spec.options
    if there == here:
        return {}
    out = options.get("out_channels")
    return {
        **({"in_channels": here} if "in_channels" in options else {}),
        **({"shape": list(data.shape)} if "shape" in options else {}),
        **({"out_channels": out * here // there} if out else {}),
    }


def _channel_words(spec: NetworkSpec, data: Source) -> list[str]:
    there, here = spec.shape[0], data.shape[0]
    if there == here:
        return []
    first, last = ("summed", "averaged") if here == 1 else (f"divided by {here}", "repeated")
    return [f"{here} channel{'s' * (here > 1)} in place of {there}: first layers {first}, last layer {last}"]


def _sized_options(spec: NetworkSpec, options: dict[str, Any], data: Source) -> tuple[dict[str, Any], list[str]]:
    """The arguments for pictures of the data's size, and what changes with it in words.

    Where a network of that size would have other layers, those of attention, it stays as it was built.
    """
    there, here = tuple(spec.shape[1:]), tuple(data.shape[1:])
    if there == here or "image_size" not in options:
        return options, []
    sizes = f"pictures of {_by(here)} in place of {_by(there)}"
    resized = {**options, "image_size": size_of(*here)}
    layers = (outline(spec.network, given).state_dict() for given in (options, resized))
    shapes = ({key: value.shape for key, value in state.items()} for state in layers)
    if next(shapes) == next(shapes):
        return resized, [f"{sizes}: all layers stay"]
    return options, [f"{sizes}: attention stays at the levels where it was, and sees other sizes there"]


def _mapped(
    name: str, weights: Weights, target: Mapping[str, Tensor], there: Sequence[int], here: Sequence[int]
) -> Weights:
    """The weights in the shapes of the target. Raises UserError that names what does not fit, and what to do."""
    found = dict[str, Tensor]()
    for key, like in target.items():
        if key == AUGMENT and key not in weights:
            found[key] = torch.zeros(like.shape, dtype=like.dtype)
        elif key in weights:
            value = weights[key]
            found[key] = value if value.shape == like.shape else recoloured(value, like.shape, there[0], here[0])
    shapes = [
        f"{key}: {tuple(value.shape)} where {tuple(target[key].shape)} is expected"
        for key, value in found.items()
        if value.shape != target[key].shape
    ]
    if shapes and there[0] != here[0]:
        raise UserError(
            f"the network of {name} is one of {there[0]} channel{'s' * (there[0] > 1)}, which cannot be made one of "
            f"{here[0]}: set data.channels={there[0]}"
        )
    missing, extra = sorted(target.keys() - found.keys()), sorted(weights.keys() - target.keys())
    refuse_misfits(f"the network of {name} cannot be brought to these data", missing, extra, shapes)
    return found


def recoloured(value: Tensor, shape: Sequence[int], there: int, here: int) -> Tensor:
    """Weights of a layer that takes or gives the channels of the image, for `here` of them in place of `there`.

    Axis 1 counts the channels that go in: they are summed, or spread evenly. Axis 0 counts those that come out, or
    twice as many: they are averaged, or repeated. Unchanged where neither of the two is 1, or the shape is another.
    """
    if 1 not in (there, here) or value.ndim != len(shape):
        return value
    if value.ndim > 1 and (value.shape[1], shape[1]) == (there, here):
        value = value.sum(dim=1, keepdim=True) if here == 1 else value.repeat_interleave(here, dim=1) / here
    if value.shape[0] != shape[0] and value.shape[0] * here == shape[0] * there:
        grouped = value.reshape(-1, there, *value.shape[1:])
        grouped = grouped.mean(dim=1, keepdim=True) if here == 1 else grouped.repeat_interleave(here, dim=1)
        value = grouped.flatten(0, 1)
    return value


# --- the data's own map -------------------------------------------------------------------------------------------


def _transform(name: str, found: Checkpoint, data: Source) -> tuple[DataTransform, list[str]]:
    """The map to model space in which the network was trained, and what is kept of it in words."""
    mean, per_class = found.transform.mean, found.transform.per_class
    if mean is None:
        return DataTransform(data.levels), []
    lacking = [label for label in data.classes if label not in found.classes] if per_class else []
    own = tuple(mean.shape[1:] if per_class else mean.shape)
    if lacking or own != tuple(data.shape) or (per_class and not data.classes):
        what = f"of its classes, of which {_listed(lacking)} are none" if lacking else f"of shape {list(own)}"
        raise UserError(
            f"the network of {name} was trained on samples less a mean {what}, and those of {data.title} are "
            f"{list(data.shape)}: only a network of data.subtract_mean='none' can be trained on these"
        )
    if per_class:
        mean = mean[[found.classes.index(label) for label in data.classes]]
    return DataTransform(data.levels, mean, per_class), ["the mean that is subtracted from the data stays its own"]


# --- words --------------------------------------------------------------------------------------------------------


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} others" if len(names) > 5 else "")


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
