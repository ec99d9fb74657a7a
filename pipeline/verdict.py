"""What the test set says about the method, in sentences that follow from the numbers alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.bootstrap import Interval, f1_difference, f1_permutation_p

MIN_IMAGES = 6
"""With fewer images p cannot fall below 0.05: of 2^5 ways to swap, 2 always reach the observed difference."""

SIGNIFICANCE = 0.05

REAL_PHASES = ("real", "real (final)", "mixed", "mixed (final)")
"""Phases of training in which every epoch shows every real training image once."""

Outcome = Literal["gain", "loss", "no_gain", "too_few"]


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same test images.

    Attributes:
        difference: pooled F1 of the model − that of the reference, with its paired bootstrap interval.
        p: of the two-sided paired permutation test of that difference.
        images: number of test images.
        outcome: `gain` or `loss` when the interval lies on one side of 0 and p < `SIGNIFICANCE`: on few
            images the interval alone is too short; else `no_gain`; `too_few` when there are fewer than
            `MIN_IMAGES` images.
    """

    model: str
    reference: str
    difference: Interval
    p: float
    images: int
    outcome: Outcome

    def sentence(self) -> str:
        """Say what interval and test allow to say, and nothing else."""
        change = signed(self.difference.value)
        if self.outcome == "too_few":
            return (
                f"Too few test images to tell whether “{self.model}” differs from “{self.reference}”: "
                f"{self.images}, where at least {MIN_IMAGES} are needed (F1 {change})."
            )
        low, high = signed(self.difference.low), signed(self.difference.high)
        p = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        evidence = f"F1 {change} (95% interval {low} to {high}, {p})."
        if self.outcome == "no_gain":
            return f"No demonstrable gain of “{self.model}” over “{self.reference}”: {evidence}"
        direction = "better" if self.outcome == "gain" else "worse"
        return f"“{self.model}” is {direction} than “{self.reference}”: {evidence}"


def compare(
    per_image: pd.DataFrame, model: str, reference: str, region: str, draws: NDArray[np.int64], seed: int
) -> Comparison:
    """Compare two models by pooled F1 over the same images.

    Args:
        per_image: the table of `pipeline.evaluation.write_per_image`.
        model: what is judged.
        reference: what it is compared with.
        region: `fov` or `full_frame`.
        draws: int64 [samples, images], from `pipeline.metrics.bootstrap.draw_images`.
        seed: of the permutation test.

    Raises:
        UserError: when the two were not evaluated on the same images.
    """
    rows, others = model_rows(per_image, model, region), model_rows(per_image, reference, region)
    if list(rows["id"]) != list(others["id"]):
        raise UserError(
            f"per_image.csv holds other images for {model!r} than for {reference!r}; run `evaluate` again"
        )
    counts, reference_counts = f1_counts(rows), f1_counts(others)
    difference = f1_difference(counts, reference_counts, draws)
    p = f1_permutation_p(counts, reference_counts, seed)
    return Comparison(model, reference, difference, p, len(rows), _outcome(difference, p, len(rows)))


def unequal_training(reference: str, histories: Mapping[str, pd.DataFrame]) -> str | None:
    """Warn when models saw the real images in other numbers of epochs or at other rates than the reference.

    Args:
        reference: its name.
        histories: model → columns phase and learning_rate, one row per epoch in order; holds the reference.

    Returns:
        None when all saw them alike.
    """
    schedules = {model: real_schedule(history) for model, history in histories.items()}
    others = [model for model, schedule in schedules.items() if schedule != schedules[reference]]
    if not others:
        return None
    seen = "; ".join(f"“{model}” {describe(schedules[model])}" for model in (reference, *others))
    return (
        f"Not trained alike on the real images: {seen}. A difference may come from that and must not be put "
        "down to the synthetic images. The control is retrain.order: [real]: retraining’s schedule on the "
        "real images, without a synthetic one."
    )


def unfinished_training(histories: Mapping[str, pd.DataFrame]) -> str | None:
    """Warn when the best weights of a model are those of its last epoch.

    Args:
        histories: model → column kept, one row per epoch in order.

    Returns:
        None when every model had an epoch after its best one.
    """
    names = [f"“{name}”" for name, history in histories.items() if bool(history["kept"].iloc[-1])]
    if not names:
        return None
    kept = "kept its last epoch and was" if len(names) == 1 else "kept their last epochs and were"
    return (
        f"{' and '.join(names)} {kept} still improving on the validation images: more epochs alone might "
        "have moved the figures, and a model that trained longer, on whatever images, has an advantage."
    )


def real_schedule(history: pd.DataFrame) -> tuple[tuple[int, float], ...]:
    """Sum up the epochs that show real images: (epochs, learning rate) in order, equal rates joined."""
    steps: list[tuple[int, float]] = []
    rates = history["learning_rate"][history["phase"].isin(REAL_PHASES)]
    for rate in rates.astype(float).tolist():
        epochs = steps.pop()[0] if steps and steps[-1][1] == rate else 0
        steps.append((epochs + 1, rate))
    return tuple(steps)


def describe(schedule: tuple[tuple[int, float], ...]) -> str:
    """Write a schedule as “80 epochs at 0.001 + 30 epochs at 0.0001”, or “no epoch”."""
    return " + ".join(f"{epochs} epochs at {rate:g}" for epochs, rate in schedule) or "no epoch"


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


def _outcome(difference: Interval, p: float, images: int) -> Outcome:
    if images < MIN_IMAGES:
        return "too_few"
    if p >= SIGNIFICANCE or difference.low <= 0 <= difference.high:
        return "no_gain"
    return "gain" if difference.low > 0 else "loss"
