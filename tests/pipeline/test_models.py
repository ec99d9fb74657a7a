"""Networks and their blocks against the papers' figures."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.models.blocks import ConvBlock, DropBlock, SpatialAttention, bernoulli_positions
from pipeline.models.registry import Architecture, build_model
from pipeline.models.sa_unet import SAUNet
from pipeline.models.unet import UNet


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
