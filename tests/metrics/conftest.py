"""The digits and their classifier, trained once; and no test may touch a global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.data import DataOptions, Splits, load_splits
from sde_diffusion.metrics import Extractor, extractor


@pytest.fixture(autouse=True)
def global_random_state() -> Iterator[None]:
    def states() -> tuple[bytes, bytes, object]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()

    before = states()
    yield
    assert states() == before, "a global random state was touched"


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_splits("digits", DataOptions())


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def classifier(digits: Splits, cache: Path) -> Extractor:
    return extractor("classifier", digits.train, cache, "cpu")
