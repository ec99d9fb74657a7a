"""Convolution to any order: agreement with torch and its gradients, on either implementation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, native, selection
from stylegan2.ops.convolution import constant_kernels, correlate, spread, variable_kernels

TOLERANCE = 5e-6  # of the largest result, float32 by Winograd


def has_winograd():
    try:
        return native.load("cpu").built_for == "avx512"
    except StyleGAN2Error:
        return False


needs_winograd = pytest.mark.skipif(not has_winograd(), reason="no compiled kernels for AVX-512 here")


@pytest.fixture
def always_winograd(monkeypatch):
    for limit in ("_LEAST_CHANNELS", "_LEAST_TILES", "_LEAST_TILES_FOR_KERNELS"):
        monkeypatch.setattr(convolution, limit, 1)
    with selection.use("cpu"):
        yield


def deviation(actual, exact):
    return ((actual - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


def derivatives(function, x, w):
    """Value, gradients, and gradients of a sum of squares of the gradients."""
    y = function(x, w)
    first = torch.autograd.grad((y * y.detach().cos()).sum(), [x, w], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, w])
    return [y, *first, *second]


def random_pair(n, c_in, c_out, height, width, kernel=3, dtype=torch.float64):
    rng = torch.Generator().manual_seed(n + 10 * c_in + 100 * c_out + height + width)
    x = torch.randn(n, c_in, height, width, generator=rng, dtype=torch.float64)
    w = torch.randn(c_out, c_in, kernel, kernel, generator=rng, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_of_both_orders(kernel, stride, groups):
    x, w = random_pair(2, 4, 6, 8, 7, kernel)
    w = w[:, : 4 // groups].detach().requires_grad_()
    ours = derivatives(lambda x, w: correlate(x, w, stride, (1, 1), groups), x, w)
    theirs = derivatives(lambda x, w: F.conv2d(x, w, stride=stride, padding=1, groups=groups), x, w)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_derivatives_of_the_transposed_one(stride, kernel):
    y, w = random_pair(2, 4, 4, 5, 6, kernel)
    ours = derivatives(lambda y, w: spread(y, w, stride, 1), y, w)
    theirs = derivatives(lambda y, w: F.conv_transpose2d(y, w, stride=stride), y, w)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@needs_winograd
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 11),
    st.integers(1, 11),
    st.integers(1, 37),
    st.integers(1, 70),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
)
def test_winograd_equals_the_definition(n, c_in, c_out, height, width, padding, threads):
    height, width = max(height, 3 - 2 * padding), max(width, 3 - 2 * padding)
    x, w = random_pair(n, c_in, c_out, height, width)
    with torch.no_grad():
        y = F.conv2d(x, w, padding=padding)
        g = torch.randn_like(y)
        expected = [
            y,
            F.conv_transpose2d(g, w, padding=padding),
            torch.nn.grad.conv2d_weight(x, w.shape, g, padding=padding),
        ]
        x, w, g = (tensor.detach().float() for tensor in (x, w, g))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = [
            convolution._winograd(x, w, list(y.shape), padding, 0),
            convolution._winograd(g, w, list(x.shape), padding, 1),
            convolution._winograd(x, g, list(w.shape), padding, 2),
        ]
    finally:
        torch.set_num_threads(before)
    for result, exact in zip(actual, expected, strict=True):
        assert deviation(result.double(), exact) < TOLERANCE


@needs_winograd
def test_second_derivatives_by_winograd(always_winograd):
    x, w = random_pair(2, 8, 8, 16, 12, dtype=torch.float32)
    ours = derivatives(lambda x, w: correlate(x, w, 1, (1, 1), 1), x, w)
    exact = derivatives(
        lambda x, w: F.conv2d(x, w, padding=1),
        x.detach().double().requires_grad_(),
        w.detach().double().requires_grad_(),
    )
    for mine, expected in zip(ours, exact, strict=True):
        assert deviation(mine.double(), expected) < 2 * TOLERANCE


@needs_winograd
def test_the_result_does_not_depend_on_the_number_of_threads(always_winograd):
    x, w = random_pair(2, 16, 16, 33, 18, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(derivatives(lambda x, w: correlate(x, w, 1, (1, 1), 1), x, w))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_winograd
def test_small_convolutions_stay_with_torch():
    x, w = random_pair(1, 16, 16, 4, 4, dtype=torch.float32)
    with selection.use("cpu"), torch.no_grad():
        assert torch.equal(correlate(x, w, 1, (1, 1), 1), F.conv2d(x, w, padding=1))


def test_reference_stays_with_torch():
    x, w = random_pair(8, 16, 16, 32, 32, dtype=torch.float32)
    with selection.use("reference"), torch.no_grad():
        assert torch.equal(correlate(x, w, 1, (1, 1), 1), F.conv2d(x, w, padding=1))


def test_a_constant_kernel_keeps_its_derivative_of_the_inner_gradient():
    x, w = random_pair(1, 2, 2, 6, 6)

    def penalty(convolve):
        (slopes,) = torch.autograd.grad(convolve(x, w).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slopes.square().sum(), [x, w])

    expected = penalty(lambda x, w: F.conv2d(x, w, padding=1))
    with constant_kernels():
        actual = penalty(lambda x, w: correlate(x, w, 1, (1, 1), 1))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_constant_kernel_gets_no_inner_gradient_unless_it_varies():
    x, w = random_pair(1, 2, 2, 6, 6)
    with constant_kernels():
        y = correlate(x, w, 1, (1, 1), 1)
        with variable_kernels():
            varying = correlate(x, w, 1, (1, 1), 1)
    assert torch.autograd.grad(y.sum(), w, create_graph=True, allow_unused=True) == (None,)
    (gradient,) = torch.autograd.grad(varying.sum(), w, create_graph=True)
    assert gradient.abs().sum() > 0
    (outer,) = torch.autograd.grad(correlate(x, w, 1, (1, 1), 1).sum(), w)
    torch.testing.assert_close(outer, gradient)


def test_without_create_graph_constant_kernels_are_trained():
    x, w = random_pair(1, 2, 2, 6, 6)
    with constant_kernels():
        correlate(x, w, 1, (1, 1), 1).sum().backward()
    assert w.grad is not None
    assert w.grad.abs().sum() > 0
