"""Trainings as a whole: stopped and resumed, by two processes, in fp16."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from gpu_place import LOSSES, ROOT, Found, NotHere, Place
from gpu_speed import in_training, one_update

from sde_diffusion.settings.root import Settings

settings_of = Settings.from_config


def digits_flags(place: Place, folder: Path) -> list[str]:
    """A short training on digits by the command line."""
    steps = 16 if place.toy else 400
    changed = {
        "training.steps": steps,
        "training.batch_size": 8 if place.toy else 64,
        "training.cooldown_steps": steps // 2,
        "training.log_every": 2,
        "training.evaluate_every": steps,
        "training.held_out_batches": 2,
        "training.sample_every": 0,
        "training.checkpoint_every": steps,
        "model.unet.channels": 8 if place.toy else 24,
        "deterministic": place.cuda,
    }
    keys = [f"--config.{key}={value}" for key, value in changed.items()]
    where = ["--workdir", str(folder), "--device", str(place.device).partition(":")[0]]
    return ["--config", str(ROOT / "configs" / "vpsde_digits.py"), "--mode", "train", *where, *keys]


def result_of(folder: Path) -> dict[str, Any]:
    """What a training came to."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["training"]
    return found


def uninterrupted(place: Place) -> dict[str, Any]:
    """A training in one piece, carried out once."""
    if "whole" not in place.kept:
        folder = place.folder / "whole"
        place.command(digits_flags(place, folder))
        place.kept["whole"] = result_of(folder)
    found: dict[str, Any] = place.kept["whole"]
    return found


def resumed(place: Place) -> Found:
    """A training that SIGTERM stops and that the same command ends, beside one in one piece."""
    whole, folder = uninterrupted(place), place.folder / "stopped"
    place.command(digits_flags(place, folder), stop=folder / "metrics.jsonl")
    if (folder / "results.json").exists():
        raise RuntimeError("the training ended before it was stopped")
    (stopped_at,) = (path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    place.command(digits_flags(place, folder))
    found = result_of(folder)
    losses = [(found[name], whole[name]) for name in ("loss", "held_out_loss")]
    told = "; ".join(f"{ours:.6f} and {theirs:.6f}" for ours, theirs in losses)
    return Found(f"last and held-out loss {told}, stopped at {stopped_at}", "equal", all(a == b for a, b in losses))


def two_processes(place: Place) -> Found:
    """A training by two processes beside that of one."""
    if place.cuda and torch.cuda.device_count() < 2:
        raise NotHere("it needs two GPUs, and there is one")
    whole, folder = uninterrupted(place), place.folder / "two"
    place.command(digits_flags(place, folder), processes=2)
    found = result_of(folder)
    away = abs(found["held_out_loss"] / whole["held_out_loss"] - 1.0)
    how = f"{found['processes']} processes, {found['images_per_second']:,.0f} images/s"
    told = f"{how} beside {whole['images_per_second']:,.0f} of one, held-out loss {away:.1e} away"
    return Found(told, "<= 1e-3, relative", away <= 1e-3 and found["processes"] == 2)


def fp16(place: Place) -> Found:
    """fp16's training beside float32's, and a scale that is too high, which must fall until gradients are finite."""
    place.gpu_only("fp16")
    config = importlib.import_module("configs.vpsde_digits").get_config()
    splits, steps, ends, found = settings_of(config).splits(), 60, {}, ""
    for precision in ("fp32", "fp16"):
        config.training.precision = precision
        with torch.random.fork_rng([place.device]):
            run = in_training(config, place, splits)
            losses = []
            for _ in range(steps):
                batch = splits.train.read(torch.arange(config.training.batch_size))
                losses.append(one_update(run, batch))
            ends[precision] = sum(losses[-20:]) / 20
            if precision == "fp16":
                engine = run.trainer.engine
                engine.load_scale({**engine.scale_state(), "scale": 2.0**40})
                before = [weight.clone() for weight in run.trainer.net.parameters()]
                one_update(run, batch)
                kept = all(map(torch.equal, before, run.trainer.net.parameters()))
                for _ in range(30):
                    one_update(run, batch)
                scale = engine.scale_state()["scale"]
                moved = not all(map(torch.equal, before, run.trainer.net.parameters()))
                found = f"scale 2^40 fell to 2^{math.log2(scale):.0f}"
    good = kept and moved and 0.0 < scale < 2.0**40 and abs(ends["fp16"] / ends["fp32"] - 1.0) <= LOSSES
    told = f"loss {ends['fp16']:.4f} and {ends['fp32']:.4f} of fp32; {found}"
    return Found(told, f"within {LOSSES:.0%}; no step while it overflows, and steps after", good)
