"""From stored predictions to every figure that is reported of a model: the stage and the command share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.binarise import Binarisation
from pipeline.evaluation import FIELD_OF_VIEW, FULL_FRAME, Evaluation, TruthShapes, evaluate_predictions
from pipeline.intervals import headlines, interval_table
from pipeline.prepared import Sample

METRICS = "metrics"

Summary = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Draws:
    """The bootstrap's draws: how many, and their seed."""

    samples: int = 2000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything that is reported of one model.

    Attributes:
        evaluation: its figures image by image, and the pooled counts.
        intervals: every figure with its interval, see `pipeline.intervals.interval_table`.
        summaries: what goes into one file each, pooled and mean, by the file's name: `metrics` (pixel figures
            in the field of view), `full_frame` (the same in the full frame), `topology` and `agreement` (in
            the field of view, with intervals).
    """

    evaluation: Evaluation
    intervals: pd.DataFrame
    summaries: Mapping[str, Summary]


def score_predictions(
    folder: Path,
    samples: Sequence[Sample],
    name: str,
    draws: Draws,
    *,
    threshold: float,
    binarisation: Binarisation | None,
    shapes: TruthShapes | None = None,
) -> Scores:
    """Score stored predictions.

    Args:
        folder: holds `<id>.png` of every sample, see `pipeline.evaluation.write_predictions`.
        samples: labelled; at least one.
        name: of the model, in the tables.
        draws: of the intervals.
        threshold: probability from which on a pixel is vessel.
        binarisation: how masks are made instead; None for the threshold alone.
        shapes: see `pipeline.evaluation.evaluate_predictions`.

    Raises:
        UserError: see `pipeline.evaluation.evaluate_predictions`.
    """
    evaluation = evaluate_predictions(folder, samples, threshold, shapes, binarisation)
    intervals = interval_table(evaluation, name, draws.samples, draws.seed)
    summaries = {
        METRICS: evaluation.summary(FIELD_OF_VIEW),
        FULL_FRAME: evaluation.summary(FULL_FRAME),
        **headlines(intervals, FIELD_OF_VIEW),
    }
    return Scores(evaluation, intervals, summaries)
