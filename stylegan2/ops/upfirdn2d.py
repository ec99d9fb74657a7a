"""Change of sampling rate by rational factors, with a low-pass filter: polyphase resampling of images.

Along one axis, an input x, a filter h, an interpolation factor U, a decimation factor D and an offset p (how
far the first output reaches left of the first input) give

    y[m] = Σ_n x[n] · h[m·D − p − n·U + (T − 1)]        for a filter of T taps

(Crochiere & Rabiner 1983, Multirate Digital Signal Processing, chapter 2: here finite, and zero outside x).
The sum is linear in x, and its transpose is again such a sum: U and D trade places and h is reversed. So one
autograd function that calls itself in its backward pass gives derivatives of any order. Left to autograd, the
second derivative of a depth-wise convolution costs one small convolution per channel.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import fir_reference, library
from stylegan2.ops.resampling import MOST_FACTOR, MOST_PADDING, Sampling
from stylegan2.ops.selection import runs_compiled

Pair = int | Sequence[int]  # n, or (x, y)
Padding = int | Sequence[int]  # n, or (x, y), or (x0, x1, y0, y1)

_SEPARABLE_FROM_TAPS = 8  # shorter filters are faster as one 2-D pass than as two 1-D passes


# ----------------------------------------------------------------------------------------------------------
# Filters
# ----------------------------------------------------------------------------------------------------------


def setup_filter(
    taps: float | Sequence[float] | Sequence[Sequence[float]] | Tensor | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Prepares a filter for ``upfirdn2d``.

    Args:
        taps: A number, a list (1-D), a table (2-D), or None for the identity.
        normalize: Scale the taps to sum 1, so that a constant image keeps its value.
        flip_filter: Reverse the order of the taps along every axis.
        gain: What a constant image comes out multiplied by, beyond the sum of the taps; at least 0.
        separable: Keep a 1-D filter 1-D, to be applied along x and then along y. None: from 8 taps on. A
            filter that is not kept is expanded to 2-D.

    Returns:
        float32 tensor, ``[taps]`` if separable, else ``[height, width]``.

    Raises:
        StyleGAN2Error: No taps, more than two dimensions, a 2-D filter asked to be separable, taps that sum
            to 0 with ``normalize``, or a negative gain.
    """
    f = torch.as_tensor(1.0 if taps is None else taps, dtype=torch.float32)
    if f.ndim > 2 or f.numel() == 0:
        raise StyleGAN2Error(f"taps: got shape {tuple(f.shape)}, expected a number, a list or a 2-D table")
    if separable and f.ndim == 2:
        raise StyleGAN2Error(f"separable: taps of shape {tuple(f.shape)} are 2-D, expected 1-D taps")
    if gain < 0:
        raise StyleGAN2Error(f"gain: got {gain}, expected a number ≥ 0; negate the taps instead")
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= _SEPARABLE_FROM_TAPS
    if f.ndim == 0:
        f = f[None]
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        total = f.sum()
        if total == 0:
            raise StyleGAN2Error("taps: they sum to 0; pass normalize=False for such a filter")
        f = f / total
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    # 1-D taps filter an image twice, along x and along y: two factors √gain make one gain.
    return f * (math.sqrt(gain) if separable else gain)


# ----------------------------------------------------------------------------------------------------------
# The operation
# ----------------------------------------------------------------------------------------------------------


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 1,
    down: Pair = 1,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Resamples each channel of a batch of images by ``up / down`` along both axes.

    The module's formula, with ``h = gain · f``, U = ``up``, D = ``down`` and p = ``padding`` on the left or
    at the top. The padding on the other side decides where the result ends, and pixels outside ``x`` count
    as 0. Negative padding starts or ends the result inside the image and leaves what lies beyond out of the
    sum.

    Args:
        x: Images, ``[N, C, H, W]``, floating point.
        f: Filter from ``setup_filter``: ``[h, w]``, or ``[taps]`` applied along both axes, or None for the
            identity. It is a constant: no gradient flows to it. With the compiled operations the taps are
            finite, and those of a filter on a GPU are read once: a change in place is noticed unless it is
            made through ``f.data`` or another library (on a CPU: always noticed).
        up: Up-sampling factor, int or (x, y), at most 2¹⁶.
        down: Down-sampling factor, int or (x, y), at most 2¹⁶.
        padding: Offsets p, in pixels of the ``up`` times finer grid: int, (x, y) or (left, right, top,
            bottom).
        flip_filter: True: take ``f`` as already reversed, which makes the sum a correlation with ``f``.
        gain: Factor on the result.

    Returns:
        ``[N, C, (H·up + top + bottom − h)//down + 1, (W·up + left + right − w)//down + 1]``, dtype of ``x``.

    Raises:
        StyleGAN2Error: A malformed argument, a filter larger than the padded image, or (compiled) infinite
            or NaN taps.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise StyleGAN2Error(f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floats [N, C, H, W]")
    if f is not None and (f.ndim not in (1, 2) or f.numel() == 0 or f.requires_grad):
        raise StyleGAN2Error(
            f"f: got shape {tuple(f.shape)}, requires_grad={f.requires_grad}; "
            "expected a constant [taps] or [h, w]"
        )
    sampling = Sampling(_factors("up", up), _factors("down", down), parse_padding(padding))
    (up_x, up_y), (left, right, top, bottom) = sampling.up, sampling.padding
    if -min(left, right) >= x.shape[3] * up_x or -min(top, bottom) >= x.shape[2] * up_y:
        raise StyleGAN2Error(f"padding: {padding!r} crops away the whole of x, of shape {tuple(x.shape)}")
    width, height = filter_size(f)
    if min(sampling.output_size((x.shape[2], x.shape[3]), (height, width))) < 1:
        raise StyleGAN2Error(
            f"filter of {height}×{width} does not fit into x of shape {tuple(x.shape)} with "
            f"up={up!r}, padding={padding!r}; expected more padding or a larger image"
        )
    if runs_compiled(x):
        return library.upfirdn2d(x, f, sampling, flip_filter, float(gain))
    return fir_reference.resample(x, f, sampling, flip_filter, gain)


def filter2d(
    x: Tensor, f: Tensor | None, padding: Padding = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filters images and keeps their size; ``padding`` is added to what that takes. See ``upfirdn2d``."""
    width, height = filter_size(f)
    left, right, top, bottom = parse_padding(padding)
    same = (left + width // 2, right + (width - 1) // 2, top + height // 2, bottom + (height - 1) // 2)
    return upfirdn2d(x, f, padding=same, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 2,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Enlarges images ``up`` times and keeps their mean; ``padding`` is of the result. See ``upfirdn2d``."""
    up_x, up_y = _factors("up", up)
    padding = add_padding(padding, upsampling_padding(f, (up_x, up_y)))
    return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain * up_x * up_y)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Pair = 2,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Shrinks images ``down`` times; ``padding`` is of the input. See ``upfirdn2d``."""
    padding = add_padding(padding, downsampling_padding(f, _factors("down", down)))
    return upfirdn2d(x, f, down=down, padding=padding, flip_filter=flip_filter, gain=gain)


# ----------------------------------------------------------------------------------------------------------
# Geometry of filters and padding
# ----------------------------------------------------------------------------------------------------------


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter from ``setup_filter``; (1, 1) for None."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def parse_padding(padding: Padding) -> tuple[int, int, int, int]:
    """Writes a padding in full, as (left, right, top, bottom).

    Raises:
        StyleGAN2Error: It is not an int, (x, y) or (left, right, top, bottom), or beyond ±2³⁰.
    """
    values = [padding] if isinstance(padding, int) else list(padding)
    if len(values) not in (1, 2, 4) or not all(
        isinstance(value, int) and -MOST_PADDING <= value <= MOST_PADDING for value in values
    ):
        raise StyleGAN2Error(
            f"padding: got {padding!r}, expected an int, (x, y) or (x0, x1, y0, y1) "
            f"of numbers from {-MOST_PADDING} to {MOST_PADDING}"
        )
    if len(values) == 4:
        return values[0], values[1], values[2], values[3]
    return values[0], values[0], values[-1], values[-1]


def add_padding(a: Padding, b: Padding) -> tuple[int, int, int, int]:
    """The sum of two paddings, side by side."""
    (a0, a1, a2, a3), (b0, b1, b2, b3) = parse_padding(a), parse_padding(b)
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


def upsampling_padding(f: Tensor | None, up: tuple[int, int]) -> tuple[int, int, int, int]:
    """Padding that makes the result ``up`` times as large as the input and centres the filter."""
    (width, height), (up_x, up_y) = filter_size(f), up
    return (width + up_x - 1) // 2, (width - up_x) // 2, (height + up_y - 1) // 2, (height - up_y) // 2


def downsampling_padding(f: Tensor | None, down: tuple[int, int]) -> tuple[int, int, int, int]:
    """Padding that makes the result a ``down``-th of the input and centres the filter."""
    (width, height), (down_x, down_y) = filter_size(f), down
    return (
        (width - down_x + 1) // 2,
        (width - down_x) // 2,
        (height - down_y + 1) // 2,
        (height - down_y) // 2,
    )


def _factors(name: str, value: Pair) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or not all(isinstance(factor, int) and 1 <= factor <= MOST_FACTOR for factor in pair):
        raise StyleGAN2Error(
            f"{name}: got {value!r}, expected an int from 1 to {MOST_FACTOR} or a pair (x, y) of them"
        )
    return pair[0], pair[1]
