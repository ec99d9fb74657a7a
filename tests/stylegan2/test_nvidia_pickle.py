"""The reader of NVIDIA-format pickles: what it builds, and what damage does."""

import collections
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia_pickle import ModuleRecord, read_pickle
from tests.stylegan2.nvidia_format import Persistent, nvidia_names, storage_stream, tensor_pickle

PROTOCOLS = (3, 4, 5)  # Python 3 writes bytes as such from protocol 3 on


@pytest.fixture(scope="module", autouse=True)
def _names() -> Iterator[None]:
    with nvidia_names():
        yield


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


def test_a_module_is_a_record_and_its_source_stays_text(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    source = f"open({str(evidence)!r}, 'w').close()\nraise SystemExit\nclass Generator: pass\n"
    module = Persistent("Nobody_knows_me", {"x": 1}, module_src=source)
    got = read_pickle(pickle.dumps(module, protocol=4))
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
def test_unusable_modules(change: dict[str, Any], message: str) -> None:
    module = Persistent("A", {})
    module.meta |= change
    with pytest.raises(StyleGAN2Error, match=message):
        read_pickle(pickle.dumps(module, protocol=4))


# ----------------------------------------------------------------------------------------------------------
# Damage
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
