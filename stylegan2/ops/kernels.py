"""The compiled operations on tensors: checks, layout in memory, results, calls. No gradients here.

Kernels get addresses alone, so whatever comes here is checked: a tensor of another type, shape or device
would be read as what it is not.
"""

import ctypes
import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.native import (
    ACTIVATION_CODES,
    TYPES,
    NativeLibrary,
    bias_act_arguments,
    upfirdn2d_arguments,
)
from stylegan2.ops.resampling import Sampling

# ----------------------------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------------------------


def _check_input(library: NativeLibrary, name: str, x: Tensor) -> None:
    if x.dtype not in TYPES or x.device.type != library.kind or x.layout is not torch.strided:
        raise StyleGAN2Error(
            f"ops: {name}: got {_described(x)}, expected a dense tensor on {library.kind} of "
            "float32, float64, float16 or bfloat16"
        )


def _check_like(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if (
        tensor.shape != shape
        or tensor.dtype != x.dtype
        or tensor.device != x.device
        or tensor.layout is not torch.strided
    ):
        raise StyleGAN2Error(
            f"ops: {name}: got {_described(tensor)}, expected {x.dtype} of shape {tuple(shape)} on {x.device}"
        )


def _described(x: Tensor) -> str:
    kind = "" if x.layout is torch.strided else f", {x.layout}"
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}{kind}"


def _dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The numbers of a tensor as they lie in memory: in a layout, with the signs that they have."""
    if x.is_neg():
        x = x.resolve_neg()
    return x.contiguous(memory_format=layout)


# ----------------------------------------------------------------------------------------------------------
# Layout
# ----------------------------------------------------------------------------------------------------------


def dense_format(x: Tensor) -> torch.memory_format:
    """The layout that `bias_act` computes a tensor in: channels-last where it is so, else contiguous."""
    if not x.is_contiguous() and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def image_format(x: Tensor) -> torch.memory_format:
    """The layout of `upfirdn2d`'s result: channels-last where channels lie side by side, else contiguous."""
    if not x.is_contiguous() and x.shape[1] > 1 and x.stride(1) == 1:
        return torch.channels_last
    return torch.contiguous_format


def _call(library: NativeLibrary, function: Any, x: Tensor, *pointers: Any) -> None:
    if library.kind == "cuda":
        with torch.cuda.device(x.device):
            code = function(*pointers, torch.cuda.current_stream(x.device).cuda_stream)
    else:
        code = function(*pointers, None)
    if code != 0:
        library.raise_error(function.__name__, code)


# ----------------------------------------------------------------------------------------------------------
# Bias and activation
# ----------------------------------------------------------------------------------------------------------

# So many elements of one bias side by side, and the kernels sum its gradient; of fewer, torch does it faster.
_SUMMED_RUN, _SUMMED_RUN_OF_16_BITS = 1024, 256


class BiasAct(NamedTuple):
    """The arguments of `bias_act` that are no tensors; `dim` ≥ 0, `clamp` None for none."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float | None

    def along(self, b: Tensor, ndim: int) -> Tensor:
        """The bias in a shape that adds to a tensor of so many dimensions."""
        return b.reshape([-1 if i == self.dim else 1 for i in range(ndim)])

    def check(self, x: Tensor, b: Tensor | None) -> None:
        """Whether `dim` and a bias fit x.

        Raises:
            StyleGAN2Error: they do not.
        """
        if b is None:
            return
        if not 0 <= self.dim < x.ndim:
            raise StyleGAN2Error(
                f"ops: dim: got {self.dim}, expected a dimension of x, whose shape is {tuple(x.shape)}"
            )
        _check_like("b", b, (x.shape[self.dim],), x)


def bias_act(library: NativeLibrary, x: Tensor, b: Tensor | None, p: BiasAct) -> Tensor:
    """clamp(gain · act(x + b)), in the layout of `dense_format`.

    Raises:
        StyleGAN2Error: x or b is not what the kernels can read.
    """
    _check_input(library, "x", x)
    p.check(x, b)
    x = _dense(x, dense_format(x))
    y = torch.empty_like(x)
    size = x.numel()
    if size == 0:
        return y
    bias_size, step, address = 0, 1, None
    if b is not None:
        b = _dense(b, torch.contiguous_format)
        bias_size, step, address = b.numel(), max(1, x.stride(p.dim)), b.data_ptr()
    arguments = _bias_act_arguments(size, bias_size, step, p, TYPES[x.dtype], 0, torch.get_num_threads())
    _call(library, library.bias_act, x, arguments, x.data_ptr(), None, address, None, y.data_ptr())
    return y


def bias_act_derivative(
    library: NativeLibrary, first: Tensor, second: Tensor | None, at: Tensor, p: BiasAct
) -> Tensor:
    """Give first · dy/dx, or, with `second`, first · second · d²y/dx².

    Args:
        library: of the device.
        first: gradient of y.
        second: of the same shape.
        at: y; for swish x + b. Of the same shape; its `dense_format` is that of the result.
        p: arguments of `bias_act`.

    Raises:
        StyleGAN2Error: tensors differ in type, shape or device, or are not what the kernels can read.
    """
    return _derivative(library, first, second, at, p, with_sums=False)[0]


def bias_act_gradients(
    library: NativeLibrary, first: Tensor, at: Tensor, p: BiasAct
) -> tuple[Tensor, Tensor]:
    """Give (first · dy/dx, its sum over all dimensions but `p.dim`), in one pass where that is possible.

    Args and Raises: as of `bias_act_derivative`.
    """
    gradient, sums = _derivative(library, first, None, at, p, with_sums=True)
    return gradient, sum_to_bias(gradient, p) if sums is None else sums


def sum_to_bias(gradient: Tensor, p: BiasAct) -> Tensor:
    """The sum over all dimensions but that of the bias."""
    others = [i for i in range(gradient.ndim) if i != p.dim]
    return gradient.sum(others) if others else gradient


def _derivative(
    library: NativeLibrary, first: Tensor, second: Tensor | None, at: Tensor, p: BiasAct, with_sums: bool
) -> tuple[Tensor, Tensor | None]:
    _check_input(library, "gradient of y", first)
    _check_like("x" if p.act == "swish" else "y", at, first.shape, first)
    layout = dense_format(at)
    at, first = _dense(at, layout), _dense(first, layout)
    out = torch.empty_like(first, memory_format=layout)
    size = first.numel()
    if size == 0:
        return out, None
    order, address = 1, None
    if second is not None:
        _check_like("gradient of the gradient", second, first.shape, first)
        second = _dense(second, layout)
        order, address = 2, second.data_ptr()
    sums, bias_size, step, to = None, 0, 1, None
    shortest = _SUMMED_RUN_OF_16_BITS if out.element_size() == 2 else _SUMMED_RUN
    if with_sums and library.kind == "cpu" and out.stride(p.dim) >= shortest:
        sums = torch.empty(out.shape[p.dim], dtype=out.dtype, device=out.device)
        bias_size, step, to = sums.numel(), out.stride(p.dim), sums.data_ptr()
    arguments = _bias_act_arguments(
        size, bias_size, step, p, TYPES[first.dtype], order, torch.get_num_threads()
    )
    _call(
        *(library, library.bias_act, first, arguments),
        *(first.data_ptr(), address, to, at.data_ptr(), out.data_ptr()),
    )
    return out, sums


@functools.lru_cache(maxsize=4096)
def _bias_act_arguments(
    size: int, bias_size: int, step: int, p: BiasAct, dtype: int, order: int, threads: int
) -> Any:
    if p.act not in ACTIVATION_CODES or (p.clamp is not None and not p.clamp >= 0):
        raise StyleGAN2Error(
            f"ops: got act {p.act!r} and clamp {p.clamp}, "
            f"expected one of {', '.join(ACTIVATION_CODES)}, and a number ≥ 0 or None"
        )
    clamp = -1.0 if p.clamp is None else p.clamp
    activation = ACTIVATION_CODES[p.act]
    values = (size, bias_size, step, p.alpha, p.gain, clamp, dtype, activation, order, threads)
    return ctypes.byref(bias_act_arguments(*values))


# ----------------------------------------------------------------------------------------------------------
# Resampling with a filter
# ----------------------------------------------------------------------------------------------------------


class Taps:
    """A filter as the kernels multiply with it.

    Args:
        values: float64 [height, width] in main memory, contiguous; not changed any more.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.size = values.shape[0], values.shape[1]
        self.address = values.data_ptr()
        self._reversed: Taps | None = None

    def reversed(self) -> "Taps":
        """The same filter from its other end, for the adjoint."""
        if self._reversed is None:
            self._reversed = Taps(self.values.flip([0, 1]))
        return self._reversed


class _Known(NamedTuple):
    tensor: "weakref.ref[Tensor]"
    version: tuple[int, int, torch.dtype]
    copy: Tensor | None  # of the filter, if that is on the CPU
    taps: dict[tuple[bool, float], Taps]

    def fits(self, f: Tensor, version: tuple[int, int, torch.dtype]) -> bool:
        """Whether it is of this filter as it is now; `f.data` counts no changes."""
        if self.version != version or self.tensor() is not f:
            return False
        return self.copy is None or torch.equal(self.copy, f)


_known: dict[int, _Known] = {}


def taps_of(f: Tensor | None, flip_filter: bool, gain: float) -> Taps:
    """The taps of a filter from `setup_filter`; 1-D ones as the table that both passes together are.

    They are remembered for as long as the filter lives and stays as it is: reading a filter from a GPU waits
    for all that the GPU has to do. So what changes one there behind the back of PyTorch's count of changes
    (``f.data.mul_(2)``) is not noticed; on the CPU all taps are compared.

    Raises:
        StyleGAN2Error: it is no filter.
    """
    if f is None:
        return _constant(gain)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise StyleGAN2Error(f"ops: f: got shape {tuple(f.shape)}, expected [taps] or [h, w]")
    if f.is_inference():  # counts no changes
        return _read(f, flip_filter, gain)
    key, version = id(f), (f._version, f.data_ptr(), f.dtype)
    known = _known.get(key)
    if known is None or not known.fits(f, version):
        copy = f.detach().clone() if f.device.type == "cpu" else None
        known = _Known(weakref.ref(f, functools.partial(_forget, _known, key)), version, copy, {})
        _known[key] = known
    taps = known.taps.get((flip_filter, gain))
    if taps is None:
        taps = known.taps[flip_filter, gain] = _read(f, flip_filter, gain)
    return taps


def _forget(filters: dict[int, _Known], key: int, reference: "weakref.ref[Tensor]") -> None:
    # Looks up nothing in this module: at the end of the interpreter that may have been cleared.
    known = filters.get(key)
    if known is not None and known.tensor is reference:
        del filters[key]


@functools.lru_cache(maxsize=64)
def _constant(gain: float) -> Taps:
    return Taps(torch.full([1, 1], gain, dtype=torch.float64, device="cpu"))


def _read(f: Tensor, flip_filter: bool, gain: float) -> Taps:
    g = f.detach() if flip_filter else f.detach().flip(list(range(f.ndim)))
    scaled = (g * gain).to("cpu", torch.float64)  # multiplied in the type of f, as the reference does
    if g.ndim == 1:
        scaled = torch.outer(g.to("cpu", torch.float64), scaled)  # [along y, along x]
    return Taps(scaled.contiguous().clone())


class _Plan(NamedTuple):
    arguments: Any
    shape: tuple[int, int, int, int]
    layout: torch.memory_format


def upfirdn2d(library: NativeLibrary, x: Tensor, taps: Taps, sampling: Sampling) -> Tensor:
    """Resample with a filter; the result has the layout of `image_format`.

    Raises:
        StyleGAN2Error: x is not what the kernels can read, or the sampling leaves nothing or is out of range.
    """
    _check_input(library, "x", x)
    if x.ndim != 4:
        raise StyleGAN2Error(f"ops: x: got shape {tuple(x.shape)}, expected [N, C, H, W]")
    if x.is_neg():
        x = x.resolve_neg()
    layout = image_format(x)
    if layout == torch.contiguous_format and x.stride(3) != 1:
        x = x.contiguous()
    plan = _plan(x.shape, x.stride(), layout, taps.size, sampling, TYPES[x.dtype], torch.get_num_threads())
    y = torch.empty(plan.shape, dtype=x.dtype, device=x.device, memory_format=plan.layout)
    if y.numel() > 0:
        _call(library, library.upfirdn2d, x, plan.arguments, taps.address, x.data_ptr(), y.data_ptr())
    return y


@functools.lru_cache(maxsize=4096)
def _plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    layout: torch.memory_format,
    taps: tuple[int, int],
    sampling: Sampling,
    dtype: int,
    threads: int,
) -> _Plan:
    sampling.check()
    batch, channels, in_height, in_width = shape
    height, width = sampling.output_size((in_height, in_width), taps)
    if min(height, width) < 0:
        raise StyleGAN2Error(
            f"ops: a filter of {taps[0]}×{taps[1]} does not fit into x of shape {tuple(shape)} "
            f"with {sampling}"
        )
    if layout == torch.channels_last:
        out_stride = (height * width * channels, 1, width * channels, channels)
    else:
        out_stride = (channels * height * width, height * width, width, 1)
    arguments = upfirdn2d_arguments(
        *(batch, channels, in_height, in_width, height, width),
        *(tuple(stride), out_stride),
        *(*sampling.up, *sampling.down, sampling.padding[0], sampling.padding[2]),
        *(taps[1], taps[0], dtype, threads),
    )
    return _Plan(ctypes.byref(arguments), (batch, channels, height, width), layout)
