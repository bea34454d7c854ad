"""The perturbation kernel: what it does to samples, and how transitions compose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.core.kernel import CLEAN, Kernel, as_schedule, combine, match
from tests.proofs.cases import PROCESSES, generator

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def test_perturb_has_mean_alpha_x0_and_standard_deviation_sigma() -> None:
    x0 = torch.tensor([[1.5, -2.0]], dtype=torch.float64).repeat(40_000, 1)
    x = Kernel(0.7, 0.4).perturb(x0, torch.randn(x0.shape, generator=generator(0), dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), 0.7 * x0[0], rtol=0.0, atol=4 * 0.4 / 200)
    torch.testing.assert_close(x.std(0), torch.full((2,), 0.4, dtype=torch.float64), rtol=4 / 280, atol=0.0)


def test_one_level_a_sample() -> None:
    alpha, sigma = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.0, 0.5, 2.0])
    x0, noise = torch.randn(2, 3, 2, 4, generator=generator(0), dtype=torch.float64)
    x = Kernel(alpha, sigma).perturb(x0, noise)
    for i in range(3):
        torch.testing.assert_close(x[i], alpha[i].double() * x0[i] + sigma[i].double() * noise[i], **CLOSE)
    with pytest.raises(ValueError, match="one noise level a sample"):
        Kernel(alpha, sigma).perturb(x0[:2], noise[:2])


def test_snr_and_its_log() -> None:
    k = Kernel(torch.tensor([0.9, 0.1]), torch.tensor([0.2, 3.0]))
    torch.testing.assert_close(k.snr, torch.tensor([20.25, 1 / 900], dtype=torch.float64), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(k.logsnr, k.snr.log(), **CLOSE)
    torch.testing.assert_close(k.variance, k.sigma**2, **CLOSE)
    torch.testing.assert_close(k[1].alpha, k.alpha[1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_schedules_are_float64_and_batches_keep_their_dtype(dtype: torch.dtype) -> None:
    assert as_schedule(0.1).dtype == torch.float64
    assert as_schedule(torch.tensor([0.1], dtype=dtype)).dtype == torch.float64
    x = torch.ones(2, 3, dtype=dtype)
    for value in (torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)):
        assert (match(value, x) * x).dtype == dtype
    assert Kernel(0.5, 0.5).perturb(x, x).dtype == dtype


@pytest.mark.parametrize("process", PROCESSES)
def test_transitions_compose(process: str) -> None:
    """Chapman-Kolmogorov: p(t|r) = p(t|s) p(s|r), means a_ts a_sr, variances v_ts + a_ts^2 v_sr; p(t|0) is
    the kernel."""
    sde = PROCESSES[process]
    r, s, t = (sde.kernel(time) for time in (0.21, 0.52, 0.87))
    whole, late, early = t.after(r), t.after(s), s.after(r)
    torch.testing.assert_close(whole.alpha, late.alpha * early.alpha, **CLOSE)
    torch.testing.assert_close(whole.variance, late.variance + late.alpha**2 * early.variance, **CLOSE)
    torch.testing.assert_close(t.variance, late.variance + late.alpha**2 * s.variance, **CLOSE)
    for found, expected in zip(_pair(t.after(CLEAN)), _pair(t), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_short_transition_is_a_step_of_the_sde(process: str) -> None:
    """a = 1 + f dt and v = g^2 dt to first order."""
    sde, t, dt = PROCESSES[process], 0.4305, 1e-6
    step = sde.kernel(t + dt).after(sde.kernel(t))
    torch.testing.assert_close((step.alpha - 1.0) / dt, sde.dlog_alpha(t + dt / 2), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(step.variance / dt, sde.diffusion(t + dt / 2) ** 2, rtol=1e-4, atol=1e-8)


def _pair(kernel: Kernel) -> tuple[Tensor, Tensor]:
    return kernel.alpha, kernel.sigma


def test_combine_is_the_sum_of_its_terms() -> None:
    """Coefficients as numbers, as one tensor [], and as one a sample; the tensors stay as they were."""
    x, y, z = torch.randn(3, 4, 2, 5, generator=generator(0), dtype=torch.float64)
    copies = x.clone(), y.clone(), z.clone()
    each = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    one = torch.tensor(-0.7, dtype=torch.float64)
    expected = each[:, None, None] * x - 0.7 * y + 3.0 * z
    torch.testing.assert_close(combine((each, one, 3.0), x, y, z), expected, **CLOSE)
    torch.testing.assert_close(combine((3.0, each, one), z, x, y), expected, **CLOSE)
    assert all(torch.equal(a, b) for a, b in zip((x, y, z), copies, strict=True))
    with pytest.raises(ValueError):
        combine((1.0, 2.0), x)


def test_combine_has_a_gradient() -> None:
    x, y = torch.randn(2, 4, 3, generator=generator(0), dtype=torch.float64).requires_grad_(True)
    gradients = torch.autograd.grad(combine((2.0, torch.tensor(-3.0)), x, y).sum(), (x, y))
    assert bool((gradients[0] == 2.0).all()) and bool((gradients[1] == -3.0).all())
