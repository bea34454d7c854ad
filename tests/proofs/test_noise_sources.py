"""Where samplers' noise comes from: the laws of a Brownian path, strong convergence on it, and noise that is given."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.core.grid import Node
from sde_diffusion.core.noise import randn
from tests.proofs.cases import MIXTURES, PROCESSES, ROWS, generator, quick_denoiser, run, slope

DENOISER = quick_denoiser(MIXTURES[2])
STOCHASTIC = [name for name, row in ROWS.items() if not row.deterministic and row.nfe is not None]


def increments(source: sd.NoiseSource, grid: sd.TimeGrid, like: Tensor) -> Tensor:
    """sqrt(s' - s) n of every step of a grid, [steps - 1, B, *D]."""
    rises = grid.levels.kernel.snr.diff().sqrt().tolist()
    return torch.stack([rise * source(i, *pair, like) for i, (pair, rise) in enumerate(zip(grid.pairs(), rises))])


# --- one Brownian path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_increments_are_standard_normal_and_independent(process: str) -> None:
    """Mean, variance and correlations of 40 steps over 2,000 paths, each within 4.5 standard errors."""
    grid, like = sd.make_grid(PROCESSES[process], 41, "logsnr"), torch.zeros(2000, 1, dtype=torch.float64)
    source = sd.BrownianNoise(generator(0))
    drawn = torch.stack([source(i, *pair, like) for i, pair in enumerate(grid.pairs())])[:, :, 0]
    products = drawn @ drawn.T / 2000 - torch.eye(40, dtype=torch.float64)
    assert float(drawn.mean(1).abs().max()) < 4.5 / 2000**0.5
    assert float(products.diagonal().abs().max()) < 4.5 * (2 / 2000) ** 0.5
    assert float((products - products.diagonal().diag()).abs().max()) < 4.5 / 2000**0.5


@pytest.mark.parametrize("one_for_all", [True, False])
def test_one_path_whatever_the_steps(one_for_all: bool) -> None:
    """The increments of a fine grid add up to those of a coarse one; uneven grids and other orders of asking too."""
    like = torch.zeros(3, 2, 2, dtype=torch.float64)

    def source() -> sd.NoiseSource:
        return sd.BrownianNoise(generator(2) if one_for_all else sd.sample_generators(2, range(3)))

    fine = sd.make_grid(sd.VPSDE(), 61, "logsnr")
    coarse, uneven = (sd.TimeGrid(fine.sde, fine.times[index]) for index in (slice(0, None, 6), [0, 1, 7, 8, 30, 60]))
    whole = increments(source(), fine, like)
    for grid, parts in ((coarse, [6] * 10), (uneven, [1, 6, 1, 22, 30])):
        sums = torch.stack([part.sum(0) for part in whole.split(parts)])
        torch.testing.assert_close(increments(source(), grid, like), sums, rtol=1e-9, atol=1e-9)
    own, last = source(), fine.nodes[-2:]
    scale = float((last[1].kernel.snr - last[0].kernel.snr).sqrt())
    torch.testing.assert_close(scale * own(0, *last, like), whole[-1], rtol=1e-9, atol=1e-9)


def test_a_path_is_its_generators() -> None:
    """Row by row the same alone; other seeds give other paths; a draw from a node to itself is no part of one."""
    grid = sd.make_grid(sd.EDM(), 9)
    whole, part = (
        increments(sd.BrownianNoise(sd.sample_generators(5, rows)), grid, torch.zeros(len(rows), 4))
        for rows in (range(6), range(2, 4))
    )
    assert torch.equal(whole[:, 2:4], part) and len(whole[0].unique(dim=0)) == 6
    other = increments(sd.BrownianNoise(sd.sample_generators(6, range(6))), grid, torch.zeros(6, 4))
    assert not torch.equal(whole, other)
    source, now, like = sd.BrownianNoise(generator(0)), grid.nodes[3], torch.zeros(2000, 1)
    first, second = (source(0, now, now, like)[:, 0] for _ in range(2))
    assert abs(float((first * second).mean())) < 4.5 / 2000**0.5 and abs(float(first.var()) - 1.0) < 0.15


STRONG = {"ddpm": {}, "dpmpp_2m_sde": {}, "ito": {"stochasticity": 0.5}, "euler_maruyama": {}}


@pytest.mark.parametrize("process", ["VPSDE", "EDM"])
@pytest.mark.parametrize("sampler", STRONG)
def test_strong_order_one(sampler: str, process: str) -> None:
    """On one path the samples of n and 2n steps come together as 1/n; on white noise they do not."""
    sde, sizes = PROCESSES[process], (50, 100, 200)
    kind = {"VPSDE": "logsnr", "EDM": "karras"}[process]

    def distances(noise: str) -> list[float]:
        outs = [
            sd.sample(
                DENOISER,
                (200, 2),
                sd.make_grid(sde, steps + 1, kind),
                sampler=sampler,
                noise=noise,
                generator=generator(5),
                dtype=torch.float64,
                finish="none",
                **STRONG[sampler],
            ).x
            for steps in (*sizes, 2 * sizes[-1])
        ]
        return [float((a - b).square().sum(1).mean().sqrt()) for a, b in pairwise(outs)]

    assert 0.8 < -slope([float(n) for n in sizes], distances("brownian")) < 1.4
    assert min(distances("white")) > 0.5


@pytest.mark.parametrize("row", [row for row in STOCHASTIC if row != "pc langevin"])
def test_the_law_is_that_of_white_noise(row: str) -> None:
    """Mean and standard deviation of 2,000 samples, 40 steps; "pc langevin" has tails in the plane (langevin.py)."""
    grid, mixture = sd.make_grid(sd.VPSDE(), 40, "logsnr"), MIXTURES[2]
    white, path = (
        run(row, DENOISER, (2000, 2), grid, noise=noise, generator=generator(7), dtype=torch.float64).x
        for noise in ("white", "brownian")
    )
    spread = mixture.covariance.diag().sqrt()
    assert float(((white.mean(0) - path.mean(0)) / spread).abs().max()) < 4.5 * (2 / 2000) ** 0.5
    assert float((white.std(0) / path.std(0) - 1.0).abs().max()) < 4.5 / 2000**0.5


def test_samples_of_their_own_steps_have_no_path() -> None:
    with pytest.raises(sd.UserError, match=r"every sample has steps of its own.*take noise='white'"):
        sd.sample(
            DENOISER, (2, 2), sd.make_grid(sd.VPSDE(), 2), sampler="adaptive_sde", noise="brownian", dtype=torch.float64
        )


# --- noise that is given ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", STOCHASTIC)
def test_noise_that_is_given_is_used_as_it_is(row: str) -> None:
    """As tensors or by a function, the normals of a generator give what the generator gives."""
    grid, x = sd.make_grid(sd.VPSDE(), 6, "logsnr"), torch.randn(3, 2, generator=generator(1)).double()
    whole = run(row, DENOISER, grid=grid, x=x, generator=generator(2)).x
    own, kept, pairs = generator(2), [], []

    def source(step: int, now: Node, next: Node, like: Tensor) -> Tensor:
        kept.append(randn(like.shape, own, like=like))
        pairs.append((step, float(now.t), float(next.t)))
        return kept[-1]

    assert torch.equal(run(row, DENOISER, grid=grid, x=x, noise=source).x, whole)
    times = grid.times.tolist()
    for step, now, next in pairs:
        assert now == times[step] and next in times[step : step + 2]
    for given in (kept, torch.stack(kept)):
        assert torch.equal(run(row, DENOISER, grid=grid, x=x, noise=given).x, whole)
    with pytest.raises(sd.UserError, match=f"more often than {len(kept) - 1} times"):
        run(row, DENOISER, grid=grid, x=x, noise=kept[1:])
    with pytest.raises(sd.UserError, match=f"drew noise {len(kept)} times, and noise= has {len(kept) + 1} tensors"):
        run(row, DENOISER, grid=grid, x=x, noise=[*kept, kept[0]])


def test_noise_that_is_none() -> None:
    def refused(sentence: str, noise: object) -> None:
        with pytest.raises(sd.UserError, match=sentence):
            sd.sample(DENOISER, (2, 2), sd.make_grid(sd.VPSDE(), 4), sampler="ddpm", noise=noise, dtype=torch.float64)

    refused("did you mean 'brownian'", "brownien")
    refused("'white', 'brownian', a function .* got a int", 3)
    refused(r"tensor 0 of noise= has shape \(2,\), and the samples \(2, 2\)", torch.zeros(3, 2))
    refused("holds tensors", [1.0, 2.0])
