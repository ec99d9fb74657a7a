"""The compiled operations against the reference, for any shape, layout, type; and as torch sees them."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import kernels, library, native
from stylegan2.ops.bias_act import ACTIVATIONS, bias_act
from stylegan2.ops.upfirdn2d import setup_filter, upfirdn2d

LAYOUTS = ["contiguous", "channels last", "transposed", "every other", "cropped", "expanded"]
REGISTERED = torch.ops.stylegan2


@pytest.fixture(autouse=True)
def compiled(ops_implementation):
    """All tests of this file run the kernels of the CPU; skips where there is no compiler."""
    try:
        native.load("cpu")
    except StyleGAN2Error as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    with ops.use("cpu"):
        yield


def laid_out(shape, layout, dtype=torch.float64, seed=0):
    """Random numbers of a shape, in memory as named; a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    stored = {"every other": (n, c, h, 2 * w), "cropped": (n, c, h + 2, w + 3), "expanded": (1, c, 1, w)}
    x = torch.randn(stored.get(layout, shape), generator=generator, dtype=torch.float64).to(dtype)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "every other":
        x = x[..., ::2]
    elif layout == "cropped":
        x = x[:, :, 1:-1, 2:-1]
    elif layout == "expanded":
        x = x.expand(shape)
    assert x.shape == shape
    return x.detach().requires_grad_()


def derivatives(function, *inputs):
    """Value, first and second gradients, as one list."""
    y = function(*inputs)
    g = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).to(y.dtype).reshape(y.shape).requires_grad_()
    first = torch.autograd.grad((y * g).sum(), inputs, create_graph=True, materialize_grads=True)
    total = sum(gradient.pow(2).sum() for gradient in first)
    second = torch.autograd.grad(total, [*inputs, g], materialize_grads=True)
    return [y, *first, *second]


def assert_equals_reference(function, *inputs, **tolerance):
    actual = derivatives(function, *inputs)
    with ops.use("reference"):
        expected = derivatives(function, *inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


shapes = st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 9))


# Against the reference


@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    dim=st.integers(-4, 3),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    gain=st.sampled_from([-1.5, 0.0, 1.0, 1.3]),
    alpha=st.sampled_from([None, 0.0, 0.3, 1.5, -0.2]),
    clamp=st.sampled_from([None, 0.0, 0.6]),
    with_bias=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_bias_act_is_the_reference(shape, layout, dim, act, gain, alpha, clamp, with_bias):
    x = laid_out(shape, layout)
    b = torch.linspace(-1, 1, shape[dim], dtype=torch.float64, requires_grad=True) if with_bias else None

    def function(x, *b):
        return bias_act(x, *b, dim=dim, act=act, gain=gain, alpha=alpha, clamp=clamp)

    assert_equals_reference(function, x, *([] if b is None else [b]))


@example((1, 1, 1, 1), "contiguous", (1, 3), (1, 2), (0, 0, -2, 1), None, False, 1)
@given(
    shape=shapes,
    layout=st.sampled_from(LAYOUTS),
    up=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    down=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(-4, 6)] * 4),
    taps=st.one_of(st.none(), st.integers(1, 13), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    flip_filter=st.booleans(),
    gain=st.sampled_from([1, -0.7, 4.0]),
)
@settings(deadline=None, max_examples=80)
def test_upfirdn2d_is_the_reference(shape, layout, up, down, padding, taps, flip_filter, gain):
    x = laid_out(shape, layout)
    f = None if taps is None else torch.randn(taps, generator=torch.Generator().manual_seed(1))

    def function(x):
        return upfirdn2d(x, f, up, down, padding, flip_filter, gain)

    try:
        function(x)
    except StyleGAN2Error:  # cropped away, or too small for the filter
        assume(False)
    assert_equals_reference(function, x, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
def test_types(dtype, tolerance, layout):
    """Each against the reference in float64 on the same numbers; the types of 16 bits sum in float32."""
    f = setup_filter([1, 3, 3, 1])
    x = laid_out((2, 5, 8, 6), layout, dtype)

    def function(x):
        return upfirdn2d(bias_act(x, act="swish", gain=1.3), f, up=2, padding=(2, 1, 2, 1), gain=4)

    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    with ops.use("reference"):
        exact = x.detach().double().requires_grad_()
        expected = function(exact)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    assert y.dtype == gradient.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_nan_and_infinity_are_the_references(act, clamp):
    """Values and first gradients; 40 of each, so that vectors and what is left over see them."""
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e30, -1e30, 100.0, -100.0])
    x = special.repeat_interleave(40)[None].requires_grad_()

    def function():
        y = bias_act(x, act=act, clamp=clamp)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    actual = function()
    with ops.use("reference"):
        expected = function()
    if act in ("elu", "selu"):  # torch's vectors give NaN, what is left over 1
        expected[1][x.isnan()] = torch.nan
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (0, 0, 1, 1)])
def test_empty_batches(shape):
    x = torch.zeros(shape, requires_grad=True)
    y = upfirdn2d(bias_act(x, torch.zeros(shape[1]), act="lrelu"), setup_filter([1, 2, 1]), up=2, padding=2)
    assert y.shape[:2] == shape[:2] and y.shape[2:] == (2 * shape[2] + 2, 2 * shape[3] + 2)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_layouts_are_kept(layout):
    x = laid_out((2, 5, 4, 6), layout)
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    y = bias_act(x, act="lrelu")
    z = upfirdn2d(y, setup_filter([1, 3, 3, 1]), down=2, padding=1)
    (gradient,) = torch.autograd.grad(z.square().sum(), x)
    for tensor in (y, z, gradient):
        assert tensor.is_contiguous(memory_format=memory_format)


def test_results_do_not_depend_on_threads():
    x, f = torch.randn(4, 16, 65, 67), setup_filter([1, 2, 3, 4, 4, 3, 2, 1])

    def function():
        leaf, b = x.clone().requires_grad_(), torch.ones(16, requires_grad=True)
        y = upfirdn2d(bias_act(leaf, b, act="swish"), f, up=2, padding=(4, 3, 4, 3))
        return [y.detach(), *torch.autograd.grad(y, [leaf, b], torch.linspace(-1, 1, y.numel()).view_as(y))]

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2, 1):
            torch.set_num_threads(count)
            results.append(function())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


def test_inputs_stay_as_they_are():
    x, b, f = torch.randn(2, 3, 4, 4), torch.randn(3), setup_filter([1, 3, 3, 1])
    before = x.clone(), b.clone(), f.clone()
    upfirdn2d(bias_act(x, b, act="lrelu"), f, padding=2)
    assert torch.equal(x, before[0]) and torch.equal(b, before[1]) and torch.equal(f, before[2])


@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
def test_large_results_are_those_of_their_parts(act):
    """Above the size from which results are streamed, and below."""
    generator = torch.Generator().manual_seed(0)
    x, b = torch.randn(3, 17, 411, 317, generator=generator), torch.randn(17, generator=generator)
    assert x.numel() * 4 > 24 << 20

    def function(x):
        leaf, bias = x.detach().requires_grad_(), b.clone().requires_grad_()
        y = bias_act(leaf, bias, act=act, clamp=0.9)
        return y.detach(), *torch.autograd.grad(y, [leaf, bias], x)

    whole, parts = function(x), [function(image[None]) for image in x]
    assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
    assert torch.equal(whole[1], torch.cat([part[1] for part in parts]))
    exact = whole[1].double().sum([0, 2, 3]).float()
    torch.testing.assert_close(whole[2], exact, rtol=1e-5, atol=1e-3)


# The gradient of the bias


def only_backward(function, *inputs):
    """Value and first gradients, which nobody will differentiate."""
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.linspace(-1, 2, y.numel()).to(y).view_as(y))]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(LAYOUTS),
    dim=st.integers(-4, 3),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    clamp=st.sampled_from([None, 0.6]),
)
@example((2, 3, 40, 33), "contiguous", 1, "tanh", None)
@example((2, 3, 40, 33), "channels last", 1, "swish", 0.6)
@example((3, 2, 40, 27), "cropped", 0, "lrelu", 0.6)
@settings(deadline=None, max_examples=60)
def test_backward_pass_is_the_reference(shape, layout, dim, act, clamp):
    x = laid_out(shape, layout)
    b = torch.linspace(-1, 1, shape[dim], dtype=torch.float64, requires_grad=True)

    def function(x, b):
        return bias_act(x, b, dim=dim, act=act, clamp=clamp)

    actual = only_backward(function, x, b)
    with ops.use("reference"):
        expected = only_backward(function, x, b)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    (alone,) = torch.autograd.grad(function(x.detach(), b), b, torch.ones(shape, dtype=torch.float64))
    (both, _) = torch.autograd.grad(function(x, b), [b, x], torch.ones(shape, dtype=torch.float64))
    assert torch.equal(alone, both)


@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_the_gradient_of_a_bias_takes_no_pass_of_its_own(act, clamp, monkeypatch):
    """Unless it will be differentiated: then it is summed as torch does."""
    asked = []

    def note(gradient, p):
        asked.append(gradient.requires_grad)
        return kernels.sum_to_bias(gradient, p)

    monkeypatch.setattr(library, "sum_to_bias", note)
    x, b = laid_out((2, 3, 32, 33), "contiguous"), torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = bias_act(x, b, act=act, clamp=clamp)
    (first,) = torch.autograd.grad(y.square().sum(), b, retain_graph=True)
    assert asked == [] and not first.requires_grad
    (second,) = torch.autograd.grad(y.square().sum(), b, create_graph=True)
    assert asked == [True] and second.requires_grad
    torch.testing.assert_close(first, second.detach())


@pytest.mark.parametrize(
    ("dtype", "shortest"),
    [(torch.float32, 1024), (torch.float64, 1024), (torch.float16, 256), (torch.bfloat16, 256)],
)
def test_small_maps_take_two_passes(dtype, shortest, monkeypatch):
    """There the kernels' own sum would be the slower one."""
    right, asked = kernels.sum_to_bias, []

    def note(gradient, p):
        asked.append(gradient.shape[2])
        return right(gradient, p)

    monkeypatch.setattr(kernels, "sum_to_bias", note)
    for size in (16, shortest - 1, shortest, shortest + 1):
        x, b = (torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((2, 3, size), (3,)))
        bias_act(x, b, act="lrelu").sum().backward()
    assert asked == [16, shortest - 1]


def test_the_gradient_of_a_bias_owns_its_memory():
    x, b = torch.randn(2, 3, 32, 40, requires_grad=True), torch.zeros(3, requires_grad=True)
    bias_act(x, b, act="lrelu").sum().backward()
    assert b.grad.untyped_storage().nbytes() == 12
    assert x.grad.untyped_storage().nbytes() == 4 * x.numel()


# Filters are remembered


def test_a_changed_filter_is_read_again():
    x, f = torch.ones(1, 1, 4, 4), torch.ones(1, 1)
    assert upfirdn2d(x, f).sum() == 16
    f.mul_(2)
    assert upfirdn2d(x, f).sum() == 32
    f.data = torch.full([1, 1], 3.0)
    assert upfirdn2d(x, f).sum() == 48
    with torch.inference_mode():
        inference = torch.ones(1, 1)
        assert upfirdn2d(x, inference).sum() == 16
        inference.mul_(5)
        assert upfirdn2d(x, inference).sum() == 80


@pytest.mark.parametrize("taps", [(4,), (2, 3)])
def test_a_filter_changed_behind_the_back_of_pytorch_is_read_again(taps):
    """As `f.data`, and memory shared with NumPy; every single tap counts."""
    x = torch.randn(1, 2, 6, 6)
    numbers = np.ones(taps, dtype=np.float32)
    f = torch.from_numpy(numbers)
    upfirdn2d(x, f, padding=2)
    for i in range(f.numel()):
        f.data.view(-1)[i] = 3.0 + i
        assert torch.equal(upfirdn2d(x, f, padding=2), upfirdn2d(x, f.clone(), padding=2))
        numbers.reshape(-1)[i] = -1
        assert torch.equal(upfirdn2d(x, f, padding=2), upfirdn2d(x, f.clone(), padding=2))
    f.data = f.data.double()
    assert torch.equal(upfirdn2d(x, f, padding=2), upfirdn2d(x, f.clone(), padding=2))


def test_a_backward_pass_uses_the_filter_of_its_forward_pass():
    x, f = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1)
    y = upfirdn2d(x, f)
    f.mul_(2)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(1, 1, 4, 4))


def test_filters_are_forgotten_with_their_tensors():
    count = len(kernels._known)
    filters = [torch.ones(1, 2) * i for i in range(5)]
    for f in filters:
        upfirdn2d(torch.ones(1, 1, 4, 4), f)
    assert len(kernels._known) == count + 5
    del filters, f
    assert len(kernels._known) == count


def test_filters_that_outlive_the_interpreter_are_no_error(monkeypatch):
    """At its end modules are cleared; filters that die after that are still told of."""
    f, errors = torch.ones(1, 2), []
    upfirdn2d(torch.ones(1, 1, 4, 4), f)
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    monkeypatch.setattr(kernels, "_known", None)
    del f
    assert errors == []


# Derivatives


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
def test_third_derivatives_are_refused(act):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(bias_act(x, act=act).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(StyleGAN2Error, match=f"no third derivative of {act}; .*reference"):
        torch.autograd.grad(second.sum(), x)


def test_straight_activations_have_all_derivatives():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def fourth(x):
        (gradient,) = torch.autograd.grad(bias_act(x, act="lrelu").pow(4).sum(), x, create_graph=True)
        for _ in range(3):
            (gradient,) = torch.autograd.grad(gradient.sum(), x, create_graph=True)
        return gradient

    actual = fourth(x)
    with ops.use("reference"):
        torch.testing.assert_close(actual, fourth(x))


# Registration


@pytest.mark.parametrize(
    ("act", "layout", "clamp"),
    [
        ("linear", "contiguous", None),
        ("lrelu", "channels last", 0.7),
        ("tanh", "contiguous", None),
        ("swish", "transposed", 0.7),
    ],
)
def test_opcheck_of_bias_act(act, layout, clamp):
    x, g, v = (laid_out((2, 3, 4, 5), layout, torch.float32, seed) for seed in range(3))
    b = torch.randn(3, requires_grad=True)
    constants = (1, act, 0.2, 1.3, clamp)
    torch.library.opcheck(REGISTERED.bias_act.default, (x, b, *constants))
    y = bias_act(x, b, act=act, gain=1.3, clamp=clamp).detach()
    smooth = act in ("tanh", "swish")
    kept = (x, b, y if act == "tanh" else None) if smooth else (None, None, y)
    torch.library.opcheck(REGISTERED.bias_act_gradient.default, (g, *kept, *constants))
    if smooth:
        constant = [None if t is None else t.detach() for t in (g, v, *kept)]
        torch.library.opcheck(REGISTERED.bias_act_curvature.default, (*constant, *constants))


@pytest.mark.parametrize(
    ("taps", "layout"),
    [(None, "every other"), ([1, 3, 3, 1], "channels last"), ([1, 2, 3, 4, 4, 3, 2, 1], "cropped")],
)
def test_opcheck_of_upfirdn2d(taps, layout):
    x = laid_out((2, 3, 4, 5), layout, torch.float32)
    f = None if taps is None else setup_filter(taps)
    arguments = (x, f, [2, 1], [1, 2], [8, -1, 7, 2], False, 1.5)
    torch.library.opcheck(REGISTERED.upfirdn2d.default, arguments)


def test_both_ways_compute_the_same():
    """Through torch's dispatcher, which a dispatch mode asks for, and past it."""
    x, b = laid_out((2, 3, 4, 5), "contiguous"), torch.randn(3, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1])

    def function(x, b):
        return upfirdn2d(bias_act(x, b, act="swish"), f, up=2, padding=(2, 1, 2, 1))

    direct = derivatives(function, x, b)
    with FlopCounterMode(display=False):
        dispatched = derivatives(function, x, b)
    for one, other in zip(direct, dispatched, strict=True):
        assert torch.equal(one, other)


def test_torch_compile():
    f, b = setup_filter([1, 3, 3, 1]), torch.randn(3, requires_grad=True)
    seen = []

    def note(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def function(x, b):
        y = bias_act(x, b, act="lrelu", clamp=0.9)
        return upfirdn2d(y, f, up=2, padding=(2, 1, 2, 1)).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=note)
    for size in (8, 6):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        actual = torch.autograd.grad(compiled(x, b), [x, b])
        torch.testing.assert_close(actual, torch.autograd.grad(function(x, b), [x, b]))
    assert {target for target in seen if target.startswith("stylegan2.")} == {
        "stylegan2.bias_act",
        "stylegan2.upfirdn2d",
    }


def test_exported_graphs_hold_nothing_of_ours():
    f = setup_filter([1, 3, 3, 1])

    class Model(torch.nn.Module):
        def forward(self, x):
            return upfirdn2d(bias_act(x, act="lrelu"), f, up=2, padding=(2, 1, 2, 1))

    x = torch.randn(2, 3, 4, 4)
    exported = torch.export.export(Model(), (x,))
    assert "stylegan2" not in " ".join(str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), Model()(x))


def test_transforms_of_torch_func_run_as_reference():
    x, b = torch.randn(2, 3), torch.randn(3)
    actual = torch.func.vmap(lambda row: bias_act(row, b, dim=0, act="tanh"))(x)
    torch.testing.assert_close(actual, bias_act(x, b, act="tanh"))


RESAMPLING = {
    "fir": {"padding": (2, 1, 2, 1)},
    "up": {"up": 2, "padding": (2, 1, 2, 1), "gain": 4},
    "down": {"down": 2, "padding": (1, 1, 1, 1)},
    "cropped": {"up": (3, 1), "down": (2, 1), "padding": (-1, 4, 5, -2)},
}
TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "second grad": lambda f, x: torch.func.grad(
        lambda x: torch.func.grad(lambda x: f(x).pow(3).sum())(x).sum()
    )(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.flip(2),))[1],
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, -x])),
    "grad of each": lambda f, x: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum()))(
        torch.stack([x, -x])
    ),
}


def correlated(x, f, up=1, down=1, padding=0, gain=1):
    """`upfirdn2d` as a matrix, of the columns that it gives."""
    basis = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    with torch.no_grad(), ops.use("reference"):
        columns = upfirdn2d(basis, f, up, down, padding, gain=gain)
    return lambda x: torch.einsum("nchw,nijk->ijk", x.reshape(-1, 1, 1, 1), columns)[None]


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 3, 4, 4, 3, 2, 1]])
@pytest.mark.parametrize("kind", RESAMPLING)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch.jit
def test_transforms_of_resampling(transform, kind, taps, wants_gradient, implementation):
    options, f = RESAMPLING[kind], setup_filter(taps)
    options = {**options, "padding": tuple(side + len(taps) // 4 for side in options["padding"])}
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=wants_gradient)
    expected = TRANSFORMS[transform](correlated(x.detach(), f, **options), x)
    with ops.use(implementation):
        actual = TRANSFORMS[transform](lambda x: upfirdn2d(x, f, **options), x)
    torch.testing.assert_close(actual, expected)


BATCHED = {
    **{kind: lambda x, b, kind=kind: upfirdn2d(x, setup_filter([1, 3, 3, 1]), **RESAMPLING[kind])
       for kind in RESAMPLING},
    **{act: lambda x, b, act=act: bias_act(x, b, act=act, clamp=0.9) for act in ("lrelu", "tanh", "swish")},
}  # fmt: skip


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("operation", BATCHED)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_in_batches(operation, implementation):
    """By PyTorch's old vmap: `is_grads_batched`, `vectorize`."""
    x, b = laid_out((2, 3, 6, 5), "contiguous"), torch.ones(3, dtype=torch.float64, requires_grad=True)
    inputs = (x, b) if operation in ACTIVATIONS else (x,)

    def function(x, b=b):
        return BATCHED[operation](x, b)

    with ops.use(implementation):
        y = function(x)
        many = torch.randn(3, *y.shape, dtype=y.dtype)
        batched = torch.autograd.grad(y, inputs, many, retain_graph=True, is_grads_batched=True)
        single = [torch.autograd.grad(y, inputs, g, retain_graph=True) for g in many]
        for ours, theirs in zip(batched, zip(*single, strict=True), strict=True):
            torch.testing.assert_close(ours, torch.stack(theirs))
        for matrix, f in (
            (torch.autograd.functional.jacobian, function),
            (torch.autograd.functional.hessian, lambda *inputs: function(*inputs).pow(3).sum()),
        ):
            torch.testing.assert_close(matrix(f, inputs, vectorize=True), matrix(f, inputs))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_type(implementation, dtype):
    x, b, f = torch.randn(1, 2, 4, 4, dtype=dtype), torch.randn(2), setup_filter([1, 3, 3, 1])
    with ops.use(implementation), torch.autocast("cpu", dtype=torch.bfloat16):
        assert bias_act(x, b, act="lrelu").dtype == dtype
        assert upfirdn2d(x, f, padding=2).dtype == dtype


def test_errors_of_the_library_are_explained():
    cpu = native.load("cpu")
    arguments = native.bias_act_arguments(1, 0, 1, 0.2, 1.0, -1.0, 99, 0, 0, 1)
    code = cpu.bias_act(native.ctypes.addressof(arguments), None, None, None, None, None, None)
    with pytest.raises(StyleGAN2Error, match="bias_act of the cpu kernels: unknown element type"):
        cpu.raise_error("bias_act", code)


def test_infinite_taps_are_refused():
    with pytest.raises(StyleGAN2Error, match="infinite or NaN taps"):
        upfirdn2d(torch.ones(1, 1, 4, 4), torch.full([1, 1], torch.inf))
