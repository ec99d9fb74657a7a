"""ROC and precision–recall curves from level counts, thinned for files and plots."""

import heapq
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.metrics.pixel import LEVELS, LevelCounts

ROC_COLUMNS = ("threshold", "fpr", "tpr")
PR_COLUMNS = ("threshold", "recall", "precision")


def roc_curve(counts: LevelCounts, max_points: int | None = None) -> pd.DataFrame:
    """Points of the ROC curve for falling thresholds, from (0, 0) to (1, 1).

    Args:
        counts: pixels per level; both classes must occur.
        max_points: thin to at most so many points (≥ 2); None keeps every threshold at which something
            changes.

    Returns:
        Columns threshold, fpr, tpr. The first row marks nothing: its threshold lies one level above 1.

    Raises:
        UserError: when a class is empty.
    """
    thresholds, hits, alarms = _cumulate(counts)
    fpr = np.concatenate(([0.0], alarms / alarms[-1]))
    tpr = np.concatenate(([0.0], hits / hits[-1]))
    thresholds = np.concatenate(([LEVELS / (LEVELS - 1)], thresholds))
    keep = thin(fpr, tpr, max_points)
    return pd.DataFrame(dict(zip(ROC_COLUMNS, (thresholds[keep], fpr[keep], tpr[keep]), strict=True)))


def precision_recall_curve(counts: LevelCounts, max_points: int | None = None) -> pd.DataFrame:
    """Points of the precision–recall curve for falling thresholds, up to recall 1.

    Args:
        counts: pixels per level; both classes must occur.
        max_points: as in `roc_curve`.

    Returns:
        Columns threshold, recall, precision. No point is made up at recall 0, where precision is undefined.

    Raises:
        UserError: when a class is empty.
    """
    thresholds, hits, alarms = _cumulate(counts)
    recall = hits / hits[-1]
    precision = hits / (hits + alarms)
    keep = thin(recall, precision, max_points)
    return pd.DataFrame(dict(zip(PR_COLUMNS, (thresholds[keep], recall[keep], precision[keep]), strict=True)))


# ----------------------------------------------------------------------------------------------------------
# Line simplification of Ramer (1972) and Douglas & Peucker (1973), bounded by the number of points: the point
# farthest from the simplified line is added until there are enough.
def thin(x: NDArray[np.float64], y: NDArray[np.float64], max_points: int | None) -> NDArray[np.intp]:
    """Choose the points of a curve that keep its shape best.

    Args:
        x: float64 [n] abscissas in drawing order.
        y: float64 [n] ordinates.
        max_points: largest number of points to keep, ≥ 2; None keeps all.

    Returns:
        Indices into the curve, rising, first and last point included; every kept point is a true one.

    Raises:
        ValueError: when `max_points` is below 2.
    """
    if max_points is not None and max_points < 2:
        raise ValueError(f"a curve needs at least 2 points; got max_points={max_points}")
    if max_points is None or len(x) <= max_points:
        return np.arange(len(x))
    points = np.stack([x, y], axis=1)
    keep = [0, len(x) - 1]
    spans = [_farthest(points, 0, len(x) - 1)]
    while len(keep) < max_points and spans:
        _, first, middle, last = heapq.heappop(spans)
        keep.append(middle)
        for start, end in ((first, middle), (middle, last)):
            if end - start > 1:
                heapq.heappush(spans, _farthest(points, start, end))
    return np.array(sorted(keep), np.intp)


def _farthest(points: NDArray[np.float64], first: int, last: int) -> tuple[float, int, int, int]:
    """Find the point between two others that is farthest from their chord: (−distance, first, it, last)."""
    chord = points[last] - points[first]
    offsets = points[first + 1 : last] - points[first]
    along = np.clip(offsets @ chord / max(float(chord @ chord), np.finfo(float).tiny), 0.0, 1.0)
    distances = np.linalg.norm(offsets - along[:, None] * chord, axis=1)
    farthest = int(np.argmax(distances))
    return -float(distances[farthest]), first, first + 1 + farthest, last


def write_curve(path: Path, curve: pd.DataFrame) -> None:
    """Write a curve as CSV with six decimals; equal curves give equal bytes."""
    curve.to_csv(path, index=False, float_format="%.6f", lineterminator="\n")


def _cumulate(counts: LevelCounts) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds in falling order at which some pixel is added, with hits and false alarms up to there."""
    counts.require_both_classes()
    levels = np.flatnonzero(counts.positive + counts.negative)[::-1]
    hits = np.cumsum(counts.positive[levels])
    alarms = np.cumsum(counts.negative[levels])
    return levels / (LEVELS - 1), hits, alarms
