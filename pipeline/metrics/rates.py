"""Figures of confusion counts, for one image, many images or many bootstrap draws at once.

Every function takes counts as an array [..., 4] in the order of `pipeline.metrics.pixel.Confusion`: true
positives, false positives, true negatives, false negatives; whole numbers or, for weighted sums, floats.
It gives float64 [...]. A quotient whose divisor is 0 is 0 (a prediction that marks nothing has precision 0):
no figure is ever NaN.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.number]
Figures = NDArray[np.float64]


def ratio(part: ArrayLike, whole: ArrayLike) -> Figures:
    """Divide element by element; 0 where `whole` is 0."""
    above, below = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


def harmonic_mean(a: ArrayLike, b: ArrayLike) -> Figures:
    """2 a b / (a + b); 0 where both are 0."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ratio(2 * first * second, first + second)


def sensitivity(counts: Counts) -> Figures:
    """TP / (TP + FN)."""
    hits, _, _, misses = _split(counts)
    return ratio(hits, hits + misses)


def specificity(counts: Counts) -> Figures:
    """TN / (TN + FP)."""
    _, alarms, quiet, _ = _split(counts)
    return ratio(quiet, quiet + alarms)


def precision(counts: Counts) -> Figures:
    """TP / (TP + FP)."""
    hits, alarms, _, _ = _split(counts)
    return ratio(hits, hits + alarms)


def accuracy(counts: Counts) -> Figures:
    """(TP + TN) / all."""
    hits, alarms, quiet, misses = _split(counts)
    return ratio(hits + quiet, hits + alarms + quiet + misses)


def f1(counts: Counts) -> Figures:
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and sensitivity (= Dice coefficient)."""
    hits, alarms, _, misses = _split(counts)
    return ratio(2 * hits, 2 * hits + alarms + misses)


def paper_f1(counts: Counts) -> Figures:
    """Harmonic mean of precision and *specificity*; see `pipeline.metrics.pixel.paper_f1`."""
    return harmonic_mean(precision(counts), specificity(counts))


def iou(counts: Counts) -> Figures:
    """TP / (TP + FP + FN), intersection over union (Jaccard 1901)."""
    hits, alarms, _, misses = _split(counts)
    return ratio(hits, hits + alarms + misses)


# ----------------------------------------------------------------------------------------------------------
# Matthews (1975), "Comparison of the predicted and observed secondary structure of T4 phage lysozyme":
#   MCC = (TP TN − FP FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN))
def mcc(counts: Counts) -> Figures:
    """Correlation of the two masks, in −1..1; 0 where a mask has one class only."""
    hits, alarms, quiet, misses = _split(counts)
    # the root of each factor, so that gigapixels do not overflow
    below = (
        np.sqrt(hits + alarms) * np.sqrt(hits + misses) * np.sqrt(quiet + alarms) * np.sqrt(quiet + misses)
    )
    return ratio(hits * quiet - alarms * misses, below)


RATES: Mapping[str, Callable[[Counts], Figures]] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
    "precision": precision,
    "accuracy": accuracy,
    "f1": f1,
    "paper_f1": paper_f1,
    "mcc": mcc,
    "iou": iou,
}
"""Name → figure, all that follow from confusion counts."""


def _split(counts: Counts) -> tuple[Figures, Figures, Figures, Figures]:
    values = np.asarray(counts, np.float64)
    return values[..., 0], values[..., 1], values[..., 2], values[..., 3]
