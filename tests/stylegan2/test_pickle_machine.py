"""The machine that follows pickles, through the reader that uses it: containers, calls, limits."""

import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia_pickle import read_pickle

PROTOCOLS = (3, 4, 5)  # Python 3 writes bytes as such from protocol 3 on

scalars = st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text()
scalars |= st.binary(max_size=300)
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.integers(-5, 300), inner)
        | st.sets(st.text() | st.integers(-1023, 1023), max_size=5)
    ),
)


class Key:
    """Pickles as the call of set(), as protocols before 4 write sets."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return set, ([self.key],)


@given(value=nested, protocol=st.sampled_from(PROTOCOLS))
@settings(max_examples=200, deadline=None)
def test_plain_containers_come_back_equal(value: Any, protocol: int) -> None:
    got = read_pickle(pickle.dumps(value, protocol=protocol))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_that_occur_twice_stay_one(protocol: int) -> None:
    shared = {"a": [1]}
    first, second = read_pickle(pickle.dumps([shared, shared], protocol=protocol))
    assert first is second and first == shared


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'touch evidence'\nios\nsystem\n.", "instruction STRING"),
        (b"\x80\x02(cos\nsystem\nX\x05\x00\x00\x00touchoq\x00.", r"os\.system"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02(]o.", "OBJ"),
        (b"\x80\x04]]}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x04cos\nsystem\n)}\x92.", r"os\.system"),
        (b"\x80\x02Pwhatever\n.", "PERSID"),
        (b"\x80\x02cos\\?\nsystem\n.", r"- os\\\\\?\.system"),
        (b"\x80\x02K\x01Q.", "outside it"),
        (b"\x80\x04ccollections\nOrderedDict\n)\x81.", "not a plain container"),
        (b"\x80\x04}}R.", "calls a dict"),
        (b"\x80\x04X\x04\x00\x00\x00evil)R.", "calls a str"),
        (b"\x80\x04ccollections\nOrderedDict\n)Rccollections\nOrderedDict\n)RR.", "calls a dict"),
        (b"\x80\x04ctorch.storage\n_load_from_bytes\n]R.", "calls torch.storage._load_from_bytes"),
        (b"\x80\x04cdnnlib.util\nEasyDict\n)R.", "calls dnnlib.util.EasyDict, as"),
    ],
)
def test_other_ways_to_call_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        read_pickle(data)


def test_sizes_in_a_file_reserve_no_memory() -> None:
    far = b"\x80\x04K\x01r\xff\xff\xff\xff."  # C's unpickler reserves 64 GiB for this memo
    assert read_pickle(far) == 1
    for length in (2**31, 2**62, 2**63 + 1):
        with pytest.raises(StyleGAN2Error, match="damaged"):
            read_pickle(b"\x80\x04\x8e" + struct.pack("<Q", length) + b"abc.")


def test_nesting_and_numbers_without_end() -> None:
    deep = read_pickle(b"\x80\x04" + b")" + b"\x85" * 200_000 + b".")
    assert type(deep) is tuple
    itself = read_pickle(b"\x80\x04]q\x00h\x00a.")
    assert itself[0] is itself
    with pytest.raises(StyleGAN2Error, match="integer of"):
        read_pickle(pickle.dumps(1 << 200, protocol=4))
    with pytest.raises(StyleGAN2Error, match="more than 1000000 instructions"):
        read_pickle(b"\x80\x04" + b"N" * 1_000_001 + b".")
    with pytest.raises(StyleGAN2Error, match="a tuple as key"):
        read_pickle(pickle.dumps({(1, 2): 3}, protocol=4))
    with pytest.raises(StyleGAN2Error, match="a tuple as key"):
        read_pickle(pickle.dumps({(1, 2)}, protocol=4))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (1024, "11 bits as key"),
        (-1024, "11 bits as key"),
        (3 * (2**61 - 1), "63 bits as key"),
        (0.5, "float as"),
    ],
)
def test_keys_whose_hashes_are_known_are_few(key: float, message: str) -> None:
    """Multiples of 2⁶¹ − 1 have the hash 0, and smaller numbers can be chosen to meet in a table."""
    for value in ({key: 1}, {key}, [Key(key)]):
        with pytest.raises(StyleGAN2Error, match=message):
            read_pickle(pickle.dumps(value, protocol=4))
    assert read_pickle(pickle.dumps({-1023: 1, 1023: {0, True}}, protocol=4)) == {-1023: 1, 1023: {0, 1}}


def test_no_text_that_could_not_be_written() -> None:
    with pytest.raises(StyleGAN2Error, match="surrogates"):
        read_pickle(pickle.dumps("\ud800", protocol=4))


@given(data=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_noise_is_an_error_or_harmless(data: bytes) -> None:
    try:
        read_pickle(b"\x80\x04" + data + b".")
    except StyleGAN2Error as error:
        assert len(str(error)) < 10_000
