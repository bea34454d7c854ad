"""Classes, attributes and targets by their names: those of data in the order in which a network learned them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.dataset import Dataset, Source
from sde_diffusion.data.mapped import Mapped

SHOWN = 10
"""Names that a sentence lists."""


def few(names: Sequence[str]) -> str:
    """Names in words, the first of many."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "none"


def numbered(classes: Sequence[str]) -> str:
    """Classes with their numbers in words, such as "3 classes: 0 = 1, 1 = 10, 2 = 2"; the first of many, and the last.

    "no classes" for none.
    """
    pairs = [f"{number} = {name}" for number, name in enumerate(classes)]
    if len(pairs) > SHOWN:
        pairs = [*pairs[: SHOWN - 1], "...", pairs[-1]]
    what = "1 class" if len(classes) == 1 else f"{len(classes):,} classes"
    return f"{what}: {', '.join(pairs)}" if classes else "no classes"


def numbers_only(classes: Sequence[str]) -> bool:
    """Whether classes are called "0", "1", ... in this order, as those of networks that come without names."""
    return tuple(classes) == tuple(map(str, range(len(classes))))


def by_class_names(data: Source, classes: Sequence[str], *, all_of_them: bool = True) -> Source:
    """The data with the labels of a network's classes, matched by name.

    all_of_them: whether every class of the network must be one of the data, too. A network whose classes have only
    numbers takes those of the data in their order. Raises UserError for classes that only one of the two has.
    """
    own, wanted = tuple(data.classes), tuple(classes)
    if own == wanted or not own:
        return data
    by_number = numbers_only(wanted) and len(own) == len(wanted)
    strange, absent = set(own) - set(wanted), set(wanted) - set(own)
    if not by_number and (strange or (absent and all_of_them)):
        refuse_classes(data.title, own, wanted)
    if not isinstance(data, (Dataset, Mapped)) or data.labels is None:
        raise UserError(
            f"the classes of {data.title} come as {few(own)}, and the network learned {few(wanted)}: what streams by "
            "keeps its numbers, so that another storage is needed: choose data.storage='mapped'"
        )
    order = torch.arange(len(own)) if by_number else torch.tensor([wanted.index(name) for name in own])
    return replace(data, labels=order[data.labels], classes=wanted)


def refuse_classes(title: str, own: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UserError for data that have other classes than a network."""
    new = [name for name in own if name not in wanted]
    gone = [name for name in wanted if name not in own]
    raise UserError(
        f"the classes of {title} are not those that the network learned: new are {few(new)}, missing are {few(gone)} "
        f"(the data have {few(own)}; the network has {few(wanted)}): give the classes (class folders, or rows of a "
        "table) the names that they had, or train in another --workdir"
    )


def by_column_names(data: Source, columns: Mapping[str, Sequence[str]], needed: Sequence[str]) -> Source:
    """The data with the needed vectors' values in the order in which a network learned them, matched by name.

    Raises UserError for a vector or a column that the data lack, and for one that they have beside.
    """
    for name in needed:
        own, wanted = tuple(data.columns.get(name, ())), tuple(columns.get(name, ()))
        if own == wanted or not wanted:
            continue
        if set(own) != set(wanted):
            raise UserError(
                f"the {name} of {data.title} are not those that the network learned: the data have {few(own)}, the "
                f"network has {few(wanted)}; give the columns the names that they had"
            )
        order = torch.tensor([own.index(each) for each in wanted])
        if isinstance(data, (Dataset, Mapped)):
            others = {**data.others, name: data.others[name][:, order]}
            data = replace(data, others=others, columns={**data.columns, name: wanted})
    return data
