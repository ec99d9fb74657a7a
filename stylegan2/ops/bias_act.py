"""Bias, activation, gain and clamp in one call."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import library
from stylegan2.ops.selection import runs_compiled


@dataclass(frozen=True)
class Activation:
    """An activation function and the constants that go with it.

    Attributes:
        function: Maps (input, alpha) to the output, element by element.
        gain: Default factor on the output.
        alpha: Default slope or scale, used by ``lrelu`` only.
    """

    function: Callable[[Tensor, float], Tensor]
    gain: float = 1.0
    alpha: float = 0.0


def _without_alpha(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Tensor]:
    def ignore_alpha(x: Tensor, alpha: float) -> Tensor:
        return function(x)

    return ignore_alpha


# ----------------------------------------------------------------------------------------------------------
# He et al. 2015 (1502.01852), §2.2: ReLU halves the mean square of a symmetric input, and gain √2 makes up
# for it; so it roughly does for the functions close to ReLU.
# ----------------------------------------------------------------------------------------------------------
_RECTIFIER_GAIN = math.sqrt(2)

_UNSCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "elu": F.elu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}
_RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "swish": F.silu}

ACTIVATIONS: dict[str, Activation] = {
    **{name: Activation(_without_alpha(function)) for name, function in _UNSCALED.items()},
    **{name: Activation(_without_alpha(function), _RECTIFIER_GAIN) for name, function in _RECTIFIERS.items()},
    "lrelu": Activation(F.leaky_relu, _RECTIFIER_GAIN, alpha=0.2),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Adds a bias, applies an activation, scales and clamps.

    Args:
        x: Input of any shape.
        b: Bias, shape ``[x.shape[dim]]``; None adds nothing.
        dim: Dimension of ``x`` that the bias runs along.
        act: A key of ``ACTIVATIONS``.
        alpha: Negative slope of ``lrelu``; the others ignore it. None takes the activation's default.
        gain: Factor on the activation. None takes the activation's default.
        clamp: Limits the result to [-clamp, clamp], which keeps float16 in range (Karras et al. 2020,
            2006.06676, appendix D). None does not.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        StyleGAN2Error: Unknown activation, bias of the wrong shape, negative clamp, or (compiled) bias on
            another device.
    """
    spec = activation(act)
    _check(x, b, dim, clamp)
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)

    if b is not None and b.dtype != x.dtype:
        b = b.to(x.dtype)
    # The kernels differentiate from the output, whose sign says nothing then.
    ambiguous = act == "lrelu" and alpha < 0
    if not ambiguous and x.layout is torch.strided and runs_compiled(x):
        return library.bias_act(x, b, dim % x.ndim, act, alpha, gain, None if clamp is None else float(clamp))
    return _reference(x, b, dim, act, alpha, gain, clamp)


def _reference(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """``bias_act`` in plain PyTorch."""
    # ------------------------------------------------------------------
    # y = clamp(gain · act(x + b))
    # ------------------------------------------------------------------
    if b is not None:
        b = b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    if act == "lrelu" and alpha > 0 and gain > 0:
        x = _scaled_leaky_relu(x, b, alpha, gain)
    else:
        x = ACTIVATIONS[act].function(x if b is None else x + b, alpha)
        x = x if gain == 1 else x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


def _scaled_leaky_relu(x: Tensor, b: Tensor | None, alpha: float, gain: float) -> Tensor:
    """The activation of nearly all layers with one new tensor instead of three: less memory to wait for."""
    # ------------------------------------------------------------------
    # For gain > 0: gain · lrelu(x + b) = lrelu(gain · x + gain · b)
    # ------------------------------------------------------------------
    if b is not None:
        x = torch.add(b * gain, x, alpha=gain)
    elif gain != 1:
        x = x * gain
    else:
        return F.leaky_relu(x, alpha)  # x is the caller's: not to be overwritten
    return F.leaky_relu_(x, alpha)


def activation(name: str) -> Activation:
    """Looks up an activation by name.

    Raises:
        StyleGAN2Error: There is no activation of that name.
    """
    if name not in ACTIVATIONS:
        raise StyleGAN2Error(f"act: got {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _check(x: Tensor, b: Tensor | None, dim: int, clamp: float | None) -> None:
    if not -x.ndim <= dim < x.ndim:
        raise StyleGAN2Error(f"dim: got {dim}, expected a dimension of x, whose shape is {tuple(x.shape)}")
    if b is not None and tuple(b.shape) != (x.shape[dim],):
        raise StyleGAN2Error(
            f"b: got shape {tuple(b.shape)}, expected ({x.shape[dim]},) to fit dimension {dim} of x"
        )
    if clamp is not None and not clamp >= 0:  # NaN, too
        raise StyleGAN2Error(f"clamp: got {clamp}, expected a number ≥ 0 or None")
