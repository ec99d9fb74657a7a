"""Resampling and modulated convolution: agreement with torch and with each other, and error messages."""

import pytest
import torch
import torch.nn.functional as F

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.conv2d_resample import conv2d_resample
from stylegan2.ops.modulated_conv import modulated_conv2d
from stylegan2.ops.upfirdn2d import downsample2d, setup_filter, upsample2d

DOUBLE = {"rtol": 1e-9, "atol": 1e-9}


def random_doubles(*shapes):
    torch.manual_seed(2)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_resampling_convolution_equals_its_parts_away_from_the_border(kernel, up, down):
    x, w = random_doubles([2, 4, 16, 16], [6, 4, kernel, kernel])
    f = setup_filter([1, 3, 3, 1])
    y = conv2d_resample(x, w, f, up=up, down=down, padding=kernel // 2)
    parts = upsample2d(x, f, up=up) if up > 1 else x
    parts = F.conv2d(parts, w, padding=kernel // 2)
    parts = downsample2d(parts, f, down=down) if down > 1 else parts
    assert y.shape == parts.shape
    inside = (..., slice(4, -4), slice(4, -4)) if y.shape[-1] > 8 else (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(y[inside], parts[inside], rtol=1e-5, atol=1e-5)


def test_groups_are_independent():
    x, w = random_doubles([1, 4, 8, 8], [6, 2, 3, 3])
    f = setup_filter([1, 3, 3, 1])
    y = conv2d_resample(x, w, f, up=2, padding=1, groups=2)
    halves = [
        conv2d_resample(x[:, 2 * i : 2 * i + 2], w[3 * i : 3 * i + 3], f, up=2, padding=1) for i in (0, 1)
    ]
    torch.testing.assert_close(y, torch.cat(halves, dim=1), **DOUBLE)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_fused_equals_unfused(up, down, demodulate):
    x, weight, styles = random_doubles([3, 4, 8, 8], [5, 4, 3, 3], [3, 4])
    options = {"up": up, "down": down, "padding": 1, "resample_filter": setup_filter([1, 3, 3, 1])}
    fused, unfused = (
        modulated_conv2d(x, weight, styles, demodulate=demodulate, fused_modconv=flag, **options)
        for flag in (True, False)
    )
    torch.testing.assert_close(fused, unfused, **DOUBLE)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fused", [True, False])
def test_pointwise_without_demodulation_equals_scaled_weights(fused, memory_format):
    x, weight, styles, noise = random_doubles([3, 4, 8, 6], [5, 4, 1, 1], [3, 4], [3, 1, 8, 6])
    y = modulated_conv2d(
        x.contiguous(memory_format=memory_format),
        weight,
        styles,
        noise=noise,
        demodulate=False,
        fused_modconv=fused,
    )
    expected = torch.einsum("nchw,oc,nc->nohw", x, weight[:, :, 0, 0], styles) + noise
    torch.testing.assert_close(y, expected, **DOUBLE)


@pytest.mark.parametrize("fused", [True, False])
def test_noise_is_added_after_demodulation(fused):
    x, weight, styles, noise = random_doubles([2, 4, 8, 8], [5, 4, 3, 3], [2, 4], [8, 8])
    with_noise, without = (
        modulated_conv2d(x, weight, styles, noise=each, padding=1, fused_modconv=fused)
        for each in (noise, None)
    )
    torch.testing.assert_close(with_noise, without + noise, **DOUBLE)


@pytest.mark.parametrize("fused", [True, False])
def test_demodulation_cancels_the_scale_of_a_style(fused):
    x, weight, styles = random_doubles([2, 4, 8, 8], [5, 4, 3, 3], [2, 4])
    one, ten = (
        modulated_conv2d(x, weight, styles * scale, padding=1, fused_modconv=fused) for scale in (1, 10)
    )
    torch.testing.assert_close(one, ten, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_stays_finite_with_large_weights(fused):
    x, weight, styles = random_doubles([2, 4, 8, 8], [5, 4, 3, 3], [2, 4])
    large = modulated_conv2d(
        x.half(), weight.float() * 1e4, styles.float() * 1e4, padding=1, fused_modconv=fused
    )
    exact = modulated_conv2d(x, weight, styles, padding=1)
    assert large.dtype == torch.float16
    torch.testing.assert_close(large.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w": torch.zeros(6, 3, 3, 3)}, "w: got shape"),
        ({"groups": 3}, "w: got shape"),
        ({"up": 0}, "up: got 0"),
        ({"down": 1.5}, "down: got 1.5"),
        ({"x": torch.zeros(4, 8, 8)}, "got x of shape"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"x": torch.zeros(2, 4, 8, 8), "w": torch.zeros(6, 4, 3, 3)} | options
    with pytest.raises(StyleGAN2Error, match=message):
        conv2d_resample(**arguments)


def test_styles_that_do_not_fit():
    with pytest.raises(StyleGAN2Error, match=r"styles \(2, 5\)"):
        modulated_conv2d(torch.zeros(2, 4, 8, 8), torch.zeros(5, 4, 3, 3), torch.zeros(2, 5))
