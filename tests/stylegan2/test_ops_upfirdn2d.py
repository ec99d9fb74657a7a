"""FIR up- and down-sampling against scipy, its derivatives, and its error messages."""

import numpy as np
import pytest
import scipy.signal
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d


def by_definition(x, f, up, down, padding, flip_filter, gain):
    """The four steps of the definition, one image at a time, with scipy's convolution."""
    (up_x, up_y), (down_x, down_y), (left, right, top, bottom) = up, down, padding
    height, width = x.shape[0] * up_y, x.shape[1] * up_x
    stuffed = np.zeros([height, width])
    stuffed[::up_y, ::up_x] = x
    padded = np.zeros([height + max(top, 0) + max(bottom, 0), width + max(left, 0) + max(right, 0)])
    padded[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width] = stuffed
    rows = slice(max(-top, 0), padded.shape[0] - max(-bottom, 0))
    columns = slice(max(-left, 0), padded.shape[1] - max(-right, 0))
    operation = scipy.signal.correlate2d if flip_filter else scipy.signal.convolve2d
    return operation(padded[rows, columns], f * gain, mode="valid")[::down_y, ::down_x]


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal([2, 3, *rng.integers(5, 10, 2)])
    f = rng.standard_normal(rng.integers(1, 6, 2) if seed % 2 else rng.integers(1, 6, 1))
    up, down = rng.integers(1, 4, 2).tolist(), rng.integers(1, 4, 2).tolist()
    padding = rng.integers(-2, 7, 4).tolist()
    padding[0] += f.shape[-1]  # room for the filter
    padding[2] += f.shape[0]
    flip_filter, gain = bool(seed % 3), float(rng.uniform(0.5, 4))
    actual = upfirdn2d(torch.from_numpy(x), torch.from_numpy(f), up, down, padding, flip_filter, gain)
    full = f if f.ndim == 2 else np.outer(f, f)
    expected = [
        [by_definition(channel, full, up, down, padding, flip_filter, gain) for channel in image]
        for image in x
    ]
    np.testing.assert_allclose(actual.numpy(), np.array(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("up", "down", "padding"),
    [
        (1, 1, 1),
        (1, 2, (2, -1, 0, 3)),
        (2, 1, (2, 1)),
        ((2, 1), (1, 3), (3, 0, -1, 4)),
        (3, 2, (4, 4, 5, 2)),
        (2, 2, 6),
    ],
)
@pytest.mark.parametrize("separable", [False, True])
def test_first_and_second_derivatives(up, down, padding, separable):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    f = torch.randn([4] if separable else [3, 4], dtype=torch.float64)

    def function(images):
        return upfirdn2d(images, f, up, down, padding, gain=1.5)

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_result_does_not_depend_on_gradients_being_recorded():
    x = torch.randn(2, 3, 8, 8)
    f = setup_filter([1, 3, 3, 1])
    recorded = upfirdn2d(x.clone().requires_grad_(), f, up=2, padding=(2, 1))
    assert torch.equal(recorded.detach(), upfirdn2d(x, f, up=2, padding=(2, 1)))


@pytest.mark.parametrize("taps", [None, [1, 2, 1], [1, 3, 3, 1], [1, 2, 3, 4, 4, 3, 2, 1]])
def test_sizes_and_mean_are_kept(taps):
    f = setup_filter(taps)
    x = torch.ones(1, 2, 16, 12)
    inside = (..., slice(6, -6), slice(6, -6))
    assert filter2d(x, f).shape == x.shape
    assert upsample2d(x, f, up=2).shape == (1, 2, 32, 24)
    assert upsample2d(x, f, up=(1, 3)).shape == (1, 2, 48, 12)
    assert downsample2d(x, f, down=2).shape == (1, 2, 8, 6)
    if taps is not None:
        torch.testing.assert_close(upsample2d(x, f)[inside], torch.ones(1, 2, 20, 12))


def test_setup_filter_shapes():
    assert setup_filter(None).shape == (1, 1)
    assert setup_filter([1, 3, 3, 1]).shape == (4, 4)
    assert setup_filter([1] * 8).shape == (8,)
    assert setup_filter([1, 2, 1], separable=True).shape == (3,)
    assert setup_filter([[1, 2, 1]]).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up": 0}, "up: got 0"),
        ({"up": 2**32 + 1}, "up: got 4294967297, expected an int from 1 to 65536"),
        ({"down": (1, 2**16 + 1)}, "down: got"),
        ({"padding": 2**32 + 4}, "padding: got 4294967300"),
        ({"padding": (0, -(2**30) - 1)}, "padding: got"),
        ({"down": (1, 2, 3)}, "down: got"),
        ({"padding": (1, 2, 3)}, "padding: got"),
        ({"padding": -8}, "crops away"),
        ({"padding": -3}, "does not fit"),
        ({"x": torch.zeros(8, 8)}, "x: got"),
        ({"x": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, "x: got"),
        ({"f": torch.ones(1, 1, 1)}, "f: got"),
        ({"f": torch.ones(0)}, "f: got"),
        ({"f": torch.ones(2, 2, requires_grad=True)}, "f: got"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"x": torch.zeros(1, 1, 8, 8), "f": setup_filter([1, 3, 3, 1])} | options
    with pytest.raises(StyleGAN2Error, match=message):
        upfirdn2d(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": []}, "taps: got"),
        ({"taps": torch.ones(1, 2, 3)}, "taps: got"),
        ({"taps": [[1, 2]], "separable": True}, "separable"),
        ({"taps": [1, -1]}, "sum to 0"),
        ({"taps": [1, 2, 1], "gain": -1}, "gain: got -1"),
    ],
)
def test_bad_taps(options, message):
    with pytest.raises(StyleGAN2Error, match=message):
        setup_filter(**options)
