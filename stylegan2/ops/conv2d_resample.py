"""2-D convolution combined with FIR up- or down-sampling."""

from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.convolution import correlate, spread
from stylegan2.ops.upfirdn2d import (
    Padding,
    add_padding,
    downsampling_padding,
    parse_padding,
    upfirdn2d,
    upsampling_padding,
)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Up-samples, convolves, and down-samples images.

    The chain (zero insertion, padding, FIR, convolution, FIR, decimation) is linear and pads only once, so
    its parts may change places: the convolution runs at the lower resolution wherever that is cheaper.

    Args:
        x: Images, ``[N, C_in, H, W]``.
        w: Weights, ``[C_out, C_in / groups, kh, kw]``.
        f: Low-pass filter from ``setup_filter``, for ``up`` or ``down`` > 1; None for the identity.
        up: Up-sampling factor.
        down: Down-sampling factor.
        padding: Padding of the up-sampled image, on top of what centres the filters: int, (x, y) or
            (left, right, top, bottom).
        groups: Number of independent groups of channels.
        flip_weight: True: correlation with ``w``, as in ``torch.nn.Conv2d``. False: true convolution.
        flip_filter: The same choice for ``f``, where False (true convolution) is the usual one.

    Returns:
        ``[N, C_out, H', W']``; with padding (k − 1)/2 the size is that of ``x`` times ``up / down``.

    Raises:
        StyleGAN2Error: Shapes or factors that do not fit together.
    """
    _check(x, w, up, down, groups)
    kernel_h, kernel_w = w.shape[2:]
    pad = parse_padding(padding)
    if up > 1:
        pad = add_padding(pad, upsampling_padding(f, (up, up)))
    if down > 1:
        pad = add_padding(pad, downsampling_padding(f, (down, down)))

    if up > 1:
        if kernel_h == kernel_w == 1:
            # A 1×1 convolution commutes with everything: first, on the fewest pixels.
            x = _conv(x, w, groups, flip_weight)
            x = upfirdn2d(x, f, up=up, padding=pad, flip_filter=flip_filter, gain=up * up)
        else:
            # Strided transposed convolution = zero insertion + full convolution, which pads by kernel − 1
            # on the left and by kernel − up on the right; the FIR takes the rest of the padding.
            x = _conv_transpose(x, w, up, groups, flip_weight)
            done = (kernel_w - 1, kernel_w - up, kernel_h - 1, kernel_h - up)
            rest = (pad[0] - done[0], pad[1] - done[1], pad[2] - done[2], pad[3] - done[3])
            x = upfirdn2d(x, f, padding=rest, flip_filter=flip_filter, gain=up * up)
        return x if down == 1 else upfirdn2d(x, f, down=down, flip_filter=flip_filter)

    if down > 1:
        if kernel_h == kernel_w == 1:
            x = upfirdn2d(x, f, down=down, padding=pad, flip_filter=flip_filter)
            return _conv(x, w, groups, flip_weight)
        x = upfirdn2d(x, f, padding=pad, flip_filter=flip_filter)
        return _conv(x, w, groups, flip_weight, stride=down)

    if pad[0] == pad[1] >= 0 and pad[2] == pad[3] >= 0:
        return _conv(x, w, groups, flip_weight, padding=(pad[2], pad[0]))
    return _conv(upfirdn2d(x, None, padding=pad), w, groups, flip_weight)


def _conv(
    x: Tensor,
    w: Tensor,
    groups: int,
    flip_weight: bool,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    if not flip_weight and w.shape[2:] != (1, 1):
        w = w.flip([2, 3])
    return correlate(x, w, stride, padding, groups)


def _conv_transpose(x: Tensor, w: Tensor, stride: int, groups: int, flip_weight: bool) -> Tensor:
    out_channels, in_per_group, kernel_h, kernel_w = w.shape
    if flip_weight:
        w = w.flip([2, 3])  # a transposed convolution is a true one
    if groups == 1:
        w = w.transpose(0, 1)
    else:
        w = w.reshape(groups, out_channels // groups, in_per_group, kernel_h, kernel_w).transpose(1, 2)
        w = w.reshape(groups * in_per_group, out_channels // groups, kernel_h, kernel_w)  # [C_in, C_out/g, …]
    return spread(x, w, stride, groups)


def _check(x: Tensor, w: Tensor, up: int, down: int, groups: int) -> None:
    if x.ndim != 4 or w.ndim != 4:
        raise StyleGAN2Error(
            f"got x of shape {tuple(x.shape)} and w of shape {tuple(w.shape)}, "
            "expected [N, C_in, H, W] and [C_out, C_in/groups, kh, kw]"
        )
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise StyleGAN2Error(
            f"w: got shape {tuple(w.shape)} with groups={groups}, expected weights for "
            f"{x.shape[1]} input channels"
        )
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise StyleGAN2Error(f"{name}: got {factor!r}, expected an int ≥ 1")
