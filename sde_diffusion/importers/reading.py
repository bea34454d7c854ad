"""Checkpoint files of other projects, read without running anything that is in them.

A pickle is a program: it names functions and has them called. PyTorch's own files go through its restricted
loader. A plain pickle is read in two steps: first every name in it becomes an inert class that only records
how it is used, then the records of a few known names become tensors, numbers and `Persistent` modules. Any
other name is refused.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sde_diffusion.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Persistent:
    """A foreign object as data: the bare name of its class and its attributes.

    An nn.Module has `_parameters`, `_buffers` and `_modules` among them, one of EDM's classes also
    `_init_args` and `_init_kwargs`, with which it was constructed.
    """

    class_name: str
    state: dict[str, Any]


def read_torch(path: Path) -> Any:
    """The content of a file written by torch.save, on the CPU; dictionaries of any kind as dict.

    Raises UserError where it is missing or damaged, or holds more than tensors, numbers and containers.
    """
    with _reading(path, "a PyTorch checkpoint"):
        return _torch_load(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UserError where it is missing or damaged."""
    with _reading(path, "a safetensors file"):
        return load_file(path)


def read_edm_pickle(path: Path) -> Any:
    """The content of a .pkl file of EDM: dict(ema=network, ...), with modules as `Persistent`.

    Tensors are on the CPU and need no gradient; those that are one object in the file are one again.
    Raises UserError where the file is missing or damaged, or asks for a name that is not known as harmless.
    Source: the file format is that of Karras et al. 2022's code, torch_utils/persistence.py, version 6.
    """
    with _reading(path, "an EDM pickle"), path.open("rb") as file:
        _check_opcodes(file)
        return _decode(_InertUnpickler(file).load())


def module_tensors(module: Persistent) -> dict[str, Tensor]:
    """The state dict of an nn.Module: its parameters, persistent buffers and those of its children, by dotted name.

    Raises UserError for an object that is not an nn.Module.
    """
    try:
        return dict(_named_tensors(module))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{module.class_name!r} is not a network: expected the attributes of an nn.Module") from error


def _named_tensors(module: Persistent, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    transient = module.state.get("_non_persistent_buffers_set", ())
    buffers = {name: buffer for name, buffer in module.state["_buffers"].items() if name not in transient}
    for name, tensor in (module.state["_parameters"] | buffers).items():
        if isinstance(tensor, Tensor):
            yield prefix + name, tensor
        elif tensor is not None:
            raise TypeError(name)
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from _named_tensors(child, f"{prefix}{name}.")


class _Refused(Exception):
    """The file asks for something that could run code."""


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong while `path` is read, as a UserError."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected {kind}") from error
    try:
        yield
    except _Refused as error:
        raise UserError(
            f"{path} asks for {str(error)[:100]!r}; this was refused and nothing was run: "
            f"expected {kind} that holds only tensors and plain data"
        ) from error
    # A damaged file may fail anywhere in the readers: KeyError, RuntimeError, UnicodeDecodeError, ...
    except Exception as error:
        raise UserError(f"{path} is damaged, truncated or of another kind; expected {kind}") from error


class _Node:
    """What the file wants made: a call of the thing called `name`, and the state to give the result.

    It is a class, with a subclass for each name, since pickles make objects from classes. Having a __setstate__
    also keeps the file from setting attributes, on the class as on its instances.
    """

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> "_Node":
        node = super().__new__(cls)
        node.args = args
        return node

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict[Any, Any]):
    """A dictionary of any class, whose attributes are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Reconstructor(_Node):
    """copyreg's maker of an object or a dictionary of the class `kind`, as pickle protocols below 2 call it."""

    def __new__(cls, kind: type[_Node] | type[_Dict], base: type[_Node], start: Any) -> Any:
        return kind() if start is None else kind(start)


class _InertUnpickler(pickle.Unpickler):
    """Reads the structure of a pickle, where each name that it asks for is a `_Node`."""

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{_PYTHON2.get(module, module)}.{name}"
        if full in _STAND_INS:
            return _STAND_INS[full]
        if full not in _MAKERS and full not in _CONSTANTS and not _is_record(full):
            raise _Refused(full)
        return _node_class(full)

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent id")


def _check_opcodes(file: BinaryIO) -> None:
    """Refuses what the unpickler does without asking `find_class`, and leaves the file at its start."""
    for opcode, argument, _ in pickletools.genops(file):
        # A code of copyreg's extension registry is answered from a cache once it has been used.
        if opcode.name.startswith("EXT"):
            raise _Refused(f"copyreg extension {argument}")
        # Slots are numbered from zero, and the unpickler allocates up to whatever number it meets.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > file.tell():
            raise ValueError(f"memo slot {argument}")
    file.seek(0)


def _torch_load(source: Path | BinaryIO) -> Any:
    names = (name for name in (*_MAKERS, *_CONSTANTS) if name.startswith("numpy."))
    try:
        with torch.serialization.safe_globals([(_node_class(name), name) for name in names]):
            raw = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise _Refused(asked[1]) from error
        raise
    return _decode(raw)


def _decode(raw: Any, made: dict[int, Any] | None = None) -> Any:
    """The value that `raw` stands for. made: the values of containers and nodes so far, by the id of the raw one."""
    made = {} if made is None else made
    if id(raw) in made:
        return made[id(raw)]
    match raw:
        # A dictionary, a list or a record may hold itself, so it is known before its content is.
        case dict():
            pairs = made[id(raw)] = {}
            pairs.update((_decode(key, made), _decode(value, made)) for key, value in raw.items())
        case list():
            items = made[id(raw)] = []
            items.extend(_decode(item, made) for item in raw)
        case _Node(name=name, args=()) if _is_record(name):
            record = made[id(raw)] = Persistent(_bare(name), {})
            record.state.update(_decode(raw.state, made) or {})
        case _Node(name=name, args=args, state=state) if name in _MAKERS:
            parts = args if state is None else (*args, state)
            made[id(raw)] = _MAKERS[name](*(_decode(part, made) for part in parts))
        case _Node(name=name):
            raise _Refused(name)
        case type() if issubclass(raw, _Node):
            made[id(raw)] = _CONSTANTS.get(raw.name, raw.name)
        case tuple() | set() | frozenset() if type(raw) in (tuple, set, frozenset):
            made[id(raw)] = type(raw)(_decode(item, made) for item in raw)
        case _:
            return raw
    return made[id(raw)]


def _node_class(name: str) -> type[_Node]:
    return type("_Named", (_Node,), {"name": name})


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def _is_record(name: str) -> bool:
    """Whether the name may be that of a class whose objects are read as `Persistent`."""
    module = name.rpartition(".")[0]
    return name not in _MAKERS and (module in _RECORDS or module.startswith("torch.nn.modules."))


def _persistent(meta: dict[str, Any]) -> Persistent:
    """One of EDM's objects; the source code of its module, which comes with it, is dropped."""
    return Persistent(str(meta["class_name"]), dict(meta["state"] or {}))


def _storage(data: bytes) -> Any:
    """The storage of a tensor: a file of torch.save inside the pickle, itself not to be trusted."""
    return _torch_load(io.BytesIO(data))


def _tensor(
    storage: torch.TypedStorage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: dict[str, Any] | None = None,
) -> Tensor:
    if metadata:
        raise ValueError(f"a tensor with {', '.join(metadata)}")
    # as_strided checks the bounds of the storage, where set_ would make it larger.
    return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)


def _parameter(data: Tensor, requires_grad: bool, hooks: Any, state: Any = None) -> Tensor:
    return data


def _dtype(code: str, align: bool = False, copy: bool = False, state: Sequence[Any] = (3, "=")) -> np.dtype[Any]:
    """A numpy dtype of numbers; any other is refused, so that an array is its bytes and nothing else."""
    dtype = np.dtype(str(code)).newbyteorder(state[1])
    if dtype.kind not in "biufc":
        raise _Refused(f"numpy.dtype {code}")
    return dtype


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def _array(data: bytes, dtype: np.dtype[Any], shape: Sequence[int], order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order=order)


def _rebuilt_array(kind: str, empty: Sequence[int], code: bytes, state: Sequence[Any]) -> np.ndarray[Any, Any]:
    _, shape, dtype, fortran, data = state
    return _array(data, dtype, shape, "F" if fortran else "C")


def _encode(text: str, codec: str) -> bytes:
    """Bytes, as pickle protocols below 3 write them."""
    if codec != "latin1":
        raise _Refused(f"_codecs.encode {codec}")
    return text.encode("latin1")


_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # the names in pickle protocols below 3
_RECORDS = ("training.networks", "training.loss", "training.augment", "torch_utils.persistence")
_STAND_INS = {
    "collections.OrderedDict": _Dict,
    "dnnlib.EasyDict": _Dict,
    "dnnlib.util.EasyDict": _Dict,
    "copyreg._reconstructor": _Reconstructor,
}

# Names that are values. The classes only say what an object of another name is.
_CONSTANTS: dict[str, Any] = {
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{name: name for name in ("builtins.object", "builtins.dict", "numpy.ndarray")},
}

# Names that are called, with the arguments and, if the object has one, its state. Nothing here may run what
# it is given: the arguments are whatever the file says.
_MAKERS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "numpy.dtype": _dtype,
    # numpy 2 renamed numpy.core to numpy._core.
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _rebuilt_array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",  # others are encoded
    "builtins.complex": complex,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.slice": slice,
}
