"""Pictures of a training's samples, as files in its run folder: previews/step_000001000.png."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.storage.files import write_aside
from sde_diffusion.storage.png import png

NAME = re.compile(r"step_(\d{9,})\.png")


class Previews:
    """The newest `keep` pictures, of a training that goes on after `step` updates; 0 for no files.

    Those of later steps, which an interrupted session drew after its last checkpoint, are dropped: they come again.
    Where the disk takes no more, one warning says so, and the work goes on. Files of other names are left alone.
    """

    def __init__(self, folder: Path, step: int, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._warned = False
        if keep:
            self._drop({number: path for number, path in self._files().items() if number > step})

    def add(self, image: np.ndarray[Any, Any], step: int) -> None:
        """A picture uint8 [H, W, C] of a step, which appears whole or not at all."""
        if not self.keep:
            return
        try:
            write_aside(self.folder / f"step_{step:09d}.png", png(image))
        except UserError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{error}: previews are left out until it can", stacklevel=3)
            return
        files = self._files()
        self._drop({number: files[number] for number in sorted(files)[: -self.keep]})

    def _files(self) -> dict[int, Path]:
        found = {path: NAME.fullmatch(path.name) for path in self.folder.glob("step_*.png")}
        return {int(match[1]): path for path, match in found.items() if match}

    def _drop(self, files: dict[int, Path]) -> None:
        for path in files.values():
            path.unlink(missing_ok=True)
