"""What holds for every sampler alike: seeds, random state, counting, callbacks and errors."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, SDES, generator, quick_denoiser
from tests.proofs.cases import run as run_row

MIXTURE = MIXTURES[2]
DENOISER = quick_denoiser(MIXTURE)
DETERMINISTIC = [name for name, row in ROWS.items() if row.deterministic]
STOCHASTIC = [name for name, row in ROWS.items() if not row.deterministic]


def run(row: str, *arguments: Any, **named: Any) -> sd.Sample:
    """Adaptive samplers take wide tolerances: what holds here does not depend on them."""
    return run_row(row, *arguments, **named, **({} if ROWS[row].nfe else {"rtol": 0.05, "atol": 0.05}))


@cache
def grid(process: str = "VPSDE", steps: int = 12) -> sd.TimeGrid:
    return sd.make_grid(PROCESSES[process], steps)


def start() -> Tensor:
    """A given x, the same at each call."""
    return torch.randn(4, 2, generator=generator(1), dtype=torch.float64)


def global_state() -> tuple[bytes, str, str]:
    """The global random states of torch, numpy and Python."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())


class Counter:
    """The test's own count of evaluations."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        self.calls += 1
        return DENOISER(x, kernel)


@pytest.mark.parametrize("process", SDES)
@pytest.mark.parametrize("row", ROWS)
def test_same_seed_same_samples_whatever_the_batch(row: str, process: str) -> None:
    """The whole batch drawn twice has the same bits; drawn in halves it differs by rounding only."""

    def draw(indices: range) -> Tensor:
        generators = sd.sample_generators(42, indices)
        return run(row, DENOISER, (len(indices), 2), grid(process), generator=generators, dtype=torch.float64).x

    whole = draw(range(6))
    halves = torch.cat([draw(range(3)), draw(range(3, 6))])
    torch.testing.assert_close(whole, halves, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw(range(3)), halves[:3], rtol=0.0, atol=0.0)
    assert len(whole.unique(dim=0)) == 6


@pytest.mark.parametrize("row", ROWS)
def test_one_seed_one_result_and_another_seed_another(row: str) -> None:
    def draw(seed: int) -> Tensor:
        return run(row, DENOISER, (4, 2), grid(), generator=generator(seed), dtype=torch.float64).x

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("row", ROWS)
def test_samplers_leave_the_global_random_state(row: str) -> None:
    before = global_state()
    run(row, DENOISER, (4, 2), grid(), generator=generator(0))
    run(row, DENOISER, (4, 2), grid())  # no generator: a fresh one
    assert global_state() == before


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("generators", [True, False])
def test_likelihood_leaves_the_global_random_state(generators: bool, divergence: str) -> None:
    before = global_state()
    x = MIXTURE.sample(4, generator=generator(1))
    g = generator(0) if generators else None
    sd.log_likelihood(DENOISER, x, sd.VPSDE(), divergence=divergence, generator=g, rtol=1e-2, atol=1e-2)
    assert global_state() == before


def test_likelihood_is_the_same_whatever_the_batch() -> None:
    x = MIXTURE.sample(6, generator=generator(1))

    def run(indices: range) -> Tensor:
        return sd.log_likelihood(
            DENOISER,
            x[indices.start : indices.stop],
            sd.VPSDE(),
            method="per_sample",
            probes=3,
            generator=sd.sample_generators(9, indices),
        ).nats

    halves = torch.cat([run(range(3)), run(range(3, 6))])
    torch.testing.assert_close(run(range(6)), halves, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", DETERMINISTIC)
def test_deterministic_samplers_draw_no_noise(row: str) -> None:
    outs = []
    for seed in (0, 1):
        g = generator(seed)
        before = g.get_state()
        outs.append(run(row, DENOISER, grid=grid(), x=start(), generator=g).x)
        assert torch.equal(g.get_state(), before)
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("row", STOCHASTIC)
def test_stochastic_samplers_draw_noise(row: str) -> None:
    """The generator moves on, and another seed gives other samples from the same x."""
    outs = []
    for seed in (0, 1):
        g = generator(seed)
        before = g.get_state()
        outs.append(run(row, DENOISER, grid=grid(), x=start(), generator=g).x)
        assert not torch.equal(g.get_state(), before)
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("steps", [1, 2, 3, 13])
@pytest.mark.parametrize("row", ROWS)
def test_nfe_is_exact(row: str, steps: int) -> None:
    """As many as the row says with finish="denoise", one fewer with "none", and as many as there were calls."""
    found = {}
    for finish in ("denoise", "none"):
        counter = Counter()
        out = run(row, counter, (3, 2), grid(steps=steps), finish=finish, generator=generator(0))
        assert out.nfe == counter.calls
        found[finish] = out.nfe
    assert found["denoise"] == found["none"] + 1
    claimed = ROWS[row].nfe
    assert claimed is None or found["denoise"] == claimed(steps)


def test_nfe_follows_the_options() -> None:
    def nfe(sampler: str, **options: object) -> int:
        return sd.sample(DENOISER, (3, 2), grid(steps=10), sampler=sampler, generator=generator(0), **options).nfe

    assert nfe("pc", corrector_steps=0) == 9 + 1
    assert nfe("pc", corrector_steps=3) == 30 + 9 + 1
    assert nfe("pc", corrector_steps=3, predictor="none") == 30 + 1
    assert nfe("annealed_langevin", langevin_steps=5) == 50 + 1
    assert nfe("ddim", eta=0.5) == 10


@pytest.mark.parametrize("row", ROWS)
def test_on_step_is_called_at_each_node(row: str) -> None:
    """With its number, the node, x there and x0_hat there; the last node by the driver's own step.

    Churn raises the noise of every node but the last before it is visited.
    """
    nodes = grid(steps=7)
    calls: list[tuple[int, Node, Tensor, Tensor]] = []

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        calls.append((index, node, x.clone(), x0_hat.clone()))

    out = run(row, DENOISER, (3, 2), nodes, generator=generator(0), on_step=on_step, dtype=torch.float64)
    assert [index for index, *_ in calls] == (list(range(7)) if ROWS[row].visits else [6])
    for index, node, x, x0_hat in calls:
        raised = bool(ROWS[row].options.get("churn")) and index < 6
        assert (float(node.t) > float(nodes.times[index])) if raised else (float(node.t) == float(nodes.times[index]))
        kernel = nodes.sde.kernel(node.t)
        torch.testing.assert_close((node.kernel.alpha, node.kernel.sigma), (kernel.alpha, kernel.sigma))
        torch.testing.assert_close(x0_hat, DENOISER(x, node.kernel), rtol=1e-12, atol=1e-12)
    assert torch.equal(calls[-1][3], out.x)


@pytest.mark.parametrize("row", ROWS)
def test_finish_none_stops_at_the_last_node(row: str) -> None:
    """The denoise step of the state that "none" returns is what "denoise" returns."""
    nodes = grid(steps=7)
    state, x0_hat = (
        run(row, DENOISER, (3, 2), nodes, finish=finish, generator=generator(0), dtype=torch.float64).x
        for finish in ("none", "denoise")
    )
    torch.testing.assert_close(DENOISER(state, nodes.nodes[-1].kernel), x0_hat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", ROWS)
def test_given_x_is_left_as_it_was(row: str) -> None:
    x = start()
    for steps, finish in ((1, "denoise"), (12, "none")):
        run(row, DENOISER, grid=grid(steps=steps), x=x, finish=finish, generator=generator(0))
        assert torch.equal(x, start())


@pytest.mark.parametrize("sampler", sd.SAMPLERS)
def test_an_unknown_option_names_the_valid_ones(sampler: str) -> None:
    with pytest.raises(TypeError) as caught:
        sd.sample(DENOISER, (3, 2), grid(), sampler=sampler, snr_targett=0.1)
    message = str(caught.value)
    assert "'snr_targett'" in message and sampler in message
    valid = sd.samplers.sampler_options(sampler)
    assert all(name in message for name in valid) and (valid or "no options" in message)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(sd.UserError, match="did you mean 'ddim'"):
        sd.sample(DENOISER, (3, 2), grid(), sampler="dimm")
    with pytest.raises(sd.UserError, match="did you mean 'karras'"):
        sd.make_grid(sd.VPSDE(), 10, "karas")
    with pytest.raises(sd.UserError, match="rho"):
        sd.make_grid(sd.VPSDE(), 10, "karras", roh=5.0)
    with pytest.raises(sd.UserError, match="did you mean 'denoise'"):
        sd.sample(DENOISER, (3, 2), grid(), finish="denoised")
    with pytest.raises(sd.UserError, match="did you mean 'euler_maruyama'"):
        sd.sample(DENOISER, (3, 2), grid(), sampler="pc", predictor="euler_marujama")
    with pytest.raises(sd.UserError, match="did you mean 'langevin'"):
        sd.sample(DENOISER, (3, 2), grid(), sampler="pc", corrector="langevinn")


def test_bad_requests() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(sd.UserError, match="grid"):
        sd.sample(DENOISER, (3, 2))
    with pytest.raises(sd.UserError, match="not both"):
        sd.sample(DENOISER, (3, 2), grid(), x=x)
    with pytest.raises(sd.UserError, match="either"):
        sd.sample(DENOISER, grid=grid())
    with pytest.raises(sd.UserError, match="eta"):
        sd.sample(DENOISER, (3, 2), grid(), sampler="ddim", eta=1.5)
    with pytest.raises(sd.UserError, match="not finite"):
        sd.sample(lambda x, kernel: x * float("nan"), (3, 2), grid())
    with pytest.raises(ValueError, match="one for each sample"):
        sd.sample(DENOISER, (3, 2), grid(), generator=sd.sample_generators(0, range(2)))
