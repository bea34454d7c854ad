"""`sd.fit`: a person's own network and tensors, trained from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import sde_diffusion as sd
from tests.proofs.cases import generator


class Affine(nn.Module):
    """v as an affine function of x whose coefficients depend on c_noise and, if it is told one, on a context."""

    def __init__(self, dims: int, told: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1 + told, 32), nn.Tanh(), nn.Linear(32, 2 * dims))
        self.told = told

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor | None = None) -> Tensor:
        level = 0.1 * c_noise[:, None]
        gain, bias = self.body(level if context is None else torch.cat([level, context], dim=1)).chunk(2, dim=1)
        return gain * x + bias


def network(seed: int, dims: int = 2, told: int = 0) -> Affine:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Affine(dims, told)


SPEC = sd.NetworkSpec(sd.VPSDE(), prediction="v", label="logsnr")
GAUSSIAN = sd.GaussianMixture([[0.7, -0.4]], [[0.5, 1.5]], [1.0])
QUICK = sd.TrainingSettings(warmup_steps=5, ema_decay=0.95, log_every=1000, weighting="v", times="stratified")


def test_a_gaussian_is_learned() -> None:
    """Its denoiser is affine in x, which the network can be at every level: samples have its mean and deviation."""
    x = GAUSSIAN.sample(2000, generator=generator(0)).float()
    denoiser = sd.fit(network(0), SPEC, x, 400, learning_rate=1e-2, settings=QUICK, device="cpu")
    assert denoiser.spec.shape == (2,) and not denoiser.net.training
    for t in (0.1, 0.4, 0.8):
        kernel = sd.VPSDE().kernel(t)
        noisy = kernel.perturb(x, torch.randn(x.shape, generator=generator(1)))
        truth = GAUSSIAN.denoiser()(noisy, kernel)
        away = (denoiser(noisy, kernel) - truth).square().mean()
        assert float(away) < 0.03 * float((noisy - truth).square().mean()) + 0.01
    out = sd.sample(denoiser, (2000, 2), sd.make_grid(sd.VPSDE(), 50), generator=generator(2)).x
    torch.testing.assert_close(out.mean(0), torch.tensor([0.7, -0.4]), atol=0.15, rtol=0.0)
    torch.testing.assert_close(out.std(0), torch.tensor([0.5, 1.5]), atol=0.0, rtol=0.15)


def test_a_condition_of_any_name_reaches_the_network() -> None:
    """The data are the context and a little noise, so that samples have the mean that they are asked for."""
    context = torch.randn(2000, 2, generator=generator(0))
    x = context + 0.2 * torch.randn(2000, 2, generator=generator(1))
    told = network(0, told=2)
    denoiser = sd.fit(told, SPEC, (x, {"context": context}), 300, learning_rate=1e-2, settings=QUICK, device="cpu")
    assert denoiser.spec.conditions == ("context",)
    wanted = torch.tensor([[1.0, -1.0], [0.5, 1.0]]).repeat_interleave(500, 0)
    asked = sd.ConditionedDenoiser(denoiser, context=wanted)
    out = sd.sample(asked, (1000, 2), sd.make_grid(sd.VPSDE(), 30), generator=generator(2)).x
    assert float((out - wanted).view(2, 500, 2).mean(1).abs().max()) < 0.15
    with pytest.raises(sd.UserError, match=r"does not take the condition 'contxt'. Did you mean 'context'"):
        denoiser(wanted, sd.VPSDE().kernel(0.5), contxt=wanted)


def weights(denoiser: sd.NetworkDenoiser) -> Tensor:
    return torch.cat([value.flatten() for value in denoiser.net.state_dict().values()])


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    x = GAUSSIAN.sample(100, generator=generator(0)).float()
    whole = sd.fit(network(0), SPEC, x, 20, batch_size=8, settings=QUICK, device="cpu")
    assert not torch.equal(weights(whole), weights(sd.NetworkDenoiser(network(0), SPEC)))
    sd.fit(network(0), SPEC, x, 10, batch_size=8, folder=tmp_path, settings=QUICK, device="cpu")
    halved = sd.fit(network(5), SPEC, x, 20, batch_size=8, folder=tmp_path, settings=QUICK, device="cpu")
    assert torch.equal(weights(whole), weights(halved))
    again = sd.fit(network(7), SPEC, x, 20, batch_size=8, folder=tmp_path, settings=QUICK, device="cpu")
    assert torch.equal(weights(whole), weights(again)), "a finished training gives its weights"
    with pytest.raises(sd.UserError, match=r"a network of a person's own.* give it to sd\.fit"):
        sd.load(tmp_path)


class InOrder(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Samples with a context of their own."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[index], {"context": self.x[index]}


def test_a_loader_gives_the_batches() -> None:
    """Of samples that are all alike, in whatever order, those of a tensor; the conditions too."""
    x = torch.tensor([[0.3, -1.0]]).repeat(24, 1)
    found = [
        sd.fit(network(0, told=2), SPEC, data, 10, batch_size=8, settings=QUICK, device="cpu")
        for data in ((x, {"context": x}), DataLoader(InOrder(x), batch_size=8))
    ]
    assert [denoiser.spec.conditions for denoiser in found] == [("context",)] * 2
    assert torch.equal(*map(weights, found))


def test_what_cannot_be_trained_is_said() -> None:
    x = GAUSSIAN.sample(50, generator=generator(0)).float()

    def refused(says: str, spec: sd.NetworkSpec = SPEC, data: object = x, **options: object) -> None:
        with pytest.raises(sd.UserError, match=says):
            sd.fit(network(0), spec, data, 5, device="cpu", **options)  # type: ignore[arg-type]

    refused(r"floating-point numbers, alone or with a dict", data=x.long())
    refused("'context' has 3 rows, and there are 50 samples", data=(x, {"context": x[:3]}))
    refused("does not take the condition 'labels'", data=(x, {"labels": torch.zeros(50, dtype=torch.int64)}))
    refused(
        "the network is told 'context', which the data lacks; it has none",
        spec=sd.NetworkSpec(sd.VPSDE(), "v", "logsnr", conditions=("context",)),
    )
    refused("says nothing of x_0", spec=sd.NetworkSpec(sd.RectifiedFlow(), "eps"))
    refused(r"samples have shape \[3\], and the data have \[2\]", spec=sd.NetworkSpec(sd.VPSDE(), "v", shape=(3,)))
    refused("did you mean 'raw'", weights="rav")
    refused("batches of its batch_size", data=DataLoader(x, batch_size=64))  # type: ignore[arg-type]
