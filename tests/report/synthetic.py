"""A comparison by a formula, e(n) = floor + a (n / 10)^-p for each sampler, with intervals, failures and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.report.html import Trajectory
from sde_diffusion.report.pictures import Picture

BUDGETS = (5, 10, 20, 50, 100)
SAMPLES, SHOWN, SIDE = 500, 10, 8
FLOOR = 1.62
"""Of the Fréchet distance: what the network costs, whatever the sampler."""

SAMPLERS: dict[str, tuple[str, float, float, str, str, float]] = {
    "euler_maruyama": ("euler_maruyama", 46.0, 0.95, "drawn", "1", 1.0),
    "reverse_diffusion": ("reverse_diffusion", 40.0, 0.92, "drawn", "1", 1.0),
    "ancestral": ("ancestral", 31.0, 0.99, "drawn", "1", 1.0),
    "langevin": ("langevin", 52.0, 0.85, "drawn", "1", 1.9),
    "ddim": ("ddim", 7.0, 1.30, "none", "1", 1.0),
    "ddim eta=1": ("ddim", 30.0, 1.02, "with eta", "1", 1.0),
    "heun": ("heun", 9.0, 2.45, "none", "2", 1.05),
    "dpm_solver_2": ("dpm_solver", 4.6, 2.10, "none", "2", 1.1),
    "dpmpp_2m": ("dpmpp", 2.1, 1.95, "none", "2", 1.12),
    "dpmpp_3m": ("dpmpp", 1.7, 2.20, "none", "3", 1.2),
    "unipc": ("unipc", 1.3, 2.10, "none", "3", 1.25),
    "rk45": ("rk45", 3.0, 1.60, "none", "5", 1.1),
}
"""Label -> sampler, a, p, noise, order, milliseconds an evaluation."""

METRICS: dict[str, dict[str, str]] = {
    "frechet": {"title": "Fréchet distance", "better": "lower", "source": "Heusel et al. 2017", "scale": "log"},
    "kernel": {"title": "kernel distance", "better": "lower", "source": "Bińkowski et al. 2018", "scale": "log"},
    "precision": {"title": "precision", "better": "higher", "source": "Kynkäänniemi et al. 2019", "scale": "linear"},
    "entropy": {"title": "class entropy", "better": "real", "source": "Salimans et al. 2016", "scale": "linear"},
    "flow_distance": {"title": "distance to the flow", "better": "lower", "source": "Song et al. 2021", "scale": "log"},
}

FAILED, EMPTY = "langevin-5", "heun-5"
REASON = "samples that are not finite at step 3: the corrector's step grew without bound"


def interval(value: float, relative: float) -> dict[str, Any]:
    return {"value": value, "low": value * (1 - relative), "high": value * (1 + 1.2 * relative), "reason": ""}


def values(label: str, nfe: int) -> dict[str, Any]:
    """The figures of a run by the formula, wiggled a little by its name."""
    _, a, p, noise, order, _ = SAMPLERS[label]
    wiggle = 1.0 + 0.04 * math.sin(7.0 * len(label) + nfe)
    frechet = (FLOOR + a * (nfe / 10.0) ** -p) * wiggle
    distance = {
        "value": None,
        "low": None,
        "high": None,
        "reason": "it draws noise of its own, and has no flow to follow",
    }
    if noise == "none":
        distance = interval(0.02 * a**0.5 * (nfe / 10.0) ** -float(min(int(order), 3)) + 2e-5, 0.05)
    return {
        "frechet": interval(frechet, 0.06),
        "kernel": interval(0.0011 + 0.0009 * (frechet - FLOOR) ** 1.2 if frechet > FLOOR else 0.0011, 0.11),
        "precision": interval(0.93 - 0.16 * math.log10(frechet / FLOOR + 0.1), 0.02),
        "entropy": interval(2.28 - 0.35 * math.log10(frechet / FLOOR + 0.1), 0.01),
        "flow_distance": distance,
    }


def synthetic_report() -> dict[str, Any]:
    """12 labels at 5 budgets; one run failed, one has no values, and one sampler chooses its steps itself."""
    runs = []
    for label, (sampler, _, _, noise, order, spent) in SAMPLERS.items():
        for steps in BUDGETS:
            adaptive = sampler == "rk45"
            nfe = 12 + 2 * steps if adaptive else 2 * (steps // 2) - 1 if sampler == "heun" else steps
            name = f"{label.replace(' ', '-')}-{steps}"
            found = values(label, nfe)
            if name == EMPTY:
                nothing = {
                    "value": None,
                    "low": None,
                    "high": None,
                    "reason": "the covariance of its features is singular",
                }
                found = dict.fromkeys(found, nothing)
            if name == FAILED:
                found = {}
            runs.append(
                {
                    "id": name,
                    "sampler": sampler,
                    "label": label,
                    "variant": "ema 0.999",
                    "noise": noise,
                    "order": order,
                    "steps": None if adaptive else steps,
                    "tolerance": 1 / steps**3 if adaptive else None,
                    "nfe": nfe,
                    "samples": SAMPLES,
                    "values": found,
                    "timing": {}
                    if name == FAILED
                    else {"seconds": 0.31 * nfe * spent, "milliseconds_per_sample": 0.62 * nfe * spent},
                    "failed": REASON if name == FAILED else "",
                    "protocol": {
                        "sampler": sampler,
                        "steps": steps,
                        "grid": {"spacing": "karras", "rho": 7.0},
                        "seed": 0,
                    },
                }
            )
    return {
        "title": "Samplers on digits",
        "subtitle": "12 samplers of one network on 8x8 digits: the same weights, and the same noise to start from",
        "metrics": METRICS,
        "runs": runs,
        "baselines": [
            {
                "label": "two halves of the training set",
                "values": {
                    "frechet": interval(0.94, 0.05),
                    "kernel": interval(0.0007, 0.1),
                    "precision": interval(0.95, 0.01),
                    "entropy": interval(2.30, 0.004),
                },
            },
            {
                "label": "noise",
                "values": {
                    "frechet": interval(310.0, 0.02),
                    "kernel": interval(0.9, 0.02),
                    "precision": interval(0.0, 0.0),
                    "entropy": interval(0.8, 0.01),
                },
            },
        ],
        "reference": {"dataset": "digits", "split": "train", "samples": 1437, "features": "classifier, 64 numbers"},
        "likelihood": {
            "ode": {
                "bits_per_dim": 1.912,
                "standard_error": 0.0123,
                "interval": [1.888, 1.936],
                "space": "16 grey levels, dequantized uniformly",
                "nfe": 164,
                "smallest_time": 1e-5,
            },
            "elbo": {
                "bits_per_dim": 1.987,
                "standard_error": 0.0151,
                "interval": [1.957, 2.017],
                "space": "16 grey levels",
                "nfe": 1000,
                "smallest_time": 1e-5,
            },
        },
        "protocol": {
            "data": {"name": "digits", "shape": [1, 8, 8], "split": "train"},
            "process": {"name": "VP", "beta_min": 0.1, "beta_max": 20.0},
            "weights": {"checkpoint": "checkpoint_20000", "average": "ema 0.999", "sha256": "9c3e5b7f20d1a4e8"},
            "noise": {"seed": 0, "generator": "one stream a sample"},
            "features": "classifier of digits, 97.8 % of the held-out digits right",
            "batch": 250,
        },
        "warnings": [
            "500 samples are few for a Fréchet distance: it is too high by about 0.3, alike for all samplers."
        ],
        "recommendation": {},
    }


def digits(rng: np.random.Generator) -> NDArray[np.float64]:
    """Round drawings [SHOWN, SIDE, SIDE] in [0, 1]: ellipses, bars and hooks."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    drawn = []
    for i in range(SHOWN):
        width, height, tilt = rng.uniform(1.2, 2.4), rng.uniform(2.2, 3.0), rng.uniform(-0.35, 0.35)
        u = x + tilt * y
        ring = np.exp(-(((u / width) ** 2 + (y / height) ** 2 - 1.0) ** 2) / 0.35)
        bar = np.exp(-(u**2) / 0.8) * (np.abs(y) < 3.1)
        hook = np.where(u + y > 0, ring, np.exp(-((y - 2.4) ** 2) / 0.9) * (np.abs(u) < 2.6))
        drawn.append((ring, bar, hook)[i % 3])
    return np.clip(np.stack(drawn), 0.0, 1.0)


def strip(images: NDArray[np.float64]) -> Picture:
    """Images [N, H, W] in [0, 1] in one row [H, N W, 3]."""
    row = np.concatenate(list(images), axis=1)
    return np.repeat((255 * row.clip(0, 1)).round().astype(np.uint8)[..., None], 3, axis=2)


def synthetic_pictures(report: Mapping[str, Any]) -> tuple[dict[str, Picture], dict[str, Trajectory]]:
    """A strip for every run that did not fail, and a trajectory for each label's run of 20 steps."""
    data = digits(np.random.default_rng(0))
    strips: dict[str, Picture] = {}
    trajectories: dict[str, Trajectory] = {}
    for index, run in enumerate(report["runs"]):
        if run["failed"]:
            continue
        rng = np.random.default_rng(index)
        end = data + rng.normal(0, 1, data.shape) * min(0.5, 2.0 / run["nfe"])
        strips[run["id"]] = strip(end)
        if run["id"].endswith("-20"):
            start, count = np.random.default_rng(1).normal(0.5, 0.45, data.shape), 6 + index % 7 * 3
            levels = np.linspace(1.0, 0.0, count)
            mean = np.broadcast_to(data.mean(0), data.shape)
            trajectories[run["id"]] = Trajectory(
                np.stack([strip(s * start + (1 - s) * end) for s in levels]),
                np.stack([strip(s * mean + (1 - s) * end) for s in levels]),
                [f"step {i} of {count - 1}, log-SNR {12 * i / (count - 1) - 6:.1f}" for i in range(count)],
            )
    return strips, trajectories
