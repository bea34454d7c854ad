"""Times a training step on the CPU or a GPU: its two passes, and what follows them.

The update is clipping, Adam and the moving average of the weights. Ours (one fused Adam, one multi-tensor average) is
timed beside PyTorch's defaults with an average tensor by tensor, on the same gradients; the passes beside those of
diffusers' UNet2DModel of the same layers. All in one process and in turns.

    python benchmarks/train_step.py [--threads 2] [--batch 16] [--repeats 7]
    python benchmarks/train_step.py --device cuda --batch 128 --config ddpmpp_cifar     (bf16, channels_last, compiled)
"""

import argparse
import copy
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import elapsed, median_seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion.data import Dataset
from sde_diffusion.importers.diffusers import unet_rules
from sde_diffusion.importers.export import network_config
from sde_diffusion.importers.rules import exported
from sde_diffusion.nets import UNet
from sde_diffusion.nets.building import build_network
from sde_diffusion.settings.root import Settings
from sde_diffusion.training.averages import Averages, Exponential

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ is not installed

settings_of = Settings.from_config

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 peaks of NVIDIA's data sheets."""


def loss_of(out: Tensor) -> Tensor:
    return out.square().mean()


def our_update(net: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    averages = Averages(net, {"ema": Exponential(0.999)})

    def update() -> None:
        norm = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        if float(norm) > 1.0:
            nn.utils.clip_grads_with_norm_(net.parameters(), 1.0, norm)
        optimizer.step()
        averages.update(net)

    return update


def default_update(net: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    ema = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def update() -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        for average, weight in zip(ema.parameters(), net.parameters(), strict=True):
            average.lerp_(weight, 0.001)

    return update


def on_cpu(batch: int, repeats: int) -> None:
    """The whole step and its update, of the DDPM-sized U-Net, beside diffusers' and the defaults."""
    from diffusers import UNet2DModel

    net = UNet(in_channels=3, image_size=32)
    theirs = UNet2DModel(**{k: v for k, v in network_config(net).items() if not k.startswith("_")})
    theirs.load_state_dict(exported(net.state_dict(), unet_rules(net)))
    x, label = torch.randn(batch, 3, 32, 32), torch.rand(batch) * 999
    count = sum(p.numel() for p in net.parameters())
    print(f"UNet of {count:,} parameters, batch {batch}, {torch.get_num_threads()} threads")
    ours, default = our_update(net), default_update(theirs)

    def passes(run: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: loss_of(run()).backward()  # type: ignore[no-untyped-call]

    works = {
        "forward + backward, ours": passes(lambda: net(x, label)),
        "forward + backward, diffusers": passes(lambda: theirs(x, label).sample),
        "update, ours": ours,
        "update, defaults": default,
    }
    found = median_seconds(works, repeats, torch.device("cpu"))
    for name, time in found.items():
        print(f"  {name:32} {1e3 * time:9.1f} ms")
    two = [found[f"forward + backward, {who}"] for who in ("diffusers", "ours")]
    print(f"  images/s, ours over diffusers': {two[0] / two[1]:.2f}")
    print(f"  update, ours over the defaults: {found['update, ours'] / found['update, defaults']:.2f}")
    print(f"  update, share of our step: {found['update, ours'] / (found['update, ours'] + two[1]):.1%}")


def on_gpu(device: torch.device, name: str, batch: int, repeats: int) -> None:
    """Images a second of a training step in bf16, channels_last, eager and compiled, and its share of the peak."""
    file, _, variants = name.partition(":")
    get_config = importlib.import_module(f"configs.{file}").get_config
    config = get_config(variants) if variants else get_config()
    data = Dataset(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), 256, ("a", "b"), "stand-in")
    spec = settings_of(config).spec(data)
    net = build_network(spec.network, spec.options).to(device)
    x, label = torch.randn(batch, 3, 32, 32, device=device), torch.rand(batch, device=device)
    update = our_update(net)
    with FlopCounterMode(display=False) as counter:
        loss_of(net(x, label)).backward()  # type: ignore[no-untyped-call]
    flops = counter.get_total_flops()
    gpu = torch.cuda.get_device_name(device)
    peak = next((value for key, value in PEAK_FLOPS.items() if key in gpu), math.nan)
    for compiled in (False, True):
        used = torch.compile(net) if compiled else net

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(used(x, label))  # noqa: B023
            loss.backward()  # type: ignore[no-untyped-call]
            update()

        for _ in range(3):
            elapsed(step, device)
        time = median_seconds({"step": step}, repeats, device)["step"]
        print(
            f"{name}, {gpu}, bf16, channels_last, {'compiled' if compiled else 'eager'}, batch {batch}: "
            f"{batch / time:,.0f} images/s, {flops / time / peak:.1%} of the bf16 peak"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config", default="ddpmpp_cifar")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    if device.type == "cpu":
        on_cpu(given.batch, given.repeats)
    else:
        on_gpu(device, given.config, given.batch, given.repeats)


if __name__ == "__main__":
    main()
