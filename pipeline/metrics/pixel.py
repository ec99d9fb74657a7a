"""Pixel-wise agreement of a probability map with a binary truth, counted exactly.

Predictions are stored as 16-bit PNG, so a map has at most 65,536 levels. Two histograms over the levels
(vessel and background pixels) therefore hold everything that the metrics need: confusion counts at any
threshold, the area under the ROC curve and the average precision follow from them in whole-number
arithmetic. Pooling images is adding histograms; memory does not grow with the number of pixels.
(`pipeline.metrics.ranking` computes the same areas from float scores; tests hold the two equal.)

Where a metric is undefined:

* a region without vessel pixels, or without background pixels, raises `UserError` (no metric that compares
  the two classes has a meaning there, and a stand-in would spoil means);
* precision of a prediction that marks nothing is 0, so that F1 is 0 as well: nothing was found;
* the harmonic mean of two zeros is 0.

No metric is ever NaN.
"""

from dataclasses import asdict, dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics import rates

LEVELS = 65536
"""Number of levels of a stored probability; level k stands for probability k / 65535."""

LEVEL_PROBABILITIES: NDArray[np.float32] = np.arange(LEVELS, dtype=np.float32) / np.float32(LEVELS - 1)
"""Probability of each level, as `pipeline.images.read_probability` returns it: float32 [65536]."""


def threshold_level(threshold: float) -> int:
    """Smallest level whose probability is at least `threshold` (65536 when there is none).

    `level >= threshold_level(t)` selects the same pixels as `read_probability(path) >= t`.
    """
    return int(np.searchsorted(LEVEL_PROBABILITIES, np.float32(threshold), side="left"))


@dataclass(frozen=True)
class Confusion:
    """Counts of pixels by truth and prediction."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def count(cls, marked: NDArray[np.bool_], truth: NDArray[np.bool_], region: NDArray[np.bool_]) -> Self:
        """Count the pixels of one mask.

        Args:
            marked: bool [H, W].
            truth: bool [H, W], vessels.
            region: bool [H, W], the pixels that count.

        Raises:
            ValueError: when the types or shapes do not fit together.
        """
        arrays = (marked, truth, region)
        if any(array.dtype != np.bool_ or array.shape != truth.shape for array in arrays):
            found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
            raise ValueError(f"expected three bool arrays of one shape; got {found}")
        pixels = (marked & truth, marked & ~truth, ~marked & ~truth, ~marked & truth)
        return cls(*(int(np.count_nonzero(chosen & region)) for chosen in pixels))

    def __add__(self, other: "Confusion") -> "Confusion":
        """Pool two sets of pixels: every pixel weighs the same."""
        return Confusion(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.true_negative + other.true_negative,
            self.false_negative + other.false_negative,
        )

    def as_array(self) -> NDArray[np.int64]:
        """Give the counts as int64 [4] in the order of the fields, as `pipeline.metrics.rates` takes them."""
        return np.array(
            [self.true_positive, self.false_positive, self.true_negative, self.false_negative], np.int64
        )


@dataclass(frozen=True)
class PixelMetrics:
    """The eight figures of one prediction or one pool of predictions, each in 0..1.

    Attributes:
        sensitivity: share of vessel pixels that were found (recall).
        specificity: share of background pixels left alone.
        precision: share of marked pixels that are vessel.
        accuracy: share of pixels that are right.
        f1: harmonic mean of precision and sensitivity (= Dice coefficient).
        paper_f1: harmonic mean of precision and specificity; see the function `paper_f1`.
        auc: area under the ROC curve, ties counted half.
        average_precision: area under the precision–recall curve as a step function.
    """

    sensitivity: float
    specificity: float
    precision: float
    accuracy: float
    f1: float
    paper_f1: float
    auc: float
    average_precision: float

    def as_dict(self) -> dict[str, float]:
        """Give name → value in the order of the fields."""
        return asdict(self)


METRIC_NAMES: tuple[str, ...] = tuple(field.name for field in fields(PixelMetrics))


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """How many vessel and background pixels have each level of probability.

    Attributes:
        positive: int64 [65536], vessel pixels per level.
        negative: int64 [65536], background pixels per level.
    """

    positive: NDArray[np.int64]
    negative: NDArray[np.int64]

    @classmethod
    def zero(cls) -> Self:
        """Counts of no pixel at all: the neutral element of `+`."""
        return cls(np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64))

    @classmethod
    def count(cls, levels: NDArray[np.uint16], truth: NDArray[np.bool_], region: NDArray[np.bool_]) -> Self:
        """Count the pixels of one image.

        Args:
            levels: uint16 [H, W], stored probabilities.
            truth: bool [H, W], vessels.
            region: bool [H, W], the pixels that count.

        Raises:
            ValueError: when the types or shapes do not fit together.
        """
        if levels.dtype != np.uint16 or truth.dtype != np.bool_ or region.dtype != np.bool_:
            raise ValueError(
                f"expected uint16, bool, bool; got {levels.dtype}, {truth.dtype}, {region.dtype}"
            )
        if not levels.shape == truth.shape == region.shape:
            raise ValueError(
                f"shapes differ: levels {levels.shape}, truth {truth.shape}, region {region.shape}"
            )
        return cls(
            np.bincount(levels[region & truth], minlength=LEVELS).astype(np.int64),
            np.bincount(levels[region & ~truth], minlength=LEVELS).astype(np.int64),
        )

    def __add__(self, other: "LevelCounts") -> "LevelCounts":
        """Pool two sets of pixels: every pixel weighs the same."""
        return LevelCounts(self.positive + other.positive, self.negative + other.negative)

    def require_both_classes(self) -> None:
        """Refuse a region where sensitivity or specificity would divide by zero.

        Raises:
            UserError: when there is no vessel pixel or no background pixel.
        """
        for name, counts in (("vessel", self.positive), ("background", self.negative)):
            if not counts.any():
                raise UserError(
                    f"no {name} pixel inside the evaluated region, so the metrics are undefined there; "
                    "expected labels with both classes: check the label and the field-of-view mask"
                )

    def confusion(self, threshold: float) -> Confusion:
        """Count hits and errors when every pixel with probability >= `threshold` is marked."""
        first = threshold_level(threshold)
        return Confusion(
            true_positive=int(self.positive[first:].sum()),
            false_positive=int(self.negative[first:].sum()),
            true_negative=int(self.negative[:first].sum()),
            false_negative=int(self.positive[:first].sum()),
        )

    def metrics(self, threshold: float) -> PixelMetrics:
        """Compute all metrics; those that need a decision use `probability >= threshold`.

        Raises:
            UserError: when a class is empty.
        """
        return self.metrics_of(self.confusion(threshold))

    def metrics_of(self, counts: Confusion) -> PixelMetrics:
        """Compute all metrics; those that need a decision from the counts of a mask of these pixels.

        Raises:
            UserError: when a class is empty.
        """
        self.require_both_classes()
        return PixelMetrics(
            sensitivity=sensitivity(counts),
            specificity=specificity(counts),
            precision=precision(counts),
            accuracy=accuracy(counts),
            f1=f1(counts),
            paper_f1=paper_f1(counts),
            auc=auc(self),
            average_precision=average_precision(self),
        )


def sensitivity(counts: Confusion) -> float:
    """TP / (TP + FN), recall; 0 without vessel pixels."""
    return float(rates.sensitivity(counts.as_array()))


def specificity(counts: Confusion) -> float:
    """TN / (TN + FP); 0 without background pixels."""
    return float(rates.specificity(counts.as_array()))


def precision(counts: Confusion) -> float:
    """TP / (TP + FP); 0 when nothing is marked."""
    return float(rates.precision(counts.as_array()))


def accuracy(counts: Confusion) -> float:
    """(TP + TN) / all; 0 without pixels."""
    return float(rates.accuracy(counts.as_array()))


def f1(counts: Confusion) -> float:
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and sensitivity; 0 when there is neither."""
    return float(rates.f1(counts.as_array()))


# ----------------------------------------------------------------------------------------------------------
# The "F1" of Potesman & Rechtman, "SA-UNet for Retinal Vessel improvement using StyleGAN2" (2023), table 2.
def paper_f1(counts: Confusion) -> float:
    """Harmonic mean of precision and *specificity*, which is not an F1 score.

    The published code of Potesman & Rechtman (2023) puts specificity where F1 has sensitivity, and their
    table prints the result as F1. Background outnumbers vessels about eight to one, so specificity stays
    near 1 and the figure rewards marking less: their "best F1" of .983 finds half of the vessels (real F1:
    .663). It is computed here only to compare with that table.
    """
    return float(rates.paper_f1(counts.as_array()))


# ----------------------------------------------------------------------------------------------------------
# Area under the ROC curve as the Mann–Whitney statistic (Hanley & McNeil 1982):
#   AUC = P(score of a vessel pixel > score of a background pixel) + ½ P(equal)
def auc(counts: LevelCounts) -> float:
    """Area under the ROC curve, exact; ties count half.

    Raises:
        UserError: when a class is empty.
    """
    counts.require_both_classes()
    below = np.cumsum(counts.negative) - counts.negative
    twice_pairs_in_order = int(counts.positive @ (2 * below + counts.negative))
    return twice_pairs_in_order / (2 * int(counts.positive.sum()) * int(counts.negative.sum()))


# ----------------------------------------------------------------------------------------------------------
# Average precision: AP = Σ_k (R_k − R_{k−1}) P_k over falling thresholds, without interpolation.
def average_precision(counts: LevelCounts) -> float:
    """Area under the precision–recall curve as a step function.

    Raises:
        UserError: when a class is empty.
    """
    counts.require_both_classes()
    hits = np.cumsum(counts.positive[::-1])
    marked = hits + np.cumsum(counts.negative[::-1])
    gained = counts.positive[::-1]
    used = gained > 0  # there `marked` is positive too
    return float(np.sum(gained[used] * (hits[used] / marked[used])) / hits[-1])
