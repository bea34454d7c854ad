"""Foreign checkpoint files: the tensors come back bit by bit, and nothing in a file is ever run."""

import copyreg
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from sde_diffusion.core.errors import UserError
from sde_diffusion.importers.reading import Persistent, module_tensors, read_edm_pickle, read_safetensors, read_torch
from tests.importers import writing
from tests.importers.writing import Call, EasyDict, EDMModule, saved, system_call, written

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
FAKES = ("torch_utils", "torch_utils.persistence", "training", "training.networks", "dnnlib", "dnnlib.util")


class Layer(nn.Module):
    """A module that is pickled the ordinary way, with every kind of entry that a state dict knows."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        values = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for dtype in DTYPES:
            self.register_buffer(str(dtype).replace(".", "_"), (8 * values).to(dtype))
        self.weight = nn.Parameter(values[1:, ::2].t())  # an offset and strides
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_parameter("bias", None)
        self.register_buffer("absent", None)
        self.register_buffer("cache", torch.ones(2), persistent=False)


class Net(EDMModule):
    """One of EDM's, with submodules that are none of its."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigma = 0.5
        self.enc = nn.ModuleDict({"8x8_conv": Layer(1), "norm": nn.BatchNorm1d(3)})
        self.layers = nn.ModuleList([Layer(2), self.enc["8x8_conv"], nn.SiLU()])
        self.layers[0].twin = self.layers[1].weight  # one parameter of two modules


edm_bytes = partial(writing.edm_bytes, networks=(Layer,))


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


@pytest.mark.parametrize("protocol", range(6))
def test_edm_network_comes_back_bit_by_bit(tmp_path: Path, protocol: int) -> None:
    net = Net(32, 3, label_dim=0, channel_mult=[1, 2], options=EasyDict(heads=2))
    data = edm_bytes({"ema": net, "loss_fn": None, "dataset_kwargs": EasyDict(path="x")}, protocol)
    assert not any(module in sys.modules for module in FAKES)
    content = read_edm_pickle(written(tmp_path / "edm.pkl", data))
    assert type(content["dataset_kwargs"]) is dict and content["dataset_kwargs"] == {"path": "x"}
    ema = content["ema"]
    assert isinstance(ema, Persistent) and ema.class_name == "Net" and ema.state["sigma"] == 0.5
    assert ema.state["_init_args"] == (32, 3)
    assert ema.state["_init_kwargs"] == {"label_dim": 0, "channel_mult": [1, 2], "options": {"heads": 2}}
    children = {name: child.class_name for name, child in ema.state["_modules"].items()}
    assert children == {"enc": "ModuleDict", "layers": "ModuleList"}
    layers = ema.state["_modules"]["layers"].state["_modules"]
    assert [layers[i].class_name for i in "012"] == ["Layer", "Layer", "SiLU"]
    assert layers["0"].state["_buffers"]["cache"].tolist() == [1, 1]

    tensors, expected = module_tensors(ema), net.state_dict()
    assert tensors.keys() == expected.keys() and len(tensors) == 30
    assert all(same(tensors[name], tensor) for name, tensor in expected.items())
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert tensors["layers.0.twin"] is tensors["layers.1.weight"] is tensors["enc.8x8_conv.weight"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back(tmp_path: Path, protocol: int) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    plain = {
        "scalars": [1, -(2**80), 0.1, 1j, True, None, "é", b"\x00\xff", b""],
        "containers": [(1, (2,)), {3, "a"}, frozenset([4]), OrderedDict(b=1, a=2), slice(1, None, 2)],
        "torch": [torch.Size([2, 3]), torch.float16, torch.device("cpu")],
        "numpy": [np.float64(0.1), np.int32(-3)],
    }
    path = written(tmp_path / "plain.pkl", pickle.dumps({**plain, "arrays": [array, array.T, array[:0]]}, protocol))
    content = read_edm_pickle(path)
    arrays = content.pop("arrays")
    assert content == plain and [type(x) for x in content["numpy"]] == [np.float64, np.int32]
    assert list(content["containers"][3]) == ["b", "a"]
    for given, back in zip((array, array.T, array[:0]), arrays):
        assert back.dtype == given.dtype and np.array_equal(back, given)


@pytest.mark.parametrize("protocol", range(6))
def test_a_module_of_any_protocol_may_hold_itself(tmp_path: Path, protocol: int) -> None:
    layer = Layer(0)
    layer.parents = [layer]
    back = read_edm_pickle(written(tmp_path / "loop.pkl", edm_bytes(layer, protocol)))
    assert back.class_name == "Layer" and back.state["parents"] == [back]
    assert all(same(module_tensors(back)[name], tensor) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_come_back_bit_by_bit(tmp_path: Path, zipped: bool) -> None:
    net = Net()
    state = {
        "net": net.state_dict(),
        "step": np.int64(7),
        "loss": np.float32(0.1),
        "seen": np.arange(3.0),
        "k": (1, [2]),
    }
    torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    allowed = set(torch.serialization.get_safe_globals())
    content = read_torch(tmp_path / "net.pth")
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert type(content["net"]) is dict and list(content["net"]) == list(net.state_dict())
    assert all(same(content["net"][name], tensor) for name, tensor in net.state_dict().items())
    assert (content["step"], content["loss"], content["k"]) == (7, np.float32(0.1), (1, [2]))
    assert content["seen"].tolist() == [0, 1, 2]


def test_safetensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(-3, 3).to(dtype) for dtype in DTYPES}
    save_file(tensors, tmp_path / "net.safetensors")
    back = read_safetensors(tmp_path / "net.safetensors")
    assert back.keys() == tensors.keys() and all(same(back[name], tensor) for name, tensor in tensors.items())


def load_call(marker: Path) -> Call:
    return Call(torch.load, str(written(marker.parent / "nested.pth", saved(system_call(marker), zipped=True))))


def hub_call(marker: Path) -> Call:
    written(marker.parent / "hubconf.py", f"def touch(): open({str(marker)!r}, 'w')".encode())
    return Call(torch.hub._load_local, str(marker.parent), "touch")


def opens(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w')"


# By the name that the message must hold: what creates the marker file if the pickle of it is loaded.
HOSTILE: dict[str, Callable[[Path], Any]] = {
    "posix.system": system_call,
    "subprocess.check_call": lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
    "builtins.eval": lambda marker: Call(eval, opens(marker)),
    "builtins.exec": lambda marker: Call(exec, opens(marker)),
    "builtins.getattr": lambda marker: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {marker}"),
    "torch.serialization.load": load_call,
    "torch.hub._load_local": hub_call,
    "numpy.testing._private.utils.runstring": lambda marker: Call(
        np.testing._private.utils.runstring, opens(marker), {}
    ),
}


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch as one may set it up to trust files, which a call that states weights_only overrules."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    warnings.filterwarnings("ignore", "Environment variable TORCH_FORCE")


def runs(marker: Path, load: Callable[[], Any]) -> bool:
    """Whether the marker file appears."""
    marker.unlink(missing_ok=True)
    load()
    return marker.exists()


def refused(path: Path, name: str, read: Callable[[Path], Any] = read_edm_pickle) -> None:
    """Asserts that reading the file fails with one sentence that names what it asked for."""
    with pytest.raises(UserError) as caught:
        read(path)
    sentence = str(caught.value)
    assert repr(name) in sentence and "refused and nothing was run" in sentence and "\n" not in sentence


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("protocol", [3, 4])  # names as lines and from the stack; below 3 some have Python 2's names
@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_pickle_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps({"ema": HOSTILE[name](marker)}, protocol)
    assert runs(marker, lambda: pickle.loads(data))
    path = written(tmp_path / "edm.pkl", data)
    assert not runs(marker, lambda: refused(path, name))


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_code_in_a_torch_file_is_refused(tmp_path: Path, zipped: bool, inside: bool) -> None:
    marker = tmp_path / "marker"
    data = saved({"a": torch.ones(1), "b": system_call(marker)}, zipped=zipped)
    if inside:  # as the storage of a tensor in a pickle
        data = pickle.dumps({"ema": Call(torch.storage._load_from_bytes, data)})
    path = written(tmp_path / "net.pth", data)
    assert runs(marker, lambda: pickle.loads(data) if inside else torch.load(path))
    assert not runs(marker, lambda: refused(path, "posix.system", read_edm_pickle if inside else read_torch))


def test_source_code_in_a_pickle_is_dropped(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert runs(marker, lambda: exec(opens(marker)))
    net = Net()
    net.module_src = opens(marker)
    path = written(tmp_path / "edm.pkl", edm_bytes(net))
    assert not runs(marker, lambda: read_edm_pickle(path))


def test_codes_of_the_extension_registry_are_refused(tmp_path: Path) -> None:
    marker, extension = tmp_path / "marker", ("posix", "system", 240)
    copyreg.add_extension(*extension)
    try:
        data = pickle.dumps(system_call(marker))
        assert pickle.EXT1 in data and runs(marker, lambda: pickle.loads(data))  # and now it is in the cache
        path = written(tmp_path / "edm.pkl", data)
        assert not runs(marker, lambda: refused(path, "copyreg extension 240"))
    finally:
        copyreg.remove_extension(*extension)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("posix.system", b"(S'true'\niposix\nsystem\n."),
        ("builtins.eval", b"c__builtin__\neval\n(S'1'\ntR."),
        ("a persistent id", b"Pabc\n."),
        ("os.path.join", b"\x80\x04\x8c\x02os\x8c\x09path.join\x93."),
        ("training.networks.run", b"ctraining.networks\nrun\n(S'x'\ntR."),  # a class is not called with arguments
        ("torch.float16", b"ctorch\nfloat16\n)R."),
        ("torch._utils._rebuild_sparse_tensor", b"ctorch._utils\n_rebuild_sparse_tensor\n)R."),
        ("numpy.dtype O8", pickle.dumps(np.array([{}, None], dtype=object))),
        ("a\nb.c", b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93."),
    ],
)
def test_other_ways_out_of_plain_data_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    refused(written(tmp_path / "edm.pkl", data), name)


@pytest.mark.parametrize("name", [b"ctorch\nSize", b"ccollections\nOrderedDict", b"ctraining.networks\nNet"])
@pytest.mark.parametrize("called", [b"", b")R"])
def test_attributes_of_a_name_cannot_be_set(tmp_path: Path, name: bytes, called: bytes) -> None:
    data = name + b"\n" + called + b"(N}S'__setstate__'\nNstb."  # the state (None, {"__setstate__": None})
    with pytest.raises(UserError) if b"Ordered" not in name or not called else nullcontext():
        read_edm_pickle(written(tmp_path / "edm.pkl", data))
    test_a_module_of_any_protocol_may_hold_itself(tmp_path, 4)


def test_a_whole_module_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pth", saved(nn.Linear(1, 1), zipped=True))
    refused(path, "torch.nn.modules.linear.Linear", read_torch)


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[], bytes]]] = {
    "zip": (read_torch, lambda: saved(Layer(0).state_dict(), zipped=True)),
    "legacy": (read_torch, lambda: saved(Layer(0).state_dict(), zipped=False)),
    "safetensors": (read_safetensors, lambda: save({"w": torch.ones(3)})),
    "edm": (read_edm_pickle, lambda: edm_bytes({"ema": Net()})),
    "edm, protocol 2": (read_edm_pickle, lambda: edm_bytes({"ema": Net()}, 2)),
}


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_one_sentence(tmp_path: Path, kind: str) -> None:
    read, whole = READERS[kind]
    data = whole()
    read(written(tmp_path / "whole", data))
    lengths = [0, 1, 2, 9, 40, *range(100, len(data) - 1, len(data) // 20 + 1), len(data) - 1]
    for n in lengths:
        with pytest.raises(UserError, match=r"is damaged, truncated or of another kind|asks for"):  # half a name
            read(written(tmp_path / "part", data[:n]))
    garbage = np.random.default_rng(0).bytes(1000)
    with pytest.raises(UserError, match="damaged"):
        read(written(tmp_path / "garbage", garbage))
    for place, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=reason):
            read(place)


def test_a_memo_slot_beyond_the_file_is_damage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged") as caught:
        read_edm_pickle(written(tmp_path / "edm.pkl", b"\x80\x02Nr\xff\xff\xff\xff."))
    assert isinstance(caught.value.__cause__, ValueError)  # and not for want of the 64 GB that it would take


@pytest.mark.parametrize("offset", [1, 2**40])
def test_a_tensor_outside_its_storage_is_damage(tmp_path: Path, offset: int) -> None:
    storage, _, *rest = torch.ones(3).__reduce_ex__(2)[1]
    path = written(tmp_path / "edm.pkl", pickle.dumps(Call(torch._utils._rebuild_tensor_v2, storage, offset, *rest)))
    with pytest.raises(UserError, match="damaged"):
        read_edm_pickle(path)


@pytest.mark.parametrize("state", [{}, {"_parameters": {"w": 1}, "_buffers": {}, "_modules": {}}])
def test_what_is_not_a_network_has_no_state_dict(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'EDMLoss' is not a network"):
        module_tensors(Persistent("EDMLoss", state))
