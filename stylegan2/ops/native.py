"""The compiled libraries: structures, calls and errors of the C interface, `csrc/interface.h`."""

import ctypes
import functools
import threading
from typing import NamedTuple

import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.build import Build, build_once, cpu_recipe, cuda_recipe, discard

KINDS = ("cpu", "cuda")
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
    )
}
INTERFACE_VERSION = 5


class BiasActArguments(ctypes.Structure):
    """`Sg2BiasAct`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("bias_size", ctypes.c_int64),
        ("bias_step", ctypes.c_int64),
        ("alpha", ctypes.c_double),
        ("gain", ctypes.c_double),
        ("clamp", ctypes.c_double),
        ("type", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class Upfirdn2dArguments(ctypes.Structure):
    """`Sg2Upfirdn2d`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "in_height", "in_width")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width")),
        ("in_stride", ctypes.c_int64 * 4),
        ("out_stride", ctypes.c_int64 * 4),
        *((name, ctypes.c_int32) for name in ("up_x", "up_y", "down_x", "down_y", "pad_x", "pad_y")),
        *((name, ctypes.c_int32) for name in ("taps_x", "taps_y", "type", "threads")),
    )


class WinogradArguments(ctypes.Structure):
    """`Sg2Winograd`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "in_channels", "out_channels")),
        *((name, ctypes.c_int64) for name in ("height", "width", "pad", "stride")),
        ("what", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class StyledArguments(ctypes.Structure):
    """`Sg2Styled`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "in_channels", "out_channels", "height", "width")),
        *((name, ctypes.c_double) for name in ("slope", "gain", "clamp")),
        *((name, ctypes.c_int32) for name in ("up", "noise_per_image", "threads")),
    )


# Filling a structure takes longer than a small call: networks repeat the same few hundred ones.
@functools.lru_cache(maxsize=4096)
def bias_act_arguments(*values: float) -> BiasActArguments:
    """The structure that holds these values; not to be changed."""
    return BiasActArguments(*values)


@functools.lru_cache(maxsize=4096)
def upfirdn2d_arguments(*values: int | tuple[int, ...]) -> Upfirdn2dArguments:
    """The structure that holds these values; not to be changed."""
    return Upfirdn2dArguments(*values)


class NativeLibrary:
    """A loaded library.

    Args:
        build: what to load.

    Raises:
        StyleGAN2Error: it cannot be loaded, or is of another interface.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self.kind = build.kind
        try:
            library = ctypes.CDLL(str(build.library))
            pointers = ctypes.c_void_p
            self.bias_act = library.sg2_bias_act
            self.bias_act.argtypes = [pointers] * 7
            self.upfirdn2d = library.sg2_upfirdn2d
            self.upfirdn2d.argtypes = [pointers] * 5
            if build.kind == "cpu":
                self.winograd = library.sg2_winograd
                self.winograd.argtypes = [pointers] * 5
                self.styled_convolution = library.sg2_styled_convolution
                self.styled_convolution.argtypes = [pointers] * 9
                self.styled_kernels = library.sg2_styled_kernels
                self.styled_kernels.argtypes = [pointers] * 4
                self.styled_kernels_size = library.sg2_styled_kernels_size
                self.styled_kernels_size.argtypes = [pointers]
                self.styled_kernels_size.restype = ctypes.c_int64
            self.has_winograd = build.kind == "cpu" and bool(library.sg2_has_winograd())
            self._error_message = library.sg2_error_message
            self._error_message.restype = ctypes.c_char_p
            library.sg2_built_for.restype = ctypes.c_char_p
            version = library.sg2_interface_version()
            self.built_for = library.sg2_built_for().decode()
        except (OSError, AttributeError) as error:
            raise StyleGAN2Error(f"ops: {build.library} cannot be used ({error})") from None
        if version != INTERFACE_VERSION:
            raise StyleGAN2Error(
                f"ops: {build.library} has interface {version}, expected {INTERFACE_VERSION}; delete it"
            )

    def raise_error(self, function: str, code: int) -> None:
        """Raise StyleGAN2Error with the text of a code that is not 0."""
        raise StyleGAN2Error(
            f"ops: {function} of the {self.kind} kernels: {self._error_message(code).decode()}"
        )

    def description(self) -> str:
        """What it was built with and for, in half a line."""
        openmp = ""
        if self.kind == "cpu":
            openmp = ", one thread" if self.build.openmp.startswith("none") else ", OpenMP"
        return f"{self.build.version}, {self.built_for}{openmp}"


class _Attempt(NamedTuple):
    library: NativeLibrary | None
    error: str


_attempts: dict[str, _Attempt] = {}
_lock = threading.RLock()


def load(kind: str) -> NativeLibrary:
    """Give the library of a kind of device, building it where need be; once per process.

    Args:
        kind: cpu or cuda.

    Raises:
        StyleGAN2Error: it cannot be built or loaded; with the compiler's output.
    """
    attempt = _attempts.get(kind)
    if attempt is None:
        with _lock:
            attempt = _attempts.get(kind)
            if attempt is None:
                try:
                    attempt = _Attempt(_load(kind), "")
                except StyleGAN2Error as error:
                    attempt = _Attempt(None, str(error))
                _attempts[kind] = attempt
    if attempt.library is None:
        raise StyleGAN2Error(attempt.error)
    return attempt.library


def forget() -> None:
    """Let the next `load` try anew: after a compiler was installed, say."""
    with _lock:
        _attempts.clear()


def _load(kind: str) -> NativeLibrary:
    recipe = cpu_recipe() if kind == "cpu" else cuda_recipe()
    build = build_once(recipe)
    try:
        return NativeLibrary(build)
    except StyleGAN2Error:
        # Found whole, and gone or replaced a moment later; or it does not load here. Only in the latter case
        # is the build still there to be discarded, and is built once more.
        discard(build)
    return NativeLibrary(build_once(recipe))
