"""The augmentation pipe: identities, gradients, shapes, bad input."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.augment import AugmentPipe
from stylegan2.augment_geometry import resample, sampling_matrices
from stylegan2.augment_parameters import SPECS, AugmentParameters
from stylegan2.errors import StyleGAN2Error
from stylegan2.wavelets import SYM2, SYM6, band_filters
from tests.stylegan2.pretended_gpu import GPU, PretendedGpu, pretended_gpu


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pipe(spec: str, p: float) -> AugmentPipe:
    made = AugmentPipe(spec)
    made.p.fill_(p)
    return made


@pytest.mark.parametrize("spec", SPECS)
def test_strength_zero_changes_nothing(spec: str) -> None:
    x = images(4, 3, 16, 16)
    assert torch.equal(pipe(spec, 0.0)(x), x)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (3, 1, 12, 16)])
def test_full_strength_changes_every_spec_and_keeps_the_shape(spec: str, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    out = pipe(spec, 1.0)(x, torch.Generator().manual_seed(1))
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert not torch.equal(out, x)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(2, 1, 1, 8), (2, 1, 8, 1)])
def test_band_filters_refuse_a_side_of_one_pixel(shape: tuple[int, ...], p: float) -> None:
    with pytest.raises(StyleGAN2Error, match=f"got {shape[2]}×{shape[3]} pixels"):
        pipe("filter", p)(images(*shape))


def test_band_filters_take_a_side_of_two_pixels() -> None:
    x = images(2, 1, 2, 2)
    out = pipe("filter", 1.0)(x, torch.Generator().manual_seed(1))
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())


def test_a_generator_decides_everything() -> None:
    x = images(4, 3, 16, 16)
    augment = pipe("bgcfnc", 0.8)
    first, again, other = (augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_strength_is_the_probability() -> None:
    params = pipe("bgc", 0.3).sample(images(20_000, 1, 1, 1), torch.Generator().manual_seed(0))
    assert params.scale is not None
    assert params.rotate_pre is not None
    assert params.rotate_post is not None
    assert (params.scale != 1).float().mean().item() == pytest.approx(0.3, abs=0.015)
    turned = (params.rotate_pre != 0) | (params.rotate_post != 0)
    assert turned.float().mean().item() == pytest.approx(0.3, abs=0.015)


def test_resampling_without_motion_reconstructs_perfectly() -> None:
    x = images(2, 3, 24, 24)
    almost = torch.eye(3).repeat(2, 1, 1)
    almost[:, 0, 2] = 1e-7  # not exactly the unit matrix, so that the whole path is taken
    assert torch.allclose(resample(x, almost, AugmentPipe("bg").wavelet), x, atol=1e-5)


def test_untouched_images_of_a_batch_stay_exactly_as_they_are() -> None:
    x = images(3, 3, 16, 16)
    params = AugmentParameters(scale=torch.tensor([1.0, 1.5, 1.0]), imgfilter=torch.ones(3, 4))
    out = AugmentPipe("bgcfnc").apply_parameters(x, params)
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert not torch.equal(out[1], x[1])


def test_a_flip_moves_what_is_left_to_the_right() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 8:24, 2:10] = 1
    out = AugmentPipe("blit").apply_parameters(x, AugmentParameters(xflip=torch.ones(1)))
    assert torch.allclose(out, x.flip(3), atol=0.3)
    assert (out - x.flip(3)).abs().mean() < 0.02


def test_a_quarter_turn_and_a_shift() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 8:16, 6:12] = 1
    turned = AugmentPipe("blit").apply_parameters(x, AugmentParameters(rotate90=torch.ones(1)))
    assert (turned - x.rot90(1, (2, 3))).abs().mean() < 0.02
    shifted = AugmentPipe("blit").apply_parameters(x, AugmentParameters(xint=torch.tensor([[0.125, 0.0]])))
    assert torch.allclose(shifted, x.roll(4, 3), atol=1e-5)


def test_matrices_invert_the_motion() -> None:
    params = AugmentParameters(scale=torch.tensor([2.0]), xint=torch.tensor([[0.25, 0.0]]))
    (matrix,) = sampling_matrices(params, 1, 8, 8, torch.device("cpu"))
    # An input at (1, 0) is shifted to (3, 0), then scaled to (6, 0).
    assert torch.allclose(matrix @ torch.tensor([6.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))


def test_twice_differentiable_with_respect_to_the_images() -> None:
    augment = pipe("bgcf", 1.0)
    x = images(2, 3, 8, 8).double().requires_grad_()
    params = augment.sample(x.float(), torch.Generator().manual_seed(3))
    assert params.imgfilter is not None
    augment = augment.double()
    assert torch.autograd.gradgradcheck(
        lambda y: augment.apply_parameters(y, params).square(), x, fast_mode=True, atol=1e-4
    )


@settings(max_examples=10, deadline=None)
@given(st.floats(-math.pi, math.pi), st.floats(0.25, 4))
def test_colour_keeps_grey_grey(hue: float, saturation: float) -> None:
    x = images(1, 1, 4, 4).expand(1, 3, 4, 4)
    params = AugmentParameters(hue=torch.tensor([hue]), saturation=torch.tensor([saturation]))
    assert torch.allclose(AugmentPipe("color").apply_parameters(x, params), x, atol=1e-5)


def test_cutout_erases_a_quarter() -> None:
    x = torch.ones(1, 3, 16, 16)
    params = AugmentParameters(cutout_size=torch.tensor([0.5]), cutout_center=torch.tensor([[0.5, 0.5]]))
    out = AugmentPipe("cutout").apply_parameters(x, params)
    assert out[0, 0, 4:12, 4:12].sum() == 0
    assert out[0, 0].sum() == 16 * 16 - 8 * 8


@pytest.mark.parametrize("taps", [SYM2, SYM6])
def test_wavelets_are_orthonormal(taps: tuple[float, ...]) -> None:
    h = torch.tensor(taps, dtype=torch.float64)
    assert h.sum().item() == pytest.approx(2**0.5)
    for shift in range(0, len(taps), 2):
        product = (h[shift:] * h[: len(taps) - shift]).sum().item()
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-9)


def test_bands_add_up_to_the_unit_impulse() -> None:
    total = band_filters().sum(dim=0)
    impulse = torch.zeros(43)
    impulse[21] = 1
    assert torch.allclose(total, impulse, atol=1e-6)


def test_an_unknown_spec_is_named() -> None:
    with pytest.raises(StyleGAN2Error, match="'bcg'"):
        AugmentPipe("bcg")


def test_colour_needs_one_or_three_channels() -> None:
    with pytest.raises(StyleGAN2Error, match="2 channels"):
        pipe("color", 1.0)(images(1, 2, 8, 8))


# Waiting for a GPU


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    yield from pretended_gpu()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_a_batch_waits_at_most_once_for_a_gpu(spec: str, p: float, gpu: PretendedGpu) -> None:
    """Shapes depend on what is drawn, so once it has to; and both devices compute the same."""
    on_cpu, on_gpu = pipe(spec, p), pipe(spec, p).to(GPU)
    x = images(4, 3, 16, 16)
    there = x.to(GPU)
    for seed in range(2):
        torch.manual_seed(seed)
        expected = on_cpu(x)
        gpu.waits.clear()
        torch.manual_seed(seed)
        out = on_gpu(there)
        assert gpu.waits == ([] if spec in ("noise", "cutout") else ["cpu"])
        assert out.is_cuda and torch.equal(out.cpu(), expected)


def test_an_empty_batch_stays_empty() -> None:
    assert pipe("bgcfnc", 1.0)(images(0, 3, 8, 8)).shape == (0, 3, 8, 8)
