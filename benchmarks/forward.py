"""Times the U-Net on the CPU, per image, against a floor: its own convolutions and linear layers alone.

The floor runs the same layers on the same inputs, in the same process and interleaved with the network, so
that the ratio (what everything else costs) means something on a machine that is busy with other work.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_diffusion.nets import UNet

NETWORKS = {  # name: (batch, network)
    "8x8x1, 16 (1,2,4)": (
        128,
        UNet(in_channels=1, image_size=8, channels=16, multipliers=(1, 2, 4), blocks=1),
    ),
    "32x32x3, 32 (1,2,2,2)": (16, UNet(in_channels=3, image_size=32, channels=32)),
}


def layer_inputs(net: nn.Module, *inputs: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Each convolution and linear layer of the network with what it was given."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, _: calls.append((layer, given[0].detach())))
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    net(*inputs)
    for hook in hooks:
        hook.remove()
    return calls


def elapsed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(net: UNet, batch: int, *, backward: bool, repeats: int = 7) -> tuple[float, float]:
    """Median seconds a batch of the network and of its floor."""
    x, label = torch.randn(batch, *net.shape), torch.rand(batch) * 1000
    calls = [(layer, given.requires_grad_(backward)) for layer, given in layer_inputs(net, x, label)]

    def finish(out: Tensor) -> None:
        if backward:
            torch.autograd.backward(out, torch.ones_like(out))

    def floor() -> None:
        for layer, given in calls:
            finish(layer(given))

    with torch.set_grad_enabled(backward):
        pairs = [(elapsed(lambda: finish(net(x, label))), elapsed(floor)) for _ in range(repeats + 2)]
    network, alone = zip(*pairs[2:], strict=True)  # the first two warm up
    return statistics.median(network), statistics.median(alone)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'network':24}{'parameters':>12}{'pass':>20}{'ms/image':>10}{'floor':>8}{'ratio':>7}")
    for name, (batch, net) in NETWORKS.items():
        count = sum(p.numel() for p in net.parameters())
        for backward in (False, True):
            times = measure(net, batch, backward=backward)
            network, floor = (1e3 * seconds / batch for seconds in times)
            kind = "forward + backward" if backward else "forward"
            print(f"{name:24}{count:12,}{kind:>20}{network:10.3f}{floor:8.3f}{network / floor:7.2f}")


if __name__ == "__main__":
    main()
