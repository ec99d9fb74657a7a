"""Reads the pickles of StyleGAN2-ADA's PyTorch generation as data: nothing in them runs.

The ``Machine`` that reads them makes plain containers, and from the globals that such files contain: tensors
over bytes of the file, and ``ModuleRecord``. Every other global is refused.

The storages inside are streams of their own, in the format of files before torch 1.6 ("legacy"): five pickles
(magic number, protocol, system, the storage as a persistent id, keys), then the number of elements and the
elements. The same machine reads them, with the storage classes as the only globals.
"""

import io
import math
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.pickle_machine import (
    Arguments,
    Builder,
    Global,
    Machine,
    Reading,
    Refused,
    Settable,
    checked_key,
    damaged,
    forbidden,
)

# ----------------------------------------------------------------------------------------------------------
# What a pickle can make
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)  # in full it could be exponentially long
class ModuleRecord:
    """A network module as the file describes it; the source text that came with it has been dropped.

    Attributes:
        class_name: Name of its class.
        state: Its attributes, among them ``_parameters``, ``_buffers`` and ``_modules``. Plain data.
    """

    class_name: str
    state: dict[Any, Any]


@dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers in a row, and a tensor's memory."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class _StorageId:
    """A storage that is announced, but whose numbers have not been read."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(eq=False)
class _ScalarType(Settable):
    """A numeric dtype of numpy, in the letters of ``struct``; BUILD may change its byte order."""

    letter: str
    order: str = "<"

    def set_state(self, state: Any) -> None:
        """Takes (version, byte order, None, None, None, size, alignment, flags)."""
        if type(state) is not tuple or len(state) != 8 or any(part is not None for part in state[2:5]):
            raise damaged("unusable description of a number type")
        if not isinstance(state[1], str) or state[1] not in _BYTE_ORDERS:
            raise damaged("unusable byte order of a number type")
        self.order = _BYTE_ORDERS[state[1]]


# ----------------------------------------------------------------------------------------------------------
# Names and numbers of the format
# ----------------------------------------------------------------------------------------------------------
_MAX_DIMENSIONS = 8
_MAX_SET_VALUES = 10_000  # in all calls of set() together
_MAX_MESSAGE = 200
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT_BYTES = 8

_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
}
# numpy's names of numeric types (kind and bytes), and struct's
_SCALARS = {
    **dict(zip(("b1", "f2", "f4", "f8"), "?efd", strict=True)),
    **dict(zip(("i1", "i2", "i4", "i8"), "bhiq", strict=True)),
    **dict(zip(("u1", "u2", "u4", "u8"), "BHIQ", strict=True)),
}
_BYTE_ORDERS = {"<": "<", ">": ">", "|": "<"}

_EASY_DICT = "dnnlib.util.EasyDict"
_TENSORFLOW_PREFIXES = ("dnnlib.tflib", "tensorflow.", "tfutil.")


def read_pickle(data: bytes) -> Any:
    """Reads a pickle of NVIDIA's format into plain containers, tensors and ``ModuleRecord``.

    The tensors share the memory of their storages, and containers may occur more than once or contain
    themselves: whoever walks through them has to limit depth and number.

    Raises:
        StyleGAN2Error: It is damaged, asks for globals beyond the allow-list (all are named), or is of the
            TensorFlow generation. The message does not name the file.
    """
    reader = _Reader(len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pickletools, for a name that is garbled
            value = reader.read(data)
    except ValueError as error:  # of pickletools as well as our own
        reader.raise_if_refused()
        if isinstance(error, StyleGAN2Error):
            raise
        raise damaged(str(error)[:_MAX_MESSAGE]) from None  # pickletools quotes whole lines
    reader.raise_if_refused()
    return value


# ----------------------------------------------------------------------------------------------------------
# The allow-list
# ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one file: the outer pickle and the streams inside it."""

    def __init__(self, size: int) -> None:
        self.reading = Reading()
        self.set_values_left = _MAX_SET_VALUES
        self.bytes_left = size  # all streams together are part of the file, so they are no larger
        self.allowed: dict[str, Builder | None] = {
            "torch_utils.persistence._reconstruct_persistent_obj": _build_module,
            _EASY_DICT: None,
            "collections.OrderedDict": _build_dict,
            "builtins.set": self._build_set,
            "torch._utils._rebuild_tensor_v2": _build_tensor,
            "torch._utils._rebuild_parameter": _build_parameter,
            "torch.storage._load_from_bytes": self._build_storage,
            "numpy.dtype": _build_scalar_type,
            "numpy.core.multiarray.scalar": _build_scalar,
            "numpy._core.multiarray.scalar": _build_scalar,
        }

    def read(self, data: bytes) -> Any:
        """Reads the outer pickle, which is the whole file."""
        file = io.BytesIO(data)
        value = Machine(self.allowed, frozenset({_EASY_DICT}), None, self.reading).run(file)
        if file.tell() != len(data):
            raise StyleGAN2Error(f"{len(data) - file.tell()} bytes follow the end of the pickle")
        return value

    def raise_if_refused(self) -> None:
        """Raises an error that names every refused global."""
        refused = self.reading.refused
        if not refused:
            return
        if any(name.startswith(_TENSORFLOW_PREFIXES) for name in refused):
            raise StyleGAN2Error(
                "a network of StyleGAN's TensorFlow generation; only files of the PyTorch generation "
                "(stylegan2-ada-pytorch) can be read: take the PyTorch file of that network"
            )
        names = "\n  - ".join(ascii(name)[1:-1] for name in sorted(refused))  # no escape sequences
        raise StyleGAN2Error(
            f"refused, since it asks for more than tensors and plain containers:\n  - {names}\n"
            "Nothing of it was run. A StyleGAN2-ADA file contains no such names: open it with nothing else "
            "unless you trust its source"
        )

    def _build_storage(self, arguments: Arguments) -> _Storage | Refused:
        """``_load_from_bytes(stream)``."""
        if len(arguments) != 1 or not isinstance(arguments[0], bytes):
            raise damaged("a storage without bytes")
        stream = arguments[0]
        self.bytes_left -= len(stream)
        if self.bytes_left < 0:
            raise forbidden("the pickle repeats its storages to take more memory than it has bytes")
        file = io.BytesIO(stream)
        magic, protocol, system, storage, keys = (self._inner(file) for _ in range(5))
        if self.reading.refused:
            return Refused()
        for what, got, expected in (
            ("magic number", magic, _MAGIC),
            ("protocol", protocol, _LEGACY_PROTOCOL),
        ):
            if type(got) is not int or got != expected:
                raise damaged(f"storage: its {what} is not {expected}")
        if type(system) is not dict or system.get("little_endian") is not True:
            raise StyleGAN2Error("a storage that is not little-endian; write the file on another machine")
        if not isinstance(storage, _StorageId) or keys != [storage.key]:
            raise damaged("storage: not a single block of numbers")
        count = int.from_bytes(file.read(_COUNT_BYTES), "little")
        raw = file.read()
        if not count or count != storage.numel or len(raw) != count * storage.dtype.itemsize:
            got = f"{storage.numel} and {count} elements of {storage.dtype}, holds {len(raw)} bytes"
            raise damaged(f"storage: announces {got}")
        return _Storage(torch.frombuffer(bytearray(raw), dtype=storage.dtype))

    def _inner(self, file: io.BytesIO) -> Any:
        """Reads the next of the pickles that precede the numbers of a storage."""
        return Machine(dict.fromkeys(_STORAGES), frozenset(), _storage_id, self.reading).run(file)

    def _build_set(self, arguments: Arguments) -> set[Any]:
        """``set(list)``."""
        if len(arguments) > 1 or not all(type(argument) is list for argument in arguments):
            raise damaged("a set of something that is not a list")
        values = arguments[0] if arguments else []
        self.set_values_left -= len(values)
        if self.set_values_left < 0:  # one list could be copied again and again
            raise forbidden(f"the pickle makes sets of more than {_MAX_SET_VALUES} values")
        return {checked_key(value) for value in values}


def _storage_id(value: Any) -> _StorageId | Refused:
    """The persistent id ('storage', class, key, device, elements[, view]): the device does not matter."""
    if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
        raise damaged("storage: unusable description")
    if any(view is not None for view in value[5:]):
        raise forbidden("the pickle has a storage that is part of another one")
    cls, key, device, numel = value[1:5]
    if isinstance(cls, Refused):
        return cls
    if not isinstance(cls, Global) or not isinstance(key, str) or not isinstance(device, str):
        raise damaged("storage: unusable description")
    if type(numel) is not int:
        raise damaged("storage: its number of elements is not an int")
    return _StorageId(_STORAGES[cls.name], key, numel)


def _build_module(arguments: Arguments) -> ModuleRecord:
    """``_reconstruct_persistent_obj({type, version, module_src, class_name, state})``."""
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is not dict:
        raise damaged("a module without description")
    kind, version, class_name, state = (meta.get(key) for key in ("type", "version", "class_name", "state"))
    if kind != "class" or type(version) is not int or version != 6:
        shown = version if type(version) is int else f"a {type(version).__name__}"
        raise StyleGAN2Error(f"a module stored in version {shown}; expected a class in version 6")
    if not isinstance(class_name, str) or type(state) is not dict:
        raise damaged("a module without class name or state")
    return ModuleRecord(class_name, state)


def _build_dict(arguments: Arguments) -> dict[Any, Any]:
    """``OrderedDict()``; items follow separately."""
    if arguments:
        raise damaged("an OrderedDict with arguments")
    return {}


def _build_tensor(arguments: Arguments) -> Tensor:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage):
        raise damaged("a tensor without storage")
    values, offset, size, stride = arguments[0].values, *arguments[1:4]
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise damaged("a tensor without usable shape")
    if len(size) > _MAX_DIMENSIONS or any(type(number) is not int for number in (offset, *size, *stride)):
        raise damaged("a tensor without usable shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if (
        min(offset, *stride, 0) < 0
        or min(size, default=1) < 1
        or max(stride, default=0) > values.numel()
        or math.prod(size) > values.numel()  # also keeps one number from being repeated
        or last >= values.numel()
    ):
        raise damaged(f"a tensor that exceeds its storage of {values.numel()} elements")
    return values.as_strided(size, stride, offset)


def _build_parameter(arguments: Arguments) -> Tensor:
    """``_rebuild_parameter(tensor, requires_grad, hooks)``."""
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise damaged("a parameter without tensor")
    return arguments[0]


def _build_scalar_type(arguments: Arguments) -> _ScalarType:
    """``numpy.dtype(name, align, copy)``, of numbers only."""
    name = arguments[0] if arguments else None
    if not isinstance(name, str) or name not in _SCALARS:
        shown = repr(name[:20]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise forbidden(f"the pickle makes a numpy.dtype of {shown}")
    return _ScalarType(_SCALARS[name])


def _build_scalar(arguments: Arguments) -> float | int | bool:
    """``numpy.core.multiarray.scalar(dtype, bytes)``."""
    if len(arguments) != 2 or not isinstance(arguments[0], _ScalarType) or type(arguments[1]) is not bytes:
        raise damaged("a number without type or bytes")
    code, raw = arguments[0].order + arguments[0].letter, arguments[1]
    if len(raw) != struct.calcsize(code):
        raise damaged(f"a number of {len(raw)} bytes, expected {struct.calcsize(code)}")
    value: float | int | bool = struct.unpack(code, raw)[0]
    return value
