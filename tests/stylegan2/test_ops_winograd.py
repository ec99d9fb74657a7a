"""Convolution to any order: agreement with torch and its gradients, on either implementation."""

import ctypes
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, native, selection
from stylegan2.ops.convolution import constant_kernels, correlate, spread, variable_kernels
from stylegan2.ops.modulated_conv import modulated_conv2d

TOLERANCE = 5e-6  # of the largest result, float32 by Winograd


def has_winograd():
    try:
        return native.load("cpu").has_winograd
    except StyleGAN2Error:
        return False


needs_winograd = pytest.mark.skipif(not has_winograd(), reason="no compiled convolution here")


@pytest.fixture
def calls(always_winograd, monkeypatch):
    """Of the compiled convolution: which of the three."""
    seen = []
    run = convolution._winograd
    monkeypatch.setattr(convolution, "_winograd", lambda *args: seen.append(args[-1]) or run(*args))
    return seen


def deviation(actual, exact, least=1e-30):
    """Largest difference in parts of the largest exact number, or of `least`."""
    return ((actual - exact).abs().max() / exact.abs().max().clamp_min(least)).item()


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
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 37),
    st.integers(1, 70),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
def test_winograd_equals_the_definition(n, c_in, c_out, height, width, padding, stride, threads):
    height, width = max(height, 3 - 2 * padding), max(width, 3 - 2 * padding)
    compare_with_definition(n, c_in, c_out, height, width, padding, stride, threads)


@needs_winograd
@pytest.mark.parametrize("stride", [1, 2])
def test_more_tiles_than_are_summed_at_once(stride):
    side = 48 * stride
    compare_with_definition(4, 20, 36, side, side + 7, padding=1, stride=stride, threads=2)


@needs_winograd
@pytest.mark.parametrize(
    "side", [10, 18, 25]
)  # 4, 16, 36 tiles an image: groups of several images, and of one
def test_images_that_share_groups_of_tiles(side):
    compare_with_definition(9, 17, 19, side, side, padding=0, stride=2, threads=2)


def compare_with_definition(n, c_in, c_out, height, width, padding, stride, threads):
    """All three, called directly, against float64."""
    x, w = random_pair(n, c_in, c_out, height, width)
    y = F.conv2d(x, w, stride=stride, padding=padding)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    expected = [y, *torch.autograd.grad(y, [x, w], g)]
    x, w, y, g = (tensor.detach().float() for tensor in (x, w, y, g))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = [
            convolution._winograd(x, w, list(y.shape), padding, stride, 0),
            convolution._winograd(g, w, list(x.shape), padding, stride, 1),
            convolution._winograd(x, g, list(w.shape), padding, stride, 2),
        ]
    finally:
        torch.set_num_threads(before)
    # Of few sums all may happen to be small: how large they are expected to be counts then.
    terms = [9 * c_in, c_out, y.shape[0] * y.shape[2] * y.shape[3]]
    for result, exact, count in zip(actual, expected, terms, strict=True):
        assert deviation(result.double(), exact, least=count**0.5) < TOLERANCE


@needs_winograd
@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_by_winograd(always_winograd, stride):
    x, w = random_pair(2, 8, 8, 16, 12, dtype=torch.float32)
    ours = derivatives(lambda x, w: correlate(x, w, stride, (1, 1), 1), x, w)
    exact = derivatives(
        lambda x, w: F.conv2d(x, w, stride=stride, padding=1),
        x.detach().double().requires_grad_(),
        w.detach().double().requires_grad_(),
    )
    for mine, expected in zip(ours, exact, strict=True):
        assert deviation(mine.double(), expected) < 2 * TOLERANCE


@needs_winograd
@pytest.mark.parametrize("stride", [1, 2])
def test_the_result_does_not_depend_on_the_number_of_threads(always_winograd, stride):
    x, w = random_pair(5, 20, 36, 56 * stride, 30 * stride, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(derivatives(lambda x, w: correlate(x, w, stride, (1, 1), 1), x, w))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_winograd
def test_small_convolutions_stay_with_torch():
    x, w = random_pair(1, 16, 16, 4, 4, dtype=torch.float32)
    with selection.use("cpu"), selection.use_convolution("winograd"), torch.no_grad():
        assert torch.equal(correlate(x, w, 1, (1, 1), 1), F.conv2d(x, w, padding=1))


def test_reference_stays_with_torch():
    x, w = random_pair(8, 16, 16, 32, 32, dtype=torch.float32)
    with selection.use_reference(), torch.no_grad():
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


# ----------------------------------------------------------------------------------------------------------
# Where it runs, and where PyTorch does
# ----------------------------------------------------------------------------------------------------------


@needs_winograd
@pytest.mark.parametrize("stride", [1, 2])
def test_the_transposed_one_by_winograd(calls, stride):
    y, w = random_pair(2, 7, 9, 13, 6, dtype=torch.float32)
    w = w.detach().transpose(0, 1).requires_grad_()  # [C_in, C_out, 3, 3]
    ours = derivatives(lambda y, w: spread(y, w, stride, 1), y, w)
    exact = [tensor.detach().double().requires_grad_() for tensor in (y, w)]
    theirs = derivatives(lambda y, w: F.conv_transpose2d(y, w, stride=stride), *exact)
    assert set(calls) == {0, 1, 2}
    for mine, expected in zip(ours, theirs, strict=True):
        assert deviation(mine.double(), expected) < 2 * TOLERANCE


@pytest.mark.parametrize("stride", [1, 2])
def test_all_three_run(calls, stride):
    x, w = random_pair(1, 3, 2, 6, 7, dtype=torch.float32)
    correlate(x, w, stride, (1, 1), 1).sum().backward()
    assert sorted(calls) == [0, 1, 2]


def test_what_is_computed_inside_is_differentiated_alike(calls):
    x, w = random_pair(1, 3, 2, 6, 7, dtype=torch.float32)
    with selection.use_convolution("direct"):
        direct = correlate(x, w, 1, (1, 1), 1)
    (slopes,) = torch.autograd.grad(direct.square().sum(), x, create_graph=True)
    slopes.square().sum().backward()
    assert calls == []
    compiled = correlate(x, w, 1, (1, 1), 1)
    with selection.use_convolution("direct"):
        compiled.sum().backward()
    assert sorted(calls) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "kernels", "options"),
    [
        ((0, 4, 8, 8), (6, 4, 3, 3), (1, (1, 1), 1)),
        ((2, 4, 8, 8), (6, 4, 3, 3), (3, (1, 1), 1)),
        ((2, 4, 8, 8), (6, 2, 3, 3), (1, (1, 1), 2)),
        ((2, 4, 8, 8), (6, 4, 1, 1), (1, (0, 0), 1)),
        ((2, 4, 8, 8), (6, 4, 5, 5), (1, (2, 2), 1)),
        ((2, 4, 8, 8), (6, 4, 3, 3), (1, (1, 0), 1)),
        ((2, 4, 8, 8), (6, 4, 3, 3), (1, (3, 3), 1)),
    ],
)
def test_other_geometries_are_torchs(calls, shape, kernels, options):
    x, w = torch.randn(shape), torch.randn(kernels)
    stride, padding, groups = options
    expected = F.conv2d(x, w, stride=stride, padding=padding, groups=groups)
    assert torch.equal(correlate(x, w, stride, padding, groups), expected)
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_torchs(calls, dtype):
    x, w = random_pair(1, 3, 2, 6, 7, dtype=dtype)
    assert torch.equal(correlate(x, w, 1, (1, 1), 1), F.conv2d(x, w, padding=1))
    assert calls == []


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2), (3, 3), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_images(calls, stride, size):
    x, w = random_pair(2, 3, 5, *size, dtype=torch.float32)
    ours = derivatives(lambda x, w: correlate(x, w, stride, (1, 1), 1), x, w)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, w)]
    theirs = derivatives(lambda x, w: F.conv2d(x, w, stride=stride, padding=1), *exact)
    assert len(calls) > 3
    for mine, expected in zip(ours, theirs, strict=True):
        assert deviation(mine.double(), expected) < 2 * TOLERANCE


def test_any_place_in_memory(calls):
    """Turned kernels, every other row, a repeated channel, a negative view, an odd address: the same bits."""
    x, w = torch.randn(2, 3, 9, 10), torch.randn(5, 3, 3, 3)
    expected = correlate(x, w, 1, (1, 1), 1)
    rows = torch.stack([x, -x], 3).flatten(2, 3)[:, :, ::2]
    odd = torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    turned = w.flip(2).contiguous().flip(2)
    for image in (rows, odd, x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(correlate(image, turned, 1, (1, 1), 1), expected)
    repeated = x[:, :1].expand(2, 3, 9, 10)
    actual = correlate(repeated, w, 1, (1, 1), 1)
    assert torch.equal(actual, correlate(repeated.contiguous(), w, 1, (1, 1), 1))
    assert len(calls) == 6
    negative = torch._neg_view(x)
    assert negative.is_neg()
    assert deviation(correlate(negative, w, 1, (1, 1), 1), -expected) < 2 * TOLERANCE


def test_channels_last_stays_so(calls):
    x, w = torch.randn(2, 4, 9, 10).contiguous(memory_format=torch.channels_last), torch.randn(5, 4, 3, 3)
    y = correlate(x, w, 1, (1, 1), 1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert calls == []


def test_channels_that_do_not_fit_are_not_read(calls):
    with pytest.raises(RuntimeError, match="channels"):
        correlate(torch.zeros(1, 2, 8, 8), torch.zeros(3, 4, 3, 3), 1, (1, 1), 1)
    with pytest.raises(RuntimeError, match="type"):
        correlate(torch.zeros(1, 4, 8, 8), torch.zeros(3, 4, 3, 3).double(), 1, (1, 1), 1)


class Fixed(torch.nn.Module):
    """A convolution that is modulated."""

    def forward(self, x, w, styles):
        return modulated_conv2d(x, w, styles, padding=1, fused_modconv=False)


def modulated():
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.rand(2, 3) + 0.5


@pytest.mark.parametrize("fused", [True, False])
def test_torch_compile(calls, fused):
    x, w, styles = modulated()
    x.requires_grad_()

    def function(x):
        return modulated_conv2d(x, w, styles, padding=1, fused_modconv=fused)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert calls == []
    assert deviation(y, function(x)) < 2 * TOLERANCE
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, function))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch.jit
def test_export_and_trace_hold_nothing_of_ours(calls):
    arguments = modulated()
    graph = torch.export.export(Fixed(), arguments).graph
    assert any("conv" in str(node.target) for node in graph.nodes)
    assert all(str(node.target).startswith("aten") for node in graph.nodes if node.op == "call_function")
    traced = torch.jit.trace(lambda x, w: correlate(x, w, 1, (1, 1), 1), arguments[:2], check_trace=False)
    assert "aten::_convolution" in str(traced.inlined_graph)
    assert "PythonOp" not in str(traced.inlined_graph)
    assert calls == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch.jit
def test_transforms_of_torch_func(calls):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    convolve = lambda w: correlate(x, w, 1, (1, 1), 1)  # noqa: E731
    by_torch = lambda w: F.conv2d(x, w, padding=1)  # noqa: E731
    for transform in (
        lambda f: torch.func.grad(lambda w: f(w).square().sum())(w),
        lambda f: torch.func.vmap(f)(torch.stack([w, -w])),
        lambda f: torch.func.jvp(f, (w,), (w.flip(0),))[1],
    ):
        torch.testing.assert_close(transform(convolve), transform(by_torch))
    assert calls == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch.jit
def test_forward_mode(calls):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    with torch.autograd.forward_ad.dual_level():
        y = correlate(torch.autograd.forward_ad.make_dual(x, x.flip(2)), w, 1, (1, 1), 1)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
        torch.testing.assert_close(tangent, F.conv2d(x.flip(2), w, padding=1))
    assert calls == []


def test_gradients_in_batches(always_winograd):
    x, w = random_pair(1, 3, 2, 6, 7, dtype=torch.float32)
    y = correlate(x, w, 1, (1, 1), 1)
    many = torch.randn(3, *y.shape)
    for tensor in (x, w):
        (batched,) = torch.autograd.grad(y, tensor, many, retain_graph=True, is_grads_batched=True)
        single = [torch.autograd.grad(y, tensor, g, retain_graph=True)[0] for g in many]
        torch.testing.assert_close(batched, torch.stack(single), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast(calls, backward_inside):
    x, w = random_pair(1, 3, 2, 6, 7, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = correlate(x, w, 1, (1, 1), 1)
        assert y.dtype == torch.bfloat16
        with nullcontext() if backward_inside else torch.autocast("cpu", enabled=False):
            y.float().sum().backward()
    assert x.grad.dtype == w.grad.dtype == torch.float32
    assert calls == []


def test_fake_tensors(calls):
    with torch._subclasses.FakeTensorMode():
        x, w = torch.zeros(2, 3, 8, 8, requires_grad=True), torch.zeros(4, 3, 3, 3)
        y = correlate(x, w, 1, (1, 1), 1)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == (2, 4, 8, 8) and gradient.shape == x.shape
    assert calls == []


@needs_winograd
@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0},
        {"in_channels": -1},
        {"pad": 3},
        {"pad": -1},
        {"what": 3},
        {"stride": 0},
        {"stride": 3},
        {"height": 0, "pad": 1},
    ],
)
def test_the_library_refuses(change):
    values = {
        "batch": 1,
        "in_channels": 1,
        "out_channels": 1,
        "height": 3,
        "width": 3,
        "stride": 1,
        "threads": 1,
    }
    values |= change
    library, memory = native.load("cpu"), torch.zeros(64)
    arguments = native.WinogradArguments(**values)
    pointers = [memory.data_ptr()] * 3
    code = library.winograd(ctypes.byref(arguments), *pointers, None)
    with pytest.raises(StyleGAN2Error, match="stride 1 or 2"):
        library.raise_error("winograd", code)
    assert library.winograd(ctypes.byref(arguments), None, *pointers[1:], None) != 0
