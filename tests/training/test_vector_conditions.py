"""Vectors that a network is told: learned, withheld, and guided by, in closed form."""

from __future__ import annotations

from dataclasses import replace

import torch

import sde_diffusion as sd
from sde_diffusion.settings.root import fresh_network
from sde_diffusion.training.losses import Task, row_losses
from tests.proofs.cases import generator

OPTIONS = {"shape": [2], "width": 48, "blocks": 2, "vectors": {"attributes": 2}}
SPEC = sd.NetworkSpec(sd.VPSDE(), "v", "logsnr", shape=(2,), network="mlp", options=OPTIONS)
SETTINGS = sd.TrainingSettings(
    warmup_steps=5, ema_decay=0.95, log_every=1000, weighting="v", times="stratified", label_dropout=0.2
)


def test_a_network_learns_what_each_attribute_does_and_to_do_without() -> None:
    """Attribute i moves the mean of coordinate i from -1 to 1; told nothing, both means are 0, and the std is wide."""
    attributes = torch.randint(2, (3000, 2), generator=generator(0)).float()
    x = 2.0 * attributes - 1.0 + 0.2 * torch.randn(3000, 2, generator=generator(1))
    net = fresh_network(SPEC, 0)
    data = (x, {"attributes": attributes})
    denoiser = sd.fit(net, SPEC, data, 500, batch_size=128, learning_rate=3e-3, settings=SETTINGS, device="cpu")
    assert denoiser.spec.conditions == ("attributes",)
    grid = sd.make_grid(sd.VPSDE(), 25)

    def drawn(**told: torch.Tensor) -> torch.Tensor:
        model = sd.ConditionedDenoiser(denoiser, **told)
        return sd.sample(model, (400, 2), grid, sampler="dpmpp_2m", generator=generator(3)).x

    for pair in ((0.0, 1.0), (1.0, 1.0)):
        out = drawn(attributes=torch.tensor(pair).expand(400, 2))
        torch.testing.assert_close(out.mean(0), 2.0 * torch.tensor(pair) - 1.0, atol=0.15, rtol=0.0)
        assert float(out.std(0).max()) < 0.5
    free = drawn()
    assert float(free.mean(0).abs().max()) < 0.3 and float(free.std(0).min()) > 0.75
    # Guidance of any condition: what the spec gives in place of it is what the network says of nothing.
    told = {"attributes": torch.tensor([[1.0, 0.0]]).expand(4, 2)}
    kernel, noisy = sd.VPSDE().kernel(0.6), torch.randn(4, 2, generator=generator(4))
    assert torch.equal(denoiser(noisy, kernel, **denoiser.spec.untold(told)), denoiser(noisy, kernel))
    assert not torch.allclose(denoiser(noisy, kernel, **told), denoiser(noisy, kernel), atol=0.05)


def test_label_dropout_withholds_all_conditions_of_the_same_rows() -> None:
    """At 1 the losses are those of a network that is told nothing, at 0 those of one that is told everything."""
    options = {"shape": [2], "width": 8, "blocks": 1, "num_classes": 3, "vectors": {"attributes": 2}}
    spec = replace(SPEC, options=options, conditions=())
    assert spec.conditions == ("labels", "attributes")
    net = fresh_network(spec, 0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator(2))
    denoiser = sd.NetworkDenoiser(net, spec)
    batch = (torch.randn(6, 2), {"labels": torch.tensor([0, 1, 2, 0, 1, 2]), "attributes": torch.ones(6, 2)})
    nothing = {"labels": torch.full((6,), 3), "attributes": torch.full((6, 2), torch.nan)}

    def losses(share: float, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
        own = replace(SETTINGS, label_dropout=share)
        task = Task.from_settings(own, 0, sd.DataTransform(None), False, spec, spec.process)
        return row_losses(task, denoiser, (batch[0], conditions), range(6), 6, 0).losses

    told, untold = losses(0.0, batch[1]), losses(0.0, nothing)
    assert torch.equal(losses(1.0, batch[1]), untold)
    some = losses(0.5, batch[1])
    kept = some == told
    assert 0 < int(kept.sum()) < 6 and torch.equal(some, torch.where(kept, told, untold))
