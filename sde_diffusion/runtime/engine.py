"""The processes that together carry out a command: how many there are, which one this is, and what they do as one.

Hugging Face Accelerate starts them (`torchrun main.py ...`, `accelerate launch main.py ...`, or none at all), chooses
the backend (gloo on CPUs, nccl on GPUs) and the device, wraps the network for data-parallel training, and brings mixed
precision. Only the commands know that there may be more than one process: a batch is cut into parts by `part`, rows are
put together by `gathered`, and what one process decides or writes for all goes through `on_main`.

With sharding "full" the gradients, the optimiser's state and the averages of the weights are divided among the
processes (FSDP2, torch's fully_shard, on GPUs and CPUs alike), and the weights themselves are put together for each
pass: the network is one unit, as its layers use one another's weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError, choose
from sde_diffusion.core.packages import extra
from sde_diffusion.runtime.ranks import everyones as everyones

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
SHARDINGS = ("none", "full")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others, which may have hours of samples to draw."""


class Engine:
    """This process, and those beside it.

    device: "auto", "cpu", "cuda", "cuda:1", ...; precision: a key of PRECISIONS, of the network's passes in training;
    accumulate: passes before each update; sharding: "none" (each process has all) or "full".
    Raises UserError for a device that is not there, and for a precision that it lacks.
    """

    def __init__(
        self, device: str = "auto", precision: str = "fp32", accumulate: int = 1, sharding: str = "none"
    ) -> None:
        with extra("train"):
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        choose("sharding", sharding, dict.fromkeys(SHARDINGS))
        native = choose("precision", precision, PRECISIONS)
        where = usable_device(device)
        check_precision(precision, where)
        # Accelerate's own FSDP is for GPUs only; ours is torch's, on any device.
        sharded = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true" or sharding == "full"
        os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # the number of passes is a key of ours
        if where.index is not None and "LOCAL_RANK" not in os.environ:
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(where)
        AcceleratorState._reset_state(reset_partial_state=True)  # it would go on with that of an engine before this one
        self.accelerator: Accelerator = Accelerator(
            cpu=where.type == "cpu",
            mixed_precision=native,
            gradient_accumulation_steps=accumulate,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.precision, self.accumulate = precision, accumulate
        self.number, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device("cpu") if where.type == "cpu" else self.accelerator.device
        self.sharded = sharded and self.count > 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.number == 0

    def close(self) -> None:
        """Part from the other processes."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    # --- the work of each -------------------------------------------------------------------------------------

    def part(self, size: int) -> range:
        """The rows of a batch of `size` that are this process's.

        Raises UserError for a batch that the processes, and the passes of each, do not divide.
        """
        pieces = self.count * self.accumulate
        if size % pieces:
            below, above = size // pieces * pieces, -(-size // pieces) * pieces
            near = " or ".join(str(n) for n in (below, above) if n)
            raise UserError(
                f"training.batch_size={size} is not divided by {self.count} process{'es' * (self.count > 1)} with "
                f"{self.accumulate} pass{'es' * (self.accumulate > 1)} each; the nearest that are: {near}"
            )
        share = size // self.count
        return range(self.number * share, (self.number + 1) * share)

    def mine(self, items: Sequence[T]) -> list[T]:
        """Every n-th item, this process's share of a list that all of them have."""
        return list(items[self.number :: self.count])

    # --- training ---------------------------------------------------------------------------------------------

    def sharded_network(self, net: nn.Module) -> nn.Module:
        """The network on this device; divided among the processes where they share one. Its parameters are new then."""
        net = net.to(self.device)
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for weight in net.parameters():  # in channels_last, as ours lie, they cannot be divided
                weight.data = weight.data.contiguous()
            fully_shard(net)
        return net

    def parallel(self, net: nn.Module) -> nn.Module:
        """The network whose backward pass averages the gradients of all processes, in the engine's precision.

        The weights are those of `net`, whose own passes are in that precision too.
        """
        if self.sharded:
            return self.accelerator.prepare_model(net, evaluation_mode=True)
        return self.accelerator.prepare_model(net, device_placement=False)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimiser behind the scaling of fp16's gradients."""
        return self.accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a pass, divided by the number of passes."""
        self.accelerator.backward(loss)

    def a_pass(self, net: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """A context for a pass forwards and backwards, after the last of which the processes share the gradient."""
        if self.sharded:
            net.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(net)

    def gradient_norm(self, optimizer: Any, net: nn.Module) -> Tensor:
        """The Euclidean norm of the whole gradient, without fp16's scale."""
        self.accelerator.unscale_gradients(optimizer)
        return whole(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))

    @property
    def scales(self) -> bool:
        """Whether gradients are scaled (fp16), and an overflow only lowers the scale."""
        return self.accelerator.scaler is not None

    def after_skipping(self) -> None:
        """What fp16's scale needs after an update that is not made."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def scale_state(self) -> dict[str, Any]:
        """fp16's scale and its history; empty in other precisions."""
        return dict(self.accelerator.scaler.state_dict()) if self.accelerator.scaler is not None else {}

    def load_scale(self, state: dict[str, Any]) -> None:
        """Go on from a stored scale, where there is one."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

    # --- together ---------------------------------------------------------------------------------------------

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, in their order, [count n, ...]."""
        if self.count == 1:
            return rows
        found: Tensor = self.accelerator.gather(rows.to(self.device))
        return found

    def gathered_objects(self, mine: Any) -> list[Any]:
        """One plain object of each process, in their order."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, mine)
        return found

    def each(self, action: Callable[[], T]) -> list[T]:
        """What an action gives in each process, in their order; a UserError in one of them is one in all."""
        if self.count == 1:
            return [action()]
        found: T | Exception
        try:
            found = action()
        except (UserError, OSError) as error:
            found = error
        everywhere = self.gathered_objects(found)
        for outcome in everywhere:
            if isinstance(outcome, (UserError, OSError)):
                raise everyones(outcome)
        return everywhere

    def on_main(self, action: Callable[[], T]) -> T:
        """What the main process finds by an action that only it carries out; a UserError there is one everywhere."""
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = action()
            except (UserError, OSError) as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise everyones(outcome[1])
        found: T = outcome[0]
        return found


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided among processes, all of which must ask."""
    full = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor if full is None else full()
    return found


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor divided among the processes as another one is."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)


def whole_weights(weights: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Weights as `whole` tensors, put together one at a time; divided ones go to the CPU of one that keeps them."""
    found = {}
    for name, value in weights.items():
        tensor = whole(value)
        if keep:
            found[name] = tensor if tensor is value else tensor.cpu()
    return found


def optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state by the parameters' names, whole and on the CPU: for any number of processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from the state of `optimizer_state`."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    # Other releases of torch have other settings beside the state; those of this training are its own anyway.
    known = optimizer.param_groups[0].keys() | {"params"}
    groups = [{name: value for name, value in group.items() if name in known} for group in state["param_groups"]]
    # The processes hand tensors to one another in the order of the dictionaries, which must be the same everywhere.
    moments = {weight: dict(sorted(state["state"][weight].items())) for weight in sorted(state["state"])}
    mine: dict[str, Any] = {"state": moments, "param_groups": groups}
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    set_optimizer_state_dict(net, optimizer, mine, options=StateDictOptions(full_state_dict=True))
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # a learning rate, betas, ... that this training has changed
    for weight, loaded in optimizer.state.items():
        for name, value in loaded.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                # A fused optimiser goes through the memory of both in one order: that of channels_last weights.
                loaded[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def usable_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one. Raises UserError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return found if ":" in name else torch.device(found.type)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError for a precision that the device lacks."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision='fp16' needs a GPU, and the device is the CPU; 'bf16' and 'fp32' run here")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"training.precision='bf16' is not one that {name} has; 'fp16' and 'fp32' are")
