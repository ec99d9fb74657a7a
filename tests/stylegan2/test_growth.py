"""Growing: what a larger network computes at first, against the smaller one it was grown from."""

import pytest
import torch

from stylegan2.growth import grown_weights
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.ops.upfirdn2d import downsample2d, upsample2d

WIDTHS = {"channel_base": 512, "channel_max": 16}


def discriminator(resolution: int, channels: int = 3, **options: object) -> Discriminator:
    torch.manual_seed(resolution)
    network = Discriminator(0, resolution, channels, **{**WIDTHS, **options})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return network


def grow(smaller: Discriminator, larger: Discriminator) -> None:
    arguments = {"img_resolution": smaller.img_resolution}
    larger.load_state_dict(grown_weights(smaller.state_dict(), larger, arguments))


def judge_reduced(smaller: Discriminator, images: torch.Tensor) -> torch.Tensor:
    while images.shape[3] > smaller.img_resolution:
        images = downsample2d(images, smaller.b16.resample_filter)
    return smaller(images, None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [32, 64])
def test_a_grown_discriminator_judges_the_reduced_image(resolution: int, channels: int) -> None:
    smaller = discriminator(16, channels)
    larger = discriminator(resolution, channels)
    images = torch.randn(4, channels, resolution, resolution)
    expected = judge_reduced(smaller, images)
    assert not torch.allclose(larger(images, None), expected, atol=1e-2)  # before
    grow(smaller, larger)
    torch.testing.assert_close(larger(images, None), expected, rtol=1e-4, atol=1e-4)


def test_every_new_weight_that_matters_learns() -> None:
    smaller, larger = discriminator(16), discriminator(32)
    grow(smaller, larger)
    larger(torch.randn(4, 3, 32, 32), None).sum().backward()
    for name in ("fromrgb", "conv0", "conv1", "skip"):
        gradient = larger.get_submodule(f"b32.{name}").weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0, name
    # Feature maps that pass nothing on yet are read by conv1, so that they can begin to.
    assert larger.b32.conv1.weight.grad[:, 6:].abs().max() > 0


@pytest.mark.parametrize(
    "options", [{"architecture": "orig"}, {"architecture": "skip"}, {"channel_base": 64}]
)
def test_where_the_image_cannot_be_passed_on_the_new_blocks_start_afresh(
    options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    smaller, larger = discriminator(16, **options), discriminator(32, **options)
    before = {name: value.clone() for name, value in larger.state_dict().items()}
    grow(smaller, larger)
    assert "growing from 16 to 32 pixels" in caplog.text and "start afresh" in caplog.text
    for name, value in larger.state_dict().items():
        expected = before[name] if name.startswith("b32") else smaller.state_dict().get(name, before[name])
        assert torch.equal(value, expected), name


def test_a_grown_generator_draws_the_enlarged_picture() -> None:
    torch.manual_seed(0)
    kwargs = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_channels": 3, "synthesis_kwargs": WIDTHS}
    smaller = Generator(img_resolution=16, **kwargs).eval()
    larger = Generator(img_resolution=32, **kwargs).eval()
    state = grown_weights(smaller.state_dict(), larger, {"img_resolution": 16, "synthesis_kwargs": WIDTHS})
    larger.load_state_dict({**larger.state_dict(), **state})
    z = torch.randn(2, 8)
    small, large = smaller(z, None, noise_mode="none"), larger(z, None, noise_mode="none")
    enlarged = upsample2d(small, larger.synthesis.b32.resample_filter)
    torch.testing.assert_close(large, enlarged, rtol=1e-4, atol=1e-4)
