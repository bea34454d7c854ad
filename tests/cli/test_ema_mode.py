"""Averages made after a training, by the real command line, against the same tracked in the training itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from warm import Warm

import sde_diffusion as sd

STEPS = 320
FLAGS = (
    *("--config", "vpsde_digits", "--config.model.network=mlp", "--config.model.mlp.width=32"),
    *("--config.model.mlp.blocks=1", "--config.training.batch_size=16", "--config.training.warmup_steps=5"),
    *("--config.training.cooldown_steps=0", f"--config.training.steps={STEPS}", "--config.training.sample_every=0"),
    *("--config.training.held_out_batches=1", "--config.training.evaluate_every=1000"),
)


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The relative distance of two sets of weights."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([weights[key].flatten().double() for key in sorted(ours)]) for weights in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training with snapshots of two lengths, and the same one that tracks other lengths itself."""
    places = {name: tmp_path_factory.mktemp("ema") / name for name in ("snapshots", "direct")}
    stored = ("--config.training.ema_lengths=(0.05,0.1)", f"--config.training.ema_snapshots={STEPS // 32}")
    warm.run(*FLAGS, "--mode", "train", "--workdir", places["snapshots"], *stored)
    direct = "--config.training.ema_lengths=(0.03,0.075,0.15)"
    warm.run(*FLAGS, "--mode", "train", "--workdir", places["direct"], direct)
    return places


def test_averages_of_other_lengths_are_those_tracked_directly(warm: Warm, trained: dict[str, Path]) -> None:
    """Within 1e-3 of the weights, and far nearer than the raw weights and the stored averages are."""
    folder = trained["snapshots"]
    text = warm.run(*FLAGS, "--mode", "ema", "--workdir", folder, "--config.ema.lengths=(0.03,0.075,0.15)")
    checkpoint = trained["direct"] / "checkpoints" / f"step_{STEPS:09d}"
    for length in ("0.03", "0.075", "0.15"):
        made = load_file(folder / "ema" / f"power_{length}.safetensors")
        tracked = load_file(checkpoint / f"weights_power_{length}.safetensors")
        assert apart(made, tracked) < 1e-3
        for other in ("raw", "power_0.05"):
            there = load_file(folder / "checkpoints" / f"step_{STEPS:09d}" / f"weights_{other}.safetensors")
            assert apart(there, tracked) > 3e-3
        assert f"power_{length}" in text
    rows = json.loads((folder / "results.json").read_text())["ema"]
    assert rows["step"] == STEPS and [row["length"] for row in rows["averages"]] == [0.03, 0.075, 0.15]


def test_such_an_average_is_sampled_and_loaded_by_its_name(warm: Warm, trained: dict[str, Path]) -> None:
    folder, flags = trained["snapshots"], ("--mode", "sample", "--steps", 5, "--num_samples", 4)
    warm.run(*FLAGS, "--mode", "ema", "--workdir", folder, "--config.ema.lengths=(0.075,)")
    for place in trained.values():
        warm.run(*FLAGS, *flags, "--workdir", place, "--config.sampling.weights=power_0.075")
    made, tracked = (np.load(place / "samples_ddim.npz")["images"].astype(int) for place in trained.values())
    assert np.abs(made - tracked).max() <= 1
    x, kernel = torch.ones(2, 1, 8, 8), sd.VPSDE().kernel(0.5)
    ours, theirs = (sd.load(place, weights="power_0.075")(x, kernel) for place in trained.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert "did you mean 'power_0.075'" in warm.refused(
        *FLAGS, *flags, "--workdir", folder, "--config.sampling.weights=power_0.076"
    )


def test_without_snapshots_or_within_none_it_is_one_sentence(warm: Warm, trained: dict[str, Path]) -> None:
    mode = (*FLAGS, "--mode", "ema", "--workdir")
    assert "there are no snapshots" in warm.refused(*mode, trained["direct"])
    assert f"{STEPS // 32} to {STEPS}" in warm.refused(*mode, trained["snapshots"], "--config.ema.step=3")
    assert "lengths" in warm.refused(*mode, trained["snapshots"], "--config.ema.lengths=()")
    assert "sigma_rel" in warm.refused(*mode, trained["snapshots"], "--config.ema.lengths=(0.5,)")
