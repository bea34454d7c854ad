"""config.compile: the same numbers behind torch.compile, and networks that it sees as one graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import run_lib
import sde_diffusion as sd
from configs import base, vpsde_digits
from sde_diffusion.nets import NETWORKS
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import read_checkpoint
from tests.nets.contract import perturbed, randn

settings_of = Settings.from_config

TINY: dict[str, dict[str, Any]] = {
    "unet": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)},
    "ncsnpp": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)},
    "dit": {"width": 8, "depth": 1, "heads": 2},
}


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch._dynamo.reset()


def tiny(network: str) -> nn.Module:
    return perturbed(NETWORKS[network](in_channels=2, image_size=8, **TINY[network])).float().eval()


@pytest.mark.parametrize(("network", "backend"), [("unet", "aot_eager"), ("ncsnpp", "eager"), ("dit", "eager")])
def test_compiled_networks_are_one_graph_with_the_same_output_and_gradients(network: str, backend: str) -> None:
    """The first by the compiler of gradients too, which the others share."""
    config = base.get_config()
    config.compile = backend
    net, x, label = tiny(network), randn(3, 2, 8, 8).float(), torch.tensor([0.5, 3.0, 9.0])
    compiled = settings_of(config).compiled(net)
    assert compiled is not net and [*compiled.parameters()] == [*net.parameters()]
    counted = torch._dynamo.utils.counters
    counted.clear()
    grads = []
    for used in (net, compiled):
        net.zero_grad()
        out = used(x, label)
        out.square().mean().backward()
        grads.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert counted["stats"]["unique_graphs"] == 1 and not counted["graph_break"], counted["graph_break"]
    for plain, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()) + 1e-7)


def test_no_compiler_unless_it_is_named_and_an_unknown_one_is_refused() -> None:
    config = base.get_config()
    net = tiny("unet")
    assert settings_of(config).compiled(net) is net
    config.compile = "inducter"
    with pytest.raises(sd.UserError, match=r"unknown backend of torch\.compile 'inducter'; did you mean 'inductor'"):
        settings_of(config).compiled(net)


def test_a_training_and_its_samples_are_the_same_behind_a_compiler(tmp_path: Path) -> None:
    """Two steps of a real training, and what is drawn from it; with a network that is soon compiled."""
    found = []
    for backend in ("", "aot_eager"):
        torch._dynamo.reset()
        config = vpsde_digits.get_config()
        config.compile = backend
        config.model.network, config.model.mlp.width, config.model.mlp.blocks = "mlp", 16, 1
        config.training.steps, config.training.batch_size, config.training.evaluate_every = 2, 8, 2
        config.training.held_out_batches = 1
        config.sampling.num_samples, config.sampling.steps = 2, 3
        settings_of(config).check()
        folder = tmp_path / (backend or "plain")
        engine = settings_of(config).engine()
        run_lib.train(settings_of(config), folder, engine)
        run_lib.sample(settings_of(config), folder, engine)
        weights = read_checkpoint(folder).weights["raw"]
        images = np.load(folder / f"samples_{config.sampling.sampler}.npz")["images"].astype(int)
        found.append((weights, images))
    (plain, images), (compiled, same) = found
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-5)
    assert abs(images - same).max() <= 1
