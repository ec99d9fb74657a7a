"""2-D convolution that is differentiable to any order at the price of ordinary convolutions.

A convolution without bias is linear in the image and in the kernel. With a third tensor of the result's shape
it makes a number, linear in all three,

    t(X, W, Y) = Σ_nopq Y[n, o, p] · X[n, i, s·p + q − pad] · W[o, i, q],

and each of the three operations below is its derivative by one of them: `_Correlate` by Y, `_Spread` (the
transposed convolution) by X, `_KernelGradient` by W. So the derivative of each is made of the other two, to
any order. Left to autograd, the second derivative turns the gradient of the kernel into a convolution whose
kernel is as large as the image.

With kernels of 3×3 all three can take compiled Winograd kernels on a CPU: with stride 1 (`csrc/winograd.h`) a
quarter of the products, 1.6 to 3.6 times faster than PyTorch for 8 images of 16 to 64 pixels and 32 to 256
channels, and off by 2·10⁻⁶ of the largest result where PyTorch is off by 4·10⁻⁷; with stride 2
(`csrc/winograd_strided.h`) 9/16 of the products, 1.0 to 2.0 times faster, and off by 10⁻⁶. An infinity or NaN
spreads over tiles: 4×4 results, or in a transposed convolution of stride 2 the 9×9 pixels of four by four.
`stylegan2.ops.selection` says when they run.

Nothing is registered with `torch.library`: whatever looks at single operations (torch.compile, export,
traces, torch.func, forward-mode differentiation, autocast, dispatch modes, subclasses of tensors) meets
PyTorch's own convolution, which it knows how to treat.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import native, selection

Gradients = tuple[Tensor | None, Tensor | None, None]

_CONVOLUTION, _BY_IMAGE, _BY_KERNEL = 0, 1, 2  # `what` of `sg2_winograd`
# Where Winograd won (AVX-512, one thread), by stride: least channels of either image, least tiles of 4×4
# pixels of Y. Below, transforms cost more than the saved products.
_LEAST_STYLED = (16, 32)  # of stride 1, with kernels that are prepared once
_LEAST = {
    1: {_CONVOLUTION: (16, 32), _BY_IMAGE: (16, 32), _BY_KERNEL: (16, 32)},
    2: {_CONVOLUTION: (32, 64), _BY_IMAGE: (16, 32), _BY_KERNEL: (32, 64)},
}

_local = threading.local()


@dataclass(frozen=True)
class _Geometry:
    """What the trilinear form needs beside its tensors; pairs are (y, x).

    Attributes:
        stride: Pixels of the large image X per pixel of the small one Y.
        padding: Zeros around X.
        groups: Number of independent groups of channels.
        large: (height, width) of X.
        kernel: (height, width) of the kernel.
        winograd: Whether Winograd's algorithm may compute it and its derivatives, whatever is selected then.
    """

    stride: int
    padding: tuple[int, int]
    groups: int
    large: tuple[int, int]
    kernel: tuple[int, int]
    winograd: bool

    def surplus(self, small: Tensor) -> tuple[int, int]:
        """Rows and columns of X beyond what the smallest X with as many steps of the kernel would have."""
        rows, columns = (
            size + 2 * pad - kernel - (steps - 1) * self.stride
            for size, pad, kernel, steps in zip(
                self.large, self.padding, self.kernel, small.shape[2:], strict=True
            )
        )
        return rows, columns


def correlate(x: Tensor, w: Tensor, stride: int, padding: tuple[int, int], groups: int) -> Tensor:
    """Correlates images [N, C_in, H, W] with kernels [C_out, C_in / groups, kh, kw]; as ``F.conv2d``."""
    if _is_watched(x, w):
        return F.conv2d(x, w, stride=stride, padding=padding, groups=groups)
    winograd = selection.convolves_by_winograd(x)
    return _correlate(x, w, _Geometry(stride, padding, groups, _size(x), _size(w), winograd))


def spread(y: Tensor, w: Tensor, stride: int, groups: int) -> Tensor:
    """Transposed convolution of [N, C_in, H, W] with [C_in, C_out / groups, kh, kw].

    As ``F.conv_transpose2d``.
    """
    if _is_watched(y, w):
        return F.conv_transpose2d(y, w, stride=stride, groups=groups)
    (height, width), kernel = _size(y), _size(w)
    large = ((height - 1) * stride + kernel[0], (width - 1) * stride + kernel[1])
    winograd = selection.convolves_by_winograd(y)
    return _spread(y, w, _Geometry(stride, (0, 0), groups, large, kernel, winograd))


@contextmanager
def constant_kernels() -> Iterator[None]:
    """Spare the gradients of kernels where an inner gradient is taken, as R1 and path length do.

    When a convolution of this `with` block is differentiated with ``create_graph=True``, its kernel counts as
    constant; the derivative of that gradient by the kernel is there as ever. PyTorch does not tell a function
    written in Python which gradients are asked for, so it would compute them all.
    """
    with _kernels_set(constant=True):
        yield


@contextmanager
def variable_kernels() -> Iterator[None]:
    """Undo `constant_kernels` where kernels are computed from what is differentiated by, such as styles."""
    with _kernels_set(constant=False):
        yield


@contextmanager
def _kernels_set(constant: bool) -> Iterator[None]:
    before = _kernels_are_constant()
    _local.constant = constant
    try:
        yield
    finally:
        _local.constant = before


def _kernels_are_constant() -> bool:
    return getattr(_local, "constant", False)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _is_watched(*tensors: Tensor) -> bool:
    """Whether something looks at single operations, or has rules of its own for these tensors."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or selection.differentiates_forward()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(tensor) is not Tensor and type(tensor) is not nn.Parameter for tensor in tensors)
        or torch._C._is_any_autocast_enabled()
    )


def _is_spared(ctx: Any) -> bool:
    return bool(ctx.constant_kernel) and torch.is_grad_enabled()  # enabled here: create_graph


def _correlate(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    if not _needs_function(x, w):
        return _compute_correlate(x, w, geometry)
    result: Tensor = _Correlate.apply(x, w, geometry)
    return result


def _spread(y: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    if not _needs_function(y, w):
        return _compute_spread(y, w, geometry)
    result: Tensor = _Spread.apply(y, w, geometry)
    return result


def _kernel_gradient(x: Tensor, y: Tensor, geometry: _Geometry) -> Tensor:
    if not _needs_function(x, y):
        return _compute_kernel_gradient(x, y, geometry)
    result: Tensor = _KernelGradient.apply(x, y, geometry)
    return result


def _needs_function(*tensors: Tensor) -> bool:
    if (
        selection.differentiates_forward()
    ):  # gradients in batches, for one: PyTorch has rules for its own alone
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Correlate(torch.autograd.Function):
    """∂t/∂Y from X [N, C_in, H, W] and W [C_out, C_in / groups, kh, kw]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
        # Each factor is kept only where the derivative by the other one will ask for it.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)
        ctx.geometry, ctx.constant_kernel = geometry, _kernels_are_constant()
        return _compute_correlate(x, w, geometry)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        (x, w), (y,) = ctx.saved_tensors, grad_outputs
        by_x = None if w is None else _spread(y, w, ctx.geometry)
        by_w = None if x is None or _is_spared(ctx) else _kernel_gradient(x, y, ctx.geometry)
        return by_x, by_w, None


class _Spread(torch.autograd.Function):
    """∂t/∂X from Y [N, C_out, H', W'] and W [C_out, C_in / groups, kh, kw]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)
        ctx.geometry, ctx.constant_kernel = geometry, _kernels_are_constant()
        return _compute_spread(y, w, geometry)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        (y, w), (x,) = ctx.saved_tensors, grad_outputs
        by_y = None if w is None else _correlate(x, w, ctx.geometry)
        by_w = None if y is None or _is_spared(ctx) else _kernel_gradient(x, y, ctx.geometry)
        return by_y, by_w, None


class _KernelGradient(torch.autograd.Function):
    """∂t/∂W from X [N, C_in, H, W] and Y [N, C_out, H', W']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, y if ctx.needs_input_grad[0] else None)
        ctx.geometry = geometry
        return _compute_kernel_gradient(x, y, geometry)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        (x, y), (w,) = ctx.saved_tensors, grad_outputs
        by_x = None if y is None else _spread(y, w, ctx.geometry)
        by_y = None if x is None else _correlate(x, w, ctx.geometry)
        return by_x, by_y, None


# ----------------------------------------------------------------------------------------------------------
# Computation
# ----------------------------------------------------------------------------------------------------------


def _compute_correlate(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    if _takes_winograd(geometry, x, w, (w.shape[1], w.shape[0]), _least(geometry, _CONVOLUTION)):
        size = [x.shape[0], w.shape[0], *_small_size(geometry)]
        return _winograd(x, w, size, geometry.padding[0], geometry.stride, _CONVOLUTION)
    return F.conv2d(x, w, stride=geometry.stride, padding=geometry.padding, groups=geometry.groups)


def _compute_spread(y: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    if _takes_winograd(geometry, y, w, (w.shape[0], w.shape[1]), _least(geometry, _BY_IMAGE)):
        size = [y.shape[0], w.shape[1], *geometry.large]
        return _winograd(y, w, size, geometry.padding[0], geometry.stride, _BY_IMAGE)
    if geometry.kernel == (1, 1) and geometry.stride == geometry.groups == 1 and geometry.padding == (0, 0):
        return F.conv2d(y, w.transpose(0, 1))  # which is slow in PyTorch as a transposed convolution
    return F.conv_transpose2d(
        y,
        w,
        stride=geometry.stride,
        padding=geometry.padding,
        output_padding=geometry.surplus(y),
        groups=geometry.groups,
    )


def _compute_kernel_gradient(x: Tensor, y: Tensor, geometry: _Geometry) -> Tensor:
    shape = [y.shape[1], x.shape[1] // geometry.groups, *geometry.kernel]
    if _takes_winograd(geometry, x, y, (x.shape[1], y.shape[1]), _least(geometry, _BY_KERNEL)):
        return _winograd(x, y, shape, geometry.padding[0], geometry.stride, _BY_KERNEL)
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        y,
        x,
        y.new_empty(shape),  # asked for its shape alone
        None,
        [geometry.stride] * 2,
        list(geometry.padding),
        [1, 1],
        False,
        [0, 0],
        geometry.groups,
        [False, True, False],
    )
    assert gradients[1] is not None
    return gradients[1]


def _small_size(geometry: _Geometry) -> tuple[int, int]:
    """(height, width) of Y; below 1 where the kernel does not fit into X."""
    (height, width), (y, x), (kernel_y, kernel_x) = geometry.large, geometry.padding, geometry.kernel
    stride = geometry.stride
    return (height + 2 * y - kernel_y) // stride + 1, (width + 2 * x - kernel_x) // stride + 1


def _least(geometry: _Geometry, what: int) -> tuple[int, int] | None:
    """Least channels and tiles; None where there is nothing compiled for such a stride."""
    return _LEAST.get(geometry.stride, {}).get(what)


def _takes_winograd(
    geometry: _Geometry,
    image: Tensor,
    other: Tensor,
    channels: tuple[int, int],
    least: tuple[int, int] | None,
) -> bool:
    """Whether it may, can, and pays; `channels` are those that both images have if all fits together."""
    if not geometry.winograd or geometry.kernel != (3, 3) or geometry.groups != 1 or least is None:
        return False
    if not _holds_floats(image) or not _holds_floats(other) or _is_watched(image, other):
        return False
    if image.ndim != 4 or other.ndim != 4:  # PyTorch says what is wrong
        return False
    pad_y, pad_x = geometry.padding
    height, width = _small_size(geometry)
    tiles = image.shape[0] * -(-height // 4) * -(-width // 4)  # of 4 × 4 pixels
    least_channels, least_tiles = least
    return (
        0 <= pad_y == pad_x <= 2
        and min(height, width) >= 1
        and image.shape[1] == channels[0]
        and min(channels) >= least_channels
        and tiles >= least_tiles
    )


def takes_styled(x: Tensor, w: Tensor) -> bool:
    """Whether a convolution with kernels of 3×3, padded by 1, takes Winograd's algorithm with all around it.

    `csrc/styled_convolution.h` has no gradients: never where autograd records.
    """
    if x.ndim != 4 or _is_watched(x, w) or (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        return False
    geometry = _Geometry(1, (1, 1), 1, _size(x), _size(w), selection.convolves_by_winograd(x))
    return _takes_winograd(geometry, x, w, (w.shape[1], w.shape[0]), _LEAST_STYLED)


def _holds_floats(x: Tensor) -> bool:
    """Whether the kernels read its memory as it is: float32 on the CPU, planes of pixels."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.layout != torch.strided or x.is_neg():
        return False
    if not torch._C._has_storage(x):  # as in gradients in batches
        return False
    # Whoever asks for channels last gets them from PyTorch.
    return x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def _winograd(first: Tensor, second: Tensor, size: list[int], padding: int, stride: int, what: int) -> Tensor:
    """`sg2_winograd`; what first, second and the result are depends on `what`, see `csrc/interface.h`."""
    library = native.load("cpu")
    first, second = first.contiguous(), second.contiguous()
    result = first.new_empty(size)
    large = result if what == _BY_IMAGE else first
    kernel = result if what == _BY_KERNEL else second
    small = first if what == _BY_IMAGE else result if what == _CONVOLUTION else second
    _check_shapes(large, kernel, small, padding, stride)
    arguments = native.WinogradArguments(
        large.shape[0],
        kernel.shape[1],
        kernel.shape[0],
        large.shape[2],
        large.shape[3],
        padding,
        stride,
        what,
        torch.get_num_threads(),
    )
    code = library.winograd(
        ctypes.byref(arguments), first.data_ptr(), second.data_ptr(), result.data_ptr(), None
    )
    if code:
        library.raise_error("winograd", code)
    return result


def _check_shapes(large: Tensor, kernel: Tensor, small: Tensor, padding: int, stride: int) -> None:
    """The kernels get addresses alone: what does not fit would be read beyond its end."""
    batch, channels, height, width = large.shape
    out = small.shape[1]
    geometry = _Geometry(stride, (padding, padding), 1, (height, width), (3, 3), True)
    fitting = (batch, out, *_small_size(geometry))
    if small.shape != fitting or kernel.shape != (out, channels, 3, 3):
        raise StyleGAN2Error(
            f"ops: winograd: got images {tuple(large.shape)} and {tuple(small.shape)}, kernels "
            f"{tuple(kernel.shape)}, padding {padding} and stride {stride}, which do not fit together"
        )
