"""Times the networks on the CPU: beside diffusers' UNet2DModel of equal layers, and beside their own convolutions.

Everything is timed in one process and in turns, so that the ratios mean something on a machine that is busy with other
work. The floor of a network runs its convolutions, linear layers, resampling filters and attention alone, on the inputs
that they have inside it; what the network takes beyond it is normalisation, activations, sums and concatenations.

    python benchmarks/forward.py [--threads 2] [--batch 16] [--repeats 7]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import median_seconds
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from sde_diffusion.importers.diffusers import unet_rules
from sde_diffusion.importers.export import network_config
from sde_diffusion.importers.rules import exported
from sde_diffusion.nets import DDPM, DDPMpp, NCSNpp, UNet

CPU = torch.device("cpu")
Call = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]
WORK = {F.conv2d, F.conv_transpose2d, F.linear, F.scaled_dot_product_attention, F.avg_pool2d, F.interpolate}


class Recording(TorchFunctionMode):
    """Notes the calls of a forward pass that are its work: convolutions, linear layers, filters and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in WORK:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def leaf(value: Any, backward: bool) -> Any:
    """A tensor of the same numbers and layout that is nobody's result."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(backward)


def finish(out: Tensor, backward: bool) -> None:
    if backward:
        torch.autograd.backward(out, torch.ones_like(out))


def beside_diffusers(net: UNet | DDPM, batch: int, repeats: int) -> None:
    """Images a second of the network and of diffusers' with the same weights, whose outputs must agree."""
    from diffusers import UNet2DModel

    theirs = UNet2DModel(**{k: v for k, v in network_config(net).items() if not k.startswith("_")}).eval()
    theirs.load_state_dict(exported(net.state_dict(), unet_rules(net)))
    x, label = torch.randn(batch, *net.shape), torch.rand(batch) * 999
    with torch.no_grad():
        torch.testing.assert_close(net(x, label), theirs(x, label).sample, rtol=1e-3, atol=1e-4)
    count = sum(p.numel() for p in net.parameters())
    print(f"\n{type(net).__name__} of {count:,} parameters, batch {batch}, beside diffusers' of the same layers")
    for backward in (False, True):
        works = {
            "ours": lambda: finish(net(x, label), backward),  # noqa: B023
            "diffusers": lambda: finish(theirs(x, label).sample, backward),  # noqa: B023
        }
        with torch.set_grad_enabled(backward):
            found = median_seconds(works, repeats, CPU)
        kind = "forward + backward" if backward else "forward"
        ours, other = (batch / found[name] for name in ("ours", "diffusers"))
        print(f"  {kind:20} ours {ours:7.2f} images/s   diffusers {other:7.2f} images/s   ratio {ours / other:.2f}")


def beside_floor(net: nn.Module, shape: tuple[int, ...], batch: int, repeats: int) -> None:
    """Seconds of the network and of its convolutions and attention alone."""
    x, label = torch.randn(batch, *shape), torch.rand(batch)
    with torch.no_grad(), Recording() as recording:
        net(x, label)
    count = sum(p.numel() for p in net.parameters())
    print(f"\n{type(net).__name__} of {count:,} parameters, batch {batch}, beside its convolutions and attention alone")
    for backward in (False, True):
        given = [
            (
                work,
                [leaf(value, backward) for value in args],
                {key: leaf(value, backward) for key, value in named.items()},
            )
            for work, args, named in recording.calls
        ]

        def floor() -> None:
            for work, args, named in given:  # noqa: B023
                finish(work(*args, **named), backward)  # noqa: B023

        works = {"net": lambda: finish(net(x, label), backward), "floor": floor}  # noqa: B023
        with torch.set_grad_enabled(backward):
            found = median_seconds(works, repeats, CPU)
        kind = "forward + backward" if backward else "forward"
        times = "   ".join(f"{name} {1e3 * time / batch:8.2f} ms/image" for name, time in found.items())
        print(f"  {kind:20} {times}   ratio {found['net'] / found['floor']:.3f}")


def profiled(net: nn.Module, shape: tuple[int, ...], batch: int) -> None:
    """What operations the time of a forward pass goes to."""
    x, label = torch.randn(batch, *shape), torch.rand(batch)
    with torch.no_grad():
        net(x, label)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            net(x, label)
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:10]:
        print(f"    {event.key:44} {event.self_cpu_time_total / total:6.1%}  {event.count:5} calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="part of a network's name")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = (3, 32, 32)
    same: dict[str, Callable[[], UNet | DDPM]] = {
        "unet": lambda: UNet(in_channels=3, image_size=32),
        "ddpm": lambda: DDPM(in_channels=3, image_size=32, dropout=0.0),
    }
    floors: dict[str, Callable[[], nn.Module]] = {
        "ddpmpp": lambda: DDPMpp(in_channels=3, image_size=32, dropout=0.0),
        "ncsnpp": lambda: NCSNpp(in_channels=3, image_size=32, dropout=0.0),
    }
    for name, build in same.items():
        if given.only in name:
            beside_diffusers(build(), given.batch, given.repeats)
    for name, make in floors.items():
        if given.only in name:
            net = make()
            beside_floor(net, shape, given.batch, given.repeats)
            profiled(net, shape, given.batch)


if __name__ == "__main__":
    main()
