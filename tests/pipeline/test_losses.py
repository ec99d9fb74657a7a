"""Loss terms against hand-made values."""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.losses import LossWeights, segmentation_loss, soft_dice_loss

EVEN = torch.zeros(1, 1, 2, 2)  # p = ½ everywhere
TARGET = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None]


def test_dice_by_hand() -> None:
    # overlap ½, Σp = 2, Σt = 1
    assert soft_dice_loss(EVEN, TARGET, epsilon=0).item() == pytest.approx(1 - 2 * 0.5 / 3)
    assert soft_dice_loss(EVEN, TARGET, epsilon=1).item() == pytest.approx(1 - 2 / 4)


def test_loss_is_the_weighted_mean_of_its_terms() -> None:
    bce, dice = math.log(2), soft_dice_loss(EVEN, TARGET).item()
    for a, b in ((1, 0), (0, 1), (1, 1), (3, 1)):
        loss = segmentation_loss(EVEN, TARGET, LossWeights(bce=a, dice=b)).item()
        assert loss == pytest.approx((a * bce + b * dice) / (a + b))


def test_a_perfect_prediction_costs_nothing() -> None:
    assert segmentation_loss(40 * (2 * TARGET - 1), TARGET, LossWeights()).item() == pytest.approx(
        0, abs=1e-6
    )
    empty = torch.zeros_like(TARGET)
    assert segmentation_loss(torch.full_like(EVEN, -40), empty, LossWeights()).item() == pytest.approx(0)


def test_half_precision_logits_are_computed_in_single() -> None:
    assert segmentation_loss(EVEN.bfloat16(), TARGET, LossWeights()).dtype == torch.float32


def test_no_term_at_all_is_refused() -> None:
    with pytest.raises(ValidationError, match="both 0"):
        LossWeights(bce=0, dice=0)
