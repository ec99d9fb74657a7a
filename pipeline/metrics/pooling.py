"""Areas under curves of pooled pixels, as functions of how often each image is taken.

They are no sums over images, but what they need is prepared once, so that thousands of bootstrap draws cost
a few matrix products. For weights of 1 they equal `pipeline.metrics.pixel.auc` and `average_precision`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import Statistic, Weights
from pipeline.metrics.pixel import LevelCounts
from pipeline.metrics.rates import ratio

_CHUNK = 32  # draws at a time: 17 MB per table of 65,536 levels


# ----------------------------------------------------------------------------------------------------------
# The Mann–Whitney statistic of pooled images is a sum over pairs of images: with P_i, N_j the vessel and
# background pixels of images i and j, U_ij the pairs of them in order (ties half), and w the weights,
#   AUC(w) = Σ_ij w_i w_j U_ij / (Σ_i w_i P_i · Σ_j w_j N_j)
def pooled_auc(images: Sequence[LevelCounts]) -> Statistic:
    """Area under the ROC curve of pooled pixels; 0 where a class is empty."""
    positive, negative = _tables(images)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive @ below.T  # [images of vessels, images of background]
    vessels, background = positive.sum(axis=1), negative.sum(axis=1)

    def auc(weights: Weights) -> NDArray[np.float64]:
        in_order = ((weights @ pairs) * weights).sum(axis=-1)
        return ratio(in_order, (weights @ vessels) * (weights @ background))

    return auc


def pooled_average_precision(images: Sequence[LevelCounts]) -> Statistic:
    """Average precision of pooled pixels, as `pixel.average_precision` has it; 0 without vessels."""
    positive, negative = (table[:, ::-1] for table in _tables(images))  # falling thresholds
    used = positive.any(axis=0)  # no other level adds to the sum
    gained = np.ascontiguousarray(positive[:, used])
    hits = np.cumsum(gained, axis=1)
    marked = np.ascontiguousarray(hits + np.cumsum(negative, axis=1)[:, used])

    def average_precision(weights: Weights) -> NDArray[np.float64]:
        rows = weights.reshape(-1, weights.shape[-1])
        parts = [_step_area(chunk @ gained, chunk @ hits, chunk @ marked) for chunk in _chunks(rows)]
        return np.concatenate(parts).reshape(weights.shape[:-1])

    return average_precision


def _step_area(
    gained: NDArray[np.float64], hits: NDArray[np.float64], marked: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Σ_k (R_k − R_{k−1}) P_k from counts [draws, levels]; `hits` and `marked` are cumulative."""
    np.maximum(marked, 1, out=marked)  # where nothing is marked there are no hits either
    precision = np.divide(hits, marked, out=marked)
    return ratio(np.einsum("ij,ij->i", gained, precision), gained.sum(axis=1))


def _chunks(rows: Weights) -> list[Weights]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def _tables(images: Sequence[LevelCounts]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts per image and level: two float64 [images, 65536]."""
    positive = np.stack([counts.positive for counts in images]).astype(np.float64)
    negative = np.stack([counts.negative for counts in images]).astype(np.float64)
    return positive, negative
