"""A layer of the generator: modulated convolution, noise, bias and activation.

With gradients it is one operation after the other. Without them, on a CPU where Winograd's convolutions run
(`stylegan2.ops.convolution`), a layer of 3×3 kernels is one pass: the styles multiply what is read, all that
follows the convolution happens before anything is written (`csrc/styled_convolution.h`). Up-sampling by two
is part of it: zero insertion, kernel and filter are one linear map, of which each of the four pixels of a
2×2 block is a 3×3 convolution of the small image. Results differ in the last digits.
"""

import ctypes
import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stylegan2.ops import native
from stylegan2.ops.bias_act import activation, bias_act
from stylegan2.ops.conv2d_resample import conv2d_resample
from stylegan2.ops.convolution import takes_styled
from stylegan2.ops.modulated_conv import demodulation_factors, energy, modulated_conv2d

_ONE_PASS = ("linear", "lrelu")
_FOUR_TAPS = (4, 4)  # of the filter: what makes the four kernels 3×3
_MOST_KEPT = 2**22  # numbers of prepared kernels of a layer: 16 MiB

Taps = tuple[tuple[float, ...], ...]


class Finish(NamedTuple):
    """What follows bias and noise; see `stylegan2.ops.bias_act.bias_act`."""

    act: str
    gain: float
    clamp: float | None


def styled_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    finish: Finish,
    *,
    up: int,
    padding: int,
    resample_filter: Tensor,
    fused_modconv: bool,
) -> Tensor:
    """Convolves as `modulated_conv2d`, adds noise and bias, and activates (Karras et al. 2019, figure 2d).

    Args:
        x: Feature maps, ``[N, C_in, H, W]``.
        weight: ``[C_out, C_in, kh, kw]``; a correlation, with ``up`` > 1 a true convolution.
        styles: ``[N, C_in]``.
        noise: ``[H·up, W·up]`` or ``[N, 1, H·up, W·up]``; None adds nothing.
        bias: ``[C_out]``.
        finish: Activation, gain and clamp.
        up: Up-sampling factor.
        padding: Of the up-sampled image, on every side.
        resample_filter: Low-pass filter from ``setup_filter`` for ``up`` > 1.
        fused_modconv: See ``modulated_conv2d``; where all is one pass it says nothing.

    Returns:
        ``[N, C_out, H·up, W·up]`` for a padding that keeps the size; dtype of ``x``.

    Raises:
        StyleGAN2Error: Shapes that do not fit together.
    """
    if _is_one_pass(x, weight, styles, noise, bias, finish, up, padding, resample_filter):
        return _in_one_pass(x, weight, styles, noise, bias, finish, up, resample_filter)
    x = modulated_conv2d(
        x,
        weight,
        styles,
        noise=noise,
        up=up,
        padding=padding,
        resample_filter=resample_filter,
        flip_weight=up == 1,
        fused_modconv=fused_modconv,
    )
    return bias_act(x, bias.to(x.dtype), act=finish.act, gain=finish.gain, clamp=finish.clamp)


def _is_one_pass(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    finish: Finish,
    up: int,
    padding: int,
    resample_filter: Tensor,
) -> bool:
    """Whether nothing needs gradients, the kernel knows all of it, and it pays.

    The kernel gets addresses alone: what does not fit goes to the parts, which say so.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (styles, noise, bias)):
        return False
    if finish.act not in _ONE_PASS or finish.gain <= 0 or padding != 1 or up not in (1, 2):
        return False
    if up == 2 and tuple(resample_filter.shape) != _FOUR_TAPS:
        return False
    if x.ndim != 4 or weight.ndim != 4 or styles.shape != x.shape[:2] or bias.shape != weight.shape[:1]:
        return False
    if noise is not None and not (_is_plain(noise) and _is_noise(noise, x, up)):
        return False
    return _is_plain(styles) and _is_plain(bias) and takes_styled(x, weight)


def _is_plain(t: Tensor) -> bool:
    """Whether its numbers are those in memory of the CPU."""
    kind = type(t)
    return (
        (kind is Tensor or kind is nn.Parameter)
        and t.device.type == "cpu"
        and t.layout is torch.strided
        and not t.is_neg()
    )


def _is_noise(noise: Tensor, x: Tensor, up: int) -> bool:
    """Whether it is of one channel, for all images of x or for each."""
    size = (up * x.shape[2], up * x.shape[3])
    shape = tuple(noise.shape)
    return shape in (size, (1, 1, *size), (x.shape[0], 1, *size))


def _in_one_pass(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    finish: Finish,
    up: int,
    resample_filter: Tensor,
) -> Tensor:
    library = native.load("cpu")
    batch, _, height, width = x.shape
    size = (up * height, up * width)
    if noise is not None:
        noise = noise.to(x.dtype).contiguous()
    arguments = _arguments(
        *(batch, weight.shape[1], weight.shape[0], height, width),
        *(activation(finish.act).alpha if finish.act == "lrelu" else 1.0, finish.gain),
        *(-1.0 if finish.clamp is None else finish.clamp, up),
        *(int(noise is not None and noise.numel() > size[0] * size[1]), torch.get_num_threads()),
    )
    prepared = _prepare(library, arguments, weight, up, resample_filter)
    styles = styles.to(x.dtype).contiguous()
    scale = demodulation_factors(styles, prepared.energy)
    x, bias = x.contiguous(), bias.to(x.dtype).contiguous()
    y = x.new_empty([batch, weight.shape[0], *size])
    tensors = (x, prepared.kernels, styles, scale, noise, bias, y)
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    code = library.styled_convolution(arguments, *pointers, None)
    if code:
        library.raise_error("styled_convolution", code)
    return y


@functools.lru_cache(maxsize=1024)
def _arguments(*values: float) -> Any:
    return ctypes.byref(native.StyledArguments(*values))


# ----------------------------------------------------------------------------------------------------------
# Kernels as the convolution multiplies with them
# ----------------------------------------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """What follows from the weights of a layer alone."""

    weight: "weakref.ref[Tensor]"
    copy: Tensor  # of the weight: what the rest was computed from
    taps: Taps | None  # of the filter
    energy: Tensor
    kernels: Tensor

    def fits(self, weight: Tensor, taps: Taps | None) -> bool:
        """Whether it is of this weight as it is now. Compared in full: `weight.data` counts no changes."""
        return self.weight() is weight and self.taps == taps and torch.equal(self.copy, weight)


_known: dict[int, _Prepared] = {}


def _prepare(
    library: native.NativeLibrary, arguments: Any, weight: Tensor, up: int, resample_filter: Tensor
) -> _Prepared:
    """The kernels of a layer; kept for as long as its weight lives, if they are not too large."""
    taps = tuple(tuple(row) for row in resample_filter.tolist()) if up == 2 else None
    key = id(weight)
    known = _known.get(key)
    if known is not None and known.fits(weight, taps):
        return known
    weight_now = weight.detach().contiguous()
    pixels = weight_now
    if taps is not None:  # [C_out, 1, C_in, 9] × [4, 9, 9]
        pixels = (weight_now.flatten(2)[:, None] @ _maps_to_pixels(taps)).contiguous()
    kernels = weight_now.new_empty(library.styled_kernels_size(arguments))
    code = library.styled_kernels(arguments, pixels.data_ptr(), kernels.data_ptr(), None)
    if code:
        library.raise_error("styled_kernels", code)
    forget = functools.partial(_forget, key)
    prepared = _Prepared(weakref.ref(weight, forget), weight_now.clone(), taps, energy(weight_now), kernels)
    if kernels.numel() <= _MOST_KEPT:
        _known[key] = prepared
    return prepared


def _forget(key: int, reference: "weakref.ref[Tensor]") -> None:
    known = _known.get(key)
    if known is not None and known.weight is reference:
        del _known[key]


@functools.lru_cache(maxsize=16)
def _maps_to_pixels(taps: Taps) -> Tensor:
    """What makes kernels of pixels of a 3×3 kernel, for a filter: float32 ``[4, 9, 9]``.

    Read off what the nine kernels of a single one make of a single pixel.
    """
    # ------------------------------------------------------------------
    # y[2i + p] = Σ_q k_p[q] · x[i + q − 1] with x = δ_3:  k_p[q] = y[2(4 − q) + p]
    # ------------------------------------------------------------------
    double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    point = torch.zeros(1, 1, 7, 7, **double)
    point[0, 0, 3, 3] = 1
    units = torch.eye(9, **double).reshape(9, 1, 3, 3)
    f = torch.tensor(taps, **double)
    spread = conv2d_resample(point, units, f, up=2, padding=1, flip_weight=False)[0]  # [9, 14, 14]
    around = spread[:, 4:10, 4:10].reshape(9, 3, 2, 3, 2).flip(1, 3)  # [9, q_y, p_y, q_x, p_x]
    return around.permute(2, 4, 0, 1, 3).reshape(4, 9, 9).float()
