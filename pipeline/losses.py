"""Losses on logits against soft or binary targets."""

from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.schema import Strict

Weight = Annotated[float, Field(ge=0)]


class LossWeights(Strict):
    """Weights of the loss's terms; only their ratio matters. Equal weights: the mean, as in the paper."""

    bce: Weight = 1.0
    dice: Weight = 1.0

    @model_validator(mode="after")
    def _some_term(self) -> "LossWeights":
        if self.bce + self.dice <= 0:
            raise ValueError("bce and dice are both 0; give at least one of them a positive weight")
        return self


# ----------------------------------------------------------------------------------------------------------
# Soft Dice loss (Sudre et al. 2017, arXiv 1707.03237, equation for two classes, vessel term), with p = σ(z):
#   D = 1 − (2 Σ p t + ε) / (Σ p + Σ t + ε)
# summed over the whole batch, so that a crop with hardly a vessel does not dominate.
def soft_dice_loss(logits: Tensor, targets: Tensor, epsilon: float = 1.0) -> Tensor:
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


def segmentation_loss(logits: Tensor, targets: Tensor, weights: LossWeights) -> Tensor:
    """Weighted mean of binary cross-entropy and Dice loss, over every pixel of the frame.

    The black border outside the field of view counts, as in the papers on SA-UNet.

    Args:
        logits: [N, 1, H, W]; computed in float32 whatever the type.
        targets: [N, 1, H, W], 0..1.
        weights: of the two terms.

    Returns:
        Scalar float32.
    """
    logits = logits.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets)
    total = weights.bce * cross_entropy + weights.dice * soft_dice_loss(logits, targets)
    return total / (weights.bce + weights.dice)
