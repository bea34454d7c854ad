"""Random draws: their laws, one generator a sample, and a global state that stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from sde_diffusion.core.noise import fresh, rademacher, rand, randn, row_generators, sample_generators
from tests.proofs.cases import generator

DRAWS: dict[str, Callable[..., Tensor]] = {"randn": randn, "rademacher": rademacher, "rand": rand}


def test_the_laws() -> None:
    n = 20_000
    assert kstest(randn((n,), generator(0), dtype=torch.float64).numpy(), "norm").pvalue > 1e-3
    assert kstest(rand((n,), generator(0), dtype=torch.float64).numpy(), "uniform").pvalue > 1e-3
    signs = rademacher((n,), generator(0))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / n**0.5


def test_the_laws_across_generators() -> None:
    """The first draw of each of 4000 per-sample generators: normal, and neighbours are uncorrelated."""
    first = randn((4000, 2), sample_generators(3, range(4000)), dtype=torch.float64)
    assert kstest(first.flatten().numpy(), "norm").pvalue > 1e-3
    for a, b in ((first[:-1, 0], first[1:, 0]), (first[:, 0], first[:, 1])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / 4000**0.5
    other = randn((4000, 2), sample_generators(4, range(4000)), dtype=torch.float64)
    assert abs(float(torch.corrcoef(torch.stack([first[:, 0], other[:, 0]]))[0, 1])) < 4 / 4000**0.5
    shifted = torch.corrcoef(torch.stack([first[1:, 0], other[:-1, 0]]))[0, 1]
    assert abs(float(shifted)) < 4 / 4000**0.5


@pytest.mark.parametrize("draw", DRAWS)
def test_a_sample_depends_on_its_own_generator_only(draw: str) -> None:
    whole = DRAWS[draw]((6, 50), sample_generators(7, range(6)))
    part = DRAWS[draw]((2, 50), sample_generators(7, range(3, 5)))
    assert torch.equal(whole[3:5], part)
    assert len(whole.unique(dim=0)) == 6


@pytest.mark.parametrize("draw", DRAWS)
def test_the_global_state_stays(draw: str) -> None:
    before = torch.get_rng_state()
    for g in (generator(0), sample_generators(0, range(3)), None):
        DRAWS[draw]((3, 2), g)
    fresh(None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", DRAWS)
def test_dtype_and_shape(draw: str) -> None:
    like = torch.zeros(1, dtype=torch.float64)
    assert DRAWS[draw]((3, 2), generator(0), like=like).dtype == torch.float64
    assert DRAWS[draw]((3, 2), generator(0)).dtype == torch.float32
    assert DRAWS[draw]((3, 2, 4), sample_generators(0, range(3))).shape == (3, 2, 4)
    with pytest.raises(ValueError, match="one for each sample"):
        DRAWS[draw]((4, 2), sample_generators(0, range(3)))


def test_without_a_generator_draws_differ() -> None:
    assert not torch.equal(randn((4,), None), randn((4,), None))


@pytest.mark.parametrize("stream", [0, 5])
def test_generators_of_some_rows_are_those_of_all(stream: int) -> None:
    """Rows a to b of a step draw what they draw as a part of the whole batch; other steps, seeds and streams do not."""
    whole = randn((9, 20), row_generators(3, 11, range(9), stream=stream))
    assert len(whole.unique(dim=0)) == 9
    for rows in (range(9), range(0, 4), range(4, 9), range(2, 3), range(8, 9)):
        part = randn((len(rows), 20), row_generators(3, 11, rows, stream=stream))
        assert torch.equal(part, whole[rows.start : rows.stop])
    for seed, step, other in ((4, 11, stream), (3, 12, stream), (3, 11, stream + 1)):
        assert not torch.isclose(randn((9, 20), row_generators(seed, step, range(9), stream=other)), whole).any()
