"""The reader of NVIDIA-format pickles: nothing in a file runs, and none takes time or memory without end."""

import builtins
import collections
import functools
import importlib
import operator
import os
import pickle
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia_pickle import read_pickle
from tests.stylegan2.nvidia_format import Calls, Persistent, nvidia_names, storage_stream, tensor_pickle


@pytest.fixture(scope="module", autouse=True)
def _names() -> Iterator[None]:
    with nvidia_names():
        yield


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


def test_attributes_of_modules_cannot_be_set() -> None:
    function, arguments = Persistent("A", {}).__reduce__()
    with pytest.raises(StyleGAN2Error, match="sets attributes of a ModuleRecord"):
        read_pickle(pickle.dumps(Calls(function, *arguments, state={"state": 1}), protocol=4))


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
# Time and memory
# ----------------------------------------------------------------------------------------------------------


def test_one_storage_cannot_be_used_to_fill_the_memory() -> None:
    stream = storage_stream(torch.zeros(1000))
    data = pickle.dumps([Calls(torch.storage._load_from_bytes, stream) for _ in range(50)], protocol=4)
    assert len(data) < 2 * len(stream) + 1000, "the bytes should be in it once"
    with pytest.raises(StyleGAN2Error, match="repeats its storages"):
        read_pickle(data)


# Each of these took time that grew with the square of the file's size, or more: hours for a few megabytes.
COUNT = 20_000
REFER = b"h\x00h\x01R"  # call number 0 with number 1


def test_one_list_cannot_become_many_sets() -> None:
    function, values = b"cbuiltins\nset\nq\x00", b"](" + b"N" * COUNT + b"e\x85q\x01"
    with pytest.raises(StyleGAN2Error, match="makes sets of more than 10000 values"):
        read_pickle(b"\x80\x04" + function + values + b"](" + REFER * COUNT + b"e\x87.")
    function, values = b"cbuiltins\nset\nq\x00", b"](" + b"K\x01" * 6 + b"e\x85q\x01"
    few = read_pickle(b"\x80\x04" + function + values + b"](" + REFER * 1000 + b"e\x87.")
    assert few[2] == [{1}] * 1000


def test_many_arguments_are_not_searched_again_and_again() -> None:
    function, values = b"cbuiltins\nset\nq\x00", b"(" + b"N" * COUNT + b"cos\nsystem\ntq\x01"
    with pytest.raises(StyleGAN2Error, match=r"- os\.system\n"):
        read_pickle(b"\x80\x04" + function + values + b"(" + REFER * COUNT + b"t\x87.")
    with pytest.raises(StyleGAN2Error, match="a call with 9 arguments"):
        read_pickle(pickle.dumps(Calls(collections.OrderedDict, *range(9)), protocol=4))


def test_long_names_of_globals_are_cut_before_they_are_joined() -> None:
    text = b"a" * 20 * COUNT
    names = b"X" + struct.pack("<I", len(text)) + text + b"q\x00(" + b"h\x00h\x00\x93" * COUNT + b"t\x86."
    with pytest.raises(StyleGAN2Error, match=r"- a{100}\\u2026\n"):
        read_pickle(b"\x80\x04" + names)
    for module, name in (("a" * 200, "b"), ("builtins", "set" + "b" * 200), ("builtins", "s" * 93)):
        with pytest.raises(StyleGAN2Error) as error:
            read_pickle(f"\x80\x04c{module}\n{name}\n.".encode("latin-1"))
        full = f"{module}.{name}"
        assert f"- {full if len(full) <= 100 else full[:100]}" in str(error.value)


def test_the_streams_of_all_storages_share_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [storage_stream(torch.arange(4.0) + n) for n in range(8)]
    data = pickle.dumps([Calls(torch.storage._load_from_bytes, stream) for stream in streams], protocol=4)
    monkeypatch.setattr("stylegan2.pickle_machine._MAX_INSTRUCTIONS", 350)
    assert len(read_pickle(pickle.dumps(list(range(300)), protocol=4))) == 300
    with pytest.raises(StyleGAN2Error, match="more than 350 instructions"):
        read_pickle(data)


def test_records_in_records_without_end() -> None:
    function, arguments = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\nq\x00", b""
    for name, value in ((b"type", b"\x8c\x05class"), (b"version", b"K\x06"), (b"class_name", b"\x8c\x01A")):
        arguments += b"\x8c" + bytes([len(name)]) + name + value
    start = b"h\x00}(" + arguments + b"\x8c\x05state}\x8c\x01a"
    depth = 20_000
    got = read_pickle(b"\x80\x04" + function + start * depth + b"N" + b"su\x85R" * depth + b"\x86.")
    record, found = got[1], 0
    while record is not None:
        record, found = record.state["a"], found + 1
    assert found == depth
    assert "state" not in repr(got[1])


def test_errors_do_not_quote_whole_lines() -> None:
    for code in (b"F", b"I", b"S", b"L"):
        with pytest.raises(StyleGAN2Error, match="damaged") as error:
            read_pickle(b"\x80\x04" + code + b"x" * 100_000 + b"\n.")
        assert len(str(error.value)) < 500
