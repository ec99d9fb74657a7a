"""How well scores rank vessel pixels above background: exact, threshold-free figures of float scores."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Labels = NDArray[np.bool_]


# ----------------------------------------------------------------------------------------------------------
# Area under the ROC curve as the Mann–Whitney statistic (Hanley & McNeil 1982):
#   AUC = P(score of a vessel pixel > score of a background pixel) + ½ P(equal)
def roc_auc(scores: Scores, labels: Labels) -> float:
    """Area under the ROC curve; ties count half.

    Args:
        scores: float [n], finite.
        labels: bool [n], both classes present.

    Raises:
        ValueError: shapes differ, a score is not finite, or a class is missing.
    """
    check_ranking(scores, labels)
    negatives = np.sort(scores[~labels])
    positives = np.sort(scores[labels])  # sorted queries keep the binary search in cache
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    twice_pairs_in_order = int(below.sum(dtype=np.int64)) + int(not_above.sum(dtype=np.int64))
    return twice_pairs_in_order / (2 * len(positives) * len(negatives))


# ----------------------------------------------------------------------------------------------------------
# Average precision: AP = Σ_k (R_k − R_{k−1}) P_k over falling thresholds, without interpolation.
def average_precision(scores: Scores, labels: Labels) -> float:
    """Area under the precision–recall curve as a step function; tied scores enter together.

    Args:
        scores: float [n], finite.
        labels: bool [n], both classes present.

    Raises:
        ValueError: shapes differ, a score is not finite, or a class is missing.
    """
    check_ranking(scores, labels)
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    group_ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    hits = np.cumsum(labels[order], dtype=np.int64)[group_ends]
    precision = hits / (group_ends + 1)
    gained = np.diff(hits, prepend=0)
    return float(np.sum(gained * precision) / hits[-1])


def check_ranking(scores: Scores, labels: Labels) -> None:
    """Make sure that scores and labels fit, are finite, and hold both classes.

    Raises:
        ValueError: they do not.
    """
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != np.bool_:
        raise ValueError(
            f"got scores {scores.shape} and {labels.dtype} labels {labels.shape}; expected [n] and bool [n]"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if labels.all() or not labels.any():
        raise ValueError(f"all {labels.size} pixels are of one class; ranking needs vessels and background")
