"""What a process knows of those beside it before anything is imported: its number, and which errors are everyone's."""

from __future__ import annotations

import os

EVERYONES = "all processes have met this"


def process_number() -> int:
    """This process's number among those that a launcher started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def everyones(error: Exception) -> Exception:
    """An error that every process raises, so that one of them need tell it."""
    error.add_note(EVERYONES)
    return error
