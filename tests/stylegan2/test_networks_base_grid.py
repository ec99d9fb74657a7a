"""Images that are not square: the networks grow from a base grid other than 4×4."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.augment import AugmentPipe
from stylegan2.errors import StyleGAN2Error
from stylegan2.loss import StyleGAN2Loss
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.networks.layers import check_base_grid, size_at

SMALL = {"channel_base": 128, "channel_max": 8}
GRIDS = [(side, 4) for side in range(1, 5)] + [(4, side) for side in range(1, 4)]


def make_generator(base_grid=(3, 4), resolution=16, c_dim=0, **options):
    torch.manual_seed(0)
    synthesis = {**SMALL, "base_grid": base_grid, **options}
    return Generator(8, c_dim, 8, resolution, 3, {"num_layers": 2}, synthesis)


def make_discriminator(base_grid=(3, 4), resolution=16, c_dim=0, **options):
    torch.manual_seed(0)
    return Discriminator(c_dim, resolution, 3, **SMALL, base_grid=base_grid, **options)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_every_grid_draws_and_judges_images_of_its_size(grid, architecture):
    G = make_generator(grid, architecture=architecture, c_dim=2)
    D = make_discriminator(grid, architecture=architecture, c_dim=2)
    size = (grid[0] * 4, grid[1] * 4)
    assert G.img_size == G.synthesis.img_size == D.img_size == size
    c = torch.eye(2).repeat(2, 1)
    img = G(torch.randn(4, 8), c)
    assert img.shape == (4, 3, *size)
    logits = D(img, c)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    for network in (G, D):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name


def test_the_size_of_the_issue():
    G = make_generator((3, 4), resolution=128, channel_base=512, channel_max=4)
    assert G.img_size == (96, 128)
    assert G.img_resolution == 128
    with torch.no_grad():
        assert G(torch.randn(1, 8)).shape == (1, 3, 96, 128)


def test_noise_and_constant_have_the_shape_of_their_layer():
    G = make_generator((3, 4), resolution=16)
    shapes = {name: tuple(value.shape) for name, value in G.named_buffers() if name.endswith("noise_const")}
    assert shapes == {
        "synthesis.b4.conv1.noise_const": (3, 4),
        "synthesis.b8.conv0.noise_const": (6, 8),
        "synthesis.b8.conv1.noise_const": (6, 8),
        "synthesis.b16.conv0.noise_const": (12, 16),
        "synthesis.b16.conv1.noise_const": (12, 16),
    }
    assert G.synthesis.b4.const.shape == (8, 3, 4)
    assert make_discriminator((3, 4)).b4.fc.weight.shape == (8, 8 * 3 * 4)


@pytest.mark.parametrize("noise_mode", ["random", "const", "none"])
def test_noise_modes(noise_mode):
    G = make_generator((2, 4))
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(1)
        assert G(torch.randn(2, 8), noise_mode=noise_mode).shape == (2, 3, 8, 16)


def test_a_grid_and_its_transpose_make_transposed_images():
    """Height and width play the same part: transposed weights and noise draw the transposed image."""
    wide, tall = make_generator((3, 4)).eval(), make_generator((4, 3)).eval()
    state = wide.state_dict()
    for name, value in tall.state_dict().items():
        source = state[name]
        spatial = name.endswith(("noise_const", ".const")) or value.ndim == 4
        value.copy_(source.transpose(-1, -2) if spatial else source)
    z = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            tall(z, noise_mode="const"), wide(z, noise_mode="const").transpose(2, 3), rtol=1e-4, atol=1e-5
        )


def test_all_four_losses_run_on_images_that_are_not_square():
    G, D = make_generator((3, 4)).train(), make_discriminator((3, 4)).train()
    augment = AugmentPipe("bgc")
    augment.p.fill_(0.8)
    loss = StyleGAN2Loss(G, D, augment, r1_gamma=1.0)
    z, real = torch.randn(4, 8), torch.rand(4, 3, 12, 16) * 2 - 1
    loss.accumulate_gmain(z)
    loss.accumulate_greg(z)
    loss.accumulate_dmain(real, z)
    loss.accumulate_dreg(real)
    for network in (G, D):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("make", [make_generator, make_discriminator])
def test_json_keeps_the_grid(make):
    network = make((3, 4))
    assert network.init_kwargs == make([3, 4]).init_kwargs
    kwargs = json.loads(json.dumps(network.init_kwargs))
    assert kwargs == network.init_kwargs
    again = type(network)(**kwargs)
    again.load_state_dict(network.state_dict(), strict=True)
    assert again.img_size == (12, 16)


def test_the_square_grid_is_not_recorded():
    """Folders from before this option hold no grid and must go on comparing equal."""
    assert make_generator((4, 4)).init_kwargs["synthesis_kwargs"] == SMALL
    assert make_generator([4, 4]).init_kwargs["synthesis_kwargs"] == SMALL
    expected = Discriminator(0, 16, 3, **SMALL).init_kwargs
    assert "base_grid" not in expected
    assert make_discriminator((4, 4)).init_kwargs == expected


def test_an_explicit_square_grid_changes_no_number():
    explicit = make_generator((4, 4))
    torch.manual_seed(0)
    default = Generator(8, 0, 8, 16, 3, {"num_layers": 2}, SMALL)
    for name, value in default.state_dict().items():
        assert torch.equal(value, explicit.state_dict()[name]), name
    assert default.img_size == (16, 16)


@given(height=st.integers(1, 4), width=st.integers(1, 4), exponent=st.integers(2, 10))
@settings(deadline=None)
def test_sizes_double_with_the_resolution(height, width, exponent):
    if max(height, width) != 4:
        with pytest.raises(StyleGAN2Error, match="base_grid"):
            check_base_grid((height, width))
        return
    grid = check_base_grid((height, width))
    resolution = 2**exponent
    assert max(size_at(resolution, grid)) == resolution
    assert size_at(2 * resolution, grid) == tuple(2 * side for side in size_at(resolution, grid))
    assert size_at(4, grid) == (height, width)


@pytest.mark.parametrize(
    "grid", [(3, 3), (5, 4), (0, 4), (4,), (4, 4, 4), 4, "44", (3.0, 4), (True, 4), None, (-1, 4)]
)
@pytest.mark.parametrize("make", [make_generator, make_discriminator])
def test_other_grids_are_refused(make, grid):
    with pytest.raises(StyleGAN2Error, match=r"base_grid: got .* expected a pair \(height, width\)"):
        make(grid)


def test_images_of_another_size_are_refused():
    D = make_discriminator((3, 4))
    for shape in [(4, 3, 16, 16), (4, 3, 16, 12)]:
        with pytest.raises(StyleGAN2Error, match=r"expected \[N, 3, 12, 16\]"):
            D(torch.zeros(shape))
