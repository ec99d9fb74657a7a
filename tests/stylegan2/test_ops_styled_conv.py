"""A layer of the generator in one pass: agreement with its parts, when it runs, and what it remembers."""

import ctypes
import gc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.generator import Generator, StyledConv2d
from stylegan2.ops import native, selection, selftest, styled_conv
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.modulated_conv import modulated_conv2d
from stylegan2.ops.styled_conv import Finish, styled_conv2d
from stylegan2.ops.upfirdn2d import setup_filter

TOLERANCE = 5e-6  # of the largest result; Winograd's
FILTER = setup_filter([1, 3, 3, 1])
LRELU = Finish("lrelu", 2**0.5, None)
HYPOTHESIS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def deviation(actual, exact):
    return ((actual - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


def tensors(n=2, c_in=3, c_out=5, height=6, width=7, up=1, noise="image", seed=0):
    """x, weight, styles, noise and bias of a layer, float64."""
    rng = torch.Generator().manual_seed(seed)
    noise_shapes = {
        "none": None,
        "image": [up * height, up * width],
        "batch": [n, 1, up * height, up * width],
    }
    shapes = [[n, c_in, height, width], [c_out, c_in, 3, 3], [n, c_in], noise_shapes[noise], [c_out]]
    return [
        None if shape is None else torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes
    ]


def as_floats(values):
    return [None if value is None else value.float() for value in values]


def layer(values, finish=LRELU, up=1, f=FILTER, padding=1):
    return styled_conv2d(*values, finish, up=up, padding=padding, resample_filter=f, fused_modconv=False)


def in_parts(values, finish=LRELU, up=1, f=FILTER, padding=1):
    """The same by the operations that the layer is made of, in float64."""
    x, weight, styles, noise, bias = (None if value is None else value.double() for value in values)
    x = modulated_conv2d(
        x, weight, styles, noise, up, padding=padding, resample_filter=f, flip_weight=up == 1,
        fused_modconv=False,
    )  # fmt: skip
    return bias_act(x, bias, act=finish.act, gain=finish.gain, clamp=finish.clamp)


@pytest.fixture
def calls(always_winograd, monkeypatch):
    """One entry for every layer that was computed in one pass."""
    seen = []
    run = styled_conv._in_one_pass
    monkeypatch.setattr(styled_conv, "_in_one_pass", lambda *args: seen.append(args[6]) or run(*args))
    return seen


@pytest.fixture(autouse=True)
def _forget_prepared():
    styled_conv._known.clear()


# ----------------------------------------------------------------------------------------------------------
# What it computes
# ----------------------------------------------------------------------------------------------------------


@HYPOTHESIS
@given(
    st.integers(1, 3),
    st.integers(1, 11),
    st.integers(1, 11),
    st.integers(1, 21),
    st.integers(1, 70),
    st.sampled_from([1, 2]),
    st.sampled_from(["none", "image", "batch"]),
    st.sampled_from([LRELU, Finish("linear", 0.5, 0.7), Finish("lrelu", 1.0, 0.4)]),
    st.sampled_from([1, 2]),
)
@torch.no_grad()
def test_one_pass_equals_its_parts(calls, n, c_in, c_out, height, width, up, noise, finish, threads):
    values = tensors(n, c_in, c_out, height, width, up, noise, seed=height + 100 * width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls.clear()
        actual = layer(as_floats(values), finish, up)
    finally:
        torch.set_num_threads(before)
    assert calls == [up]
    exact = in_parts(values, finish, up)
    largest = in_parts(values, finish._replace(clamp=None), up).abs().max()  # what Winograd's error goes with
    assert actual.shape == exact.shape
    assert (actual.double() - exact).abs().max() < TOLERANCE * largest


@torch.no_grad()
def test_pixels_of_one_pixel_by_hand(always_winograd):
    """Of a single pixel and a kernel of a single one, up-sampling makes the filter, moved by the kernel."""
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 1] = 1
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 2] = 1  # of a true convolution: a row up, a column to the right
    y = layer([x, weight, torch.ones(1, 1), None, torch.zeros(1)], Finish("linear", 1.0, None), up=2)
    taps = torch.tensor([1.0, 3, 3, 1])
    expected = torch.zeros(6, 6)
    expected[0:4, 2:6] = torch.outer(taps, taps) / 16  # 4 · f; demodulation leaves 1
    torch.testing.assert_close(y[0, 0], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_bits_do_not_depend_on_threads_or_on_the_batch(calls):
    values = as_floats(tensors(3, 16, 16, 21, 18, up=2, noise="batch"))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(layer(values, up=2))
    torch.set_num_threads(before)
    assert torch.equal(*results)
    x, weight, styles, noise, bias = values
    alone = layer([x[1:2], weight, styles[1:2], noise[1:2], bias], up=2)
    assert deviation(alone, results[0][1:2]) < 1e-6
    assert calls == [2, 2, 2]


# ----------------------------------------------------------------------------------------------------------
# When it runs
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", range(5))
def test_with_gradients_the_parts_run(calls, wanted):
    values = as_floats(tensors(up=2))
    values[wanted].requires_grad_()
    y = layer(values, up=2)
    assert calls == []
    (gradient,) = torch.autograd.grad(y.square().sum(), values[wanted])
    assert gradient.abs().max() > 0
    with torch.no_grad():
        assert deviation(layer(values, up=2), y) < TOLERANCE
    assert calls == [2]


@pytest.mark.parametrize(
    ("change", "up", "f", "padding", "finish"),
    [
        ("swish", 1, FILTER, 1, Finish("swish", 1.0, None)),
        ("filter of two taps", 2, setup_filter([1, 1]), 1, LRELU),
        ("filter of one dimension", 2, setup_filter([1, 2, 3, 4, 4, 3, 2, 1]), 1, LRELU),
        ("up 4", 4, setup_filter([1, 3, 3, 1]), 1, LRELU),
        ("no padding", 1, FILTER, 0, LRELU),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_what_the_kernel_does_not_know_runs_in_parts(calls, change, up, f, padding, finish):
    values = as_floats(tensors(up=up, noise="none"))
    actual = layer(values, finish, up, f, padding)
    assert calls == []
    assert deviation(actual.double(), in_parts(values, finish, up, f, padding)) < TOLERANCE


@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.bfloat16])
@torch.no_grad()
def test_other_types_run_in_parts(calls, convert):
    values = [convert(value) for value in tensors()]
    assert layer(values).dtype == values[0].dtype
    assert calls == []


@torch.no_grad()
def test_channels_last_runs_in_parts(calls):
    values = as_floats(tensors())
    expected = layer(values)
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    assert deviation(layer(values), expected) < TOLERANCE
    assert calls == [1]


@torch.no_grad()
def test_small_layers_and_named_implementations_run_in_parts(monkeypatch):
    in_one_pass = []
    monkeypatch.setattr(styled_conv, "_in_one_pass", lambda *args, **_: in_one_pass.append(args))
    small, large = as_floats(tensors(1, 16, 16, 8, 8)), as_floats(tensors(2, 16, 16, 32, 32))
    layer(small)
    with selection.use_reference():
        layer(large)
    with selection.use_convolution("direct"):
        layer(large)
    assert in_one_pass == []


def test_wrong_shapes_are_named(always_winograd):
    values = as_floats(tensors())
    values[2] = values[2][:, :2]
    with torch.no_grad(), pytest.raises(StyleGAN2Error, match="styles"):
        layer(values)


@pytest.mark.parametrize("shape", [[1], [4], [5, 1]])
@torch.no_grad()
def test_a_bias_of_another_length_is_refused(calls, shape):
    values = as_floats(tensors())
    values[4] = torch.ones(shape)
    with pytest.raises(StyleGAN2Error, match="b: got shape"):
        layer(values)
    assert calls == []


@pytest.mark.parametrize("up", [1, 2])
@torch.no_grad()
def test_noise_of_any_other_shape_is_left_to_the_parts(calls, up):
    values = as_floats(tensors(3, up=up, noise="none"))
    height, width = 6 * up, 7 * up
    for shape in ([1, 1], [height, 1], [1, height, width], [3, 5, height, width], [1, 5, 1, 1]):
        values[3] = torch.randn(shape)
        assert deviation(layer(values, up=up).double(), in_parts(values, up=up)) < TOLERANCE
    assert calls == []
    for shape in ([2, 1, height, width], [height + 1, width]):
        values[3] = torch.randn(shape)
        with pytest.raises(RuntimeError, match="must match"):
            layer(values, up=up)
    for shape in ([height, width], [1, 1, height, width], [3, 1, height, width]):
        values[3] = torch.randn(shape)
        assert deviation(layer(values, up=up).double(), in_parts(values, up=up)) < TOLERANCE
    assert calls == [up] * 3


@torch.no_grad()
def test_negated_views_are_read_with_their_signs(calls):
    values = as_floats(tensors())
    for i in range(5):
        negated = list(values)
        negated[i] = torch._neg_view(-values[i])
        assert deviation(layer(negated), layer(values)) < TOLERANCE


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_a_generator_draws_the_same_image_with_and_without(calls, noise_mode):
    torch.manual_seed(0)
    generator = Generator(8, 0, 8, 16, 3, synthesis_kwargs={"channel_base": 128, "conv_clamp": 4}).eval()
    for parameter in generator.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    z = torch.randn(2, 8)
    images = []
    for enabled in (True, False):
        torch.manual_seed(1)
        with torch.set_grad_enabled(enabled):
            images.append(generator(z, noise_mode=noise_mode))
    assert calls == [1, 2, 1, 2, 1]
    assert deviation(images[1], images[0]) < 2 * TOLERANCE


# ----------------------------------------------------------------------------------------------------------
# What it remembers
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [1, 2])
@torch.no_grad()
def test_changed_weights_count(calls, up):
    values = as_floats(tensors(up=up))
    first = layer(values, up=up)
    kept = styled_conv._known[id(values[1])]
    assert torch.equal(layer(values, up=up), first)
    assert styled_conv._known[id(values[1])] is kept
    values[1].data[0, 0, 0, 0] += 1  # which no version of the tensor tells
    again = layer(values, up=up)
    assert not torch.equal(again, first)
    assert deviation(again.double(), in_parts(values, up=up)) < TOLERANCE


@torch.no_grad()
def test_another_filter_or_factor_counts(calls):
    values = as_floats(tensors(up=2))
    layer(values, up=2)
    for up, f in ((2, setup_filter([1, 2, 4, 1])), (1, FILTER), (2, FILTER)):
        values[3] = torch.zeros(6 * up, 7 * up)
        assert deviation(layer(values, up=up, f=f).double(), in_parts(values, up=up, f=f)) < TOLERANCE
    assert calls == [2, 2, 1, 2]


@torch.no_grad()
def test_what_is_kept_lives_as_long_as_the_weight(calls):
    module = StyledConv2d(4, 4, 8, (8, 8))
    module(torch.randn(1, 4, 8, 8), torch.randn(1, 8))
    assert len(styled_conv._known) == 1
    del module
    gc.collect()
    assert styled_conv._known == {}


@torch.no_grad()
def test_large_layers_are_not_kept(calls, monkeypatch):
    monkeypatch.setattr(styled_conv, "_MOST_KEPT", 0)
    values = as_floats(tensors())
    assert torch.equal(layer(values), layer(values))
    assert styled_conv._known == {}


# ----------------------------------------------------------------------------------------------------------
# The self-test
# ----------------------------------------------------------------------------------------------------------


def test_the_self_test_covers_layers_in_one_pass(calls, monkeypatch):
    found = selftest._compare_styled()
    assert found.passed and found.errors[0] > 0
    assert calls == [1, 2]
    right = styled_conv._in_one_pass
    monkeypatch.setattr(styled_conv, "_in_one_pass", lambda *args: right(*args) * 1.001)
    assert not selftest._compare_styled().passed


def test_all_that_is_compared_is_timed(calls, monkeypatch):
    """`stylegan2 doctor` shows both side by side."""
    monkeypatch.setattr(selftest, "_TIMED_SHAPE", (1, 2, 8, 8))
    monkeypatch.setattr(selftest, "_REPETITIONS", 1)
    names = {found.operation for found in selftest.compare("cpu")}
    assert names == {"bias_act", "upfirdn2d", "bias_grad", "convolution", "styled_conv"}
    calls.clear()
    ratios = selftest.speed_ratios("cpu")
    assert set(ratios) == names and min(ratios.values()) > 0
    assert calls == [1] * 2  # one to know the shape, one that counts


# ----------------------------------------------------------------------------------------------------------
# The C interface
# ----------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused(always_winograd):
    library = native.load("cpu")
    memory = torch.zeros(4096)
    pointer = memory.data_ptr()

    def run(up=1, height=4, x=pointer, kernels=pointer):
        arguments = native.StyledArguments(1, 1, 1, height, 4, 1.0, 1.0, -1.0, up, 0, 1)
        convolved = library.styled_convolution(
            ctypes.byref(arguments), x, kernels, pointer, None, None, None, pointer, None
        )
        return convolved, library.styled_kernels(ctypes.byref(arguments), pointer, kernels, None)

    assert run() == (0, 0)
    assert all(run(up=3))
    assert all(run(kernels=None))
    assert run(height=0)[0] != 0
    assert run(x=None)[0] != 0
    with pytest.raises(StyleGAN2Error, match="null"):
        library.raise_error("styled_convolution", run(x=None)[0])
