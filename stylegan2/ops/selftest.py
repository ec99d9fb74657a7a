"""Compares the compiled operations with the reference: values, first and second gradients, and time.

Winograd's convolution is compared with PyTorch's.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan2.ops import native, selection
from stylegan2.ops.bias_act import ACTIVATIONS, bias_act
from stylegan2.ops.convolution import correlate
from stylegan2.ops.upfirdn2d import setup_filter, upfirdn2d

# Largest difference in units of the largest reference value. Types of 16 bits: some of their last places.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_CONVOLUTION_TOLERANCE = 2e-5  # of second gradients; Winograd's values are off by 2e-6
_SHAPE = (2, 5, 12, 9)
_CONVOLVED_SHAPE = (2, 32, 38, 33)  # no multiples of the tiles, and enough of them
_TIMED_SHAPE = (4, 64, 64, 64)
_REPETITIONS = 5

Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """One operation in one type.

    Attributes:
        implementation: that was compared with the reference.
        operation: bias_act, upfirdn2d or convolution.
        dtype: of the tensors.
        errors: of value, first and second gradients: largest |a − b| / max|b| of all cases.
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


def _inputs() -> tuple[Tensor, Tensor]:
    """Give x and b, float64: numbers that all types hold, with x + b away from the kinks at 0."""
    generator = torch.Generator().manual_seed(0)
    x, b = (
        torch.randn(shape, generator=generator, device="cpu").bfloat16().double()
        for shape in (_SHAPE, _SHAPE[1])
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
    x, b = (tensor.to(implementation) for tensor in _inputs())
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

    if has_winograd(implementation):
        yield _compare_convolution()


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
    with selection.use("cpu"), selection.use_convolution("winograd"):
        actual = _derivatives(_convolve, x, w)
    with selection.use_reference():
        expected = _derivatives(_convolve, x.double(), w.double())
    value, first, second = (_error(a, e) for a, e in zip(actual, expected, strict=True))
    return Comparison("cpu", "convolution", x.dtype, (value, first, second), _CONVOLUTION_TOLERANCE)


def _convolve(x: Tensor, w: Tensor) -> Tensor:
    return correlate(x, w, stride=1, padding=(1, 1), groups=1)


def speed_ratios(implementation: str) -> dict[str, float]:
    """How many times faster than the reference the operations are, forward and backward, in float32.

    Winograd's convolution: than the direct one.
    """
    x = torch.randn(_TIMED_SHAPE, device=implementation).requires_grad_()
    b = torch.zeros(_TIMED_SHAPE[1], device=implementation).requires_grad_()
    f = setup_filter([1, 3, 3, 1]).to(implementation)
    functions: dict[str, Operation] = {
        "bias_act": lambda x, b: bias_act(x, b, act="lrelu"),
        "upfirdn2d": lambda x, b: upfirdn2d(x, f, padding=(2, 1, 2, 1)),
    }
    ratios: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name, function in functions.items():
        for candidate in ("reference", implementation):
            with selection.use_convolution("direct"), selection.use(candidate):
                seconds[candidate] = _seconds(function, x, b)
        ratios[name] = seconds["reference"] / seconds[implementation]
    if has_winograd(implementation):
        channels = _TIMED_SHAPE[1]
        w = torch.randn([channels, channels, 3, 3]).requires_grad_()
        with selection.use(implementation):
            for candidate in ("direct", "winograd"):
                with selection.use_convolution(candidate):
                    seconds[candidate] = _seconds(_convolve, x, w)
        ratios["convolution"] = seconds["direct"] / seconds["winograd"]
    return ratios


def _seconds(function: Operation, x: Tensor, b: Tensor) -> float:
    gradient = torch.ones_like(function(x, b))
    best = float("inf")
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        torch.autograd.grad(function(x, b), x, gradient)
        if x.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
