"""What was found in a folder or an archive of pictures: what is read, and what is not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sde_diffusion.data.formats import ending

EXAMPLES = 3  # names that stand for all of their kind


@dataclass(frozen=True)
class Skipped:
    """Files that are not read. reason: why, in words; types: their number by ending; examples: some of their names.

    expected: whether a person will take it for granted, as with hidden files.
    """

    reason: str
    types: Mapping[str, int]
    examples: tuple[str, ...]
    expected: bool = False

    @classmethod
    def of(cls, reason: str, names: Sequence[str], expected: bool = False) -> Skipped:
        return cls(reason, by_ending(names), tuple(names[:EXAMPLES]), expected)

    @property
    def count(self) -> int:
        return sum(self.types.values())

    def __str__(self) -> str:
        """Such as "4 files were not read: .mp4 3, .txt 1 (clips/a.mp4, ...)"."""
        few = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        files = "1 file was" if self.count == 1 else f"{self.count:,} files were"
        why = f", {self.reason}" if self.reason else ""
        return f"{files} not read{why}: {counted(self.types)} ({few})"


@dataclass(frozen=True)
class Inventory:
    """What was found at a place.

    place: where, as a person knows it. types: the pictures that are read, by ending. parts: by part of the set.
    classes: by class, {} without classes. skipped: what is not read.
    labels: the files that tell what the pictures show, in words; "" without.
    notes: what was done to how many of the `decoded` pictures, by what it is in words that follow "are".
    """

    place: str
    types: Mapping[str, int]
    parts: Mapping[str, int]
    classes: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    decoded: int = 0
    labels: str = ""

    @property
    def pictures(self) -> int:
        return sum(self.types.values())

    def told(self) -> list[str]:
        """What a person should know before a training, a sentence each: what is left out, and what was changed."""
        unread = [str(each) for each in self.skipped if not each.expected]
        return [*filter(None, [self.labels]), *unread, *self.changed()]

    def changed(self) -> list[str]:
        """What was done to how many pictures, a sentence each."""
        some = "" if self.decoded == self.pictures else f" of the {self.decoded:,} that were decoded to begin with"
        return [
            f"{count:,} {'picture' if count == 1 else 'pictures'}{some} {'is' if count == 1 else 'are'} {note}"
            for note, count in self.notes.items()
        ]


def by_ending(names: Iterable[str]) -> dict[str, int]:
    """How many names have each ending, the most frequent first; "no ending" is one of them."""
    found = Counter(ending(name) or "no ending" for name in names)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def counted(numbers: Mapping[str, int]) -> str:
    """Such as ".png 200, .jpg 3"."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())
