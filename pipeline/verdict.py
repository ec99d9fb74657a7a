"""What the test set says about the method, in one sentence that follows from the numbers alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.bootstrap import Interval, f1_difference

MIN_IMAGES = 5
"""Fewer images than this give no usable bootstrap interval."""

Outcome = Literal["gain", "loss", "no_gain", "too_few"]


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same test images.

    Attributes:
        difference: pooled F1 of the model − that of the reference, with its paired bootstrap interval.
        images: number of test images.
        outcome: `gain` or `loss` when the interval lies on one side of 0, `no_gain` when it contains 0,
            `too_few` when there are fewer than `MIN_IMAGES` images.
    """

    model: str
    reference: str
    difference: Interval
    images: int
    outcome: Outcome

    def sentence(self) -> str:
        """Say what the interval allows to say, and nothing else."""
        change = signed(self.difference.value)
        interval = f"95% interval {signed(self.difference.low)} to {signed(self.difference.high)}"
        if self.outcome == "too_few":
            return (
                f"{self.images} test image(s) cannot tell whether “{self.model}” "
                f"differs from “{self.reference}”: F1 {change} without a usable interval."
            )
        if self.outcome == "no_gain":
            return (
                f"No demonstrable gain of “{self.model}” over “{self.reference}”: F1 {change} "
                f"({interval}, which contains 0)."
            )
        direction = "better" if self.outcome == "gain" else "worse"
        return f"“{self.model}” is {direction} than “{self.reference}”: F1 {change} ({interval})."


def compare(
    per_image: pd.DataFrame, model: str, reference: str, region: str, draws: NDArray[np.int64]
) -> Comparison:
    """Compare two models by pooled F1 over the same images.

    Args:
        per_image: the table of `pipeline.evaluation.write_per_image`.
        model: what is judged.
        reference: what it is compared with.
        region: `fov` or `full_frame`.
        draws: int64 [samples, images], from `pipeline.metrics.bootstrap.draw_images`.

    Raises:
        UserError: when the two were not evaluated on the same images.
    """
    rows, others = model_rows(per_image, model, region), model_rows(per_image, reference, region)
    if list(rows["id"]) != list(others["id"]):
        raise UserError(
            f"per_image.csv holds other images for {model!r} than for {reference!r}; run `evaluate` again"
        )
    difference = f1_difference(f1_counts(rows), f1_counts(others), draws)
    return Comparison(model, reference, difference, len(rows), _outcome(difference, len(rows)))


def model_rows(per_image: pd.DataFrame, model: str, region: str) -> pd.DataFrame:
    """Rows of one model and region, by rising id.

    Raises:
        UserError: when there is none.
    """
    rows = per_image[(per_image["model"] == model) & (per_image["region"] == region)]
    if rows.empty:
        raise UserError(
            f"per_image.csv has no row for model {model!r}, region {region!r}; run `evaluate` again"
        )
    return rows.sort_values("id", ignore_index=True)


def f1_counts(rows: pd.DataFrame) -> NDArray[np.int64]:
    """The counts that F1 is made of: int64 [images, 3], true positives, false positives, false negatives."""
    return rows[["true_positive", "false_positive", "false_negative"]].to_numpy(np.int64)


def signed(value: float) -> str:
    """Write a number with its sign and four decimals, with a true minus."""
    return f"{value:+.4f}".replace("-", "−")


def _outcome(difference: Interval, images: int) -> Outcome:
    if images < MIN_IMAGES:
        return "too_few"
    if difference.low > 0:
        return "gain"
    return "loss" if difference.high < 0 else "no_gain"
