"""Loss terms against hand-made values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline import losses as losses_module
from pipeline.losses import (
    LossWeights,
    deep_supervision_loss,
    segmentation_loss,
    segmentation_losses,
    skeleton_recall_loss,
    skeleton_tube,
    soft_cldice_loss,
    soft_dice_loss,
    soft_skeleton,
)

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


def test_weights_of_zero_leave_the_loss_bit_for_bit() -> None:
    logits, targets = random_pair()
    bce = F.binary_cross_entropy_with_logits(logits, targets)
    before = (1.0 * bce + 2.0 * soft_dice_loss(logits, targets)) / 3.0
    after = segmentation_loss(logits, targets, LossWeights(bce=1, dice=2, cldice=0, skeleton_recall=0))
    assert torch.equal(before, after)


def test_terms_on_centrelines_enter_with_their_weights() -> None:
    logits, targets = random_pair()
    weights = LossWeights(bce=1, dice=2, cldice=3, skeleton_recall=4)
    expected = (
        F.binary_cross_entropy_with_logits(logits, targets)
        + 2 * soft_dice_loss(logits, targets)
        + 3 * soft_cldice_loss(logits, targets, soft_skeleton(targets))
        + 4 * skeleton_recall_loss(logits, skeleton_tube(targets))
    ) / 10
    assert segmentation_loss(logits, targets, weights).item() == pytest.approx(expected.item())


def test_terms_on_centrelines_do_not_stand_alone() -> None:
    with pytest.raises(ValidationError, match="both 0"):
        LossWeights(bce=0, dice=0, cldice=1, skeleton_recall=1)


def test_the_skeleton_of_a_bar_is_its_middle_line() -> None:
    bar = torch.zeros(1, 1, 11, 15)
    bar[..., 4:7, :] = 1  # 3 rows, from edge to edge
    line = torch.zeros_like(bar)
    line[..., 5, :] = 1
    assert torch.equal(soft_skeleton(bar), line)
    assert torch.equal(soft_skeleton(line), line)
    assert torch.equal(soft_skeleton(bar / 2), line / 2)
    assert soft_skeleton(bar, iterations=0).sum() == 0  # wider than two pixels


@given(
    image=arrays(np.float64, st.tuples(st.integers(3, 12), st.integers(3, 12)), elements=st.floats(0, 1)),
    iterations=st.integers(0, 4),
)
@settings(max_examples=50, deadline=None)
def test_the_soft_skeleton_is_that_of_the_equations(image: np.ndarray, iterations: int) -> None:
    found = soft_skeleton(torch.from_numpy(image)[None, None], iterations)[0, 0].numpy()
    np.testing.assert_allclose(found, equations_skeleton(image, iterations), rtol=0, atol=1e-12)


def test_cldice_is_that_of_the_equations() -> None:
    logits, targets = random_pair(torch.float64)
    p, t = (1 / (1 + np.exp(-logits.numpy())))[:, 0], targets.numpy()[:, 0]
    skeleton_p, skeleton_t = (np.stack([equations_skeleton(image, 5) for image in x]) for x in (p, t))
    precision = ((skeleton_p * t).sum() + 1) / (skeleton_p.sum() + 1)
    sensitivity = ((skeleton_t * p).sum() + 1) / (skeleton_t.sum() + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    assert soft_cldice_loss(logits, targets, soft_skeleton(targets)).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_cldice_of_a_broken_line_by_hand() -> None:
    line = torch.zeros(1, 1, 9, 20)
    line[..., 4, :] = 1
    broken = line.clone()
    broken[..., 4, 15:] = 0  # Tprec = 1, Tsens = ¾
    loss = soft_cldice_loss(80 * (2 * broken - 1), line, soft_skeleton(line), epsilon=0).item()
    assert loss == pytest.approx(1 - 2 * 0.75 / 1.75)


def test_gradients_of_the_soft_skeleton_are_those_of_differences() -> None:
    # equal values have no single gradient: an image without any
    image = torch.from_numpy(np.random.default_rng(0).permutation(56).reshape(1, 1, 7, 8) / 56)
    assert torch.autograd.gradcheck(soft_skeleton, (image.requires_grad_(),), eps=1e-6)


def test_gradients_follow_max_pooling() -> None:
    image = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(1))
    pooled = -F.max_pool2d(-image, 3, 1, 1)
    plain = (weight * (image - F.max_pool2d(pooled, 3, 1, 1)).relu()).sum()
    ours = (weight * soft_skeleton(image, iterations=0)).sum()
    assert torch.equal(ours, plain)
    (expected,), (found,) = torch.autograd.grad(plain, image), torch.autograd.grad(ours, image)
    torch.testing.assert_close(found, expected)


def test_equal_neighbours_share_no_gradient_twice() -> None:
    # the pooled value of a flat image is passed on once, so that the gradient's sum stays
    image = torch.full((1, 1, 6, 6), 0.5, requires_grad=True)
    skeleton = soft_skeleton(image, iterations=2) + image
    (gradient,) = torch.autograd.grad(skeleton.sum(), image)
    assert gradient.sum() == pytest.approx(36)


def test_skeleton_recall_by_hand() -> None:
    targets = torch.zeros(1, 1, 15, 15)
    targets[..., 3:12, :] = 1  # 9 rows: the skeleton is the middle row, the tube five rows of it
    tube = skeleton_tube(targets)
    assert torch.equal(tube[0, 0, :, 7], torch.tensor([0.0] * 5 + [1.0] * 5 + [0.0] * 5))
    # a prediction of the tube alone is perfect; of its upper two rows it is 2/5 in every column
    assert skeleton_recall_loss(80 * (2 * tube - 1), tube).item() == pytest.approx(0, abs=1e-6)
    upper = tube.clone()
    upper[..., 7:, :] = 0
    share = (upper.sum() / tube.sum()).item()
    loss = skeleton_recall_loss(80 * (2 * upper - 1), tube, epsilon=0).item()
    assert loss == pytest.approx(1 - share)


def test_the_tube_stays_within_the_truth_and_keeps_capillaries() -> None:
    targets = torch.zeros(2, 1, 12, 12)
    targets[0, 0, 5:7, :] = 0.4  # a capillary of less than a pixel that lies between two rows
    targets[1, 0, 3, :] = 0.2  # hardly there
    tube = skeleton_tube(targets)
    assert torch.equal(tube[0], targets[0])
    assert tube[1].sum() == 0
    assert tube.dtype == targets.dtype


def test_frames_without_vessels_cost_nothing_and_stay_finite() -> None:
    empty = torch.zeros(2, 1, 16, 16)
    logits = torch.full_like(empty, -80).requires_grad_()
    weights = LossWeights(cldice=1, skeleton_recall=1)
    loss = segmentation_loss(logits, empty, weights)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("term", ["cldice", "skeleton_recall"])
def test_descending_closes_a_gap(term: str) -> None:
    truth = torch.zeros(1, 1, 16, 32)
    truth[..., 7:9, :] = 1
    logits = 2 * truth - 1
    logits[..., 7:9, 14:18] = -1
    logits.requires_grad_()
    segmentation_loss(logits, truth, LossWeights(bce=1e-9, dice=0, **{term: 1.0})).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 7:9, 14:18] < 0).all()


def random_pair(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 1, 24, 20, generator=generator, dtype=dtype)
    return logits, torch.rand(2, 1, 24, 20, generator=generator, dtype=dtype)


def equations_skeleton(image: np.ndarray, iterations: int) -> np.ndarray:
    """Algorithm 1 of arXiv 2003.07311 in numpy; a border of copies changes no minimum or maximum."""

    def pool(x: np.ndarray, extremum: Callable[..., np.ndarray]) -> np.ndarray:
        padded = np.pad(x, 1, mode="edge")
        return extremum(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)), axis=(2, 3))

    def residue(x: np.ndarray) -> np.ndarray:
        return np.maximum(0, x - pool(pool(x, np.min), np.max))

    skeleton = residue(image)
    for _ in range(iterations):
        image = pool(image, np.min)
        skeleton = skeleton + (1 - skeleton) * residue(image)
    return skeleton


def test_deep_supervision_halves_the_weight_from_level_to_level() -> None:
    generator = torch.Generator().manual_seed(1)
    predictions = [torch.randn(1, 1, 2, 2, generator=generator) for _ in range(3)]
    losses = segmentation_losses(predictions, TARGET, LossWeights())
    first, second, third = losses.tolist()
    assert deep_supervision_loss(losses).item() == pytest.approx((4 * first + 2 * second + third) / 7)


def test_every_prediction_has_its_own_loss_and_the_truth_is_thinned_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = LossWeights(bce=1, dice=2, cldice=3, skeleton_recall=4)
    targets = (torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    generator = torch.Generator().manual_seed(1)
    predictions = [torch.randn(2, 1, 24, 24, generator=generator) for _ in range(3)]
    singly = torch.stack([segmentation_loss(z, targets, weights) for z in predictions])
    calls: list[str] = []

    def counted(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        original = getattr(losses_module, name)

        def count(*args: torch.Tensor) -> torch.Tensor:
            calls.append(name)
            return original(*args)

        return count

    for name in ("soft_skeleton", "skeleton_tube"):
        monkeypatch.setattr(losses_module, name, counted(name))
    assert torch.equal(segmentation_losses(predictions, targets, weights), singly)
    assert sorted(calls) == ["skeleton_tube"] + ["soft_skeleton"] * (1 + len(predictions))
    calls.clear()
    segmentation_losses(predictions, targets, LossWeights())
    assert not calls


def test_one_prediction_costs_the_same_bits_with_deep_supervision() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    targets = (torch.rand(2, 1, 8, 8) < 0.2).float()
    plain = segmentation_loss(logits, targets, LossWeights())
    deep = deep_supervision_loss(segmentation_losses([logits], targets, LossWeights()))
    assert torch.equal(plain, deep)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (plain, deep)))
