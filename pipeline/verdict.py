"""What the test set says about the method, in sentences that follow from the numbers alone."""

from collections.abc import Mapping, Sequence
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
    told = describe(schedules[reference])
    seen = [f"“{reference}” {told}"]
    for model in others:
        text = describe(schedules[model])
        seen.append(f"“{model}” {text}{', with other rates in between' if text == told else ''}")
    return (
        f"Not trained alike on the real images: {'; '.join(seen)}. A difference may come from that and "
        "must not be put down to the synthetic images. The control is retrain.order: [real]: retraining’s "
        "schedule on the real images, without a synthetic one."
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


def real_schedule(history: pd.DataFrame) -> tuple[float, ...]:
    """Give the learning rate of every epoch that shows real images, in order."""
    rates = history["learning_rate"][history["phase"].isin(REAL_PHASES)]
    return tuple(rates.astype(float).tolist())


def describe(schedule: Sequence[float]) -> str:
    """Sum up the rates of epochs, in as many words for few epochs as for many.

    Args:
        schedule: one learning rate per epoch, in order.

    Returns:
        “80 epochs at 0.001 + 30 epochs at 0.0001”; “240 epochs, 0.002 falling to 1e-05” (or “rising”) where
        at least three epochs in a row change their rate in one direction, to three digits; or “no epoch”.
    """
    parts = []
    start = 0
    while start < len(schedule):
        end = _end_of_run(schedule, start)
        first, last = schedule[start], schedule[end - 1]
        if first == last:
            parts.append(f"{end - start} epochs at {first:g}")
        else:
            way = "falling" if last < first else "rising"
            parts.append(f"{end - start} epochs, {first:.3g} {way} to {last:.3g}")
        start = end
    return " + ".join(parts) or "no epoch"


def _end_of_run(schedule: Sequence[float], start: int) -> int:
    """Find where the epochs end that are told together with epoch `start`: one behind the last.

    Equal rates go together. So do three or more that all fall or all rise, up to a rate that stays.
    """
    signs = np.sign(np.diff(schedule[start:]))
    if not signs.size:
        return start + 1
    others = np.flatnonzero(signs != signs[0])
    changes = int(others[0]) if others.size else signs.size
    if signs[0] == 0:
        return start + 1 + changes
    # The last of the run may begin a stretch of equal rates, and then belongs to that.
    stays = changes < signs.size and signs[changes] == 0
    epochs = changes + (0 if stays else 1)
    return start + (epochs if epochs >= 3 else 1)


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
