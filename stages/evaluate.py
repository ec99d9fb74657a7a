"""Stage `evaluate`: predict the test images with every model, and score the stored predictions.

Labelled images give metrics, curves and the per-image table. Unlabelled ones (the DRIVE challenge keeps their
labels) are predicted only, and written as masks for a submission.
"""

from typing import Annotated

from pydantic import Field
from tqdm import tqdm

from pipeline.curves import precision_recall_curve, roc_curve, write_curve
from pipeline.evaluation import (
    FIELD_OF_VIEW,
    TruthShapes,
    write_metrics,
    write_per_image,
    write_predictions,
    write_submission,
)
from pipeline.inference import Predictor
from pipeline.intervals import write_intervals
from pipeline.prepared import load_samples
from pipeline.schema import Strict
from pipeline.scoring import METRICS, Draws, score_predictions
from stages.context import StageRun, stage_command

MODELS = ("base", "retrained", "ensemble")


class Params(Strict):
    """Section `evaluate`: points of a ROC or precision–recall file at most; draws behind every interval."""

    curve_points: Annotated[int, Field(ge=10, le=5000)] = 200
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000


@stage_command("evaluate", Params)
def main(run: StageRun) -> None:
    """Predict and score the test images with every model."""
    data = run.dep("data/prepared/test")
    labelled = load_samples(data, "test", allow_test=True)
    unlabelled = load_samples(data, "unlabelled", allow_test=True)
    predictions, roc, precision_recall = run.out("predictions"), run.out("plots/roc"), run.out("plots/pr")
    for folder in (roc, precision_recall):
        folder.mkdir()
    draws = Draws(run.params.bootstrap_samples, run.seed)

    tables, intervals = [], []
    shapes: TruthShapes = {}
    for name in MODELS:
        model = Predictor.from_folder(run.dep(f"models/{name}"), run.runtime.torch_device())
        progress = tqdm([*labelled, *unlabelled], desc=f"predict with {name}", unit="image")
        write_predictions(model, progress, predictions / name)
        scores = score_predictions(
            predictions / name,
            labelled,
            name,
            draws,
            threshold=model.threshold,
            binarisation=model.binarisation,
            shapes=shapes,
        )
        for group, summary in scores.summaries.items():
            place = METRICS if group == METRICS else f"{METRICS}/{group}"
            write_metrics(run.out(f"{place}/{name}.json"), summary)
        counts = scores.evaluation.pooled[FIELD_OF_VIEW]
        write_curve(roc / f"{name}.csv", roc_curve(counts, run.params.curve_points))
        write_curve(precision_recall / f"{name}.csv", precision_recall_curve(counts, run.params.curve_points))
        tables.append(scores.evaluation.per_image(name))
        intervals.append(scores.intervals)
        if unlabelled:
            submission = predictions / "submission" / name
            write_submission(submission, predictions / name, unlabelled, model.threshold, model.binarisation)
    write_per_image(run.out("metrics/per_image.csv"), tables)
    write_intervals(run.out("metrics/intervals.csv"), intervals)


if __name__ == "__main__":
    main()
