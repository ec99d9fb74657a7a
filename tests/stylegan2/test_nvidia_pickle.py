"""The reader of NVIDIA-format pickles: what it builds, and that nothing else happens."""

import builtins
import collections
import functools
import importlib
import operator
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia_pickle import ModuleRecord, read_pickle

PROTOCOLS = (3, 4, 5)  # Python 3 writes bytes as such from protocol 3 on


class Calls:
    """Pickles as the call of a function, with a state for BUILD if there is one."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.function, self.arguments)
        return parts if self.state is None else (*parts, self.state)


@pytest.fixture
def module_function(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function of the name that NVIDIA's pickles call for every module."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("this must not run")

    module = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return _reconstruct_persistent_obj


def storage_stream(values: torch.Tensor) -> bytes:
    """The stream that torch embeds for the storage of a tensor."""
    constants = (argument for _, argument, _ in pickletools.genops(pickle.dumps(values, protocol=4)))
    return next(argument for argument in constants if isinstance(argument, bytes))


def tensor_pickle(stream: bytes, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> bytes:
    """A pickle of one tensor with these parts."""
    storage = Calls(torch.storage._load_from_bytes, stream)
    parts = (storage, offset, size, stride, False, collections.OrderedDict())
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, *parts), protocol=4)


# ----------------------------------------------------------------------------------------------------------
# What it builds
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordered_dict_becomes_a_dict(protocol: int) -> None:
    value = collections.OrderedDict(b=1, a=2)
    got = read_pickle(pickle.dumps(value, protocol=protocol))
    assert type(got) is dict and list(got.items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.float64(-1.5),
        np.float32(0.1),
        np.float16(2),
        np.int64(-7),
        np.int8(-3),
        np.uint16(65535),
        np.bool_(True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_numpy_become_ordinary_ones(value: np.generic, protocol: int) -> None:
    got = read_pickle(pickle.dumps({"x": value, "again": value}, protocol=protocol))
    assert got == {"x": value.item(), "again": value.item()}
    assert type(got["x"]) is type(value.item())


def test_numbers_of_old_numpy_and_of_big_endian_machines() -> None:
    new = pickle.dumps([np.float64(0.25), np.float64(8)], protocol=3)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    assert read_pickle(old) == [0.25, 8.0]
    big = old.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>")
    assert big != old
    assert read_pickle(big.replace(struct.pack("<d", 8), struct.pack(">d", 8)))[1] == 8.0


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_and_layout(dtype: torch.dtype) -> None:
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    views = [base, base.permute(2, 0, 1), base[1, :, ::2], base[1, 2, 3], base.contiguous()[None]]
    for protocol in PROTOCOLS:
        got = read_pickle(pickle.dumps(views, protocol=protocol))
        for tensor, expected in zip(got, views, strict=True):
            assert tensor.dtype == dtype and tensor.shape == expected.shape
            assert torch.equal(tensor, expected)


def test_channels_last_parameters() -> None:
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    (got,) = read_pickle(pickle.dumps([torch.nn.Parameter(weight)], protocol=4))
    assert torch.equal(got, weight) and got.stride() == weight.stride()


def test_storages_of_a_gpu_are_read_like_others() -> None:
    stream = storage_stream(torch.arange(4.0))
    gpu = stream.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert gpu != stream
    assert torch.equal(read_pickle(tensor_pickle(gpu)), torch.arange(4.0))


def test_a_module_is_a_record_and_its_source_stays_text(
    module_function: Callable[..., Any], tmp_path: Path
) -> None:
    evidence = tmp_path / "evidence"
    source = f"open({str(evidence)!r}, 'w').close()\nraise SystemExit\nclass Generator: pass\n"
    meta = {
        "type": "class",
        "version": 6,
        "module_src": source,
        "class_name": "Nobody_knows_me",
        "state": {"x": 1},
    }
    got = read_pickle(pickle.dumps(Calls(module_function, meta), protocol=4))
    assert isinstance(got, ModuleRecord)
    assert got.class_name == "Nobody_knows_me" and got.state == {"x": 1}
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 5}, "version 5; expected a class in version 6"),
        ({"version": "6"}, "version a str"),
        ({"type": "function"}, "expected a class"),
        ({"class_name": 3}, "without class name"),
        ({"state": [1]}, "without class name or state"),
    ],
)
def test_unusable_modules(module_function: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "A", "state": {}, **change}
    with pytest.raises(StyleGAN2Error, match=message):
        read_pickle(pickle.dumps(Calls(module_function, meta), protocol=4))


# ----------------------------------------------------------------------------------------------------------
# Malice
# ----------------------------------------------------------------------------------------------------------


def shell(path: Path) -> str:
    return f"echo x > '{path}'"


def test_the_attack_works_on_an_ordinary_unpickler_but_not_here(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    data = pickle.dumps({"G": Calls(os.system, shell(evidence))}, protocol=4)
    pickle.loads(data)
    assert evidence.exists(), "the other tests of this section would prove nothing"
    evidence.unlink()
    with pytest.raises(StyleGAN2Error, match=r"posix\.system"):
        read_pickle(data)
    assert not evidence.exists()


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "posix.system": lambda path: Calls(os.system, shell(path)),
    "builtins.eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w')"),
    "builtins.exec": lambda path: Calls(exec, f"open({str(path)!r}, 'w')"),
    "builtins.getattr": lambda path: Calls(getattr, path, "touch"),
    "builtins.__import__": lambda path: Calls(builtins.__import__, "this"),
    "builtins.list": lambda path: Calls(list, (1, 2)),
    "subprocess.Popen": lambda path: Calls(subprocess.Popen, ["touch", str(path)]),
    "importlib.import_module": lambda path: Calls(importlib.import_module, "this"),
    "functools.partial": lambda path: functools.partial(os.system, shell(path)),
    "operator.attrgetter": lambda path: operator.attrgetter("system"),
    "_pickle.loads": lambda path: Calls(pickle.loads, pickle.dumps(Calls(os.system, shell(path)))),
    "torch.serialization.load": lambda path: Calls(torch.load, str(path)),
    "torch._utils._rebuild_tensor": lambda path: Calls(torch._utils._rebuild_tensor, 1, 2, 3, 4),
    "numpy.ndarray": lambda path: Calls(np.ndarray, (2,)),
    "pathlib.PosixPath": lambda path: path,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_globals_beyond_the_allow_list_are_refused_by_name(name: str, protocol: int, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    data = pickle.dumps({"G": ATTACKS[name](evidence)}, protocol=protocol, fix_imports=False)
    with pytest.raises(StyleGAN2Error, match="asks for more") as error:
        read_pickle(data)
    assert f"- {name}\n" in str(error.value)
    assert not evidence.exists()


def test_all_refused_names_are_reported_together(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    inner = pickle.dumps(Calls(eval, "1"), protocol=2, fix_imports=False)
    attacks = [
        Calls(os.system, shell(evidence)),
        Calls(torch.storage._load_from_bytes, inner * 5),
        Calls(subprocess.Popen, [Calls(exec, "x")], state={"a": 1}),
    ]
    with pytest.raises(StyleGAN2Error) as error:
        read_pickle(pickle.dumps(attacks, protocol=4))
    for name in ("posix.system", "subprocess.Popen", "builtins.exec", "builtins.eval"):
        assert f"- {name}\n" in str(error.value)
    assert not evidence.exists()


@pytest.mark.parametrize(
    "value",
    [
        Calls(collections.OrderedDict, state={"__class__": 1}),
        Calls(torch._utils._rebuild_parameter, torch.zeros(2), False, {}, state={"__class__": 1}),
    ],
    ids=["dict", "parameter"],
)
def test_attributes_cannot_be_set(value: Any) -> None:
    with pytest.raises(StyleGAN2Error, match=r"sets attributes of a (dict|Tensor)"):
        read_pickle(pickle.dumps(value, protocol=4))


def test_attributes_of_modules_cannot_be_set(module_function: Callable[..., Any]) -> None:
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "A", "state": {}}
    with pytest.raises(StyleGAN2Error, match="sets attributes of a ModuleRecord"):
        read_pickle(pickle.dumps(Calls(module_function, meta, state={"state": 1}), protocol=4))


INNER_ATTACKS = {
    "system": (b"cposix\nsystem\n", r"posix\.system"),
    "eval": (b"cbuiltins\neval\n", r"builtins\.eval"),
    "again": (b"ctorch.storage\n_load_from_bytes\n", r"torch\.storage\._load_from_bytes"),
    "zip": (b"ctorch._utils\n_rebuild_tensor_v2\n", r"torch\._utils\._rebuild_tensor_v2"),
    "make": (b"ctorch\nFloatStorage\n", "calls torch.FloatStorage, as"),
}


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("attack", INNER_ATTACKS)
def test_streams_of_storages_are_as_restricted(attack: str, position: int, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    code, message = INNER_ATTACKS[attack]
    argument = shell(evidence).encode()
    evil = b"\x80\x02" + code + b"X" + struct.pack("<I", len(argument)) + argument + b"\x85R."
    stream = storage_stream(torch.arange(4.0))
    parts = stream.split(b".\x80\x02")  # the pickles, without the ends that touch
    assert len(parts) == 5
    starts = [0, *(sum(len(part) + 3 for part in parts[: k + 1]) - 2 for k in range(4))]
    data = tensor_pickle(stream[: starts[position]] + evil + stream[starts[position] :])
    with pytest.raises(StyleGAN2Error, match=message):
        read_pickle(data)
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.dtype("O"), "numpy.dtype of 'O8'"),
        (np.dtype([("a", "f4")]), "numpy.dtype of 'V4'"),
        (np.datetime64(3, "s"), "numpy.dtype of 'M8'"),
        (np.complex64(1), "numpy.dtype of 'c8'"),
        (Calls(np._core.multiarray.scalar, np.dtype("f8"), b"1234"), "4 bytes, expected 8"),  # type: ignore[attr-defined]
        (Calls(np._core.multiarray.scalar, np.dtype("f8"), [1]), "without type or bytes"),  # type: ignore[attr-defined]
        (Calls(np._core.multiarray.scalar, "f8", b"12345678"), "without type or bytes"),  # type: ignore[attr-defined]
        (
            Calls(np.dtype, "f8", state=(3, "<", None, ("a",), {"a": 1}, -1, -1, 0)),
            "description of a number type",
        ),
        (Calls(np.dtype, "f8", state=(3, "?", None, None, None, -1, -1, 0)), "byte order"),
        (Calls(np.dtype, "f8", state={"names": 1}), "description of a number type"),
    ],
)
def test_only_numbers_of_numpy(value: Any, message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        read_pickle(pickle.dumps(value, protocol=4))


def test_files_of_the_tensorflow_generation_are_recognised() -> None:
    network = b"cdnnlib.tflib.network\nNetwork\n)\x81}X\x01\x00\x00\x00aK\x01sb"
    with pytest.raises(StyleGAN2Error, match="TensorFlow generation; only files of the PyTorch generation"):
        read_pickle(b"\x80\x03" + network * 3 + b"\x87.")


# ----------------------------------------------------------------------------------------------------------
# Damage and excess
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (0, (2,), (4,)),
        (0, (2, 2), (3, 1)),
        (-1, (4,), (1,)),
        (3, (4,), (-1,)),
        (0, (10**9,), (0,)),
        (0, (10**9, 10**9), (0, 0)),
        (0, (2**100,), (1,)),
        (0, (1,), (2**63,)),
        (2**100, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (0,), (1,)),
        (0, (4, 1), (1,)),
        (0, [4], [1]),
        (0, (4.0,), (1,)),
        (0, (True,), (1,)),
        ("0", (4,), (1,)),
        (0, (1,) * 100, (1,) * 100),
    ],
)
def test_tensors_stay_within_their_storage(offset: Any, size: Any, stride: Any) -> None:
    stream = storage_stream(torch.arange(4.0))
    assert torch.equal(read_pickle(tensor_pickle(stream)), torch.arange(4.0))
    with pytest.raises(StyleGAN2Error, match=r"damaged pickle \(a tensor"):
        read_pickle(tensor_pickle(stream, offset, size, stride))


def test_storages_must_be_exactly_as_long_as_they_say() -> None:
    stream = storage_stream(torch.arange(4.0))
    count, raw = struct.pack("<q", 4), torch.arange(4.0).numpy().tobytes()
    head = stream.removesuffix(count + raw)
    assert head != stream
    for tail in (count + raw[:-1], count + raw + b"\0", struct.pack("<q", 5) + raw, count, b"", raw):
        with pytest.raises(StyleGAN2Error, match=r"storage: announces 4 and"):
            read_pickle(tensor_pickle(head + tail))
    for part, other in (
        (struct.pack("<H", 1001), struct.pack("<H", 1002)),
        (b"\x19.", b"\x18."),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        (b"K\x04N", b"K\x05N"),
        (b"K\x04N", b"K\x04K\x01"),
        (b"\x07storage", b"\x07sturage"),
        (b"FloatStorage", b"FlootStorage"),
    ):
        changed = stream.replace(part, other)
        if part == b"\x07storage":
            changed = stream.replace(b"storageq", b"sturageq")
        assert changed != stream
        with pytest.raises(StyleGAN2Error):
            read_pickle(tensor_pickle(changed))


def test_one_storage_cannot_be_used_to_fill_the_memory() -> None:
    stream = storage_stream(torch.zeros(1000))
    data = pickle.dumps([Calls(torch.storage._load_from_bytes, stream) for _ in range(50)], protocol=4)
    assert len(data) < 2 * len(stream) + 1000, "the bytes should be in it once"
    with pytest.raises(StyleGAN2Error, match="repeats its storages"):
        read_pickle(data)


def sample() -> bytes:
    value = {
        "t": torch.arange(4.0),
        "n": np.float64(2.5),
        "o": collections.OrderedDict(a={1, "b"}),
        "l": [1, (2, None)],
    }
    return pickle.dumps(value, protocol=4)


SAMPLE = sample()


def test_every_truncation_is_an_error() -> None:
    assert set(read_pickle(SAMPLE)) == {"t", "n", "o", "l"}
    for length in range(len(SAMPLE)):
        with pytest.raises(StyleGAN2Error):
            read_pickle(SAMPLE[:length])
    with pytest.raises(StyleGAN2Error, match="7 bytes follow"):
        read_pickle(SAMPLE + b"garbage")


@given(
    changes=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, len(SAMPLE) - 1),
    inserted=st.binary(max_size=6),
)
@settings(max_examples=600, deadline=None)
def test_damage_is_an_error_or_harmless(changes: list[tuple[int, int]], cut: int, inserted: bytes) -> None:
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
    data[cut:cut] = inserted
    try:
        read_pickle(bytes(data))
    except StyleGAN2Error as error:
        assert len(str(error)) < 10_000
