"""Generator and discriminator without reference numbers: shapes, options, determinism, error messages."""

import json

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.discriminator import Discriminator, MinibatchStdLayer
from stylegan2.networks.generator import Generator
from stylegan2.networks.layers import FullyConnectedLayer, MappingNetwork

SMALL = {"channel_base": 256, "channel_max": 16}


def make_generator(c_dim=0, img_resolution=16, img_channels=3, **synthesis_kwargs):
    torch.manual_seed(0)
    synthesis_kwargs = SMALL | synthesis_kwargs
    return Generator(8, c_dim, 12, img_resolution, img_channels, {"num_layers": 2}, synthesis_kwargs)


def make_discriminator(c_dim=0, img_resolution=16, img_channels=3, **kwargs):
    torch.manual_seed(0)
    return Discriminator(c_dim, img_resolution, img_channels, **SMALL, **kwargs)


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
@pytest.mark.parametrize(("c_dim", "channels", "resolution"), [(0, 3, 16), (2, 1, 8), (0, 4, 32)])
def test_shapes(architecture, c_dim, channels, resolution):
    G = make_generator(c_dim, resolution, channels, architecture=architecture)
    D = make_discriminator(c_dim, resolution, channels, architecture=architecture)
    z, c = torch.randn(4, 8), torch.randn(4, c_dim) if c_dim else None
    ws = G.mapping(z, c)
    assert ws.shape == (4, G.num_ws, 12)
    img = G(z, c)
    assert img.shape == (4, channels, resolution, resolution)
    assert img.dtype == torch.float32
    assert D(img, c).shape == (4, 1)


def test_number_of_ws_is_two_per_resolution():
    assert make_generator(img_resolution=4).num_ws == 2
    assert make_generator(img_resolution=8).num_ws == 4
    assert make_generator(img_resolution=64).num_ws == 10


@pytest.mark.parametrize("make", [make_generator, make_discriminator])
def test_init_kwargs_and_state_dict_rebuild_the_network(make):
    network = make(c_dim=2)
    rebuilt = type(network)(**json.loads(json.dumps(network.init_kwargs)))
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    inputs = (torch.randn(4, 8) if make is make_generator else torch.randn(4, 3, 16, 16), torch.randn(4, 2))
    options = {"noise_mode": "const"} if make is make_generator else {}
    assert torch.equal(network(*inputs, **options), rebuilt(*inputs, **options))


def test_init_kwargs_are_a_copy():
    options = dict(SMALL)
    G = Generator(8, 0, 12, 16, 3, synthesis_kwargs=options)
    options["channel_max"] = 1
    assert G.init_kwargs["synthesis_kwargs"] == SMALL


def test_noise_modes():
    G = make_generator().eval()
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(1)
        z = torch.randn(2, 8)
        const, none = G(z, noise_mode="const"), G(z, noise_mode="none")
        torch.manual_seed(3)
        first = G(z, noise_mode="random")
        second = G(z, noise_mode="random")
        torch.manual_seed(3)
        assert torch.equal(first, G(z, noise_mode="random"))
        assert torch.equal(const, G(z, noise_mode="const"))
    assert not torch.equal(first, second)
    assert not torch.equal(const, none)


def test_fused_and_unfused_modulation_agree():
    G = make_generator().eval()
    ws = G.mapping(torch.randn(3, 8), None)
    images = [G.synthesis(ws, noise_mode="const", fused_modconv=fused) for fused in (True, False)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)


def test_running_mean_of_w_moves_in_training_only():
    G = make_generator()
    z = torch.randn(16, 8)
    before = G.mapping.w_avg.clone()
    G.eval().mapping(z, None)
    assert torch.equal(G.mapping.w_avg, before)
    w = G.train().mapping(z, None, skip_w_avg_update=True)
    assert torch.equal(G.mapping.w_avg, before)
    G.mapping(z, None)
    torch.testing.assert_close(G.mapping.w_avg, 0.005 * w[:, 0].mean(dim=0))
    assert not G.mapping.w_avg.requires_grad


def test_truncation_pulls_towards_the_mean():
    G = make_generator().eval()
    G.mapping.w_avg.copy_(torch.randn(12))
    z = torch.randn(2, 8)
    full, half = G.mapping(z, None), G.mapping(z, None, truncation_psi=0.5)
    torch.testing.assert_close(half, (full + G.mapping.w_avg) / 2)
    cut = G.mapping(z, None, truncation_psi=0.5, truncation_cutoff=3)
    assert torch.equal(cut[:, 3:], full[:, 3:])
    assert torch.equal(cut[:, :3], half[:, :3])


def test_initial_scales():
    torch.manual_seed(0)
    layer = FullyConnectedLayer(256, 256, lr_multiplier=0.01)
    x = torch.randn(512, 256)
    assert float(layer(x).detach().std()) == pytest.approx(
        1, rel=0.05
    )  # equalised learning rate keeps the variance
    G = make_generator()
    affines = [p for name, p in G.named_parameters() if name.endswith("affine.bias")]
    assert all(bool((bias == 1).all()) for bias in affines)


LAYERS_FROM_THE_IMAGE_ON = {
    "orig": ["b16.fromrgb", "b16.conv0", "b16.conv1", "b8.conv0", "b8.conv1"],
    "skip": ["b16.fromrgb", "b16.conv0", "b16.conv1", "b8.fromrgb", "b8.conv0", "b8.conv1"],
    "resnet": ["b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0", "b8.conv1", "b8.skip"],
}


@pytest.mark.parametrize("architecture", LAYERS_FROM_THE_IMAGE_ON)
@pytest.mark.parametrize("freeze_layers", [0, 1, 3, 4, 100])
def test_frozen_layers_are_buffers(architecture, freeze_layers):
    D = make_discriminator(architecture=architecture, block_kwargs={"freeze_layers": freeze_layers})
    layers = LAYERS_FROM_THE_IMAGE_ON[architecture]
    D.requires_grad_(True)
    D(torch.randn(4, 3, 16, 16)).sum().backward()
    trained = {name.rpartition(".")[0] for name, weight in D.named_parameters() if weight.grad is not None}
    assert set(layers[:freeze_layers]).isdisjoint(trained)
    assert set(layers[freeze_layers:]) <= trained
    assert {name for name in trained if name.startswith("b4.")} >= {"b4.conv", "b4.fc", "b4.out"}
    free = make_discriminator(architecture=architecture)
    assert {k: v.shape for k, v in D.state_dict().items()} == {
        k: v.shape for k, v in free.state_dict().items()
    }


def test_frozen_layers_change_no_number():
    free = make_discriminator()
    frozen = make_discriminator(block_kwargs={"freeze_layers": 5})
    frozen.load_state_dict(free.state_dict())
    img = torch.randn(4, 3, 16, 16)
    assert torch.equal(free(img), frozen(img))


def test_labels_steer_both_networks():
    G, D = make_generator(c_dim=3).eval(), make_discriminator(c_dim=3).eval()
    z = torch.randn(1, 8).expand(3, -1)
    with torch.no_grad():
        images = G(z, torch.eye(3), noise_mode="none")
        assert not torch.allclose(images[0], images[1])
        assert not torch.allclose(images[1], images[2])
        same = images[:1].expand(3, -1, -1, -1)
        logits = D(same, torch.eye(3))
        assert logits.unique().numel() == 3
        # Projection: the logit is linear in the embedded label, so that of the negative label is negative.
        torch.testing.assert_close(D(same, -torch.eye(3)), _negative_label_logits(D, same))


def _negative_label_logits(D, images):
    """What Miyato & Koyama's projection gives: features · embedded label / √(its size)."""
    features = {}
    handle = D.b4.out.register_forward_hook(lambda module, inputs, output: features.update(x=output))
    D(images, torch.eye(3))
    handle.remove()
    cmap = D.mapping(None, -torch.eye(3))
    return torch.einsum("nd,nd->n", features["x"], cmap)[:, None] / cmap.shape[1] ** 0.5


@pytest.mark.parametrize("make", [make_generator, make_discriminator])
def test_labels_do_not_leak_into_networks_without_them(make):
    network = make(c_dim=0)
    assert not any("embed" in name or name.startswith("mapping.embed") for name in network.state_dict())
    if make is make_discriminator:
        assert not hasattr(network, "mapping")


def test_clamp_limits_every_feature_map():
    G, D = make_generator(conv_clamp=0.01), make_discriminator(conv_clamp=0.01)
    seen = []

    def record(module, inputs, output):
        seen.append(float(output.detach().abs().max()))

    for network in (G, D):
        for name, module in network.named_modules():
            if name.endswith(("conv0", "conv1", "torgb", "fromrgb", "b4.conv")):
                module.register_forward_hook(record)
    D(G(torch.randn(4, 8)))
    assert len(seen) >= 10
    assert max(seen) <= 0.01 + 1e-7


def test_minibatch_std_sees_variation_within_groups_only():
    layer = MinibatchStdLayer(group_size=2)
    x = torch.randn(2, 3, 4, 4).repeat(2, 1, 1, 1)  # samples i and i + 2 are a group and equal
    assert float(layer(x)[:, 3].abs().max()) < 1e-3
    assert float(layer(torch.randn(4, 3, 4, 4))[:, 3].min()) > 0.1


def test_gradients_reach_every_parameter():
    G, D = make_generator(c_dim=2).train(), make_discriminator(c_dim=2).train()
    D(G(torch.randn(4, 8), torch.eye(2).repeat(2, 1)), torch.eye(2).repeat(2, 1)).square().sum().backward()
    for network in (G, D):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_generator(img_resolution=24), "img_resolution: got 24"),
        (lambda: make_discriminator(img_resolution=4), "img_resolution: got 4"),
        (lambda: make_generator(architecture="unet"), "architecture: got 'unet'"),
        (lambda: make_discriminator(architecture="unet"), "architecture: got 'unet'"),
        (lambda: make_generator(channel_base=8), "channel_base=8"),
        (lambda: make_generator(img_channels=0), "img_channels"),
        (lambda: make_generator(activation="gelu"), "act: got 'gelu'"),
        (lambda: Generator(0, 0, 8, 16, 3), "z_dim: got 0"),
        (lambda: MappingNetwork(4, 0, 8, num_ws=2, num_layers=0), "num_layers=0"),
        (lambda: make_generator(num_fp16_res=-1), "num_fp16_res: got -1"),
        (lambda: MinibatchStdLayer(0), "mbstd_group_size=0"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(StyleGAN2Error, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G, D: G(torch.zeros(2, 9), torch.zeros(2, 2)), r"z: got shape \[2, 9\], expected \[N, 8\]"),
        (lambda G, D: G(torch.zeros(2, 8)), r"c: got None, expected labels \[N, 2\]"),
        (lambda G, D: G.synthesis(torch.zeros(2, 5, 12)), r"ws: got \[2, 5, 12\]"),
        (lambda G, D: G.synthesis(torch.zeros(2, 6, 12), noise_mode="both"), "noise_mode: got 'both'"),
        (lambda G, D: D(torch.zeros(4, 1, 16, 16), torch.zeros(4, 2)), r"img: got \[4, 1, 16, 16\]"),
        (lambda G, D: D(torch.zeros(6, 3, 16, 16), torch.zeros(6, 2)), "batch of 6"),
        (lambda G, D: D.mapping(None, torch.zeros(4, 2), truncation_psi=0.5), "keeps no mean of w"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(StyleGAN2Error, match=message):
        call(make_generator(c_dim=2), make_discriminator(c_dim=2))
