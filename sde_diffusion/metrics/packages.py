"""The packages that measure, imported where they are used: torchmetrics takes a second or more."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import torch

from sde_diffusion.core.packages import extra

FIDELITY = "torch_fidelity"


@contextmanager
def _fidelity_alone() -> Iterator[None]:
    """A context in which modules of torch-fidelity can be imported without torchvision.

    On import it imports networks that need torchvision, and torchmetrics imports it wherever it is installed, so that
    without torchvision neither could be used; of torch-fidelity only the Inception network is needed, which needs none.
    """
    whole = FIDELITY in sys.modules or find_spec("torchvision") is not None
    spec = None if whole else find_spec(FIDELITY)
    if spec is not None:
        sys.modules[FIDELITY] = module_from_spec(spec)  # knows where its modules are; none of its own code is run
    try:
        yield
    finally:
        if spec is not None:
            del sys.modules[FIDELITY]


def torchmetrics(module: str) -> ModuleType:
    """A module of torchmetrics, "image.fid" for torchmetrics.image.fid. Raises UserError where it is not installed."""
    with extra("report"), _fidelity_alone():
        return importlib.import_module(f"torchmetrics.{module}")


def fidelity(module: str) -> ModuleType:
    """A module of torch-fidelity. Raises ImportError where it is not installed."""
    with _fidelity_alone():
        return importlib.import_module(f"{FIDELITY}.{module}")


@contextmanager
def contained(seed: int) -> Iterator[None]:
    """A context for code that draws from the global random state of the CPU: it is seeded, and put back afterwards.

    Warnings are left out, as torchmetrics warns of the memory that features take whenever it is used.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        yield
