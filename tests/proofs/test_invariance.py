"""What holds for every sampler alike: seeds, random state, counting, callbacks and errors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.grids import Node
from tests.proofs.cases import MIXTURES, PROCESSES, SAMPLERS, SDES, generator

MIXTURE = MIXTURES[2]
DETERMINISTIC = [name for name, row in SAMPLERS.items() if row.deterministic]
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, dict(row.options)) for name, row in SAMPLERS.items()] + [
    ("ddim", {"eta": 0.7}),
    ("ddpm", {"variance": "beta"}),
    ("pc", {"corrector": "langevin", "corrector_steps": 2}),
    ("pc", {"predictor": "euler_maruyama", "corrector_steps": 0}),
    ("pc", {"predictor": "ddim"}),
    ("pc", {"predictor": "carry"}),
]
"""Every sampler under its row's options, and the options that change its noise."""
VARIANT_IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in VARIANTS]


def grid(process: str = "VPSDE", steps: int = 12) -> sd.TimeGrid:
    return sd.make_grid(PROCESSES[process], steps)


def global_state() -> tuple[bytes, str, str]:
    """The global random states of torch, numpy and Python."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())


class Counter:
    """The test's own count of evaluations."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def __call__(self, x: Tensor, kernel: sd.Kernel) -> Tensor:
        self.calls.append(float(kernel.sigma.max()))
        return MIXTURE.denoiser()(x, kernel)


@pytest.mark.parametrize("process", SDES)
@pytest.mark.parametrize(("sampler", "options"), VARIANTS, ids=VARIANT_IDS)
def test_same_seed_same_samples_whatever_the_batch(sampler: str, options: dict[str, Any], process: str) -> None:
    def run(indices: range) -> Tensor:
        return sd.sample(
            MIXTURE.denoiser(),
            (len(indices), 2),
            grid(process),
            sampler=sampler,
            generator=sd.sample_generators(42, indices),
            dtype=torch.float64,
            **options,
        ).x

    whole = run(range(6))
    halves = torch.cat([run(range(3)), run(range(3, 6))])
    torch.testing.assert_close(whole, halves, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(range(6)), whole, rtol=0.0, atol=0.0)
    assert len(whole.unique(dim=0)) == 6


@pytest.mark.parametrize(("sampler", "options"), VARIANTS, ids=VARIANT_IDS)
def test_one_seed_one_result_and_another_seed_another(sampler: str, options: dict[str, Any]) -> None:
    def run(seed: int) -> Tensor:
        return sd.sample(
            MIXTURE.denoiser(),
            (4, 2),
            grid(),
            sampler=sampler,
            generator=generator(seed),
            dtype=torch.float64,
            **options,
        ).x

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize(("sampler", "options"), VARIANTS, ids=VARIANT_IDS)
def test_samplers_leave_the_global_random_state(sampler: str, options: dict[str, Any]) -> None:
    before = global_state()
    sd.sample(MIXTURE.denoiser(), (4, 2), grid(), sampler=sampler, generator=generator(0), **options)
    sd.sample(MIXTURE.denoiser(), (4, 2), grid(), sampler=sampler, **options)  # no generator: a fresh one
    assert global_state() == before


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("generators", [True, False])
def test_likelihood_leaves_the_global_random_state(generators: bool, divergence: str) -> None:
    before = global_state()
    x = MIXTURE.sample(4, generator=generator(1))
    g = generator(0) if generators else None
    sd.log_likelihood(MIXTURE.denoiser(), x, sd.VPSDE(), divergence=divergence, generator=g, rtol=1e-2, atol=1e-2)
    assert global_state() == before


def test_likelihood_is_the_same_whatever_the_batch() -> None:
    x = MIXTURE.sample(6, generator=generator(1))

    def run(indices: range) -> Tensor:
        return sd.log_likelihood(
            MIXTURE.denoiser(),
            x[indices.start : indices.stop],
            sd.VPSDE(),
            method="per_sample",
            probes=3,
            generator=sd.sample_generators(9, indices),
        ).nats

    halves = torch.cat([run(range(3)), run(range(3, 6))])
    torch.testing.assert_close(run(range(6)), halves, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_draw_no_noise(sampler: str) -> None:
    x = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)
    outs = []
    for seed in (0, 1):
        g = generator(seed)
        before = g.get_state()
        row = SAMPLERS[sampler]
        outs.append(sd.sample(MIXTURE.denoiser(), grid=grid(), x=x, sampler=sampler, generator=g, **row.options).x)
        assert torch.equal(g.get_state(), before)
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("sampler", [name for name, row in SAMPLERS.items() if not row.deterministic])
def test_stochastic_samplers_draw_noise(sampler: str) -> None:
    x = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)
    g = generator(0)
    before = g.get_state()
    sd.sample(MIXTURE.denoiser(), grid=grid(), x=x, sampler=sampler, generator=g, **SAMPLERS[sampler].options)
    assert not torch.equal(g.get_state(), before)


@pytest.mark.parametrize("steps", [1, 2, 13])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nfe_is_exact(sampler: str, steps: int) -> None:
    """As many as the row says with finish="denoise", one fewer with "none", and as many as there were
    calls."""
    row = SAMPLERS[sampler]
    found = {}
    for finish in ("denoise", "none"):
        counter = Counter()
        out = sd.sample(
            counter,
            (3, 2),
            grid(steps=steps),
            sampler=sampler,
            finish=finish,
            generator=generator(0),
            **row.options,
        )
        assert out.nfe == len(counter.calls)
        found[finish] = out.nfe
    assert found["denoise"] == found["none"] + 1
    if row.nfe is not None:
        assert found["denoise"] == row.nfe(steps)


def test_nfe_follows_the_options() -> None:
    def nfe(sampler: str, **options: object) -> int:
        return sd.sample(
            MIXTURE.denoiser(), (3, 2), grid(steps=10), sampler=sampler, generator=generator(0), **options
        ).nfe

    assert nfe("pc", corrector_steps=0) == 9 + 1
    assert nfe("pc", corrector_steps=3) == 30 + 9 + 1
    assert nfe("pc", corrector_steps=3, predictor="none") == 30 + 1
    assert nfe("annealed_langevin", langevin_steps=5) == 50 + 1
    assert nfe("ddim", eta=0.5) == 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_step_is_called_at_each_node(sampler: str) -> None:
    """With its number, the node, x there and x0_hat there; the last node by the driver's own step."""
    row, g = SAMPLERS[sampler], grid(steps=7)
    calls: list[tuple[int, Node, Tensor, Tensor]] = []

    def on_step(index: int, node: Node, x: Tensor, x0_hat: Tensor) -> None:
        calls.append((index, node, x.clone(), x0_hat.clone()))

    out = sd.sample(
        MIXTURE.denoiser(),
        (3, 2),
        g,
        sampler=sampler,
        generator=generator(0),
        on_step=on_step,
        dtype=torch.float64,
        **row.options,
    )
    assert [index for index, *_ in calls] == (list(range(7)) if row.visits else [6])
    for index, node, x, x0_hat in calls:
        assert float(node.t) == float(g.times[index])
        torch.testing.assert_close(x0_hat, MIXTURE.denoiser()(x, node.kernel), rtol=1e-12, atol=1e-12)
    assert torch.equal(calls[-1][3], out.x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_finish_none_stops_at_the_last_node(sampler: str) -> None:
    """The denoise step of the state that "none" returns is what "denoise" returns."""
    options = dict(SAMPLERS[sampler].options)
    ends = [
        sd.sample(
            MIXTURE.denoiser(),
            (3, 2),
            grid(steps=7),
            sampler=sampler,
            finish=finish,
            generator=generator(0),
            dtype=torch.float64,
            **options,
        ).x
        for finish in ("none", "denoise")
    ]
    last = grid(steps=7).nodes[-1].kernel
    torch.testing.assert_close(MIXTURE.denoiser()(ends[0], last), ends[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_x_is_left_as_it_was(sampler: str) -> None:
    x = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)
    copy = x.clone()
    sd.sample(
        MIXTURE.denoiser(),
        grid=grid(),
        x=x,
        sampler=sampler,
        generator=generator(0),
        **SAMPLERS[sampler].options,
    )
    assert torch.equal(x, copy)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_unknown_option_names_the_valid_ones(sampler: str) -> None:
    with pytest.raises(TypeError) as caught:
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), sampler=sampler, snr_targett=0.1)
    message = str(caught.value)
    assert "'snr_targett'" in message and sampler in message
    valid = sd.samplers.sampler_options(sampler)
    assert all(name in message for name in valid) and (valid or "no options" in message)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(sd.UserError, match="did you mean 'ddim'"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), sampler="dimm")
    with pytest.raises(sd.UserError, match="did you mean 'karras'"):
        sd.make_grid(sd.VPSDE(), 10, "karas")
    with pytest.raises(sd.UserError, match="rho"):
        sd.make_grid(sd.VPSDE(), 10, "karras", roh=5.0)
    with pytest.raises(sd.UserError, match="did you mean 'denoise'"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), finish="denoised")
    with pytest.raises(sd.UserError, match="did you mean 'euler_maruyama'"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), sampler="pc", predictor="euler_marujama")
    with pytest.raises(sd.UserError, match="did you mean 'langevin'"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), sampler="pc", corrector="langevinn")


def test_bad_requests() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(sd.UserError, match="grid"):
        sd.sample(MIXTURE.denoiser(), (3, 2))
    with pytest.raises(sd.UserError, match="not both"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), x=x)
    with pytest.raises(sd.UserError, match="either"):
        sd.sample(MIXTURE.denoiser(), grid=grid())
    with pytest.raises(sd.UserError, match="eta"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), sampler="ddim", eta=1.5)
    with pytest.raises(sd.UserError, match="not finite"):
        sd.sample(lambda x, kernel: x * float("nan"), (3, 2), grid())
    with pytest.raises(ValueError, match="one for each sample"):
        sd.sample(MIXTURE.denoiser(), (3, 2), grid(), generator=sd.sample_generators(0, range(2)))
