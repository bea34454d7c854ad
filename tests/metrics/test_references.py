"""Features of real samples are computed once, never taken for others, and again where the file is damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.metrics import Features, reference

SAMPLES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)


@dataclass
class Counting:
    """Sums and differences of samples, with logits or not; `calls` says how often it was asked."""

    name: str = "counting"
    digest: str = "abc"
    preprocessing: str = "none"
    dims: int = 2
    logits: bool = True
    calls: list[int] = field(default_factory=list)

    def __call__(self, samples: np.ndarray) -> Features:
        self.calls.append(len(samples))
        rows = torch.from_numpy(samples.reshape(len(samples), -1).astype(np.float64))
        values = torch.stack([rows.sum(1) / 3, rows[:, 0] - rows[:, 1]], dim=1)
        return Features(values, values / 7 if self.logits else None)


@pytest.mark.parametrize("logits", [True, False])
def test_features_are_computed_once(logits: bool, tmp_path: Path) -> None:
    network = Counting(logits=logits)
    first, second = (reference(network, SAMPLES, tmp_path, "digits") for _ in range(2))
    assert network.calls == [7] and torch.equal(first.values, second.values)
    assert second.values.dtype == torch.float64
    assert (first.logits is None) == (second.logits is None) == (not logits)
    if first.logits is not None and second.logits is not None:
        assert torch.equal(first.logits, second.logits)


def test_whatever_the_features_depend_on_makes_another_file(tmp_path: Path) -> None:
    changed = SAMPLES.copy()
    changed[6, 3, 3, 0] ^= 1
    cases: list[tuple[Counting, np.ndarray]] = [
        (Counting(), SAMPLES),
        (Counting(), changed),
        (Counting(), SAMPLES.reshape(7, 2, 8, 1)),
        (Counting(), SAMPLES.view(np.int8)),
        (Counting(name="other"), SAMPLES),
        (Counting(digest="abd"), SAMPLES),
        (Counting(preprocessing="halved"), SAMPLES),
    ]
    for network, samples in cases:
        reference(network, samples, tmp_path, "digits")
        reference(network, np.asfortranarray(samples), tmp_path, "the same by another name, laid out otherwise")
    assert [network.calls for network, _ in cases] == [[7]] * len(cases)
    assert len(list(tmp_path.iterdir())) == len(cases)


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "text", "other features"])
def test_a_damaged_file_is_written_again(damage: str, tmp_path: Path) -> None:
    network = Counting()
    first = reference(network, SAMPLES, tmp_path, "digits")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "other features":
        np.savez(path, values=np.zeros((7, 3)))
    else:
        flipped = bytearray(whole)
        flipped[whole.index(b"NUMPY") + 130] ^= 1  # of a number
        torn = {"torn": whole[:-40], "flipped": bytes(flipped), "empty": b"", "text": b"no archive"}
        path.write_bytes(torn[damage])
    says = f"{path} is damaged and the features of digits are computed again: "
    with pytest.warns(UserWarning, match=says):
        again = reference(network, SAMPLES, tmp_path, "digits")
    assert torch.equal(again.values, first.values) and network.calls == [7, 7]
    reference(network, SAMPLES, tmp_path, "digits")
    assert network.calls == [7, 7] and list(tmp_path.iterdir()) == [path]
