"""Convolution whose weights are modulated by a style, one style per image."""

import torch
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.conv2d_resample import conv2d_resample
from stylegan2.ops.convolution import variable_kernels
from stylegan2.ops.upfirdn2d import Padding

_EPSILON = 1e-8


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> Tensor:
    """Modulates, demodulates and convolves (Karras et al. 2019, §2.2).

    Args:
        x: Images, ``[N, C_in, H, W]``.
        weight: ``[C_out, C_in, kh, kw]``.
        styles: Scale of each input channel for each image, ``[N, C_in]``.
        noise: Added to the result; any shape that broadcasts to it. None adds nothing.
        up: Up-sampling factor.
        down: Down-sampling factor.
        padding: Padding of the up-sampled image.
        resample_filter: Low-pass filter from ``setup_filter`` for ``up`` or ``down`` > 1.
        demodulate: Scale each output channel back to unit variance (equation 3).
        flip_weight: True: correlation. False: true convolution.
        fused_modconv: True: build the weights of every image and run one convolution with a group per image.
            False: scale the activations before and after one ordinary convolution. Equal results.

    Returns:
        ``[N, C_out, H', W']``, dtype of ``x``.

    Raises:
        StyleGAN2Error: Shapes that do not fit together.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] or styles.shape != x.shape[:2]:
        raise StyleGAN2Error(
            f"got x {tuple(x.shape)}, weight {tuple(weight.shape)}, styles {tuple(styles.shape)}; "
            "expected [N, C_in, H, W], [C_out, C_in, kh, kw] and [N, C_in]"
        )
    if x.dtype == torch.float16 and demodulate:
        weight, styles = _scale_for_float16(weight, styles)

    def convolve(images: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        return conv2d_resample(
            images, kernel.to(x.dtype), resample_filter, up, down, padding, groups, flip_weight=flip_weight
        )

    demodulation = demodulation_factors(styles, energy(weight)) if demodulate else None
    pointwise = tuple(weight.shape[2:]) == (1, 1) and up == down == 1 and padding == 0
    if pointwise and demodulation is None and x.is_contiguous():
        # [N, C_out, C_in] × [N, C_in, H·W]: the style scales the few weights, not the many pixels.
        kernels = (weight.flatten(1) * styles[:, None]).to(x.dtype)
        x = (kernels @ x.flatten(2)).unflatten(2, x.shape[2:])  # [N, C_out, H, W]
    elif fused_modconv:
        batch, channels = x.shape[:2]
        kernels = weight[None] * styles[:, None, :, None, None]  # [N, C_out, C_in, kh, kw]
        if demodulation is not None:
            kernels = kernels * demodulation[:, :, None, None, None]
        x = x.reshape(1, batch * channels, *x.shape[2:])  # images side by side, as groups of channels
        with variable_kernels():  # they follow the styles
            x = convolve(x, kernels.flatten(0, 1), groups=batch)
        x = x.reshape(batch, -1, *x.shape[2:])  # [N, C_out, H', W']
    else:
        x = convolve(x * styles.to(x.dtype)[:, :, None, None], weight)
        if demodulation is not None:
            scale = demodulation.to(x.dtype)[:, :, None, None]
            return x * scale if noise is None else torch.addcmul(noise.to(x.dtype), x, scale)
    return x if noise is None else x + noise.to(x.dtype)


def energy(weight: Tensor) -> Tensor:
    """Sums of squares over the kernel, ``[C_out, C_in]``: what ``demodulate`` asks of a weight."""
    return weight.square().sum(dim=(2, 3))


def demodulation_factors(styles: Tensor, energy: Tensor) -> Tensor:
    """Factors [N, C_out] that bring each output channel back to unit variance."""
    # ------------------------------------------------------------------
    # Karras et al. 2019, equations 1 and 3:
    # w'_ijk = s_i · w_ijk;  w''_ijk = w'_ijk / √(Σ_ik w'_ijk² + ε)
    # The sum over the kernel does not depend on the style, so it becomes one small matrix product.
    # ------------------------------------------------------------------
    return (styles.square() @ energy.t() + _EPSILON).rsqrt()


def _scale_for_float16(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Brings weights and styles into float16's range; demodulation cancels the factors."""
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * fan_in**0.5)
    return weight, styles / styles.abs().amax(dim=1, keepdim=True)
