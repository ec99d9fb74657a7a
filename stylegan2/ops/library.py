"""The compiled operations as torch sees them: registered, differentiable twice, of known shape and layout.

Two ways lead to the kernels, with the same formulas. `torch.ops.stylegan2.*` is what torch.compile, fake and
wrapped tensors and dispatch modes meet. Plain tensors go straight to the kernels instead, which takes half
the time: at 4×4 to 16×16 pixels calls are short, and there are hundreds in a step.

With y = clamp(gain · act(x + b)) and a gradient g of y, the derivatives of `bias_act` are

    ∂/∂x: g · y'        ∂/∂b: its sum over all other dimensions                          (order 1)
    of order 1, with a gradient v:    ∂/∂g: v · y'        ∂/∂x: g · v · y''              (order 2)

y' and y'' come from y itself (from x + b for swish). y'' is 0 where the activation is made of straight lines:
then x is not kept, and no gradient flows to it from order 1. Third derivatives of the others raise an error.
The gradient of `upfirdn2d` is `upfirdn2d` with factors exchanged and the filter reversed, to any order.
"""

from typing import Any

import torch
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import kernels, native
from stylegan2.ops.kernels import BiasAct, Taps, dense_format, image_format, sum_to_bias, taps_of
from stylegan2.ops.native import NativeLibrary
from stylegan2.ops.resampling import Sampling

_STRAIGHT = ("linear", "relu", "lrelu")

Maybe = Tensor | None
Tensors = tuple[Maybe, ...]


# Tensors of PyTorch's old vmap, by which autograd has `is_grads_batched` and `vectorize`, look plain.
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def _direct(x: Tensor, constant: Maybe = None) -> NativeLibrary | None:
    """The kernels for plain tensors that nothing watches; None where torch's dispatcher has to decide."""
    kind, other = type(x), type(constant)
    if (
        (kind is Tensor or kind is nn.Parameter)
        and (constant is None or other is Tensor or other is nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not x.is_neg()
        and not _is_batched(x)
        and (constant is None or not _is_batched(constant))
    ):
        return native.load(x.device.type)
    return None


# ----------------------------------------------------------------------------------------------------------
# Bias and activation
# ----------------------------------------------------------------------------------------------------------


def bias_act(
    x: Tensor, b: Maybe, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """See `stylegan2.ops.bias_act.bias_act`, which has checked the arguments; `b` is of the type of `x`."""
    library = _direct(x, b)
    if library is None:
        result: Tensor = torch.ops.stylegan2.bias_act(x, b, dim, act, alpha, gain, clamp)
        return result
    p = BiasAct(dim, act, alpha, gain, clamp)
    if torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)):
        result = _BiasAct.apply(x, b, p)
        return result
    return kernels.bias_act(library, x, b, p)


def _gradient(g: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> Tensor:
    """Order 1. x and b are needed to differentiate once more; see `_kept`."""
    library = _direct(g)
    if library is None:
        result: Tensor = torch.ops.stylegan2.bias_act_gradient(g, x, b, y, *p)
        return result
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (g, x, b)):
        result = _Gradient.apply(g, x, b, None if y is None else y.detach(), p)
        return result
    return kernels.bias_act_derivative(library, g, None, _point(g, x, b, y, p), p)


def _curvature(g: Tensor, v: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> Tensor:
    """Order 2."""
    library = _direct(g, v)
    if library is None:
        result: Tensor = torch.ops.stylegan2.bias_act_curvature(g, v, x, b, y, *p)
        return result
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (g, v, x, b)):
        result = _Curvature.apply(g, v, x, b, None if y is None else y.detach(), p)
        return result
    return kernels.bias_act_derivative(library, g, v, _point(g, x, b, y, p), p)


def _kept(x: Tensor, b: Maybe, y: Tensor, p: BiasAct) -> Tensors:
    """What the derivatives need of (x, b, y)."""
    straight = p.act in _STRAIGHT
    from_y = p.act != "swish" and not (p.act == "linear" and p.clamp is None)
    return None if straight else x, None if straight else b, y if from_y else None


def _needed(g: Tensor, x: Maybe, y: Maybe, p: BiasAct) -> Tensor:
    """The tensor that says where derivatives are taken: y; x for swish; anything for a straight line.

    Raises:
        StyleGAN2Error: it is not there.
    """
    straight = p.act == "linear" and p.clamp is None
    needed = x if p.act == "swish" else g if straight and y is None else y
    if needed is None:
        raise StyleGAN2Error(
            f"ops: derivatives of {p.act} with clamp {p.clamp} are taken from "
            f"{'x' if p.act == 'swish' else 'y'}, which is missing"
        )
    return needed


def _point(g: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> Tensor:
    """Where the kernels take derivatives: `_needed`, and for swish x + b."""
    needed = _needed(g, x, y, p)
    if p.act != "swish":
        return needed
    p.check(needed, b)
    needed = needed.detach().contiguous(memory_format=dense_format(needed))
    return needed if b is None else needed + p.along(b.detach(), needed.ndim)


def _gradients(g: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> tuple[Tensor, Tensor]:
    """Order 1 and its sum for the bias.

    In one pass over memory, unless it will be differentiated or torch's dispatcher decides: then torch sums,
    which differs in the last digits.
    """
    library = _direct(g)
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (g, x, b))
    if library is None or differentiable:
        gradient = _gradient(g, x, b, y, p)
        return gradient, sum_to_bias(gradient, p)
    return kernels.bias_act_gradients(library, g, _point(g, x, b, y, p), p)


# Formulas of both ways: they take what autograd gives them and answer for x, b or g, v, x, b.


def _bias_act_formula(ctx: Any, g: Maybe) -> Tensors:
    if g is None:
        return None, None
    x, b, y = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return _gradient(g, x, b, y, ctx.p), None
    gradient, for_b = _gradients(g, x, b, y, ctx.p)
    return gradient if ctx.needs_input_grad[0] else None, for_b


def _gradient_formula(ctx: Any, v: Maybe) -> Tensors:
    if v is None:
        return None, None, None
    g, x, b, y = ctx.saved_tensors
    for_g = _gradient(v, x, b, y, ctx.p) if ctx.needs_input_grad[0] else None
    if g is None or not any(ctx.needs_input_grad[1:3]):
        return for_g, None, None
    curvature = _curvature(g, v, x, b, y, ctx.p)
    for_b = sum_to_bias(curvature, ctx.p) if ctx.needs_input_grad[2] else None
    return for_g, curvature if ctx.needs_input_grad[1] else None, for_b


def _curvature_formula(ctx: Any, gradient: Maybe) -> Tensors:
    if gradient is None:
        return None, None, None, None
    raise StyleGAN2Error(
        f"ops: the compiled kernels have no third derivative of {ctx.p.act}; "
        "compute the function with stylegan2.ops.use('reference')"
    )


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Maybe, p: BiasAct) -> Tensor:
        y = kernels.bias_act(native.load(x.device.type), x, b, p)
        ctx.p = p
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_kept(x, b, y, p))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return *_bias_act_formula(ctx, grad_outputs[0]), None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> Tensor:
        ctx.p = p
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(None if x is None else g, x, b, y)
        return kernels.bias_act_derivative(native.load(g.device.type), g, None, _point(g, x, b, y, p), p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return *_gradient_formula(ctx, grad_outputs[0]), None, None


class _Curvature(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, v: Tensor, x: Maybe, b: Maybe, y: Maybe, p: BiasAct) -> Tensor:
        ctx.p = p
        ctx.set_materialize_grads(False)
        return kernels.bias_act_derivative(native.load(g.device.type), g, v, _point(g, x, b, y, p), p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return *_curvature_formula(ctx, grad_outputs[0]), None, None


# ----------------------------------------------------------------------------------------------------------
# Resampling with a filter
# ----------------------------------------------------------------------------------------------------------


def upfirdn2d(x: Tensor, f: Maybe, sampling: Sampling, flip_filter: bool, gain: float) -> Tensor:
    """See `stylegan2.ops.upfirdn2d.upfirdn2d`, which has checked the arguments."""
    if _direct(x, f) is None:
        result: Tensor = torch.ops.stylegan2.upfirdn2d(x, f, *sampling, flip_filter, gain)
        return result
    return _resample(x, taps_of(f, flip_filter, gain), sampling)


def _resample(x: Tensor, taps: Taps, sampling: Sampling) -> Tensor:
    library = _direct(x)
    if library is None:
        result: Tensor = torch.ops.stylegan2.upfirdn2d(x, taps.values, *sampling, True, 1.0)
        return result
    if torch.is_grad_enabled() and x.requires_grad:
        result = _Upfirdn2d.apply(x, taps, sampling)
        return result
    return kernels.upfirdn2d(library, x, taps, sampling)


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Taps, sampling: Sampling) -> Tensor:
        ctx.taps, ctx.sampling, ctx.size = taps, sampling, (x.shape[2], x.shape[3])
        ctx.set_materialize_grads(False)
        return kernels.upfirdn2d(native.load(x.device.type), x, taps, sampling)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if grad_outputs[0] is None:
            return None, None, None
        adjoint = ctx.sampling.transposed(ctx.size, ctx.taps.size)
        return _resample(grad_outputs[0], ctx.taps.reversed(), adjoint), None, None


# ----------------------------------------------------------------------------------------------------------
# Registration
# ----------------------------------------------------------------------------------------------------------

_PARAMETERS = "int dim, str act, float alpha, float gain, float? clamp"
_SCHEMAS = {
    "bias_act": f"(Tensor x, Tensor? b, {_PARAMETERS}) -> Tensor",
    "bias_act_gradient": f"(Tensor g, Tensor? x, Tensor? b, Tensor? y, {_PARAMETERS}) -> Tensor",
    "bias_act_curvature": f"(Tensor g, Tensor v, Tensor? x, Tensor? b, Tensor? y, {_PARAMETERS}) -> Tensor",
    "upfirdn2d": "(Tensor x, Tensor? f, int[] up, int[] down, SymInt[] padding, bool flip_filter, "
    "float gain) -> Tensor",
}
_DEVICES = ("cpu", "cuda")


def _op_bias_act(x: Tensor, b: Maybe, *p: Any) -> Tensor:
    return kernels.bias_act(native.load(x.device.type), x, b, BiasAct(*p))


def _op_gradient(g: Tensor, x: Maybe, b: Maybe, y: Maybe, *p: Any) -> Tensor:
    q = BiasAct(*p)
    return kernels.bias_act_derivative(native.load(g.device.type), g, None, _point(g, x, b, y, q), q)


def _op_curvature(g: Tensor, v: Tensor, x: Maybe, b: Maybe, y: Maybe, *p: Any) -> Tensor:
    q = BiasAct(*p)
    return kernels.bias_act_derivative(native.load(g.device.type), g, v, _point(g, x, b, y, q), q)


def _op_upfirdn2d(
    x: Tensor, f: Maybe, up: list[int], down: list[int], padding: list[int], flip: bool, gain: float
) -> Tensor:
    taps, sampling = taps_of(f, flip, gain), _sampling(up, down, padding)
    return kernels.upfirdn2d(native.load(x.device.type), x, taps, sampling)


def _sampling(up: list[int], down: list[int], padding: list[int]) -> Sampling:
    if (len(up), len(down), len(padding)) != (2, 2, 4):
        raise StyleGAN2Error(
            f"ops: got up={up}, down={down}, padding={padding}, expected (x, y), (x, y), (x0, x1, y0, y1)"
        )
    left, right, top, bottom = padding
    return Sampling((up[0], up[1]), (down[0], down[1]), (left, right, top, bottom))


def _taps_size(f: Maybe) -> tuple[int, int]:
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


def _fake_bias_act(x: Tensor, b: Maybe, *p: Any) -> Tensor:
    return torch.empty_like(x, memory_format=dense_format(x))


def _fake_gradient(g: Tensor, x: Maybe, b: Maybe, y: Maybe, *p: Any) -> Tensor:
    return torch.empty_like(g, memory_format=dense_format(_needed(g, x, y, BiasAct(*p))))


def _fake_curvature(g: Tensor, v: Tensor, x: Maybe, b: Maybe, y: Maybe, *p: Any) -> Tensor:
    return _fake_gradient(g, x, b, y, *p)


def _fake_upfirdn2d(
    x: Tensor, f: Maybe, up: list[int], down: list[int], padding: list[int], flip: bool, gain: float
) -> Tensor:
    size = _sampling(up, down, padding).output_size((x.shape[2], x.shape[3]), _taps_size(f))
    shape = [x.shape[0], x.shape[1], *size]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=image_format(x))


def _keep_bias_act(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, b, *p = inputs
    ctx.p = BiasAct(*p)
    ctx.save_for_backward(*_kept(x, b, output, ctx.p))


def _keep_gradient(ctx: Any, inputs: Any, output: Tensor) -> None:
    g, x, b, y, *p = inputs
    ctx.p = BiasAct(*p)
    ctx.save_for_backward(None if x is None else g, x, b, y)


def _keep_curvature(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.p = BiasAct(*inputs[5:])


def _keep_upfirdn2d(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, f, up, down, padding, ctx.flip_filter, ctx.gain = inputs
    ctx.sampling, ctx.size = _sampling(up, down, padding), (x.shape[2], x.shape[3])
    ctx.save_for_backward(f)


def _upfirdn2d_formula(ctx: Any, g: Tensor) -> Tensors:
    (f,) = ctx.saved_tensors
    adjoint = ctx.sampling.transposed(ctx.size, _taps_size(f))
    flip_filter = not ctx.flip_filter
    return torch.ops.stylegan2.upfirdn2d(g, f, *adjoint, flip_filter, ctx.gain), *[None] * 6


def _register() -> None:
    implementations: dict[str, tuple[Any, Any, Any, Any, int]] = {
        "bias_act": (_op_bias_act, _fake_bias_act, _keep_bias_act, _bias_act_formula, 5),
        "bias_act_gradient": (_op_gradient, _fake_gradient, _keep_gradient, _gradient_formula, 6),
        "bias_act_curvature": (_op_curvature, _fake_curvature, _keep_curvature, _curvature_formula, 6),
        "upfirdn2d": (_op_upfirdn2d, _fake_upfirdn2d, _keep_upfirdn2d, _upfirdn2d_formula, 0),
    }
    for name, (run, fake, keep, formula, constants) in implementations.items():
        full = f"stylegan2::{name}"
        torch.library.define(full, _SCHEMAS[name])
        torch.library.impl(full, _DEVICES)(run)
        torch.library.register_fake(full)(fake)
        torch.library.register_autograd(full, _with_constants(formula, constants), setup_context=keep)


def _with_constants(formula: Any, count: int) -> Any:
    """A formula that also answers, with None, for the inputs that are no tensors and for y."""

    def answer(ctx: Any, gradient: Tensor) -> Any:
        return *formula(ctx, gradient), *[None] * count

    return answer


_register()
