"""Long cells of a table go on in the rows below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest


def wrapped(rows: Sequence[Mapping[str, str]], widths: Mapping[str, int]) -> list[dict[str, str]]:
    """Rows whose cells are at most as wide as their column is to be, where words allow it; what is left follows below.

    widths: characters of the columns to wrap; the others stay as they are.
    """
    found = []
    for row in rows:
        cells = [
            textwrap.wrap(text, widths.get(name, len(text) or 1), break_long_words=False, break_on_hyphens=False)
            for name, text in row.items()
        ]
        found += [dict(zip(row, line, strict=True)) for line in zip_longest(*cells, fillvalue="")]
    return found
