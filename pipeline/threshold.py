"""From which probability on a pixel is called vessel: a number, or fitted on validation pixels."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.metrics.ranking import check_ranking

Threshold = Annotated[float, Field(gt=0, lt=1)] | Literal["validation"]
"""Probability from which on a pixel is vessel, or `validation`: the F1-maximal one on validation images."""

FitSet = Literal["validation", "development"]
"""What is fitted on: the validation images, or these and the training images, where few validation images say
too little (optimal thresholds of single DRIVE images lie between 0.15 and 0.75)."""

_CANDIDATES = np.arange(1, 1000) / 1000


def best_f1_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Find the threshold in 0.001, 0.002, …, 0.999 with the largest F1 of `scores >= threshold`.

    Thousandths suffice for a threshold fitted on a handful of images. Among equals the one nearest to 0.5
    wins.

    Args:
        scores: float [n], 0..1.
        labels: bool [n], both classes present.

    Raises:
        ValueError: shapes differ, a score is not finite, or a class is missing.
    """
    check_ranking(scores, labels)
    # F1 = 2 TP / (TP + FP + TP + FN) = 2 TP / (marked pixels + vessel pixels)
    vessel_scores = np.sort(scores[labels])
    all_scores = np.sort(scores)
    hits = len(vessel_scores) - np.searchsorted(vessel_scores, _CANDIDATES, side="left")
    marked = len(all_scores) - np.searchsorted(all_scores, _CANDIDATES, side="left")
    f1 = 2 * hits / (marked + len(vessel_scores))
    best = _CANDIDATES[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
