"""Resampling with a filter in plain PyTorch: the reference implementation of `upfirdn2d`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2.ops.resampling import Sampling
from stylegan2.ops.selection import differentiates_forward

# On a CPU a depth-wise convolution works on blocks of up to this many channels of one image: with 3 channels
# most of a vector register idles. All images side by side, as channels of one, fill it: 2 to 6 times faster.
_CHANNEL_BLOCK = 16


def resample(x: Tensor, f: Tensor | None, sampling: Sampling, flip_filter: bool, gain: float) -> Tensor:
    """See ``upfirdn2d.upfirdn2d``, which has checked the arguments."""
    # ------------------------------------------------------------------
    # y[m] = Σ_n x[n] · g[n·U + p − m·D], that module's formula with g[i] = h[T − 1 − i], the reversed filter
    # ------------------------------------------------------------------
    f = torch.ones([1, 1], device=x.device) if f is None else f.to(x.device)
    g = f if flip_filter else f.flip(list(range(f.ndim)))
    if g.ndim == 2:
        return _fir(x, (g * gain).to(x.dtype), sampling)
    (up_x, up_y), (down_x, down_y) = sampling.up, sampling.down
    left, right, top, bottom = sampling.padding
    row, column = (g * gain).to(x.dtype)[None, :], g.to(x.dtype)[:, None]
    x = _fir(x, row, Sampling((up_x, 1), (down_x, 1), (left, right, 0, 0)))
    return _fir(x, column, Sampling((1, up_y), (1, down_y), (0, 0, top, bottom)))


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


class _FIR(torch.autograd.Function):
    """``_correlate`` with its adjoint as backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, sampling: Sampling) -> Tensor:
        ctx.save_for_backward(g)
        ctx.transposed = sampling.transposed(_size(x), _size(g))
        return _correlate(x, g, sampling)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        (g,) = ctx.saved_tensors
        return _fir(grad_outputs[0], g.flip([0, 1]), ctx.transposed), None, None


def _fir(x: Tensor, g: Tensor, sampling: Sampling) -> Tensor:
    # torch.func and forward-mode differentiation cannot look into an autograd function.
    watched = not torch.compiler.is_compiling() and differentiates_forward()
    if torch.is_grad_enabled() and x.requires_grad and not watched:
        result: Tensor = _FIR.apply(x, g, sampling)
        return result
    return _correlate(x, g, sampling)


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _correlate(x: Tensor, g: Tensor, sampling: Sampling) -> Tensor:
    """Correlates each channel of the zero-stuffed, padded ``x`` with ``g``; keeps every ``down``-th pixel."""
    if not torch.compiler.is_compiling() and _is_autocast(x.device.type):
        with torch.autocast(x.device.type, enabled=False):  # the result has the type of x
            return _correlate(x, g, sampling)
    batch, channels, *size = x.shape
    # Not in an exported graph, whose batch is a variable that no number of groups can be.
    if (
        channels < _CHANNEL_BLOCK
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and batch > 1
    ):
        merged = _correlate(x.reshape(1, batch * channels, *size), g, sampling)
        return merged.reshape(batch, channels, *merged.shape[2:])
    (up_x, up_y), (down_x, down_y) = sampling.up, sampling.down
    if up_x == up_y == 1:
        x, (pad_x, pad_y) = _split_padding(x, sampling.padding)
        kernel = g.expand(channels, 1, *g.shape)
        return F.conv2d(x, kernel, stride=(down_y, down_x), padding=(pad_y, pad_x), groups=channels)

    # A transposed convolution is the full convolution with the zero-stuffed image: an image padded by
    # kernel − 1 on the left, and by kernel − up on the right (no zeros follow its last pixel). Cutting that
    # to the padding that was asked for gives the same numbers, since nothing outside the image contributes.
    height, width = g.shape
    left, right, top, bottom = sampling.padding
    surplus = (left - (width - 1), right - (width - up_x), top - (height - 1), bottom - (height - up_y))
    crop_x, crop_y = max(0, min(-surplus[0], -surplus[1])), max(0, min(-surplus[2], -surplus[3]))
    kernel = g.flip([0, 1]).expand(channels, 1, height, width)
    x = F.conv_transpose2d(x, kernel, stride=(up_y, up_x), padding=(crop_y, crop_x), groups=channels)
    x = _pad(x, (surplus[0] + crop_x, surplus[1] + crop_x, surplus[2] + crop_y, surplus[3] + crop_y))
    return x if down_x == down_y == 1 else x[:, :, ::down_y, ::down_x]


def _split_padding(x: Tensor, padding: tuple[int, int, int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Leaves the even, positive part of a padding to the convolution, which copies no image for it."""
    left, right, top, bottom = padding
    even_x, even_y = max(0, min(left, right)), max(0, min(top, bottom))
    return _pad(x, (left - even_x, right - even_x, top - even_y, bottom - even_y)), (even_x, even_y)


def _pad(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Zero-pads, or crops where negative; crops without a copy."""
    left, right, top, bottom = padding
    grow = [max(0, side) for side in padding]
    if any(grow):  # first: a side may crop more than there is without the other side's zeros
        x = F.pad(x, grow)
    if min(padding) >= 0:
        return x  # a slice of everything would be an alias, which PyTorch's old vmap does not know
    height, width = x.shape[2:]
    return x[:, :, max(0, -top) : height - max(0, -bottom), max(0, -left) : width - max(0, -right)]
