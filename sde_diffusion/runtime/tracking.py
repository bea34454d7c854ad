"""A tracker of experiments beside TensorBoard: Weights & Biases or MLflow, through Accelerate's wrappers of them.

A thread of its own speaks to the tracker, so that a training waits for no network. Whatever fails there switches the
tracker off, with one warning. `tracking.json` in the run folder holds the tracker's own name of the run, by which a
resumed training goes on in the same one.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra, require
from sde_diffusion.storage.results import write_json

PROJECT = "sde_diffusion"
FILE = "tracking.json"
PATIENCE = 60.0
"""Seconds that a training which has ended waits for its tracker to take the rest."""

Image = np.ndarray[Any, Any]


class Service(Protocol):
    """A run of a tracker; former: its name of the run that goes on, "" for a new one."""

    run: str

    def __init__(self, folder: Path, former: str) -> None: ...

    def configuration(self, values: Mapping[str, Any]) -> None:
        """The settings by key, such as training.steps."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def image(self, name: str, image: Image, step: int) -> None:
        """A picture uint8 [H, W, C]."""

    def end(self) -> None:
        """Hand over what is left."""


class Wandb:
    """Weights & Biases: in the project of WANDB_PROJECT or "sde_diffusion", with its files in the run folder.

    The step is a value of its own, because wandb's steps never go back, as a training does that was killed.
    """

    def __init__(self, folder: Path, former: str) -> None:
        with extra("wandb"):
            import wandb
            from accelerate.tracking import WandBTracker

        self.run = former or uuid4().hex
        self._tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            **{"id": self.run, "resume": "allow", "name": folder.name, "dir": str(folder)},
            settings=wandb.Settings(console="off"),  # a progress bar is no log
        )
        self._tracker.start()
        self._tracker.tracker.define_metric("*", step_metric="step")

    def configuration(self, values: Mapping[str, Any]) -> None:
        self._tracker.store_init_configuration(dict(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({"step": step, **values})

    def image(self, name: str, image: Image, step: int) -> None:
        self._tracker.log({"step": step})
        self._tracker.log_images({name: [image]})

    def end(self) -> None:
        self._tracker.finish()


class MLflow:
    """MLflow: in the store of MLFLOW_TRACKING_URI or its own default, in MLFLOW_EXPERIMENT_NAME or "sde_diffusion"."""

    def __init__(self, folder: Path, former: str) -> None:
        with extra("mlflow"):
            import mlflow
            from accelerate.tracking import MLflowTracker

        self._mlflow = mlflow
        self._tracker = MLflowTracker(PROJECT, run_id=former or None, run_name=folder.name)
        self._tracker.start()
        self.run = str(self._tracker.tracker.info.run_id)

    def configuration(self, values: Mapping[str, Any]) -> None:
        """What a parameter is stays, in MLflow; a setting that a resumed training has changed becomes a tag."""
        former = self._tracker.tracker.data.params
        self._tracker.store_init_configuration({key: value for key, value in values.items() if key not in former})
        changed = {key: str(value) for key, value in values.items() if former.get(key, str(value)) != str(value)}
        self._mlflow.set_tags(changed)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # A plus sign is none of the characters that MLflow has in its names.
        self._tracker.log({name.replace("+", ""): float(value) for name, value in values.items()}, step=step)

    def image(self, name: str, image: Image, step: int) -> None:
        self._mlflow.log_image(image, key=name, step=step)

    def end(self) -> None:
        self._tracker.finish()


TRACKERS: dict[str, type[Service]] = {"wandb": Wandb, "mlflow": MLflow}
"""By the value of `tracking`, which is also the name of the extra that installs it."""
NONE = "none"


def check_tracker(name: str) -> None:
    """Raises UserError where the library of a tracker is not installed."""
    if name != NONE:
        require(name)


class Tracker:
    """The numbers and pictures of a training, in a tracker; a context that goes on with the run of `tracking.json`.

    Raises UserError where the tracker's library is not installed; nothing else that fails is an error of the training.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        check_tracker(name)
        self.name, self.path = name, folder / FILE
        self._calls: SimpleQueue[Callable[[Service], None] | None] = SimpleQueue()
        self._error: Exception | None = None
        self._warned = False
        # A daemon: one that hangs does not keep the process.
        self._thread = threading.Thread(target=self._serve, args=(flat(config),), daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        self._do(lambda service: service.scalars(step, values))

    def image(self, name: str, image: Image, step: int) -> None:
        """A picture uint8 [H, W, C]."""
        self._do(lambda service: service.image(name, image, step))

    def close(self, patience: float = PATIENCE) -> None:
        """Wait until the tracker has all that it was given, for `patience` seconds at most."""
        self._calls.put(None)
        self._thread.join(patience)
        if self._thread.is_alive() and self._error is None:
            self._error = TimeoutError(f"it has not taken all that it was given within {patience:g} seconds")
        self._say()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, call: Callable[[Service], None]) -> None:
        self._say()
        if self._error is None:
            self._calls.put(call)

    def _say(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            reason = (str(self._error).strip() or type(self._error).__name__).splitlines()[0]
            warnings.warn(f"{self.name} is switched off, and the training goes on: {reason}", stacklevel=4)

    def _serve(self, config: Mapping[str, Any]) -> None:
        try:
            runs = self._runs()
            service = TRACKERS[self.name](self.path.parent, runs.get(self.name, ""))
            write_json(self.path, {**runs, self.name: service.run})
            service.configuration(config)
            for call in iter(self._calls.get, None):
                call(service)
            service.end()
        except Exception as error:  # of another's library, or of a network: of any kind
            self._error = error

    def _runs(self) -> dict[str, str]:
        """The runs of this folder by tracker. Raises UserError for a damaged file."""
        try:
            return dict(json.loads(self.path.read_text())) if self.path.exists() else {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path} is damaged; remove it to begin a new run there") from error


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by key, such as {"training.steps": 1000}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return found
