"""Compares the compiled operations with the reference: values, first and second gradients, and time.

Winograd's convolution is compared with PyTorch's, and so are layers of the generator in one pass.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan2.ops import native, selection
from stylegan2.ops.bias_act import ACTIVATIONS, bias_act
from stylegan2.ops.convolution import correlate
from stylegan2.ops.styled_conv import Finish, styled_conv2d
from stylegan2.ops.upfirdn2d import setup_filter, upfirdn2d

# Largest difference in units of the largest reference value. Types of 16 bits: some of their last places.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_CONVOLUTION_TOLERANCE = 2e-5  # of second gradients; Winograd's values are off by 2e-6
_SHAPE = (2, 5, 12, 9)
_TRAINED_SHAPE = (2, 5, 45, 47)  # bias gradient in the same pass: 3 blocks of 1024 numbers, the last not full
_STREAMED_SHAPE = (
    2,
    16,
    513,
    401,
)  # the same; in float32 more than the 24 MiB that are stored past the caches
_CONVOLVED_SHAPE = (3, 32, 38, 33)  # no multiples of the tiles, and enough of them
_TIMED_SHAPE = (4, 64, 64, 64)
_REPETITIONS = 7

Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """One operation in one type.

    Attributes:
        implementation: that was compared with the reference.
        operation: bias_act, upfirdn2d, bias_grad (bias_act as a backward pass has it), convolution or
            styled_conv.
        dtype: of the tensors.
        errors: of value, first and second gradients (0 where there are none): largest |a − b| / max|b| of
            all cases.
        tolerance: that the errors may reach.
    """

    implementation: str
    operation: str
    dtype: torch.dtype
    errors: tuple[float, float, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether all errors are small, and numbers."""
        return all(error <= self.tolerance for error in self.errors)


def _cases(dtype: torch.dtype) -> dict[str, list[Operation]]:
    # Of 16 bits, some results round to the limit itself, where the derivative jumps.
    clamps = (None, 0.8) if dtype in (torch.float32, torch.float64) else (None,)
    short, long, flat = setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 3, 4, 4, 3, 2, 1]), None

    def biased(act: str, clamp: float | None) -> Operation:
        return lambda x, b: bias_act(x, b, act=act, gain=1.3, clamp=clamp)

    def resampled(f: Tensor | None, up: int, down: int, padding: tuple[int, ...]) -> Operation:
        return lambda x, b: upfirdn2d(x, f, up, down, padding, flip_filter=up == 1, gain=up * up)

    resampling = [
        *((short, 1, 1, (2, 1, 2, 1)), (short, 2, 1, (2, 1, 2, 1)), (short, 1, 2, (1, 1, 1, 1))),
        *((long, 2, 1, (4, 3, 4, 3)), (long, 1, 2, (3, 3, 3, 3)), (short, 3, 2, (-1, 4, 5, -2))),
        (flat, 2, 1, (0, 1, -1, 0)),
    ]
    return {
        "bias_act": [biased(act, clamp) for act in ACTIVATIONS for clamp in clamps],
        "upfirdn2d": [resampled(*arguments) for arguments in resampling],
    }


def _derivatives(
    function: Operation, x: Tensor, b: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(values, first gradients, second gradients) of a function of (x, b)."""
    x, b = x.detach().requires_grad_(), b.detach().requires_grad_()
    y = function(x, b)
    # Weights without chance: the same for every implementation
    g = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).to(y).reshape(y.shape).requires_grad_()
    first = torch.autograd.grad((y * g).sum(), [x, b], create_graph=True, materialize_grads=True)
    v = torch.linspace(1, -2, x.numel(), dtype=torch.float64).to(x).reshape(x.shape)
    total = (first[0] * v).sum() + first[1].sum()
    second = torch.autograd.grad(total, [x, b, g], materialize_grads=True)
    return [y], list(first), list(second)


def _backward(function: Operation, x: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(values, first gradients) of a function of (x, b), as training has them: not to be differentiated."""
    x, b = x.detach().requires_grad_(), b.detach().requires_grad_()
    y = function(x, b)
    g = torch.linspace(-1, 2, y.numel(), device=y.device).to(y.dtype).reshape(y.shape)
    return [y], list(torch.autograd.grad(y, [x, b], g))


def _inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Give x and b, float64: numbers that all types hold, with x + b away from the kinks at 0."""
    generator = torch.Generator().manual_seed(0)
    x, b = (
        torch.randn(size, generator=generator, device="cpu").bfloat16().double()
        for size in (shape, shape[1:2])
    )
    return torch.where((x + b[:, None, None]).abs() < 0.1, x + 0.5, x), b


def _error(actual: list[Tensor], expected: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        ours, theirs = a.detach().double(), b.detach()
        if ours.shape != theirs.shape:
            return torch.inf
        difference = torch.nan_to_num((ours - theirs).abs(), nan=torch.inf)
        worst = max(worst, float(difference.max()) / max(float(theirs.abs().max()), 1e-3))
    return worst


def compare(implementation: str) -> Iterator[Comparison]:
    """Compare an implementation with the reference in float64, for both layouts in memory.

    Args:
        implementation: cpu or cuda.

    Raises:
        StyleGAN2Error: it cannot run.
    """
    x, b = (tensor.to(implementation) for tensor in _inputs(_SHAPE))
    for dtype, tolerance in TOLERANCES.items():
        for operation, functions in _cases(dtype).items():
            errors = [0.0, 0.0, 0.0]
            for function in functions:
                for layout in (torch.contiguous_format, torch.channels_last):
                    typed = x.to(dtype).contiguous(memory_format=layout), b.to(dtype)
                    with selection.use(implementation):
                        actual = _derivatives(function, *typed)
                    with selection.use_reference():
                        expected = _derivatives(function, typed[0].double(), typed[1].double())
                    pairs = zip(errors, actual, expected, strict=True)
                    errors = [max(error, _error(a, e)) for error, a, e in pairs]
            yield Comparison(implementation, operation, dtype, (errors[0], errors[1], errors[2]), tolerance)

    for dtype in TOLERANCES:
        yield _compare_training(implementation, dtype)
    if has_winograd(implementation):
        yield _compare_convolution()
        yield _compare_styled()


def _compare_training(implementation: str, dtype: torch.dtype) -> Comparison:
    """The gradient of a bias beside that of x, in one pass where that is possible; float32 streamed."""
    shape = _STREAMED_SHAPE if dtype == torch.float32 else _TRAINED_SHAPE
    x, b = (tensor.to(implementation, dtype) for tensor in _inputs(shape))
    with selection.use_reference():
        expected = _backward(_activate, x.double(), b.double())
    errors = [0.0, 0.0]
    for layout in (torch.contiguous_format, torch.channels_last):
        with selection.use(implementation):
            actual = _backward(_activate, x.contiguous(memory_format=layout), b)
        errors = [max(error, _error(a, e)) for error, a, e in zip(errors, actual, expected, strict=True)]
    return Comparison(implementation, "bias_grad", dtype, (errors[0], errors[1], 0.0), TOLERANCES[dtype])


def _activate(x: Tensor, b: Tensor) -> Tensor:
    return bias_act(x, b, act="lrelu")


def has_winograd(implementation: str) -> bool:
    """Whether convolutions are compiled there."""
    return implementation == "cpu" and native.load("cpu").has_winograd


def _compare_convolution() -> Comparison:
    generator = torch.Generator().manual_seed(0)
    channels = _CONVOLVED_SHAPE[1]
    x, w = (
        torch.randn(shape, generator=generator, device="cpu")
        for shape in (_CONVOLVED_SHAPE, (channels, channels, 3, 3))
    )
    errors = [0.0, 0.0, 0.0]
    for function in (_convolve, _convolve_strided):
        with selection.use("cpu"), selection.use_convolution("winograd"):
            actual = _derivatives(function, x, w)
        with selection.use_reference():
            expected = _derivatives(function, x.double(), w.double())
        errors = [max(error, _error(a, e)) for error, a, e in zip(errors, actual, expected, strict=True)]
    value, first, second = errors
    return Comparison("cpu", "convolution", x.dtype, (value, first, second), _CONVOLUTION_TOLERANCE)


def _convolve(x: Tensor, w: Tensor) -> Tensor:
    return correlate(x, w, stride=1, padding=(1, 1), groups=1)


def _convolve_strided(x: Tensor, w: Tensor) -> Tensor:
    return correlate(x, w, stride=2, padding=(1, 1), groups=1)


def _compare_styled() -> Comparison:
    generator = torch.Generator().manual_seed(0)
    channels = _CONVOLVED_SHAPE[1]
    x, w = (
        torch.randn(shape, generator=generator, device="cpu")
        for shape in (_CONVOLVED_SHAPE, (channels, channels, 3, 3))
    )
    errors = []
    for layer in (_layer, _upsampling_layer):
        with selection.use("cpu"), selection.use_convolution("winograd"):
            actual = layer(x, w)
        with selection.use_reference():
            expected = layer(x.double(), w.double())
        errors.append(_error([actual], [expected]))
    return Comparison("cpu", "styled_conv", x.dtype, (max(errors), 0.0, 0.0), _CONVOLUTION_TOLERANCE)


@torch.no_grad()
def _layer(x: Tensor, w: Tensor, up: int = 1) -> Tensor:
    """A layer of the generator, without gradients: in one pass where convolutions are Winograd's."""
    styles = torch.linspace(0.5, 1.5, x.shape[0] * x.shape[1]).to(x).reshape(x.shape[:2])
    noise = torch.linspace(-1, 1, up * up * x.shape[2] * x.shape[3]).to(x)
    noise = noise.reshape(up * x.shape[2], up * x.shape[3])
    bias = torch.linspace(-1, 1, w.shape[0]).to(x)
    f = setup_filter([1, 3, 3, 1]).to(x.device)
    finish = Finish("lrelu", 2**0.5, None)
    return styled_conv2d(
        *(x, w, styles, noise, bias, finish), up=up, padding=1, resample_filter=f, fused_modconv=False
    )


def _upsampling_layer(x: Tensor, w: Tensor) -> Tensor:
    return _layer(x, w, up=2)


def speed_ratios(implementation: str) -> dict[str, float]:
    """Roughly how many times faster than the reference the operations are, forward and backward, in float32.

    Winograd's convolution, and layers in one pass (forward): than the direct one. Both take turns, and the
    shortest time of each counts: what else the machine does then slows down both, or neither.
    """
    x = torch.randn(_TIMED_SHAPE, device=implementation).requires_grad_()
    b = torch.zeros(_TIMED_SHAPE[1], device=implementation).requires_grad_()
    f = setup_filter([1, 3, 3, 1]).to(implementation)
    functions: dict[str, Operation] = {
        "bias_act": _activate,
        "upfirdn2d": lambda x, b: upfirdn2d(x, f, padding=(2, 1, 2, 1)),
    }
    slow, fast = ("reference", "direct"), (implementation, "direct")
    ratios = {name: _speed_ratio(function, x, b, slow, fast) for name, function in functions.items()}
    ratios["bias_grad"] = _speed_ratio(lambda b, x: _activate(x, b), b, x, slow, fast)
    if has_winograd(implementation):
        channels = _TIMED_SHAPE[1]
        w = torch.randn([channels, channels, 3, 3]).requires_grad_()
        slow, fast = (implementation, "direct"), (implementation, "winograd")
        ratios["convolution"] = _speed_ratio(_convolve, x, w, slow, fast)
        ratios["styled_conv"] = _speed_ratio(_layer, x, w, slow, fast)
    return ratios


def _speed_ratio(
    function: Operation, x: Tensor, b: Tensor, slow: tuple[str, str], fast: tuple[str, str]
) -> float:
    """Time of the first over that of the second, both (implementation, convolution)."""
    best = dict.fromkeys((slow, fast), float("inf"))
    for _ in range(_REPETITIONS):
        for candidate in best:
            with selection.use(candidate[0]), selection.use_convolution(candidate[1]):
                best[candidate] = min(best[candidate], _seconds(function, x, b))
    return best[slow] / best[fast]


def _seconds(function: Operation, x: Tensor, b: Tensor) -> float:
    gradient = torch.ones_like(function(x, b))
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = function(x, b)
    if y.requires_grad:
        torch.autograd.grad(y, x, gradient)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
