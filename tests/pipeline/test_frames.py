"""Scaling, padding and normalising frames, the way back, and channel statistics."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.frames import (
    Statistics,
    Views,
    native_probability,
    network_input,
    predict_logits,
    scale_frame,
    working_size,
)
from pipeline.training_data import input_statistics, working_frame

UNIT = Statistics(mean=(0, 0, 0), std=(1, 1, 1))


class RedLogit(nn.Module):
    """A network whose logit is the red channel plus a ramp to the right."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 8 == 0 and x.shape[3] % 8 == 0
        return x[:, :1] + self.slope * torch.arange(x.shape[3])


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((584, 565), 128, (128, 124)),
        ((565, 584), 128, (124, 128)),
        ((60, 30), 128, (128, 64)),
        ((2, 900), 90, (1, 90)),
        ((584, 565), "native", (584, 565)),
    ],
)
def test_the_long_side_gets_the_resolution(
    size: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    assert working_size(*size, resolution) == expected
    assert scale_frame(np.zeros((*size, 3), np.uint8), resolution).shape == (*expected, 3)


def test_thin_vessels_stay_as_fractions() -> None:
    vessels = np.zeros((64, 64), bool)
    vessels[:, 10] = True  # one pixel wide; a quarter of a working pixel
    frame = working_frame("thin", np.zeros((64, 64, 3), np.uint8), vessels, None, 16)
    assert set(frame.target[:, 2]) == {64}
    assert frame.fov.all()


def test_input_is_padded_with_black_and_normalised() -> None:
    statistics = Statistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    images = [np.full((5, 9, 3), 0.6, np.float32), np.full((8, 3, 3), 0.4, np.float32)]
    batch = network_input(images, statistics)
    assert batch.shape == (2, 3, 8, 16)
    assert batch.dtype == torch.float32
    assert torch.allclose(batch[0, :, 2, 3], torch.tensor([1.0, 1.6, 1.5]))
    assert torch.allclose(batch[0, :, 5, 0], torch.tensor([-0.2, -0.8, -1.5]))
    assert torch.allclose(batch[1, :, 7, 2], torch.tensor([0.6, 0.8, 0.5]))


@pytest.mark.parametrize("views", ["none", "flips", "dihedral"])
def test_prediction_undoes_padding_and_views(views: Views) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 10, 3), dtype=np.uint8)
    logits = predict_logits(RedLogit(), image, UNIT, views=views)
    assert np.allclose(logits.numpy(), image[..., 0] / 255, atol=1e-5)


def test_flips_average_probabilities() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    logits = predict_logits(RedLogit(slope=1.0), image, UNIT, views="flips")
    ramp = torch.arange(8.0).sigmoid()
    assert torch.allclose(logits.sigmoid(), ((ramp + ramp.flip(0)) / 2).expand(8, 8), atol=1e-5)


def test_all_eight_views_average_probabilities() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    logits = predict_logits(RedLogit(slope=1.0), image, UNIT, views="dihedral")
    ramp = torch.arange(8.0).sigmoid()
    across = (ramp + ramp.flip(0)) / 2
    assert torch.allclose(logits.sigmoid(), (across[None] + across[:, None]) / 2, atol=1e-5)


def test_probabilities_return_to_native_size() -> None:
    logits = torch.full((4, 6), -1e4)
    logits[:, 3:] = 1e4
    probability = native_probability(logits, 8, 12)
    assert probability.shape == (8, 12)
    assert probability.dtype == np.float32
    assert (probability[:, :5] == 0).all() and (probability[:, 7:] == 1).all()


def test_statistics_cover_the_field_of_view_only() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    fov = np.zeros((20, 20), bool)
    fov[5:15, 3:18] = True
    image[~fov] = 0
    frames = [
        working_frame("a", image, fov, fov, "native"),
        working_frame("b", 255 - image, fov, fov, "native"),
    ]
    inside = np.concatenate([image[fov], (255 - image)[fov]]) / 255
    statistics = input_statistics(frames)
    assert np.allclose(statistics.mean, inside.mean(axis=0))
    assert np.allclose(statistics.std, inside.std(axis=0))


def test_a_flat_channel_does_not_divide_by_zero() -> None:
    mask = np.ones((4, 4), bool)
    statistics = input_statistics([working_frame("x", np.full((4, 4, 3), 7, np.uint8), mask, None, "native")])
    assert min(statistics.std) == pytest.approx(1 / 255)


def test_no_pixel_to_count_is_an_error() -> None:
    none = np.zeros((4, 4), bool)
    with pytest.raises(UserError, match="field of view"):
        input_statistics([working_frame("x", np.zeros((4, 4, 3), np.uint8), none, none, "native")])


def test_statistics_want_a_positive_spread() -> None:
    with pytest.raises(ValidationError):
        Statistics(mean=(0, 0, 0), std=(1, 0, 1))
