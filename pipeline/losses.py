"""Losses on logits against soft or binary targets.

Two of the terms look at centrelines. They cannot stand alone (a mask could be thick everywhere, or mark
everything), and by default they are off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator
from skimage.morphology import skeletonize
from torch import Tensor
from torch.nn import functional as F

from pipeline.schema import Strict

SKELETON_ITERATIONS = 5
"""Erosions of a soft skeleton: enough for vessels up to 12 pixels wide, the widest of DRIVE."""

SKELETON_CUT = 0.25
"""Fraction of vessel from which on a pixel of the truth belongs to the mask that is thinned.

A capillary that a rotation spreads over two pixels falls below ½: on six turned masks of DRIVE the skeletons
of `target >= 0.5` lay in 207 pieces each, those of 0.25 in 4.2, the untouched masks in 4.3.
"""

TUBE_RADIUS = 2
"""Pixels by which a truth's skeleton is widened for the skeleton recall, as in the paper."""

EPSILON = 1.0
"""Pixels added to both sides of every ratio, which keep a batch without vessels defined."""

Weight = Annotated[float, Field(ge=0)]

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class LossWeights(Strict):
    """Weights of the loss's terms; only their ratio matters. Equal weights: the mean, as in the paper.

    Attributes:
        bce: of binary cross-entropy.
        dice: of `soft_dice_loss`.
        cldice: of `soft_cldice_loss`.
        skeleton_recall: of `skeleton_recall_loss`.
    """

    bce: Weight = 1.0
    dice: Weight = 1.0
    cldice: Weight = 0.0
    skeleton_recall: Weight = 0.0

    @model_validator(mode="after")
    def _some_pixel_term(self) -> "LossWeights":
        if self.bce + self.dice <= 0:
            raise ValueError(
                "bce and dice are both 0; give at least one of them a positive weight (the terms on "
                "centrelines alone do not say how wide a vessel is)"
            )
        return self


# ----------------------------------------------------------------------------------------------------------
# Soft Dice loss (Sudre et al. 2017, arXiv 1707.03237, equation for two classes, vessel term), with p = σ(z):
#   D = 1 − (2 Σ p t + ε) / (Σ p + Σ t + ε)
# summed over the whole batch, so that a crop with hardly a vessel does not dominate.
def soft_dice_loss(logits: Tensor, targets: Tensor, epsilon: float = EPSILON) -> Tensor:
    """One minus the soft Dice coefficient of the batch.

    Args:
        logits: [N, 1, H, W].
        targets: [N, 1, H, W], 0..1.
        epsilon: keeps an empty batch defined (loss 0 for an empty prediction).

    Returns:
        Scalar, 0..1.
    """
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum()
    return 1 - (2 * overlap + epsilon) / (probabilities.sum() + targets.sum() + epsilon)


class _Extremum(torch.autograd.Function):
    """Maximum (or minimum) of every pixel and its two neighbours along one dimension.

    Whole-array comparisons, forward and backward: on the CPU three times as fast as torch's max-pooling of
    one channel. The gradient goes to the pixel itself if it is extreme, else to the one before, else after.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, largest: bool) -> Tensor:
        extremum = torch.maximum if largest else torch.minimum
        length = x.shape[dim] - 1
        y = x.clone()
        extremum(y.narrow(dim, 1, length), x.narrow(dim, 0, length), out=y.narrow(dim, 1, length))
        extremum(y.narrow(dim, 0, length), x.narrow(dim, 1, length), out=y.narrow(dim, 0, length))
        ctx.save_for_backward(x, y)
        ctx.dim = dim
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        dim, length = ctx.dim, x.shape[ctx.dim] - 1
        passed_on = gradient * (x == y)
        rest = gradient - passed_on
        from_next = rest.narrow(dim, 1, length) * (x.narrow(dim, 0, length) == y.narrow(dim, 1, length))
        passed_on.narrow(dim, 0, length).add_(from_next)
        rest.narrow(dim, 1, length).sub_(from_next)
        passed_on.narrow(dim, 1, length).add_(rest.narrow(dim, 0, length))
        return passed_on, None, None


def _pool(image: Tensor, *, largest: bool) -> Tensor:
    """Maximum or minimum over 3 × 3 pixels of [N, C, H, W]; the square is separable."""
    rows: Tensor = _Extremum.apply(image, 2, largest)
    pooled: Tensor = _Extremum.apply(rows, 3, largest)
    return pooled


# ----------------------------------------------------------------------------------------------------------
# Soft skeleton (Shit et al. 2021, arXiv 2003.07311, algorithm 1): what an opening takes away, at every depth
# of erosion.  With E, D the minimum and maximum over 3 × 3 pixels and I_0 = I, I_j = E(I_{j−1}):
#   r_j = max(0, I_j − D(E(I_j))),   S_0 = r_0,   S_j = S_{j−1} + (1 − S_{j−1}) r_j,   j = 1 … k
def soft_skeleton(image: Tensor, iterations: int = SKELETON_ITERATIONS) -> Tensor:
    """Thin a soft mask, differentiably.

    Args:
        image: [N, 1, H, W], 0..1.
        iterations: k; vessels wider than 2k + 2 pixels leave no skeleton.

    Returns:
        [N, 1, H, W], 0..1.
    """
    eroded = _pool(image, largest=False)
    skeleton = (image - _pool(eroded, largest=True)).relu()
    for _ in range(iterations):
        image, eroded = eroded, _pool(eroded, largest=False)
        residue = (image - _pool(eroded, largest=True)).relu()
        skeleton = skeleton + (1 - skeleton) * residue
    return skeleton


# ----------------------------------------------------------------------------------------------------------
# Soft clDice (the same, algorithm 2), with p = σ(z), S the soft skeleton, summed over the whole batch:
#   Tprec = (Σ S(p) t + ε) / (Σ S(p) + ε),   Tsens = (Σ S(t) p + ε) / (Σ S(t) + ε)
#   L = 1 − 2 Tprec Tsens / (Tprec + Tsens)
def soft_cldice_loss(
    logits: Tensor,
    targets: Tensor,
    skeleton: Tensor,
    iterations: int = SKELETON_ITERATIONS,
    epsilon: float = EPSILON,
) -> Tensor:
    """One minus the soft centreline Dice of the batch.

    The truth is thinned softly like the prediction: a capillary that is only a fraction of its pixels would
    vanish at a cut of ½, and a perfect prediction of a soft target is judged as what it is.

    Args:
        logits: [N, 1, H, W].
        targets: [N, 1, H, W], 0..1.
        skeleton: S(t), `soft_skeleton` of the targets.
        iterations: of the prediction's skeleton, see `soft_skeleton`.
        epsilon: keeps an empty batch defined (loss 0 for an empty prediction).

    Returns:
        Scalar, 0..1.
    """
    probabilities = logits.sigmoid()
    found = soft_skeleton(probabilities, iterations)
    precision = ((found * targets).sum() + epsilon) / (found.sum() + epsilon)
    sensitivity = ((skeleton * probabilities).sum() + epsilon) / (skeleton.sum() + epsilon)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


# ----------------------------------------------------------------------------------------------------------
# Skeleton recall (Kirchhoff et al. 2024, arXiv 2404.03010), with p = σ(z) and T the tube: the skeleton of the
# binary truth, widened by two pixels and cut to the truth again.  Over the whole batch:
#   L = 1 − (Σ T p + ε) / (Σ T + ε)
def skeleton_recall_loss(logits: Tensor, tube: Tensor, epsilon: float = EPSILON) -> Tensor:
    """One minus the share of the truth's widened skeleton that is found.

    Args:
        logits: [N, 1, H, W].
        tube: T, `skeleton_tube` of the targets.
        epsilon: keeps a batch without vessels defined (loss 0).

    Returns:
        Scalar, 0..1.
    """
    return 1 - ((tube * logits.sigmoid()).sum() + epsilon) / (tube.sum() + epsilon)


def skeleton_tube(targets: Tensor) -> Tensor:
    """Widen the skeleton of `targets >= SKELETON_CUT` by `TUBE_RADIUS` and weigh it by the targets.

    Computed by the CPU, 0.5 ms for 160² pixels: no gradient goes to a truth.

    Args:
        targets: [N, 1, H, W], 0..1.

    Returns:
        The same shape, type and device, 0..1.
    """
    masks = targets.detach().cpu().numpy()[:, 0] >= SKELETON_CUT  # [N, H, W]
    tubes = np.empty(masks.shape, np.uint8)
    for tube, mask in zip(tubes, masks, strict=True):
        cv2.dilate(skeletonize(mask).astype(np.uint8), _CROSS, dst=tube, iterations=TUBE_RADIUS)
    return torch.from_numpy(tubes)[:, None].to(targets) * targets  # [N, 1, H, W]


@dataclass(frozen=True, eq=False)
class _Truth:
    """What predictions are compared with; the parts that the weights ask for, else None."""

    targets: Tensor
    skeleton: Tensor | None
    tube: Tensor | None

    @classmethod
    def of(cls, targets: Tensor, weights: LossWeights) -> "_Truth":
        with torch.no_grad():
            skeleton = soft_skeleton(targets) if weights.cldice else None
            tube = skeleton_tube(targets) if weights.skeleton_recall else None
        return cls(targets, skeleton, tube)


def segmentation_loss(logits: Tensor, targets: Tensor, weights: LossWeights) -> Tensor:
    """Weighted mean of the terms, over every pixel of the frame.

    The black border outside the field of view counts, as in the papers on SA-UNet.

    Args:
        logits: [N, 1, H, W]; computed in float32 whatever the type.
        targets: [N, 1, H, W], 0..1.
        weights: of the terms; a term on centrelines of weight 0 is not computed.

    Returns:
        Scalar float32.
    """
    return _weighted_mean(logits, _Truth.of(targets, weights), weights)


def segmentation_losses(predictions: Sequence[Tensor], targets: Tensor, weights: LossWeights) -> Tensor:
    """Compute `segmentation_loss` of several predictions of the same truth, which is thinned only once.

    Args:
        predictions: logits [N, 1, H, W], at least one.
        targets: [N, 1, H, W], 0..1.
        weights: of the terms.

    Returns:
        Float32, one value for each prediction.
    """
    truth = _Truth.of(targets, weights)
    return torch.stack([_weighted_mean(logits, truth, weights) for logits in predictions])


def _weighted_mean(logits: Tensor, truth: _Truth, weights: LossWeights) -> Tensor:
    logits, targets = logits.float(), truth.targets
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets)
    total = weights.bce * cross_entropy + weights.dice * soft_dice_loss(logits, targets)
    if truth.skeleton is not None:
        total = total + weights.cldice * soft_cldice_loss(logits, targets, truth.skeleton)
    if truth.tube is not None:
        total = total + weights.skeleton_recall * skeleton_recall_loss(logits, truth.tube)
    return total / (weights.bce + weights.dice + weights.cldice + weights.skeleton_recall)


# ----------------------------------------------------------------------------------------------------------
# Deep supervision (Lee et al. 2015, arXiv 1409.5185: companion losses of hidden layers), with weights
# halved from level to level, for the losses L_0 (of the network's own prediction), L_1, …:
#   L = Σ_k 2^{−k} L_k / Σ_k 2^{−k}
def deep_supervision_loss(losses: Tensor) -> Tensor:
    """Weighted mean of the losses of several predictions.

    Args:
        losses: [K], K ≥ 1, the most important first; one alone is returned as it is.

    Returns:
        Scalar.
    """
    shares = 0.5 ** torch.arange(len(losses), dtype=losses.dtype, device=losses.device)
    return (shares * losses).sum() / shares.sum()
