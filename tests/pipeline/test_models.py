"""Networks and their blocks against the papers' figures."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.models.blocks import ConvBlock, DropBlock, SpatialAttention, bernoulli_positions
from pipeline.models.deep_supervision import DeeplySupervised
from pipeline.models.folding import folded
from pipeline.models.registry import Architecture, build_model
from pipeline.models.sa_unet import SAUNet
from pipeline.models.unet import INITIAL_LOGIT, RECEPTIVE_RADIUS, UNet


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sa_unet_has_the_papers_parameter_count() -> None:
    assert parameter_count(SAUNet()) == 537_299
    assert parameter_count(SpatialAttention()) == 98
    assert parameter_count(UNet()) == 537_299 - 98


@pytest.mark.parametrize("arch", ["sa_unet", "unet"])
def test_registry_builds_the_named_network(arch: str) -> None:
    network = build_model(Architecture(arch=arch, base_width=4))  # type: ignore[arg-type]
    has_attention = any(isinstance(module, SpatialAttention) for module in network.modules())
    assert has_attention == (arch == "sa_unet")
    assert network(torch.zeros(2, 3, 16, 40)).shape == (2, 1, 16, 40)


def test_decoder_levels_have_the_named_widths_and_sizes() -> None:
    network = UNet(base_width=2)
    shapes = [tuple(level.shape) for level in network.decode(torch.zeros(2, 3, 16, 40))]
    assert shapes == [(2, 8, 4, 10), (2, 4, 8, 20), (2, 2, 16, 40)]
    assert network.decoder_widths == (8, 4, 2)


def test_deep_supervision_predicts_at_every_level_the_networks_own_first() -> None:
    torch.manual_seed(0)
    network = build_model(Architecture(base_width=2, dropblock_keep=1))
    deep = DeeplySupervised(network).eval()
    x = torch.randn(2, 3, 16, 24)
    own, half, quarter = deep.predictions(x)
    assert torch.equal(own, network(x)) and torch.equal(deep(x), own)
    coarse, middle, _ = network.decode(x)
    for logits, head, level in ((quarter, 0, coarse), (half, 1, middle)):
        by_hand = F.interpolate(deep.side_heads[head](level), (16, 24), mode="bilinear")
        assert torch.equal(logits, by_hand)
    assert parameter_count(deep) - parameter_count(network) == (8 + 1) + (4 + 1)
    assert [head.bias.tolist() for head in (network.head, *deep.side_heads)] == [[INITIAL_LOGIT]] * 3


def test_a_side_head_teaches_the_levels_up_to_its_own() -> None:
    torch.manual_seed(0)
    deep = DeeplySupervised(UNet(base_width=2))
    _, half, quarter = deep.predictions(torch.randn(1, 3, 16, 16))

    def taught(logits: torch.Tensor) -> list[bool]:
        parameters = [level[0].conv.weight for level in deep.network.decoder]  # type: ignore[index]
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True, retain_graph=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert taught(quarter) == [True, False, False]
    assert taught(half) == [True, True, False]


def test_dropblock_can_be_turned_off() -> None:
    network = build_model(Architecture(base_width=2, dropblock_keep=1))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(network.train()(x), network(x))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        UNet(base_width=2)(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValidationError, match="resnet"):
        Architecture(arch="resnet")  # type: ignore[arg-type]


def test_convolution_block_is_convolution_dropblock_norm_relu() -> None:
    kinds = [type(module).__name__ for module in ConvBlock(3, 4, 7, 0.9)]
    assert kinds == ["Conv2d", "DropBlock", "BatchNorm2d", "ReLU"]


def test_attention_weights_positions_alike_in_all_channels() -> None:
    attention = SpatialAttention()
    x = torch.rand(2, 5, 9, 9) + 0.1
    weights = attention(x) / x  # [N, C, H, W]
    assert torch.allclose(weights, weights[:, :1].expand_as(weights), atol=1e-6)
    pooled = torch.stack([x.mean(1), x.amax(1)], dim=1)
    expected = torch.sigmoid(F.conv2d(pooled, attention.conv.weight, padding=3))
    assert torch.allclose(weights[:, :1], expected, atol=1e-6)


def test_dropblock_is_the_identity_in_evaluation() -> None:
    x = torch.randn(1, 2, 8, 8)
    assert DropBlock(7, 0.5).eval()(x) is x
    assert DropBlock(7, 1.0).train()(x) is x


@pytest.mark.parametrize(("block", "keep", "size"), [(7, 0.82, 32), (4, 0.9, 33), (1, 0.7, 16), (7, 0.8, 5)])
def test_dropblock_keeps_the_expected_share(block: int, keep: float, size: int) -> None:
    # A unit survives when no block covers it: (1 − γ)^(places from which a block reaches it).
    b = min(block, size)
    places = size - b + 1
    gamma = (1 - keep) / b**2 * size**2 / places**2
    reach = [min(i, places - 1) - max(i - b + 1, 0) + 1 for i in range(size)]
    expected = np.mean([(1 - gamma) ** (a * c) for a in reach for c in reach])

    torch.manual_seed(0)
    ones = torch.ones(200, 10, size, size)
    kept = (DropBlock(block, keep).train()(ones) > 0).float().mean().item()
    maps_per_block = ones.numel() / (b * b)
    assert kept == pytest.approx(expected, abs=5 * math.sqrt(keep * (1 - keep) / maps_per_block))


def test_units_of_a_map_survive_together_as_the_blocks_allow() -> None:
    """Joint distribution: two units survive when no block covers either (one seed can drop both)."""
    block, keep, size = 3, 0.7, 9
    places = size - block + 1
    gamma = (1 - keep) / block**2 * size**2 / places**2
    torch.manual_seed(0)
    kept = DropBlock(block, keep).train()(torch.ones(500, 40, size, size)) > 0  # 20,000 maps
    for offset in ((0, 1), (1, 1), (2, 2), (0, 3), (3, 3)):
        shared = max(block - offset[0], 0) * max(block - offset[1], 0)
        expected = (1 - gamma) ** (2 * block**2 - shared)
        both = (kept[:, :, 3, 3] & kept[:, :, 3 + offset[0], 3 + offset[1]]).float().mean().item()
        assert both == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 20_000)), offset


def test_channels_and_samples_are_independent() -> None:
    torch.manual_seed(0)
    kept = (DropBlock(3, 0.7).train()(torch.ones(2000, 4, 8, 8)) > 0)[:, :, 4, 4].double()  # [N, C]
    correlation = torch.corrcoef(torch.cat([kept.T, kept.T.roll(1, dims=1)]))
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(2000)


@pytest.mark.parametrize("channels", [1, 3, 130, 300])
def test_dropblock_is_the_same_in_any_order_of_memory(channels: int) -> None:
    x = torch.rand(2, channels, 13, 17) + 0.1
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for inplace in (False, True):
            torch.manual_seed(3)
            given = x.clone(memory_format=memory_format)
            result = DropBlock(5, 0.8, inplace).train()(given)
            assert (result.data_ptr() == given.data_ptr()) == inplace
            results.append(result)
    assert all(torch.equal(result, results[0]) for result in results)
    dropped = results[0] == 0
    assert 0.05 < dropped.float().mean() < 0.4
    assert dropped.any(dim=(0, 2, 3)).sum() >= 0.5 * channels


def test_other_devices_draw_from_the_same_distribution() -> None:
    torch.manual_seed(0)
    drop, ones = DropBlock(7, 0.82).train(), torch.ones(100, 20, 24, 24)
    kept = drop._draw_on_device(ones)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx((drop(ones) > 0).float().mean().item(), abs=0.005)
    assert kept[..., 12, 12].mean().item() == pytest.approx(
        (drop(ones) > 0)[..., 12, 12].float().mean().item(), abs=5 * math.sqrt(2 * 0.25 / 2000)
    )


def test_gradients_pass_where_units_are_kept() -> None:
    block = ConvBlock(2, 3, 3, 0.6).double()
    x = torch.randn(2, 2, 6, 7, dtype=torch.double, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        result: torch.Tensor = block(x)
        return result

    assert torch.autograd.gradcheck(function, x)


def with_statistics(network: torch.nn.Module) -> torch.nn.Module:
    """Give batch normalisation other values than at the start, where folding would do nothing."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.1, 1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return network


@pytest.mark.parametrize("arch", ["sa_unet", "unet"])
def test_folding_changes_no_logit(arch: str) -> None:
    network = with_statistics(build_model(Architecture(arch=arch, base_width=4)))  # type: ignore[arg-type]
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 32, 40)
    copy = folded(network.train())
    assert network.training and not copy.training
    expected = network.eval()(x)
    assert expected.std() > 0.01
    assert torch.allclose(copy(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copy.modules())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_no_logit_depends_on_pixels_beyond_the_receptive_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    # Averages let every pixel through that a maximum might choose; weights without signs cancel nothing.
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    network = build_model(Architecture(base_width=1, dropblock_keep=1)).double().eval()
    for name, value in network.named_parameters():
        value.data = value.data.abs() + 0.01
        if "1.conv.weight" in name and value.shape[2] == 7:
            value.data *= 1e-9  # attention's sigmoid must not saturate
    radii = []
    for position in range(8):
        x = torch.rand(1, 3, 240, 32, dtype=torch.double, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x)[0, 0, 112 + position, 16], x)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
        radii += [112 + position - int(rows.min()), int(rows.max()) - 112 - position]
    assert max(radii) == RECEPTIVE_RADIUS


def test_networks_compute_channels_last_whatever_they_are_given() -> None:
    network = build_model(Architecture(base_width=2)).eval()
    seen: list[bool] = []
    for module in network.modules():
        if isinstance(module, ConvBlock):
            module.register_forward_hook(
                lambda _module, _input, output: seen.append(
                    output.is_contiguous(memory_format=torch.channels_last)
                )
            )
    x = torch.rand(1, 3, 16, 24)
    assert torch.equal(network(x), network(x.contiguous(memory_format=torch.channels_last)))
    assert len(seen) == 28 and all(seen)


def test_dropblock_rescales_by_count_over_kept() -> None:
    torch.manual_seed(0)
    out = DropBlock(3, 0.8).train()(torch.ones(2, 3, 16, 16))
    kept = int((out > 0).sum())
    assert 0 < kept < out.numel()
    assert torch.allclose(out[out > 0], torch.tensor(out.numel() / kept))


def test_dropped_units_form_whole_blocks_within_their_map() -> None:
    torch.manual_seed(0)
    block = 3
    zero = DropBlock(block, 0.9).train()(torch.ones(20, 4, 12, 17)) == 0
    assert zero.any()
    # Morphological opening by the block: what is dropped is a union of blocks inside the map.
    inside = -F.max_pool2d(-zero.float(), block, stride=1)
    padding = (block - 1,) * 4
    reopened = F.max_pool2d(F.pad(inside, padding), block, stride=1) > 0
    assert torch.equal(reopened, zero)


def test_channels_draw_their_own_blocks() -> None:
    torch.manual_seed(0)
    out = DropBlock(7, 0.8).train()(torch.ones(1, 2, 64, 64))
    assert not torch.equal(out[0, 0], out[0, 1])


def test_dropblock_repeats_with_the_generators_state() -> None:
    x = torch.ones(2, 4, 32, 32)
    drop = DropBlock(7, 0.8).train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(drop(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], drop(x))


def test_everything_may_be_dropped() -> None:
    torch.manual_seed(0)
    out = DropBlock(2, 1e-6).train()(torch.ones(1, 1, 2, 2))
    assert torch.equal(out, torch.zeros(1, 1, 2, 2))


def test_dropblock_refuses_impossible_settings() -> None:
    for block, keep in ((0, 0.5), (7, 0.0), (7, 1.5)):
        with pytest.raises(ValueError, match="block_size"):
            DropBlock(block, keep)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.6, 1.0])
def test_bernoulli_positions_are_independent_trials(probability: float) -> None:
    torch.manual_seed(0)
    count = 300
    trials = np.zeros((2000, count), bool)
    for row in trials:
        positions = bernoulli_positions(count, probability)
        assert np.all(np.diff(positions) > 0)
        row[positions] = True
    error = 5 * math.sqrt(probability * (1 - probability) / 2000) + 1e-12
    assert np.abs(trials.mean(axis=0) - probability).max() <= error  # each position alike
    neighbours = (trials[:, 1:] & trials[:, :-1]).mean()
    assert neighbours == pytest.approx(probability**2, abs=5 * probability / math.sqrt(trials.size) + 1e-12)
